"""Checkpoints: one safetensors file each, written atomically, with its JSON in the header.

A file is written beside its place, flushed to the disk and renamed over it, so that a kill at any
moment leaves the old checkpoint or the new one. A CRC-32 of the tensors' bytes stands in the
header, since a flipped bit leaves the format intact.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t5ts.errors import ResumeError

FORMAT = "t5ts-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able state, atomically.

    Args:
        path: Its place; the folder is made.
        tensors: Any devices; written contiguous, from the CPU.
        state: JSON-able; floats come back bit for bit.

    Raises:
        OSError: if the disk is full or not writable; the old file then still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "state": json.dumps(state), "crc32": str(_crc32(on_cpu))}
    temporary = path.with_suffix(".tmp")
    try:
        save_file(on_cpu, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        Tensors on the CPU, and the state.

    Raises:
        ResumeError: naming the file, if it is missing, cut short, altered or not a checkpoint.
    """
    remedy = "Remove it to start anew, or give another with train.resume=PATH."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ResumeError(f"no checkpoint at {path}. {remedy}") from error
    except (SafetensorError, OSError) as error:
        raise ResumeError(f"the checkpoint {path} cannot be read ({error}). {remedy}") from error
    if metadata.get("format") != FORMAT:
        raise ResumeError(f"{path} is not a t5ts checkpoint. {remedy}")
    if metadata.get("crc32") != str(_crc32(tensors)):
        raise ResumeError(f"the checkpoint {path} is corrupted: its checksum differs. {remedy}")
    return tensors, json.loads(metadata["state"])


def load_part(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Some tensors of a checkpoint that this process has written, and its state, unverified.

    Args:
        path: The checkpoint.
        wanted: Whether a tensor of that name is read.
    """
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["state"])


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        flat = tensors[name].reshape(-1)
        if flat.numel():
            crc = zlib.crc32(flat.view(torch.uint8).numpy().data, crc)
    return crc
