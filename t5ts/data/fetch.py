"""The ETT files: download and cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from t5ts.errors import DataError
from t5ts.interruption import within

ETT_URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
ETT_FILES = {"etth1": "ETTh1.csv", "etth2": "ETTh2.csv", "ettm1": "ETTm1.csv", "ettm2": "ETTm2.csv"}
# ETTm1 and ETTm2 have no published checksum: their shape is checked and the hash recorded.
KNOWN_SHA256 = {
    "etth1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "etth2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
}
CONNECT_S = 4.0
STALL_S = 20.0


def ett_path(name: str) -> Path:
    """Where the cache (`$T5TS_CACHE`, or ~/.cache/t5ts) keeps an ETT file, if it is there."""
    cache = Path(os.environ.get("T5TS_CACHE") or "~/.cache/t5ts").expanduser()
    return cache / "ett" / ETT_FILES[name]


def fetch_ett(name: str, *, sha256: str | None = None) -> Path:
    """The file of an ETT series in the cache, downloaded if it is missing.

    A download becomes the cached file when it is complete and its checksum is right; otherwise
    nothing is kept. Its sha256 is recorded in FILE.json, so that a later change is detected.
    `$T5TS_ETT_URL` is a mirror's folder.

    Args:
        name: etth1, etth2, ettm1 or ettm2.
        sha256: Checksum that the file must have; None takes the published one, if known.

    Raises:
        DataError: if it cannot be fetched or written, or the checksum is wrong.
    """
    path, folder = ett_path(name), os.environ.get("T5TS_ETT_URL", ETT_URL).rstrip("/")
    url = f"{folder}/{ETT_FILES[name]}"
    expected = sha256 or KNOWN_SHA256.get(name)
    record = path.with_name(path.name + ".json")
    if path.is_file():
        if expected is None and record.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                expected = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        check_sha256(path, expected, remedy="Delete it and re-run to download it again.")
        return path
    digest = _download(url, path, expected)
    with contextlib.suppress(OSError):
        record.write_text(json.dumps({"url": url, "sha256": digest}), encoding="utf-8")
    return path


def check_sha256(path: Path, expected: str | None, *, remedy: str) -> str:
    """The file's sha256; DataError if `expected` is given and differs."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if expected is not None and found != expected:
        raise DataError(f"{path} has sha256 {found}, expected {expected}. {remedy}")
    return found


def _download(url: str, path: Path, expected: str | None) -> str:
    """Download a file atomically and return its sha256; raises as `fetch_ett` does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(url) as response, tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            with part.open("wb") as out:
                shutil.copyfileobj(response, out)
            received, announced = part.stat().st_size, response.headers.get("Content-Length")
            if received == 0 or (announced is not None and received != int(announced)):
                raise HTTPException(f"cut short after {received} of {announced} bytes")
            digest = check_sha256(part, expected, remedy=f"Nothing was kept of {url}. Try again.")
            part.replace(path)
            return digest
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"{url} cannot be fetched ({error}). Nothing was kept. Check the network and the proxy "
            "variables (https_proxy, no_proxy) and try again, or download it elsewhere and pass "
            "its folder (data.dir=FOLDER)."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written ({error.strerror}): free some space, choose another "
            "cache (T5TS_CACHE=FOLDER), or pass a folder that has the file (data.dir=FOLDER)."
        ) from None


def _open(url: str) -> HTTPResponse:
    """Open a URL, using the environment's proxies, or give up after CONNECT_S seconds.

    A socket's timeout does not bound name resolution and holds for each of a host's addresses in
    turn, so the wait is bounded from outside.
    """
    # A fresh opener: urlopen's keeps the first proxies it saw.
    return within(CONNECT_S, lambda: urllib.request.build_opener().open(url, timeout=STALL_S))
