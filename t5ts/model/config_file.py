"""A checkpoint folder's `config.json`: is it a T5's, and which shape does it describe?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.packaged import checkpoint_folder

#: Allowed values of feed_forward_proj, and what transformers derives from them.
FEED_FORWARDS = {
    "relu": {"dense_act_fn": "relu", "is_gated_act": False},
    "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}
LFS_POINTER = b"version https://git-lfs"
#: Other models' names of T5's sizes, which transformers takes for them.
_ALIASES = {
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "d_kv": "head_dim",
}


class CorruptError(WeightsError):
    """A file of a checkpoint is damaged."""

    def in_cache(self, repository: Path) -> "CorruptError":
        """The same of a file in the hub's cache, where only deleting heals."""
        return CorruptError(
            f"{self} It is in the hub's cache: delete that copy (rm -r '{repository}') and run the "
            "same command again, which downloads it."
        )


def read_bytes(path: Path) -> bytes:
    """A small file of a checkpoint.

    Raises:
        WeightsError: if it cannot be read, or is a Git LFS pointer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if content.startswith(LFS_POINTER):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there."
        )
    return content


def unreadable(path: Path, error: OSError) -> WeightsError:
    """The error for a file or folder that exists and cannot be read."""
    return WeightsError(
        f"{path} cannot be read ({error.strerror or error}). Fix its permissions, or give another "
        "folder: backbone=local backbone.path=DIR."
    )


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder, checked to be a T5's.

    Raises:
        WeightsError: if the folder or the file is missing or unreadable, the model is not a T5,
            or it is quantised.
    """
    folder = checkpoint_folder(folder)
    help_text = (
        "Give a folder that holds config.json and model.safetensors, as T5's save_pretrained "
        "writes it: backbone=local backbone.path=DIR."
    )
    path = folder / "config.json"
    try:
        if not folder.exists():
            raise WeightsError(f"No such directory: {folder}. {help_text}")
        if not folder.is_dir():
            raise WeightsError(f"{folder} is a file, not a checkpoint directory. {help_text}")
        held = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    if path.name not in held:
        raise WeightsError(
            f"{folder} has no config.json (it holds: {', '.join(held[:6]) or 'nothing'}), so it is "
            f"no checkpoint directory. {help_text}"
        )
    try:
        config = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptError(
            f"{path} is not valid JSON ({error}): truncated or corrupted. Fetch it again."
        ) from error
    if not isinstance(config, dict):
        raise CorruptError(
            f"{path} holds a {type(config).__name__}, not a JSON object of settings."
        )
    if config.get("model_type") != "t5":
        raise WeightsError(
            f"{path} says model_type={config.get('model_type')!r}; only 't5' can be used (T5 v1.0, "
            "v1.1, Flan-T5 and T5-efficient are all 't5'). Choose a T5 checkpoint."
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise WeightsError(
            f"{path} has a quantization_config ({method}): a quantised stand-in is not the "
            "pretrained T5 and cannot be trained. Use the original floating-point checkpoint."
        )
    return config


def read_architecture(path: str | Path) -> T5Architecture:
    """The encoder's shape from a checkpoint folder's `config.json`.

    Keys that old T5 configs leave out take transformers' T5Config defaults.

    Args:
        path: The checkpoint folder.

    Raises:
        WeightsError: as `read_config`, or if a key is missing or has an impossible value.
    """
    return architecture_of(read_config(path), where=str(checkpoint_folder(path) / "config.json"))


def architecture_of(config: Mapping[str, Any], *, where: str) -> T5Architecture:
    """The encoder's shape from a T5 config's values; `where` names the file in errors.

    Raises:
        WeightsError: if a key is missing or has an impossible value.
    """
    defaults = {
        "d_kv": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    sizes = {
        key: _size(config, key, defaults.get(key), where)
        for key in ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "vocab_size", *defaults)
    }
    if config.get("num_decoder_layers") is not None:
        _size(config, "num_decoder_layers", None, where)
    for key, alias in _ALIASES.items():
        if config.get(alias) not in (None, sizes[key]):
            raise _contradiction(where, key, sizes[key], alias, config[alias])
    feed_forward = config.get("feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in FEED_FORWARDS:
        raise WeightsError(
            f"{where}: feed_forward_proj is {feed_forward!r}; allowed are "
            f"{' (T5 v1.0), '.join(FEED_FORWARDS)} (v1.1, Flan-T5). Choose such a checkpoint."
        )
    for key, value in FEED_FORWARDS[feed_forward].items():
        if config.get(key) not in (None, value):
            raise _contradiction(where, "feed_forward_proj", feed_forward, key, config[key])
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise WeightsError(f"{where}: layer_norm_epsilon is {epsilon!r}; it must lie in (0, 1).")
    return T5Architecture(
        **sizes, feed_forward_proj=feed_forward, layer_norm_epsilon=float(epsilon)
    )


def _size(config: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    value = config.get(key, default)
    most = 1000 if key.endswith("layers") else 10_000_000
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise WeightsError(
            f"{where}: {key} is {value!r}; it must be a whole number from 1 to {most:,}. Fetch the "
            "checkpoint's config.json again."
        )
    return value


def _contradiction(where: str, key: str, value: object, other: str, given: object) -> WeightsError:
    return WeightsError(
        f"{where} contradicts itself: {key} is {value!r}, {other} is {given!r}. Programs that read "
        f"one or the other build different models: correct the file, or remove {other}."
    )
