"""A folder with a checkpoint: its `config.json`, its tensors' names and shapes, its bytes.

Nothing is trusted: each file's header is compared with its size before a tensor is read, and only
formats that cannot run code are opened.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture

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
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Not quantised: as safetensors writes it and as torch does.
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16", *map(str, _FLOATS))
# Allowed values of feed_forward_proj, and what transformers derives from them.
_FEED_FORWARDS: dict[str, dict[str, object]] = {
    "relu": {"dense_act_fn": "relu", "is_gated_act": False},
    "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}
_WEIGHTS = (".safetensors", ".bin", ".onnx", ".gguf", ".h5", ".msgpack")  # most worth showing
_LFS_POINTER = b"version https://git-lfs"
_GIVE_FOLDER = (
    "Use a folder with config.json and model.safetensors, as written by save_pretrained: "
    "backbone.path=DIR with backbone=local for a T5, backbone=hf for another model."
)


class CorruptError(WeightsError):
    """A file of a checkpoint is corrupt or missing."""


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor as its file's header describes it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True)
class CheckpointFiles:
    """An opened checkpoint folder: every tensor's place and shape, no tensor read."""

    folder: Path
    config: dict[str, Any]
    format: str  # "safetensors" or "pytorch"
    files: tuple[Path, ...]  # config.json, the index if there is one, the weight files
    weights: tuple[Path, ...]  # the weight files alone
    header: dict[str, TensorInfo]

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read these tensors, in their stored dtype; WeightsError if a file cannot be read."""
        tensors: dict[str, Tensor] = {}
        for path in self.weights:
            here = [name for name in names if self.header[name].file == path]
            if self.format == "safetensors":
                with _safetensors(path) as file:
                    tensors |= {name: file.get_tensor(name) for name in here}
            else:
                stored = _load_pickle(path)
                tensors |= {name: stored[name] for name in here}
        return tensors


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
            f"No checkpoint named {name!r} comes with t5ts; allowed are: {', '.join(names)}. For a "
            "folder of your own use backbone=local backbone.path=DIR."
        )
    return own / name


def open_checkpoint(
    path: str | Path, *, model_types: Collection[str] | None = T5_TYPES
) -> CheckpointFiles:
    """Open a checkpoint folder: config, format and every tensor's shape, no tensor read.

    Raises:
        WeightsError: if anything is missing, truncated, corrupted or untrusted.
    """
    folder = checkpoint_folder(path)
    config = read_config(folder, model_types=model_types)
    main = choose_weight_file(_names_in(folder), where=str(folder))
    shards = shard_names(folder, main)
    weights = tuple(folder / name for name in shards)
    header: dict[str, TensorInfo] = {}
    for file in weights:
        part = _read_header(file)
        if twice := sorted(header.keys() & part.keys()):
            raise CorruptError(
                f"{twice[0]} is in two files, {header[twice[0]].file.name} and {file.name} in "
                f"{folder}. Download the checkpoint again."
            )
        header |= part
    names = ["config.json", *([] if shards == [main] else [main]), *shards]
    return CheckpointFiles(
        folder=folder,
        config=config,
        format="pytorch" if ".bin" in main else "safetensors",
        files=tuple(folder / name for name in names),
        weights=weights,
        header=header,
    )


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
        f"{where} has none of {', '.join(WEIGHT_FILES)}; it contains {_shown(others)}. ONNX, GGUF, "
        "TensorFlow and Flax files, adapters and quantised weights cannot be trained: use the "
        "original checkpoint (for example t5-small). A variant such as model.fp16.safetensors in "
        "a folder can be renamed to model.safetensors and used with backbone=local "
        "backbone.path=DIR."
    )


def shard_names(folder: Path, main: str) -> list[str]:
    """Names of the weight files: `main` itself, or, if it is an index, the shards it lists.

    Raises:
        WeightsError: if the index is broken or names a file outside its folder.
    """
    if not main.endswith(".index.json"):
        return [main]
    index = _read_json(folder / main)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    files = list(shards.values()) if isinstance(shards, dict) else []
    # In this folder, under a plain name.
    if not files or not all(
        isinstance(file, str) and Path(file).name == file and "\0" not in file for file in files
    ):
        raise CorruptError(
            f"{folder / main} is not a shard index: it needs a weight_map from tensors to files "
            "in the same folder. Download the checkpoint again."
        )
    return sorted(set(files))


def read_config(folder: Path, *, model_types: Collection[str] | None = T5_TYPES) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder, checked to be of the right architecture.

    Args:
        folder: The checkpoint folder.
        model_types: The allowed ones, in transformers' words; None for any.

    Raises:
        WeightsError: if it is missing or unreadable, of another type, or quantised.
    """
    path, names = folder / "config.json", _names_in(folder)
    if path.name not in names:
        raise WeightsError(
            f"{folder} has no config.json (it contains {_shown(names)}). {_GIVE_FOLDER}"
        )
    config = _read_json(path)
    if not isinstance(config, dict):
        raise CorruptError(
            f"{path} contains a {type(config).__name__}, not a JSON object. Download it again."
        )
    if model_types is not None and config.get("model_type") not in model_types:
        raise WeightsError(
            f"{path}: model_type is {config.get('model_type')!r}; this backbone's is "
            f"{' or '.join(map(repr, model_types))}. Choose a checkpoint of that architecture, or "
            "the backbone of this one: backbone=local backbone.path=DIR for a T5 (v1.0, v1.1, "
            "Flan-T5, Chronos-T5), backbone=hf backbone.path=DIR for any other."
        )
    if config.get("quantization_config"):
        raise WeightsError(
            f"{path} has a quantization_config ({str(config['quantization_config'])[:100]}): "
            "quantised weights cannot be trained. Use the original floating-point checkpoint."
        )
    return config


def read_architecture(path: str | Path) -> T5Architecture:
    """A T5's shape from a folder; WeightsError as `read_config` and `architecture_of`."""
    folder = checkpoint_folder(path)
    return architecture_of(read_config(folder), where=str(folder / "config.json"))


def architecture_of(config: Mapping[str, Any], *, where: str) -> T5Architecture:
    """The encoder's shape from a T5 config's values; `where` names the file in errors.

    Keys missing from old T5 configs get transformers' T5Config defaults.

    Raises:
        WeightsError: if a key is missing or impossible, or two contradict each other.
    """
    defaults = {
        "d_kv": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    sizes = {
        key: _size(config, key, defaults.get(key), where)
        for key in ("d_model", "d_ff", "num_layers", "num_heads", "vocab_size", *defaults)
    }
    feed_forward = config.get("feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in _FEED_FORWARDS:
        raise WeightsError(
            f"{where}: feed_forward_proj is {feed_forward!r}; allowed are "
            f"{' (T5 v1.0), '.join(_FEED_FORWARDS)} (v1.1, Flan-T5). Choose such a checkpoint."
        )
    for name, value in _FEED_FORWARDS[feed_forward].items():
        if config.get(name) not in (None, value):
            raise WeightsError(
                f"{where} contradicts itself: {name} is {config[name]!r}, feed_forward_proj is "
                f"{feed_forward!r}. Programs that read one or the other build different models: "
                f"fix the file, or remove {name}."
            )
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise WeightsError(f"{where}: layer_norm_epsilon is {epsilon!r}; it must be in (0, 1).")
    return T5Architecture(
        **sizes, feed_forward_proj=feed_forward, layer_norm_epsilon=float(epsilon)
    )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; computed once per process while the file is unchanged."""
    with _reading(path):
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, *_: int) -> str:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(config: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    value = config.get(key, default)
    most = 1000 if key.endswith("layers") else 10_000_000
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise WeightsError(
            f"{where}: {key} is {value!r}; it must be a whole number from 1 to {most:,}. Download "
            "the checkpoint's config.json again."
        )
    return value


def _names_in(folder: Path) -> list[str]:
    with _reading(folder):
        if folder.is_dir():
            return sorted(path.name for path in folder.iterdir())
        problem = "is not a directory" if folder.exists() else "does not exist"
    raise WeightsError(f"{folder} {problem}. {_GIVE_FOLDER}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file or folder into one message."""
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}). Fix its permissions, or use "
            "another folder: backbone=local backbone.path=DIR."
        ) from error
    except Exception as error:  # a corrupt file can raise almost anything
        if isinstance(error, pickle.UnpicklingError) and re.search(
            "weights_only|Unsupported", str(error)
        ):
            raise WeightsError(
                f"{path} contains more than tensors, and unpickling it could run code, so it is "
                "refused (torch.load with weights_only=True), or it is corrupted. Use a checkpoint "
                "with model.safetensors."
            ) from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CorruptError(
            f"{path} is truncated or corrupted ({why}). Download the checkpoint again."
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """A file of a checkpoint; a FIFO, which would block, and a Git LFS pointer are refused."""
    with _reading(path):
        if not path.is_file():
            is_there = path.exists() or path.is_symlink()
            problem = "is not a regular file" if is_there else "is missing"
            raise CorruptError(f"{path} {problem}. Download the checkpoint again.")
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise WeightsError(
                    f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there."
                )
            file.seek(0)
            yield file


def _read_json(path: Path) -> Any:
    with _open(path) as file:
        return json.loads(file.read().decode("utf-8"))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "nothing"


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """An opened safetensors file; the library checks its header against the file's size."""
    from safetensors import safe_open

    with _open(path), safe_open(path, framework="pt") as file:
        yield file


def _read_header(path: Path) -> dict[str, TensorInfo]:
    if path.suffix == ".bin":
        return {
            str(name): TensorInfo(tuple(tensor.shape), str(tensor.dtype), path)
            for name, tensor in _load_pickle(path).items()
        }
    with _safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: TensorInfo(tuple(part.get_shape()), part.get_dtype(), path)
            for name, part in slices.items()
        }


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """A legacy `pytorch_model.bin` through torch's weights-only loader, memory-mapped if it can."""
    with _open(path) as file:
        # Files from before torch 1.6 are not zip archives, and only archives can be mapped.
        mmap = file.read(2) == b"PK"
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
        raise WeightsError(
            f"{path} is not a plain state dict of tensors by name; save it again with "
            "save_pretrained from transformers."
        )
    return stored
