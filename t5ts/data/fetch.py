"""The ETT files: download and cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future, wait
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from t5ts.errors import DataError

ETT_URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
ETT_FILES = {"etth1": "ETTh1.csv", "etth2": "ETTh2.csv", "ettm1": "ETTm1.csv", "ettm2": "ETTm2.csv"}
# ETTm1 and ETTm2 have no published checksum: their shape is checked and the hash recorded.
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
    """Where the cache keeps an ETT file, whether or not it exists."""
    return cache_dir() / "ett" / ETT_FILES[name]


def fetch_ett(name: str, *, sha256: str | None = None) -> Path:
    """The file of an ETT series in the cache, downloaded if it is missing.

    The download goes to a temporary file in the same folder, which is renamed when it is complete
    and its checksum is right, and deleted otherwise. The sha256 is recorded in FILE.json, so that
    a later change of the file is detected.

    Args:
        name: etth1, etth2, ettm1 or ettm2.
        sha256: Checksum that the file must have; None takes the published one, if known.

    Raises:
        DataError: if there is no network, the server refuses, the download is cut short, the
            checksum is wrong, or the cache cannot be written.
    """
    path = ett_path(name)
    expected = sha256 or KNOWN_SHA256.get(name)
    record = path.with_name(path.name + ".json")
    if path.is_file():
        if expected is None and record.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                expected = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        check_sha256(path, expected, remedy="Delete it and re-run to download it again.")
        return path
    digest = _download(ett_url(name), path, expected)
    with contextlib.suppress(OSError):
        record.write_text(
            json.dumps({"url": ett_url(name), "sha256": digest}) + "\n", encoding="utf-8"
        )
    return path


def check_sha256(path: Path, expected: str | None, *, remedy: str) -> str:
    """The file's sha256; DataError if `expected` is given and differs."""
    try:
        found = _sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if expected is not None and found != expected:
        raise DataError(f"{path} has sha256 {found}, expected {expected}. {remedy}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(url: str, path: Path, expected: str | None) -> str:
    """Download a file atomically and return its sha256; raises as `fetch_ett` does."""
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _open(url) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as out,
        ):
            part = Path(out.name)
            shutil.copyfileobj(response, out, CHUNK)
            received, announced = out.tell(), response.headers.get("Content-Length")
        if received == 0 or (announced is not None and received != int(announced)):
            raise HTTPException(f"{received} of {announced or 'unknown'} bytes")
        digest = _sha256(part)
        if expected in (None, digest):
            part.chmod(0o644)
            part.replace(path)
            return digest
        problem = f"it has sha256 {digest}, expected {expected}. Nothing was kept. Try again"
    except urllib.error.HTTPError as error:
        problem = f"the server answered {error.code} {error.reason}. Try later"
    except (TimeoutError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        problem = (
            f"it cannot be reached ({reason}). Check the network and the proxy variables "
            "(https_proxy, no_proxy)"
        )
    except (HTTPException, ConnectionError) as error:
        problem = f"the download was cut short ({error!r}). Nothing was kept. Run the command again"
    except OSError as error:
        make_room = "Free some space, choose" if error.errno in NO_ROOM else "Choose"
        problem = (
            f"{path.parent} cannot be written ({error.strerror}). {make_room} another cache "
            "(T5TS_CACHE=FOLDER)"
        )
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    raise DataError(
        f"{url}: {problem}, or download it elsewhere and pass its folder (data.dir=FOLDER)."
    )


def _open(url: str) -> HTTPResponse:
    """Open a URL, using the environment's proxies, or give up after CONNECT_S seconds.

    A socket's timeout does not bound name resolution and holds for each of a host's addresses in
    turn, so the wait is bounded from outside, in a thread that the process need not wait for.
    """
    answer: Future[HTTPResponse] = Future()

    def work() -> None:
        try:
            # A fresh opener: urlopen's keeps the first proxies it saw.
            answer.set_result(urllib.request.build_opener().open(url, timeout=STALL_S))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([answer], timeout=CONNECT_S).done:
        raise TimeoutError(f"no answer in {CONNECT_S:g} s")
    return answer.result()
