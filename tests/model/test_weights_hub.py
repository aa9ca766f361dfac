"""Checkpoints from a hub: a local server, huggingface_hub's real code, and each way to fail."""

import errno
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hub_server import COMMIT, TINY, Fault, HubServer, at, serve, shard
from runs import flip, local_t5

from t5ts.errors import WeightsError
from t5ts.model import hub as hub_module
from t5ts.model.hub import cached_snapshot
from t5ts.model.weights import LoadReport, load_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
NAME = "t5-small"
REMEDIES = ("t5ts.download backbone=t5_small", "HF_HOME", "backbone.path=DIR")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return local_t5(tmp_path_factory.mktemp("tiny") / "t5")


@pytest.fixture(scope="module")
def sharded(tiny, tmp_path_factory) -> Path:
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("sharded") / "t5")
    shard(folder)
    return folder


@pytest.fixture
def hub(tiny) -> Iterator[HubServer]:
    with serve() as server:
        server.add(NAME, tiny)
        yield server


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_proxy_or_token(monkeypatch) -> Iterator[None]:
    """A developer's own proxy or log-in must not reach these tests; clients read them once."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import close_session

    # The client waits a second before it resumes a broken body.
    monkeypatch.setattr(file_download, "time", mock.Mock(wraps=time, sleep=lambda _: None))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
    close_session()
    yield
    close_session()


def load(
    hub: HubServer | str, cache: Path, hub_id: str = NAME, *, offline: bool = False,
    token: str | None = None, **kwargs: Any,
) -> LoadReport:  # fmt: skip
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    with at(endpoint, cache, offline=offline, token=token):
        return load_checkpoint(hub_id=hub_id, **kwargs)[1]


def cached(cache: Path) -> Path | None:
    with at("", cache):
        return cached_snapshot(NAME)


def refused(
    hub: HubServer | str, cache: Path, *named: str, most_requests: int = 2, **kwargs: Any
) -> str:
    """Loading raises one WeightsError that names these, without retries; returns its message.

    The client by itself asks a failing hub for 23 s. Here a request is sent at most twice (a probe
    and the client's own), but for a file's body that was interrupted.
    """
    before = 0 if isinstance(hub, str) else len(hub.requests)
    connect = mock.patch.object(socket, "create_connection", wraps=socket.create_connection)
    started = time.monotonic()
    with connect as connected, pytest.raises(WeightsError) as caught:
        load(hub, cache, **kwargs)
    assert time.monotonic() - started < 20  # the answer is due in 6 s; machines are busy
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    if isinstance(hub, str):
        assert connected.call_count <= 2  # once more on a client's first use
    else:
        asked = Counter((verb, path) for verb, path, _ in hub.requests[before:])
        for (verb, path), times in asked.items():
            most = 8 if verb == "GET" and WEIGHTS in path else most_requests
            assert times <= most, (verb, path)
    assert cached(cache) is None
    return message


def test_a_checkpoint_is_downloaded_once(hub, cache):
    report = load(hub, cache, arch=TINY)
    asked = len(hub.requests)
    assert load(hub, cache, arch=TINY) == report  # from the cache
    assert len(hub.requests) == asked
    assert report.files[WEIGHTS] == hub.etag(NAME, WEIGHTS)
    assert report.revision == COMMIT
    assert str(cached(cache)) == report.path


@pytest.mark.parametrize("hub_id", ["google/t5-small", "a/b/c", "zzzz"])
def test_wrong_ids_are_named(hub, cache, hub_id):
    refused(hub, cache, repr(hub_id), "t5-small", hub_id=hub_id)
    hub.faults = [Fault(status=401, headers={"X-Error-Message": "Invalid username or password."})]
    refused(hub, cache, "401" if hub_id != "a/b/c" else hub_id, "HF_TOKEN", hub_id=hub_id)


def test_token_is_used_and_stays_on_the_hub(hub, cache):
    hub.token = "hf_right"
    refused(hub, cache, "401", "HF_TOKEN")
    refused(hub, cache, "401", "HF_TOKEN", token="hf_wrong")
    load(hub, cache, token="hf_right")
    assert all("authorization" in headers for headers in hub.asked("GET", "/resolve/"))
    assert hub.asked("GET", "/cdn/")
    assert not any("authorization" in headers for headers in hub.asked("GET", "/cdn/"))


#: How the hub fails, and what the one message must name.
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "401": (Fault(status=401), ("401", "HF_TOKEN")),
    "403": (Fault(status=403), ("403", "HF_TOKEN")),
    "gated": (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), ("gated", "HF_TOKEN")),
    "404": (Fault(status=404), ("404", "HF_ENDPOINT")),
    "429": (Fault(status=429, headers={"Retry-After": "300"}), ("429", *REMEDIES)),
    "503": (Fault(status=503), ("503", *REMEDIES)),
    "loop": (
        Fault(where="/api/", status=302, headers={"Location": "/api/models/t5-small"}),
        ("HF_ENDPOINT",),
    ),
    "never answers": (Fault(hang_s=6.0), ("No network", *REMEDIES)),
    "reset": (Fault(drop_after=0), ("No network",)),
    "log-in page": (Fault(body="<html>Please log in</html>"), ("HF_ENDPOINT",)),
    "weights 404": (
        Fault(where=WEIGHTS, status=404, headers={"X-Error-Code": "EntryNotFound"}),
        ("404", WEIGHTS),
    ),
    "weights 429": (Fault(where=WEIGHTS, status=429), ("429",)),
    "config 503": (Fault(where="config.json", status=503), ("503",)),
    "CDN 404": (Fault(where="/cdn/", status=404), ("404",)),
    "CDN 503": (Fault(where="/cdn/", status=503), ("503",)),
    "CDN resets": (Fault(where="/cdn/", hang_s=0.1, drop_after=0), ("DOWNLOAD_TIMEOUT",)),
    "CDN silent": (Fault(where="/cdn/", hang_s=6.0), ("DOWNLOAD_TIMEOUT",)),
    "body breaks": (Fault(where="/cdn/", drop_after=20_000), ("DOWNLOAD_TIMEOUT", WEIGHTS)),
    "body short": (Fault(where="/cdn/", short=150_000), ("DOWNLOAD_TIMEOUT", WEIGHTS)),
    "wrong content": (Fault(where="/cdn/", flip=200_000), ("corrupted", "HF_ENDPOINT")),
    "wrong header": (Fault(where="/cdn/", flip=20), ("corrupted", "HF_ENDPOINT")),
    "wrong config": (Fault(where="config.json", flip=20), ("corrupted", "HF_ENDPOINT")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_message_and_leaves_nothing(hub, cache, fault, monkeypatch):
    hub.faults = [FAULTS[fault][0]]
    most = 25 if fault == "loop" else 2
    with monkeypatch.context() as patched:
        if hub.faults[0].hang_s > 1:
            patched.setenv("HF_HUB_ETAG_TIMEOUT", "1")
        refused(hub, cache, *FAULTS[fault][1], most_requests=most)
    assert not list(cache.rglob("*.incomplete"))
    hub.faults = []
    assert load(hub, cache).files[WEIGHTS] == hub.etag(NAME, WEIGHTS)


def test_no_network(cache, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(f"http://127.0.0.1:{port}", cache, "No network", *REMEDIES)
    refused("http://no-such-host.invalid", cache, "No network", *REMEDIES)
    refused("hub.example.org", cache, "HF_ENDPOINT")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    refused("http://hub.example.org", cache, "No network", "TimeoutError")


@pytest.mark.parametrize(
    ("scheme", "proxy", "named"),
    [
        ("https", "{hub}", "NO_PROXY"),  # it refuses to connect
        ("http", "http://user:word@127.0.0.1:1", "No network"),
        ("http", "nonsense://x", "HTTP_PROXY"),
        ("http", "{hub}", "NO_PROXY"),  # it wants a log-in, 407
    ],
)
def test_a_failing_proxy_is_one_message_without_its_password(
    hub, cache, monkeypatch, scheme, proxy, named
):
    from huggingface_hub.utils import close_session

    hub.faults = [Fault(status=407)]
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.format(hub=hub.endpoint))
    assert "word@" not in refused(f"{scheme}://hub.example.org", cache, "HTTP_PROXY", named)
    close_session()  # it has read the variables
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    hub.faults = []
    assert load(hub, cache).revision == COMMIT


def test_dropped_connection_is_resumed(hub, cache):
    hub.faults = [Fault(where="/cdn/", drop_after=100_000, times=2)]
    assert load(hub, cache).files[WEIGHTS] == hub.etag(NAME, WEIGHTS)


def test_mirror_without_commits_is_refused_before_the_download(hub, cache):
    hub.is_plain_mirror = True
    refused(hub, cache, "X-Repo-Commit", "HF_ENDPOINT")
    assert all(request.get("range") == "bytes=0-0" for request in hub.asked("GET", "/cdn/"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "dereferenced"),
    [
        (WEIGHTS, flip, False),
        (WEIGHTS, cut, True),
        ("config.json", cut, False),
        ("config.json", flip, True),
        (INDEX, flip, True),
        (SHARD, lambda path: path.write_bytes(b""), False),
    ],
)
def test_damage_in_the_cache_is_found_offline_and_the_remedy_heals(
    hub, cache, sharded, name, damage, dereferenced
):
    if name in (INDEX, SHARD):
        hub.add(NAME, sharded)
    report = load(hub, cache)
    if dereferenced:
        shutil.copytree(cache, cache.with_name("copy"))
        shutil.rmtree(cache)
        cache.with_name("copy").rename(cache)
    damage((Path(report.path or "") / name).resolve())
    remedies = set()
    for options in ({"offline": True}, {}):
        with pytest.raises(WeightsError) as caught:
            load(hub, cache, **options)
        remedies |= set(re.findall(r"rm -r '(.+?)'", str(caught.value)))
    (remedy,) = remedies
    shutil.rmtree(remedy)
    assert load(hub, cache).tensors_sha256 == report.tensors_sha256


def test_partial_files_of_killed_downloads_are_removed(hub, cache):
    """A killed client leaves one under a name that no later one looks for."""
    from huggingface_hub.utils import WeakFileLock

    blobs, locks = cache / "models--t5-small" / "blobs", cache / ".locks" / "models--t5-small"
    for folder in (blobs, locks):
        folder.mkdir(parents=True)
    lefts = {name: blobs / f"{name * 64}.0123abcd.incomplete" for name in "abc"}
    for name, left in lefts.items():
        left.write_bytes(b"1")
        if name != "c":  # another process has just written to this one
            os.utime(left, (0, 0))
    with WeakFileLock(locks / f"{'b' * 64}.lock"):  # another process has this one
        load(hub, cache)
    assert {name for name, left in lefts.items() if left.exists()} == {"b", "c"}


def test_offline_without_a_cache(hub, cache):
    refused(hub, cache, "HF_HUB_OFFLINE", "HF_HOME", offline=True)
    assert not hub.requests


def test_revisions(hub, cache):
    refused(hub, cache, "'v9'", "main", revision="v9")
    assert load(hub, cache, revision=COMMIT).revision == COMMIT


def test_a_branch_that_moves_during_the_download_is_refused(hub, cache, monkeypatch):
    """Its config would belong to other weights."""
    moved = "ab" * 20

    def find_and_move(*names: str, real: Callable[..., Any] = hub_module._find) -> tuple[str, str]:
        found: tuple[str, str] = real(*names)
        hub.commits.append(moved)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "_find", find_and_move)
        refused(hub, cache, COMMIT, moved, "again")
    assert load(hub, cache).revision == moved


@pytest.mark.parametrize(
    "name", ["onnx/encoder_model.onnx", "t5-q8.gguf", "model.fp16.safetensors", None]
)
def test_repositories_without_a_checkpoint(hub, cache, tiny, name):
    config = (tiny / "config.json").read_bytes()
    hub.add(NAME, {WEIGHTS: b"1"} if name is None else {"config.json": config, name: b"1"})
    refused(hub, cache, name or "config.json")
    assert not hub.asked("GET", "/resolve/")


def test_shards(hub, cache, sharded):
    whole = load(hub, cache)
    hub.add(NAME, sharded)
    report = load(hub, cache.parent / "other")
    assert report.tensors_sha256 == whole.tensors_sha256
    assert set(report.files) == {p.name for p in sharded.iterdir()}
    lines = subprocess.run(
        "sha256sum model-*.safetensors | sha256sum",
        shell=True, cwd=sharded, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert lines.split()[0] == report.weights_sha256
    hub.add(NAME, {p.name: p for p in sharded.iterdir() if p.name != SHARD})
    refused(hub, cache.parent / "third", SHARD)
    hub.add(NAME, {"config.json": sharded / "config.json", INDEX: b"{}"})
    refused(hub, cache.parent / "fourth", INDEX)


def test_local_disk(hub, cache, monkeypatch):
    from huggingface_hub import file_download

    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", mock.Mock(side_effect=full))
        refused(hub, cache, "No space left", "HF_HOME")
    assert not list(cache.rglob("*.incomplete"))
    assert load(hub, cache).revision == COMMIT
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", mock.Mock(side_effect=PermissionError(13, "denied")))
        with pytest.raises(WeightsError, match="HF_HOME"):
            load(hub, cache)
    shutil.rmtree(cache)
    cache.write_text("a file")
    refused(hub, cache, str(cache), "HF_HOME")


def test_two_runs_at_once_download_once(hub, cache):
    hub.faults = [Fault(where="/cdn/", hang_s=0.3, times=1)]
    with at(hub.endpoint, cache), ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: load_checkpoint(hub_id=NAME)[1], "ab")
    assert one == other
    bodies = [h for h in hub.asked("GET", "/cdn/") if h.get("range") != "bytes=0-0"]
    assert len(bodies) == 1
