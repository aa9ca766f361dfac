"""A folder with a checkpoint: its `config.json`, its tensors, its checksums.

Only formats that cannot run code are opened, and anything wrong with a file becomes one message.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture, t5_architecture

# A prefix rather than an absolute path, so that a run's configuration and its identity are
# the same in a checkout and in an installed wheel.
PACKAGED = "packaged:"
T5_TYPES = ("t5", "mt5")  # one architecture
# Best first. An index names the shards of a checkpoint that is split over several files.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WEIGHTS = (".safetensors", ".bin", ".onnx", ".gguf", ".h5", ".msgpack")  # most worth showing
_LFS_POINTER = b"version https://git-lfs"
_GIVE_FOLDER = (
    "Use a folder with config.json and model.safetensors, as written by save_pretrained:"
    " backbone.path=DIR with backbone=local for a T5, backbone=hf for another model."
)


class CorruptError(WeightsError):
    """A file of a checkpoint is corrupt or missing."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder.

    Attributes:
        files: config.json, the index if there is one, the weight files.
        tensors: By the files' names, in their stored dtype; mapped from the files where the format
            allows, so that only what is used is read.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]

    @property
    def format(self) -> str:
        """ "safetensors" or "pytorch"."""
        return "pytorch" if self.files[-1].suffix == ".bin" else "safetensors"


def checkpoint_folder(path: str | Path) -> Path:
    """The folder that a path refers to: `packaged:NAME`, or any other with its ~ expanded.

    Raises:
        WeightsError: if no checkpoint with that name comes with t5ts.
    """
    text = str(path)
    if not text.startswith(PACKAGED):
        return Path(text).expanduser()
    own = Path(__file__).resolve().parent
    names = sorted(config.parent.name for config in own.glob("*/config.json"))
    if (name := text.removeprefix(PACKAGED)) not in names:
        raise WeightsError(
            f"No checkpoint named {name!r} comes with t5ts; allowed: {', '.join(names)}. For a"
            " folder of your own use backbone=local backbone.path=DIR."
        )
    return own / name


def open_checkpoint(
    path: str | Path, *, model_types: Collection[str] | None = T5_TYPES
) -> Checkpoint:
    """Open a checkpoint folder, whose `config.json` must be of one of these types (None: any).

    Raises:
        WeightsError: if anything is missing, truncated, corrupted or untrusted.
    """
    folder = checkpoint_folder(path)
    config = read_config(folder, model_types=model_types)
    main = choose_weight_file(_names_in(folder), where=str(folder))
    shards = shard_names(folder, main)
    tensors: dict[str, Tensor] = {}
    for name in shards:
        stored = _read_tensors(folder / name)
        if twice := sorted(tensors.keys() & stored.keys()):
            raise CorruptError(
                f"{twice[0]} is in two files of {folder}, one of them {name}. Download the"
                " checkpoint again."
            )
        tensors |= stored
    names = ["config.json", *([] if shards == [main] else [main]), *shards]
    return Checkpoint(folder, config, tuple(folder / name for name in names), tensors)


def choose_weight_file(names: Iterable[str], *, where: str) -> str:
    """The best weight file (or index of shards) among a folder's or repository's file names.

    Raises:
        WeightsError: if none can be used.
    """
    present = set(names)
    for candidate in WEIGHT_FILES:
        if candidate in present:
            return candidate
    others = sorted(present - {"config.json"}, key=lambda n: (not n.endswith(_WEIGHTS), n))
    raise WeightsError(
        f"{where} has none of {', '.join(WEIGHT_FILES)}; it contains {_shown(others)}. Use the"
        " original checkpoint (other formats, adapters and quantised weights cannot be trained), or"
        " rename a variant such as model.fp16.safetensors to model.safetensors."
    )


def shard_names(folder: Path, main: str) -> list[str]:
    """Names of the weight files: `main` itself, or, if it is an index, the shards it lists.

    Raises:
        WeightsError: if the index is broken or names a file outside its folder.
    """
    if not main.endswith(".index.json"):
        return [main]
    shards = _read_json(folder / main).get("weight_map")
    files = list(shards.values()) if isinstance(shards, dict) else []
    # In this folder, under a plain name.
    if not files or not all(
        isinstance(file, str) and Path(file).name == file and "\0" not in file for file in files
    ):
        raise CorruptError(
            f"{folder / main} is not a shard index: it needs a weight_map from tensors to files in"
            " the same folder. Download the checkpoint again."
        )
    return sorted(set(files))


def read_config(folder: Path, *, model_types: Collection[str] | None = T5_TYPES) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder; `model_types` are the allowed ones (None: any).

    Raises:
        WeightsError: if it is missing or unreadable, of another type, or quantised.
    """
    path, names = folder / "config.json", _names_in(folder)
    if path.name not in names:
        raise WeightsError(
            f"{folder} has no config.json (it contains {_shown(names)}). {_GIVE_FOLDER}"
        )
    config = _read_json(path)
    if model_types is not None and config.get("model_type") not in model_types:
        raise WeightsError(
            f"{path}: model_type is {config.get('model_type')!r}; this backbone's is"
            f" {' or '.join(map(repr, model_types))}. Choose a checkpoint of that architecture, or"
            " backbone.path=DIR with backbone=local for a T5, backbone=hf for any other."
        )
    if quantised := config.get("quantization_config"):
        raise WeightsError(
            f"{path} has a quantization_config ({str(quantised)[:100]}): quantised weights cannot"
            " be trained. Use the original floating-point checkpoint."
        )
    return config


def read_architecture(path: str | Path) -> T5Architecture:
    """A T5's shape from a folder; WeightsError as `read_config` and `t5_architecture`."""
    folder = checkpoint_folder(path)
    return t5_architecture(read_config(folder), where=str(folder / "config.json"))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; computed once per process while the file is unchanged."""
    with _reading(path) as file:
        stat = os.fstat(file.fileno())
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise WeightsError(f"{folder} cannot be read ({why}). {_GIVE_FOLDER}") from error


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    """An opened file of a checkpoint; anything wrong with it becomes one message."""
    try:
        if not path.is_file():  # a FIFO would block
            raise CorruptError(
                f"{path} is missing, or not a regular file. Download the checkpoint again."
            )
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise WeightsError(
                    f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there."
                )
            file.seek(0)
            yield file
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}). Fix its permissions, or use"
            " another folder: backbone=local backbone.path=DIR."
        ) from error
    except Exception as error:  # a corrupt file can raise almost anything
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        is_pickle = isinstance(error, pickle.UnpicklingError)
        if is_pickle and re.search("weights_only|Unsupported", str(error)):
            raise WeightsError(
                f"{path} contains more than tensors, and unpickling it could run code, or it is"
                " corrupted. Use a checkpoint with model.safetensors."
            ) from error
        raise CorruptError(
            f"{path} is truncated or corrupted ({why}). Download the checkpoint again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    with _reading(path) as file:
        values = json.loads(file.read().decode("utf-8"), object_hook=_special_float)
        if not isinstance(values, dict):
            raise TypeError(f"a {type(values).__name__}, not a JSON object")
    return values


def _special_float(values: dict[str, Any]) -> Any:
    """A number that transformers writes as an object, since JSON has no infinity."""
    is_number = values.keys() == {"__float__"}
    return float(values["__float__"]) if is_number else values


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file; of a pickle through torch's weights-only loader."""
    with _reading(path) as file:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files from before torch 1.6 are not zip archives, and only archives can be mapped.
        mmap = file.read(2) == b"PK"
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(stored, dict) or not all(
        isinstance(t, Tensor) and t.layout is torch.strided for t in stored.values()
    ):
        raise WeightsError(
            f"{path} is not a plain state dict of dense tensors; save it again by save_pretrained."
        )
    return {str(name): tensor for name, tensor in stored.items()}


def _shown(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "nothing"
