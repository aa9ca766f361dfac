"""What shape an encoder has: the one description shared by encoders and weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
