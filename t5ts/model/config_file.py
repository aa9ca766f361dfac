"""A checkpoint folder's `config.json`: is it a T5's, and which shape does it describe?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.packaged import checkpoint_folder

FEED_FORWARDS = ("relu", "gated-gelu")
LFS_POINTER = b"version https://git-lfs"


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
    if not folder.exists():
        raise WeightsError(f"No such directory: {folder}. {help_text}")
    if not folder.is_dir():
        raise WeightsError(f"{folder} is a file, not a checkpoint directory. {help_text}")
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise WeightsError(
            f"{folder} has no config.json (it holds: {found}), so it is no checkpoint directory. "
            + help_text
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). {help_text}") from error
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        pointer = text.startswith(LFS_POINTER.decode())
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there."
            if pointer
            else f"{path} is not valid JSON ({error}): truncated or corrupted. Fetch it again."
        ) from error
    if not isinstance(config, dict):
        raise WeightsError(
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
    sizes: dict[str, int] = {}
    defaults = {
        "d_kv": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    for key in ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "vocab_size", *defaults):
        value = config.get(key, defaults.get(key))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise WeightsError(
                f"{where}: {key} is {value!r}; it must be a whole number of at least 1. "
                "Fetch the checkpoint's config.json again."
            )
        sizes[key] = value
    feed_forward = config.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARDS:
        raise WeightsError(
            f"{where}: feed_forward_proj is {feed_forward!r}; allowed are "
            f"{' (T5 v1.0), '.join(FEED_FORWARDS)} (v1.1, Flan-T5). Choose such a checkpoint."
        )
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise WeightsError(f"{where}: layer_norm_epsilon is {epsilon!r}; it must lie in (0, 1).")
    return T5Architecture(
        **sizes, feed_forward_proj=feed_forward, layer_norm_epsilon=float(epsilon)
    )
