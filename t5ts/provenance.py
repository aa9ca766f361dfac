"""What produced a run (code, versions, machine), and how its files are written.

Weights and data add their own checksums.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).resolve().parent
#: Packages whose versions are recorded.
PACKAGES = ["t5ts", "torch", "numpy", "hydra-core", "omegaconf", "safetensors"]
PACKAGES += ["huggingface_hub", "polars", "wandb"]


@cache
def code_and_machine() -> dict[str, Any]:
    """Git revision of the code, versions, platform and command, JSON-able."""
    return {
        "git": git_revision(PACKAGE),
        "versions": {"python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
    }


def without_password(text: str) -> str:
    """A URL, or an override with one, without the password."""
    text = re.sub(r"([?&]password=)[^&]*", r"\1***", text)
    head, slashes, tail = text.rpartition("://")
    return head + slashes + re.sub(r"^([^:@/]*):.*@", r"\1:***@", tail)


@cache
def package_versions() -> dict[str, str | None]:
    """Installed versions; None for packages not installed (e.g. running from a checkout)."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def code_digest() -> str:
    """SHA-256 over the package's source files: a modified checkout has a different digest."""
    stats = ((path, path.stat()) for path in sorted(PACKAGE.rglob("*.py")))
    return _digest(tuple((path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats))


@lru_cache(maxsize=1)  # each trial of a sweep asks several times
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


#: Computed when the code is loaded: later edits to files do not affect this process.
LOADED_CODE = code_digest()


@cache
def made_with() -> dict[str, str]:
    """The code and the libraries that compute a run's numbers."""
    return {"t5ts": LOADED_CODE} | {name: version(name) for name in ("torch", "numpy")}


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=10)

    try:
        # A wheel installed into some other project's checkout must not claim its commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = bool(git("status", "--porcelain", "-uno").strip())
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.*?)\s*$", text, flags=re.M)
    return platform.processor() if found is None else found[1]


@contextmanager
def replacing(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """A temporary path that replaces `path` at the end: the file is complete or absent.

    Args:
        path: The file.
        suffix: Of the temporary path; None takes this process's own, since several may write one
            file, as the commands that end a sweep together do.
    """
    temporary = path.with_name(path.name + (suffix or f".{os.getpid()}.tmp"))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: it is complete or absent.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(path: Path, frame: Any) -> None:
    """Write a polars frame atomically.

    Raises:
        OSError: if it cannot be written; polars itself would raise an error of its own.
    """
    buffer = BytesIO()
    frame.write_parquet(buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own checksum (key crc32), atomically; NaN and inf become null.

    `t5ts.analysis.results.read_json` verifies it.

    Raises:
        OSError: if it cannot be written.
    """
    ready = json_ready(dict(value))
    write_text(path, json.dumps(ready | {"crc32": content_crc32(ready)}, indent=2) + "\n")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes strings that OmegaConf, unlike YAML 1.1, would read as numbers (1e3)."""


def _represent(dumper: Any, text: str) -> Any:
    style = None
    with suppress(ValueError):
        float(text)
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write nested plain values as YAML that OmegaConf reads back as they are."""
    write_text(path, yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def content_crc32(value: Mapping[str, Any]) -> str:
    """CRC-32 of a JSON object's content, as 8 hex digits; layout and key order do not matter."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def file_crc32(path: Path) -> str:
    """CRC-32 of a file's bytes, as 8 hex digits."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def json_ready(value: Any) -> Any:
    """The value with every NaN and infinity as None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
