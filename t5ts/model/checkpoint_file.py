"""What a folder with a T5 checkpoint holds: its tensors' names and shapes, its bytes.

Nothing is believed here: the header is read and compared with the file's size before one tensor
is, and only formats that cannot run code are opened.
"""

import hashlib
import json
import math
import pickle
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.config_file import LFS_POINTER, read_config
from t5ts.model.packaged import checkpoint_folder

# Best first. An index names the shards of a checkpoint that is split over several files.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_DTYPE_BYTES |= {"I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_TORCH_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_LARGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype (in safetensors' words) of one stored tensor, as its file's header says."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class CheckpointFiles:
    """An opened checkpoint folder: where each tensor is, what shape it has, nothing read yet."""

    folder: Path
    config: dict[str, Any]
    format: str  # "safetensors" or "pytorch"
    files: tuple[Path, ...]  # config.json, the index where there is one, the weight files
    header: dict[str, TensorInfo]
    file_of: dict[str, Path]

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read these tensors, in their stored dtype.

        Raises:
            WeightsError: if a file cannot be read.
        """
        tensors: dict[str, Tensor] = {}
        for path in sorted({self.file_of[name] for name in names}):
            wanted = [name for name in names if self.file_of[name] == path]
            if self.format == "safetensors":
                tensors |= _read_safetensors(path, wanted)
            else:
                stored = _load_pickle(path)
                tensors |= {name: stored[name] for name in wanted}
        return tensors


def choose_weight_file(names: Iterable[str], *, where: str) -> str:
    """The best weight file (or index of shards) among a folder's or repository's file names.

    Raises:
        WeightsError: if there is none that can be trusted, saying what is there instead.
    """
    present = set(names)
    for candidate in WEIGHT_FILES:
        if candidate in present:
            return candidate
    strangers = {
        "ONNX": (".onnx", ".onnx_data", ".ort"),
        "GGUF (quantised)": (".gguf", ".ggml"),
        "a LoRA adapter": ("adapter_model.safetensors", "adapter_model.bin"),
        "TensorFlow": (".h5",),
        "Flax": (".msgpack",),
    }
    found = [
        kind for kind, ends in strangers.items() if any(name.endswith(ends) for name in present)
    ]
    held = f"only {' and '.join(found)}" if found else "no weights"
    raise WeightsError(
        f"{where} holds {held}: none of {', '.join(WEIGHT_FILES)} is there. Exported or quantised "
        "stand-ins cannot be trained; use the original checkpoint (for instance t5-small)."
    )


def weight_files_of(main: str, index_text: str | None, *, where: str) -> list[str]:
    """Names of the files that hold tensors: `main` itself, or the shards that an index names.

    Raises:
        WeightsError: if the index is broken or names a file outside its folder.
    """
    if index_text is None:
        return [main]
    try:
        weight_map = json.loads(index_text)["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{where}/{main} is no index of shards ({error!r}): truncated or corrupted. "
            "Fetch it again."
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise WeightsError(f"{where}/{main} names a shard outside its folder: {shard!r}.")
    if not shards:
        raise WeightsError(f"{where}/{main} names no shards. Fetch the checkpoint again.")
    return shards


def open_checkpoint(folder: str | Path) -> CheckpointFiles:
    """Open a checkpoint folder: config, format and every tensor's shape, no tensor read.

    Raises:
        WeightsError: if anything is missing, truncated, corrupted or not to be trusted.
    """
    folder = checkpoint_folder(folder)
    config = read_config(folder)
    main = choose_weight_file((path.name for path in folder.iterdir()), where=str(folder))
    is_index = main.endswith(".index.json")
    index_text = (folder / main).read_text(encoding="utf-8") if is_index else None
    paths = [folder / name for name in weight_files_of(main, index_text, where=str(folder))]
    header: dict[str, TensorInfo] = {}
    file_of: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise WeightsError(
                f"{path} is missing: {main} names it as a shard. Fetch the checkpoint again."
            )
        part = _pickle_header(path) if ".bin" in main else _safetensors_header(path)
        header |= part
        file_of |= dict.fromkeys(part, path)
    extra = [folder / main] if is_index else []
    return CheckpointFiles(
        folder=folder,
        config=config,
        format="pytorch" if ".bin" in main else "safetensors",
        files=(folder / "config.json", *extra, *paths),
        header=header,
        file_of=file_of,
    )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        WeightsError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error}). Fetch the checkpoint again."
        ) from error


def _broken(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{path} is truncated or corrupted ({why}). Delete it and fetch the checkpoint again."
    )


def _refuse_lfs_pointer(path: Path, start: bytes) -> None:
    if start.startswith(LFS_POINTER):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that folder."
        )


def _safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Parse and check a safetensors header against the file's size, reading no tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_lfs_pointer(path, start)
        if size < 8:
            raise _broken(path, f"{size} bytes cannot hold a safetensors header")
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, _LARGEST_HEADER):
            raise _broken(path, "the header is longer than the file: not a whole safetensors file")
        file.seek(8)
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        header = {
            name: TensorInfo(tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))
            for name, entry in entries.items()
        }
        spans = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
        sizes = {name: entry["data_offsets"] for name, entry in entries.items()}
        for name, (begin, end) in sizes.items():
            width = _DTYPE_BYTES.get(header[name].dtype)
            if width is not None and end - begin != width * header[name].numel:
                raise _broken(path, f"{name}'s bytes and shape disagree")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise _broken(path, "its header is not safetensors' JSON") from error
    position = 0
    for begin, end in spans:
        if begin != position:
            raise _broken(path, "its tensors overlap or leave holes")
        position = end
    if position != size - 8 - length:
        raise _broken(
            path, f"its header promises {position + 8 + length:,} bytes, the file has {size:,}"
        )
    return header


def _read_safetensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _broken(path, str(error)) from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """A legacy `pytorch_model.bin` through torch's weights-only loader, memory-mapped if it can."""
    with path.open("rb") as file:
        start = file.read(64)
    _refuse_lfs_pointer(path, start)
    # Files written before torch 1.6 are no zip archives, and only archives can be memory-mapped.
    mmap = start.startswith(b"PK")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise _broken(path, str(error).splitlines()[0]) from error
        raise WeightsError(
            f"{path} holds more than tensors, and unpickling it could run code, so it is refused "
            "(torch.load with weights_only=True). Use a checkpoint with model.safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _broken(path, (str(error) or type(error).__name__).splitlines()[0]) from error
    if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
        raise WeightsError(
            f"{path} is not a plain state dict of tensors by name; save it again with "
            "save_pretrained from transformers."
        )
    return stored


def _pickle_header(path: Path) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(tuple(tensor.shape), _TORCH_DTYPES.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in _load_pickle(path).items()
    }
