"""What shape an encoder has: the one description shared by encoders and weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from t5ts.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class T5Architecture:
    """Shape of a T5 encoder stack, in the words of T5's own `config.json`.

    Source: Raffel et al. 2020 (v1.0) and Shazeer 2020 (v1.1's gated feed-forward).
    """

    d_model: int
    d_ff: int
    d_kv: int
    num_layers: int
    num_heads: int
    vocab_size: int = 32128
    feed_forward_proj: str = "relu"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @property
    def activation(self) -> dict[str, object]:
        """The config values that transformers derives from `feed_forward_proj`."""
        is_gated = self.feed_forward_proj != "relu"
        return {"dense_act_fn": "gelu_new" if is_gated else "relu", "is_gated_act": is_gated}


@dataclass(frozen=True, kw_only=True)
class HFArchitecture:
    """Shape of a Transformer that transformers builds, or of its first blocks.

    Attributes:
        num_layers: Blocks in use, from the first.
        config: The whole model's `config.json`, as far as it differs from its type's defaults.
    """

    model_type: str
    d_model: int
    num_layers: int
    num_heads: int
    vocab_size: int
    config: dict[str, Any]


Architecture = T5Architecture | HFArchitecture


def architecture_from(values: Mapping[str, Any]) -> Architecture:
    """The architecture that a load report holds as plain values."""
    return (HFArchitecture if "model_type" in values else T5Architecture)(**values)


def kind_of(arch: Mapping[str, Any] | Architecture) -> str:
    """What a model is called, from its architecture or the values of one."""
    values = arch if isinstance(arch, Mapping) else vars(arch)
    return str(values.get("model_type", "T5"))


def t5_architecture(config: Mapping[str, Any], *, where: str) -> T5Architecture:
    """The encoder's shape from a T5 config's values; `where` names the file in errors.

    Keys missing from old T5 configs get transformers' T5Config defaults.

    Raises:
        WeightsError: if a key is missing or impossible, or two contradict each other.
    """
    names = [field.name for field in fields(T5Architecture)]
    values = {"d_kv": 64} | {name: config[name] for name in names if name in config}
    sizes = {"d_model", "d_ff", "num_layers", "num_heads"} | values.keys()
    for name in sorted(sizes):
        value: Any = values.get(name)
        if name == "feed_forward_proj":
            is_good = value in ("relu", "gated-gelu")
            allowed = "relu (T5 v1.0) or gated-gelu (v1.1, Flan-T5)"
        elif name == "layer_norm_epsilon":
            is_good, allowed = type(value) in (int, float) and 0 < value < 1, "between 0 and 1"
        else:
            most = 1000 if name == "num_layers" else 10_000_000
            is_good = type(value) is int and 1 <= value <= most
            allowed = f"a whole number from 1 to {most:,}"
        if not is_good:
            raise WeightsError(
                f"{where}: {name} is {value!r}; it must be {allowed}. Download the checkpoint's"
                " config.json again, or choose another checkpoint."
            )
    arch = T5Architecture(**values)
    for name, derived in arch.activation.items():
        if config.get(name) not in (None, derived):
            raise WeightsError(
                f"{where} contradicts itself: {name} is {config[name]!r}, feed_forward_proj is"
                f" {arch.feed_forward_proj!r}, and programs that read one or the other build"
                f" different models. Fix the file, or remove {name}."
            )
    return arch
