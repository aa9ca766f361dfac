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

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t5ts.errors import ResumeError
from t5ts.provenance import replacing

FORMAT = "t5ts-2"
#: The checksum's place in the header; it is computed with zeros there.
_CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_BLANK = "0" * 8
_LARGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes
_CHUNK = 2**24


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able state, atomically.

    Args:
        path: The file; its folder is created.
        tensors: Any devices; written contiguous, from the CPU.
        state: JSON-able; floats come back bit for bit.

    Raises:
        OSError: if the disk is full or not writable; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "state": json.dumps(state), "crc32": _BLANK}
    with replacing(path) as temporary:
        try:
            save_file(on_cpu, temporary, metadata=metadata)
        except SafetensorError as error:
            raise _as_os_error(error, temporary) from error
        place, checksum = _checksum(temporary)
        with temporary.open("r+b") as file:
            file.seek(place)
            file.write(checksum.encode())
            file.flush()
            os.fsync(file.fileno())


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state only, after verifying the whole file.

    Raises:
        ResumeError: as for `load_checkpoint`.
    """
    return _open(path, lambda _name: False)[1]


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        Tensors on the CPU, and the state.

    Raises:
        ResumeError: naming the file, if it is missing, truncated, modified or not a checkpoint.
    """
    return _open(path, lambda _name: True)


def load_part(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Some tensors, and the state, of a checkpoint that this process wrote; not verified.

    Args:
        path: The checkpoint.
        wanted: Whether to read the tensor with this name.
    """
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["state"])


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
            is_intact = file.read(len(checksum)) == checksum.encode()
        if is_intact:
            return load_part(path, wanted)
        if _is_foreign(path):
            raise ResumeError(f"{path} is not a checkpoint of this t5ts. {remedy}")
    except (SafetensorError, OSError) as error:
        raise ResumeError(f"the checkpoint {path} cannot be read ({error}). {remedy}") from error
    raise ResumeError(f"the checkpoint {path} is corrupted: its checksum differs. {remedy}")


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


def _is_foreign(path: Path) -> bool:
    """Whether a file without a valid checksum is foreign or from an older t5ts, not corrupt."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") != FORMAT


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """The operating system's error inside a safetensors error, which contains it as text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return (
        error if number is None else OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    )
