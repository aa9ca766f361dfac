"""Checkpoints: one safetensors file each, written atomically, with its JSON in the header.

A file is written under a temporary name, flushed to disk and renamed, so that a kill at any moment
leaves either the old checkpoint or the new one. Its header holds a CRC-32 of the whole file, header
included, since flipped bits can leave the format intact.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t5ts import distributed
from t5ts.errors import ResumeError
from t5ts.provenance import replacing

FORMAT = "t5ts-2"
#: The checksum's place in the header; it is computed with zeros there.
_CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_BLANK = "0" * 8
_LARGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes
_CHUNK = 2**24


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors (of any device) and a JSON-able state, atomically; floats keep every bit.

    Raises:
        OSError: if the disk is full or not writable; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "state": json.dumps(state), "crc32": _BLANK}
    # One process writes here: what it left when it was killed is overwritten, being large.
    with replacing(path, ".tmp") as temporary:
        save_tensors(temporary, on_cpu, metadata)
        place, checksum = _checksum(temporary)
        with temporary.open("r+b") as file:
            file.seek(place)
            file.write(checksum.encode())
            file.flush()
            os.fsync(file.fileno())


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if the disk is full or not writable.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # it contains the operating system's error as text
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state only, after verifying the whole file.

    Raises:
        ResumeError: as for `load_checkpoint`.
    """
    return _open(path, lambda _name: False)[1]


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the state that `save_checkpoint` wrote.

    Raises:
        ResumeError: naming the file, if it is missing, truncated, modified or not a checkpoint.
    """
    return _open(path, lambda _name: True)


def load_part(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Selected tensors, and the state, of a checkpoint that this process wrote; not verified."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["state"])


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The random generators of every process, for `set_generators`."""
    own = {kind: module.get_rng_state() for kind, module in _generators(device).items()}
    return {
        _generator_name(kind, rank): state
        for rank, states in enumerate(distributed.gather_objects(own))
        for kind, state in states.items()
    }


def set_generators(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set this process's random generators to their states in a checkpoint.

    A checkpoint that fewer processes wrote has no state for this one, which keeps its seed.
    """
    for kind, module in _generators(device).items():
        state = tensors.get(_generator_name(kind, distributed.rank()))
        if state is not None:
            module.set_rng_state(state)


def _generators(device: torch.device) -> dict[str, Any]:
    own = {} if device.type == "cpu" else {device.type: torch.get_device_module(device)}
    return {"cpu": torch} | own


def _generator_name(kind: str, rank: int) -> str:
    return f"rng/{kind}" if rank == 0 else f"rng/{kind}/{rank}"


def _open(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    remedy = (
        "Start again with train.resume=never (existing files are kept in previous-N), or resume"
        " from another checkpoint with train.resume=PATH in a new directory."
    )
    try:
        if not path.is_file():
            raise ResumeError(f"no checkpoint at {path}. {remedy}")
        place, checksum = _checksum(path)
        with path.open("rb") as file:
            file.seek(place)
            if file.read(len(checksum)) == checksum.encode():
                return load_part(path, wanted)
        with safe_open(path, framework="pt") as content:
            is_ours = (content.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError) as error:
        raise ResumeError(f"the checkpoint {path} cannot be read ({error}). {remedy}") from error
    fault = "is corrupted: its checksum differs" if is_ours else "is not a checkpoint of this t5ts"
    raise ResumeError(f"{path} {fault}. {remedy}")


def _checksum(path: Path) -> tuple[int, str]:
    """Offset of a file's checksum (0: none) and the expected value, as 8 hex digits."""
    with path.open("rb") as file:
        length = file.read(8)
        head = file.read(min(int.from_bytes(length, "little"), _LARGEST_HEADER))
        found = _CHECKSUM.search(head)
        place = 0 if found is None else found.start(1)
        blank = head[:place] + _BLANK.encode() + head[place + len(_BLANK) :]
        crc = zlib.crc32(blank, zlib.crc32(length))
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return place and len(length) + place, f"{crc:08x}"
