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
from t5ts.model.config_file import LFS_POINTER, CorruptError, read_bytes, read_config, unreadable
from t5ts.model.packaged import checkpoint_folder

# Best first. An index names the shards of a checkpoint that is split over several files.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_TORCH_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


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
    weights: tuple[Path, ...]  # the weight files alone
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
    variants = sorted(n for n in present if n.endswith((".safetensors", ".bin")) and "/" not in n)
    if variants and not found:
        raise WeightsError(
            f"{where} holds {', '.join(variants[:3])}, but none of {', '.join(WEIGHT_FILES)}. A "
            "variant (model.fp16.safetensors) in a folder can be renamed to model.safetensors and "
            "used with backbone=local backbone.path=DIR."
        )
    held = f"only {' and '.join(found)}" if found else "no weights"
    raise WeightsError(
        f"{where} holds {held}: none of {', '.join(WEIGHT_FILES)} is there. Exported or quantised "
        "stand-ins cannot be trained; use the original checkpoint (for instance t5-small)."
    )


def checkpoint_files(folder: Path, main: str) -> list[str]:
    """Names of a checkpoint's files: config.json, `main`, and the shards where it is an index.

    Raises:
        WeightsError: if the index is broken or names a file outside its folder.
    """
    if not main.endswith(".index.json"):
        return ["config.json", main]
    path = folder / main
    try:
        shards = sorted(set(json.loads(read_bytes(path).decode("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"{path} is no index of shards ({error!r}): truncated or corrupted. Fetch it again."
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise CorruptError(f"{path} names a shard outside its folder: {shard!r}.")
    if not shards:
        raise CorruptError(f"{path} names no shards. Fetch the checkpoint again.")
    return ["config.json", main, *shards]


def open_checkpoint(folder: str | Path) -> CheckpointFiles:
    """Open a checkpoint folder: config, format and every tensor's shape, no tensor read.

    Raises:
        WeightsError: if anything is missing, truncated, corrupted or not to be trusted.
    """
    folder = checkpoint_folder(folder)
    config = read_config(folder)
    main = choose_weight_file((path.name for path in folder.iterdir()), where=str(folder))
    names = checkpoint_files(folder, main)
    pickled = ".bin" in main
    header: dict[str, TensorInfo] = {}
    file_of: dict[str, Path] = {}
    weights = tuple(folder / name for name in (names[1:] if len(names) == 2 else names[2:]))
    for path in weights:
        try:
            if not path.exists():
                raise CorruptError(f"{path} is missing: {main} names it. Fetch it again.")
            with path.open("rb") as file:
                lfs = file.read(64).startswith(LFS_POINTER)
        except OSError as error:
            raise unreadable(path, error) from error
        if lfs:
            raise WeightsError(
                f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that folder."
            )
        part = _pickle_header(path) if pickled else _safetensors_header(path)
        header |= part
        file_of |= dict.fromkeys(part, path)
    return CheckpointFiles(
        folder=folder,
        config=config,
        format="pytorch" if pickled else "safetensors",
        files=tuple(folder / name for name in names),
        weights=weights,
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
        raise unreadable(path, error) from error


def _broken(path: Path, error: BaseException) -> CorruptError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return CorruptError(f"{path} is truncated or corrupted ({why}). Fetch the checkpoint again.")


def _safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes; safetensors compares its header with the file's size itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _read_safetensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """A legacy `pytorch_model.bin` through torch's weights-only loader, memory-mapped if it can."""
    try:
        with path.open("rb") as file:
            # Files from before torch 1.6 are no zip archives, and only archives can be mapped.
            mmap = file.read(2) == b"PK"
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
        if isinstance(error, pickle.UnpicklingError) and any(
            word in str(error) for word in ("weights_only", "Unsupported")
        ):
            raise WeightsError(
                f"{path} holds more than tensors, and unpickling it could run code, so it is "
                "refused (torch.load with weights_only=True), or it is corrupted. Use a checkpoint "
                "with model.safetensors."
            ) from error
        raise _broken(path, error) from error
    if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
        raise WeightsError(
            f"{path} is not a plain state dict of tensors by name; save it again with "
            "save_pretrained from transformers."
        )
    return stored


def _pickle_header(path: Path) -> dict[str, TensorInfo]:
    return {
        str(name): TensorInfo(
            tuple(tensor.shape), _TORCH_DTYPES.get(tensor.dtype, str(tensor.dtype))
        )
        for name, tensor in _load_pickle(path).items()
    }
