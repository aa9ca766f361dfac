"""Downloads through the real code from a local server: whole, refused, cut, wrong, unwritable."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from runs import largest_file

from t5ts.data import fetch
from t5ts.data.sources import load_ett
from t5ts.errors import DataError
from tests.data.ett_files import write_ett


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `fault` says how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.fault = ""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path.rpartition("/")[2])
        fault = self.server.fault
        if body is None or fault.isdigit():
            self.send_error(int(fault or 404))
            return
        if fault == "silent":
            time.sleep(3)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have no room for it
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("T5TS_ETT_URL", server.url + "/ETT-small/")
    monkeypatch.setenv("T5TS_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ettm1(tmp_path_factory) -> tuple[bytes, np.ndarray]:
    folder = tmp_path_factory.mktemp("ett")
    values = write_ett(folder, "ettm1")
    return (folder / "ETTm1.csv").read_bytes(), values


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_ett_is_downloaded_once_and_loaded(server, ettm1, tmp_path):
    server.files["ETTm1.csv"], values = ettm1
    for _ in range(2):
        series = load_ett(dataset="ettm1", dir=None)
        np.testing.assert_array_equal(series.values_TC, values)
    assert server.asked == ["/ETT-small/ETTm1.csv"]
    assert fetch.ett_path("ettm1") == tmp_path / "cache" / "ett" / "ETTm1.csv"
    assert fetch.ett_path("ettm1").read_bytes() == ettm1[0]
    assert sorted(path.name for path in leftovers(tmp_path)) == ["ETTm1.csv", "ETTm1.csv.json"]


def test_a_wrong_checksum_is_refused_before_and_after(server, ettm1, tmp_path):
    server.files |= {"ETTm1.csv": ettm1[0], "ETTh1.csv": ettm1[0]}
    with pytest.raises(DataError, match=fetch.KNOWN_SHA256["etth1"]):
        fetch.fetch_ett("etth1")
    assert leftovers(tmp_path) == []
    own = hashlib.sha256(ettm1[0]).hexdigest()
    assert fetch.fetch_ett("etth1", sha256=own).is_file()
    path = fetch.fetch_ett("ettm1")
    path.write_bytes(ettm1[0][:-9] + b"9" * 9)
    with pytest.raises(DataError, match=r"ETTm1\.csv"):
        fetch.fetch_ett("ettm1")


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("404", "404"),
        ("503", "503"),
        ("cut", r"of \d+ bytes"),
        ("silent", "no answer within 0.3 s"),
    ],
)
def test_faults_are_one_message_and_leave_nothing(
    server, ettm1, tmp_path, monkeypatch, fault, named
):
    server.files["ETTm1.csv"], server.fault = ettm1[0], fault
    with monkeypatch.context() as patched:
        patched.setattr(fetch, "CONNECT_S", 0.3 if fault == "silent" else fetch.CONNECT_S)
        with pytest.raises(DataError, match=named) as error:
            fetch.fetch_ett("ettm1")
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == []
    assert len(server.asked) == 1  # no retry behind the user's back
    server.fault = ""
    assert fetch.fetch_ett("ettm1").read_bytes() == ettm1[0]


@pytest.mark.usefixtures("server")
def test_no_server_is_asked_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("T5TS_ETT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    connect = mock.patch.object(socket, "create_connection", wraps=socket.create_connection)
    with connect as connected, pytest.raises(DataError, match=r"proxy.*data\.dir"):
        fetch.fetch_ett("ettm1")
    assert connected.call_count == 1


def test_a_proxy_of_the_environment_is_asked(server, ettm1, monkeypatch):
    server.files["ETTm1.csv"] = ettm1[0]
    monkeypatch.setenv("T5TS_ETT_URL", "http://no-such-host.invalid/ETT-small")
    monkeypatch.setenv("http_proxy", server.url)
    fetch.fetch_ett("ettm1")
    assert server.asked == ["http://no-such-host.invalid/ETT-small/ETTm1.csv"]


def test_a_cache_that_cannot_be_written_and_a_full_disk_keep_nothing(
    server, ettm1, tmp_path, monkeypatch
):
    server.files["ETTm1.csv"] = ettm1[0]
    with largest_file(200_000), pytest.raises(DataError, match="T5TS_CACHE"):
        fetch.fetch_ett("ettm1")
    assert leftovers(tmp_path) == []
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("T5TS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="T5TS_CACHE"):
        fetch.fetch_ett("ettm1")
