"""The ETT files: where they come from, and the cache they are kept in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import tempfile
import threading
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from t5ts.errors import DataError

ETT_URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
ETT_FILES = {"etth1": "ETTh1.csv", "etth2": "ETTh2.csv", "ettm1": "ETTm1.csv", "ettm2": "ETTm2.csv"}
# ETTm1 and ETTm2: no published checksum at hand; their shape is checked and the hash recorded.
KNOWN_SHA256 = {
    "etth1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "etth2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
}
CONNECT_S = 4.0
STALL_S = 20.0
CHUNK = 1 << 16
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> Path:
    """`$T5TS_CACHE`, or ~/.cache/t5ts."""
    given = os.environ.get("T5TS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "t5ts"


def ett_url(name: str) -> str:
    """Address of an ETT file; `$T5TS_ETT_URL` replaces the folder part (a mirror)."""
    return f"{os.environ.get('T5TS_ETT_URL', ETT_URL).rstrip('/')}/{ETT_FILES[name]}"


def ett_path(name: str) -> Path:
    """Where the cache keeps an ETT file, whether or not it is there."""
    return cache_dir() / "ett" / ETT_FILES[name]


def fetch_ett(name: str, *, sha256: str | None = None) -> Path:
    """The file of an ETT series in the cache, downloaded if it is not there.

    Nothing is left behind by a download that fails: it goes to a temporary file beside its place
    and is renamed there once it is whole and its checksum is right. Its sha256 is recorded beside
    it, so that a file that changes later is found out.

    Args:
        name: etth1, etth2, ettm1 or ettm2.
        sha256: Checksum that the file must have; None takes the published one, where known.

    Raises:
        DataError: for no network, a refusing server, a download cut short, a wrong checksum, and a
            cache that cannot be written.
    """
    path = ett_path(name)
    expected = sha256 or KNOWN_SHA256.get(name)
    record = path.with_name(path.name + ".json")
    if path.is_file():
        if expected is None and record.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                expected = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        check_sha256(path, expected, remedy="Delete it, and it is downloaded again.")
        return path
    digest = download(ett_url(name), path, sha256=expected)
    with contextlib.suppress(OSError):
        record.write_text(
            json.dumps({"url": ett_url(name), "sha256": digest}) + "\n", encoding="utf-8"
        )
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


def download(url: str, path: Path, *, sha256: str | None) -> str:
    """Downloads a file atomically.

    Proxies are taken from the environment (https_proxy, no_proxy).

    Returns:
        The file's sha256.

    Raises:
        DataError: see `fetch_ett`.
    """
    offline = f"or download {url} elsewhere and name its folder (data.dir=FOLDER)."
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(url) as response:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
            part = Path(name)
            with os.fdopen(handle, "wb") as out:
                digest = save(response, out, url=url)
        if sha256 is not None and digest != sha256:
            raise DataError(
                f"{url} has sha256 {digest}, expected {sha256}: not the published file. Nothing "
                f"was kept. Try again, {offline}"
            )
        part.chmod(0o644)
        part.replace(path)
        return digest
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}. Try later, {offline}"
        ) from None
    except (TimeoutError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{url} cannot be reached ({reason}). Look at the network and the proxy variables "
            f"(https_proxy, no_proxy), {offline}"
        ) from None
    except (HTTPException, ConnectionError) as error:
        raise DataError(
            f"{url}: the download was cut short ({error!r}). Run again, {offline}"
        ) from None
    except OSError as error:
        make_room = "Make room there, choose" if error.errno in NO_ROOM else "Choose"
        raise DataError(
            f"{path.parent} cannot be written ({error.strerror}). {make_room} another cache "
            f"(T5TS_CACHE=FOLDER), {offline}"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def save(response: HTTPResponse, out: BinaryIO, *, url: str) -> str:
    """Copies a response to a file and returns the sha256.

    Raises:
        DataError: if fewer bytes come than were announced, or none for STALL_S seconds.
        OSError: if the file cannot be written.
    """
    digest, received = hashlib.sha256(), 0
    announced = response.headers.get("Content-Length")
    while True:
        try:
            block = response.read(CHUNK)
        except (HTTPException, OSError) as error:
            raise _cut_short(url, received, announced) from error
        if not block:
            break
        digest.update(block)
        received += len(block)
        out.write(block)
    out.flush()
    if received == 0 or (announced is not None and received != int(announced)):
        raise _cut_short(url, received, announced)
    return digest.hexdigest()


def _cut_short(url: str, received: int, announced: str | None) -> DataError:
    return DataError(
        f"{url}: the download was cut short ({received} of {announced or 'unknown'} bytes). "
        "Nothing was kept; run again."
    )


def _open(url: str) -> HTTPResponse:
    """Opens a URL, or gives up after CONNECT_S seconds.

    A socket's timeout does not bound name resolution and holds for each of a host's addresses in
    turn, so the wait is bounded from outside, in a thread that the process need not wait for.
    """
    answer: queue.Queue[HTTPResponse | BaseException] = queue.Queue()

    def work() -> None:
        try:
            # A fresh opener: urlopen's keeps the proxies that it saw first.
            answer.put(urllib.request.build_opener().open(url, timeout=STALL_S))
        except BaseException as error:
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = answer.get(timeout=CONNECT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT_S:g} s") from None
    if isinstance(result, BaseException):
        raise result
    return result
