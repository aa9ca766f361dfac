"""Checkpoints from a hub: a local server, huggingface_hub's real code, and each way to fail."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import COMMIT, T5_SMALL, TINY, Fault, HubServer, full_model, serve, write_checkpoint

from t5ts.errors import WeightsError
from t5ts.model import hub as hub_module
from t5ts.model.hub_errors import suggestions
from t5ts.model.weights import LoadReport, describe, load_checkpoint, random_state

WEIGHTS = "model.safetensors"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def t5_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one full-size checkpoint: 60.5 M parameters, 242 MB."""
    folder = tmp_path_factory.mktemp("full") / "t5-small"
    return write_checkpoint(folder, T5_SMALL, full_model(T5_SMALL))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "t5", TINY, full_model(TINY))


@pytest.fixture
def hub(tiny: Path) -> Iterator[HubServer]:
    with serve() as server:
        server.add("t5-small", tiny)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_proxy_or_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A developer's own proxy or log-in must not reach these tests; clients read them once."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import close_session

    # The client waits a second before it takes a broken body up again.
    monkeypatch.setattr(file_download, "time", mock.Mock(wraps=time, sleep=lambda _: None))

    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
    close_session()
    yield
    close_session()


def load(hub: HubServer | str, cache: Path, hub_id: str = "t5-small", **kwargs: Any) -> LoadReport:
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    return load_checkpoint(hub_id=hub_id, endpoint=endpoint, cache_dir=cache, **kwargs)[1]


def refused(hub: HubServer | str, cache: Path, *parts: str, **kwargs: Any) -> str:
    """Loading raises one WeightsError with all of `parts`, without retries; returns its message.

    The client by itself asks a failing hub for 23 s. Here a request is sent at most twice (a probe
    and the client's own), but for a file's body that broke off.
    """
    before = 0 if isinstance(hub, str) else len(hub.requests)
    connect = mock.patch.object(socket, "create_connection", wraps=socket.create_connection)
    with connect as connected, pytest.raises(WeightsError) as caught:
        load(hub, cache, **kwargs)
    message = str(caught.value)
    print(message)
    assert "\n" not in message
    for part in parts:
        assert part in message
    if isinstance(hub, str):
        assert connected.call_count <= 1
    else:
        asked = Counter((verb, path) for verb, path, _ in hub.requests[before:])
        for (verb, path), times in asked.items():
            assert times <= (8 if verb == "GET" and WEIGHTS in path else 2), (verb, path)
    assert hub_module.cached_snapshot("t5-small", cache_dir=cache) is None
    return message


def test_full_size_checkpoint_loads_from_the_hub_and_then_from_the_cache(
    t5_small: Path, cache: Path
) -> None:
    with serve() as hub:
        hub.add("t5-small", t5_small)
        wanted = {"arch": T5_SMALL, "expected_full_params": (59_000_000, 62_000_000)}
        report = load(hub, cache, **wanted)
        asked = len(hub.requests)
        again = load(hub, cache, **wanted)
        assert len(hub.requests) == asked
    assert report == again
    assert report.num_params_full == 60_506_624
    assert (report.num_params_encoder, report.num_params_trained) == (35_330_816, 18_881_280)
    assert report.revision == COMMIT
    assert report.files[WEIGHTS] == hub.etag("t5-small", WEIGHTS)
    text = "\n".join(describe(report))
    for part in ("t5-small", str(cache), "512", "60,506,624", "35,330,816", "verified"):
        assert part in text
    snapshot = hub_module.cached_snapshot("t5-small", cache_dir=cache)
    assert snapshot is not None
    assert str(snapshot.folder) == report.path


def test_damaged_cousins_of_the_full_size_checkpoint(t5_small: Path, cache: Path) -> None:
    tensors = load_file(t5_small / WEIGHTS)
    expected = {"arch": T5_SMALL, "expected_full_params": (59_000_000, 62_000_000)}
    encoder = {n: t for n, t in tensors.items() if not n.startswith("decoder.")}
    generator = torch.Generator().manual_seed(0)
    fresh = {f"encoder.{n}": t for n, t in random_state(T5_SMALL, generator=generator).items()}
    for name, damaged, part in (
        ("encoder-only", encoder, "35,330,816 parameters (encoder only"),
        ("fresh", encoder | fresh, "35,330,816 parameters"),
    ):
        folder = write_checkpoint(cache.parent / name, T5_SMALL, damaged)
        with serve() as hub:
            hub.add("t5-small", folder)
            with pytest.raises(WeightsError) as caught:
                load(hub, cache / name, **expected)
            assert part in str(caught.value)
            if name == "fresh":
                with pytest.raises(WeightsError, match="looks freshly initialised"):
                    load(hub, cache / name, arch=T5_SMALL)


def test_transformers_reads_the_same_cache(hub: HubServer, cache: Path) -> None:
    from huggingface_hub import hf_hub_download

    report = load(hub, cache)
    for name in ("config.json", WEIGHTS):
        found = hf_hub_download("t5-small", name, cache_dir=cache, local_files_only=True)
        assert found == str(Path(report.path or "") / name)


def test_wrong_id_is_asked_back(hub: HubServer, cache: Path) -> None:
    for wrong, meant in (
        ("google/t5-small", "Did you mean t5-small"),
        ("t5_small", "t5-small"),
        ("google/flan-t5-smal", "google/flan-t5-small"),
        ("flan-t5-base", "google/flan-t5-base"),
    ):
        refused(hub, cache, wrong, meant, hub_id=wrong)
    refused(hub, cache, "no model 'a/b/c'", hub_id="a/b/c")
    refused(hub, cache, "no model 'zzzz'", hub_id="zzzz")
    assert suggestions("t5-small")[0] == "google-t5/t5-small"


def test_unauthorised_ids_are_not_called_wrong(hub: HubServer, cache: Path) -> None:
    said = {"X-Error-Message": "Invalid username or password."}
    hub.faults = [Fault(status=401, headers=said)]
    refused(hub, cache, "401", "HF_TOKEN", "hf auth login")
    refused(hub, cache, "Did you mean t5-small", "HF_TOKEN", hub_id="google/t5-small")


def test_token_opens_the_door_and_stays_on_the_hub(hub: HubServer, cache: Path) -> None:
    hub.token = "hf_right"
    refused(hub, cache, "401", "HF_TOKEN", "hf auth login", token=False)
    refused(hub, cache, "401", "HF_TOKEN", token="hf_wrong")
    load(hub, cache, token="hf_right")
    assert all("authorization" in headers for headers in hub.asked("GET", "/resolve/"))
    assert hub.asked("GET", "/cdn/")
    assert not any("authorization" in headers for headers in hub.asked("GET", "/cdn/"))


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (Fault(status=401), ["401", "HF_TOKEN", "hf auth login"]),
        (Fault(status=403), ["403", "HF_TOKEN", "hf auth login"]),
        (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), ["gated", "licence"]),
        (Fault(status=429, headers={"Retry-After": "300"}), ["429", "too many", "backbone.path"]),
        (Fault(status=500), ["500", "t5ts.download backbone=t5_small", "backbone.path=DIR"]),
        (Fault(status=503), ["503", "Run again later"]),
        (Fault(status=407), ["proxy", "HTTPS_PROXY"]),
        (Fault(status=418), ["418", "HF_ENDPOINT"]),
        (Fault(hang_s=6.0), ["No network", "backbone.path=DIR"]),
        (Fault(drop_after=0), ["No network"]),
        (Fault(body="<html>Please log in</html>"), ["did not answer as a hub", "log-in"]),
        (Fault(where="model.safetensors", status=503), ["503"]),
        (Fault(where="model.safetensors", status=429), ["429"]),
        (Fault(where="model.safetensors", status=403), ["403"]),
        (Fault(where="/cdn/", status=503), ["503"]),
        (Fault(where="/cdn/", status=404), ["404"]),
        (Fault(where="/cdn/", hang_s=0.1, drop_after=0), ["broke off", "run the same"]),
        (Fault(where="/cdn/", hang_s=6.0), ["broke off", "run the same"]),
        (Fault(where="/cdn/", drop_after=20_000), ["broke off", "run the same"]),
        (Fault(where="config.json", status=503), ["503"]),
    ],
)
def test_the_hub_says_no(hub: HubServer, cache: Path, fault: Fault, parts: list[str]) -> None:
    hub.faults = [fault]
    refused(hub, cache, *parts)
    hub.faults = []
    assert load(hub, cache).num_params_full  # and nothing is left broken


def test_no_network(cache: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    remedies = ("python -m t5ts.download backbone=t5_small", "HF_HOME", "backbone.path=DIR")
    refused(f"http://127.0.0.1:{port}", cache, "No network", *remedies)
    refused("http://no-such-host.invalid", cache, "No network", *remedies)
    refused("hub.example.org", cache, "HF_ENDPOINT")


def test_slow_name_lookup_is_cut_short(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    refused("http://hub.example.org", cache, "No network", "no answer within")


def test_proxies(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import close_session

    proxy = hub.endpoint.replace("http://", "")
    monkeypatch.setenv("HTTPS_PROXY", hub.endpoint)
    refused("https://hub.example.org", cache, f"HTTPS_PROXY ({proxy})", "refused", "NO_PROXY")
    close_session()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    refused("http://hub.example.org", cache, "HTTP_PROXY (127.0.0.1:1)", "No network")
    close_session()
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    refused("http://hub.example.org", cache, "HTTP_PROXY (x)", "proxy")
    close_session()
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    hub.faults = [Fault(status=407)]
    refused("http://hub.example.org", cache, f"HTTP_PROXY ({proxy})", "refused")
    close_session()
    # An obliging proxy: the request for the hub's full address arrives at our server.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.faults = []
    assert load(hub, cache).revision == COMMIT


def test_connection_that_drops_is_taken_up(hub: HubServer, cache: Path) -> None:
    hub.faults = [Fault(where="/cdn/", drop_after=100_000, times=2)]
    assert load(hub, cache).files[WEIGHTS] == hub.etag("t5-small", WEIGHTS)


def test_mirror_that_names_no_commits_is_refused_before_the_download(
    hub: HubServer, cache: Path
) -> None:
    hub.is_plain_mirror = True
    refused(hub, cache, "mirror", "X-Repo-Commit", "HF_ENDPOINT")
    assert all(request.get("range") == "bytes=0-0" for request in hub.asked("GET", "/cdn/"))


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (Fault(where="/cdn/", short=150_000), ["broke off", "Nothing was kept"]),
        (Fault(where="/cdn/", flip=200_000), ["corrupted", "removed", "Run again"]),
        (Fault(where="/cdn/", flip=20), ["corrupted"]),
        (Fault(where="config.json", flip=20), ["corrupted"]),
    ],
)
def test_damaged_body_does_not_stay_in_the_cache(
    hub: HubServer, cache: Path, fault: Fault, parts: list[str]
) -> None:
    hub.faults = [fault]
    refused(hub, cache, *parts)
    damaged = WEIGHTS if "cdn" in fault.where else "config.json"
    blobs = [p.name for p in (cache / "models--t5-small" / "blobs").iterdir()]
    assert hub.etag("t5-small", damaged) not in blobs
    assert not [name for name in blobs if name.endswith(".incomplete")]
    hub.faults = []
    assert load(hub, cache).revision == COMMIT


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("dereferenced", [False, True])
@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "model.safetensors.index.json"])
def test_damage_in_the_cache_is_found_offline_and_the_remedy_heals(
    hub: HubServer,
    cache: Path,
    sharded: Path,
    name: str,
    damage: Callable[[Path], object],
    dereferenced: bool,
) -> None:
    if "index" in name:
        hub.add("t5-small", sharded)
    report = load(hub, cache)
    file = Path(report.path or "") / name
    if dereferenced:
        shutil.copytree(cache, cache.with_name("copy"))
        shutil.rmtree(cache)
        cache.with_name("copy").rename(cache)
    damage(file.resolve())
    remedies = set()
    for options in ({"offline": True}, {}, {"refresh": True}):
        with pytest.raises(WeightsError) as caught:
            load(hub, cache, **options)
        remedies |= set(re.findall(r"rm -r '(.+?)'", str(caught.value)))
    (remedy,) = remedies
    shutil.rmtree(remedy)
    assert load(hub, cache).tensors_sha256 == report.tensors_sha256


def test_cached_checkpoint_is_used_when_the_hub_cannot_be_asked(
    hub: HubServer, cache: Path
) -> None:
    report = load(hub, cache)
    before = sorted((path, path.lstat().st_mtime_ns) for path in cache.rglob("*"))
    hub.faults = [Fault(status=503)]
    assert load(hub, cache, refresh=True) == report
    assert load("http://no-such-host.invalid", cache, refresh=True) == report
    hub.faults = []
    assert load(hub, cache, refresh=True) == report
    assert sorted((path, path.lstat().st_mtime_ns) for path in cache.rglob("*")) == before
    hub.faults = [Fault(status=401)]
    with pytest.raises(WeightsError, match="401"):
        load(hub, cache, refresh=True)


def test_offline_without_a_cache(hub: HubServer, cache: Path) -> None:
    refused(hub, cache, "not complete in the cache", "HF_HUB_OFFLINE", "HF_HOME", offline=True)
    refused(hub, cache, "Did you mean t5-small", hub_id="googel/t5-small", offline=True)
    assert not hub.requests
    assert hub_module.cached_snapshot("t5-small", cache_dir=cache) is None


def test_refresh_asks_the_hub(hub: HubServer, cache: Path) -> None:
    load(hub, cache)
    hub.requests = []
    load(hub, cache, refresh=True)
    assert hub.asked("GET", "/api/models/t5-small")
    assert not hub.asked("GET", "/cdn/")


def test_unknown_revision(hub: HubServer, cache: Path) -> None:
    refused(hub, cache, "no revision 'v9'", "main", revision="v9")
    assert load(hub, cache, revision=COMMIT).revision == COMMIT


@pytest.mark.parametrize("kind", ["onnx", "gguf", "fp16", "no config"])
def test_repositories_without_a_checkpoint(
    hub: HubServer, cache: Path, tiny: Path, kind: str
) -> None:
    config = (tiny / "config.json").read_bytes()
    files: dict[str, bytes | Path] = {
        "onnx": {"config.json": config, "onnx/encoder_model.onnx": b"1"},
        "gguf": {"config.json": config, "t5-q8.gguf": b"1"},
        "fp16": {"config.json": config, "model.fp16.safetensors": b"1"},
        "no config": {WEIGHTS: b"1"},
    }[kind]
    hub.add("t5-small", files)
    said = {"onnx": "only ONNX", "gguf": "GGUF", "fp16": "model.fp16.safetensors"}
    refused(hub, cache, said.get(kind, "no config.json"))
    assert not hub.asked("GET", "/resolve/")


@pytest.fixture
def sharded(tiny: Path, tmp_path: Path) -> Path:
    tensors = load_file(tiny / WEIGHTS)
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    names, weight_map = sorted(tensors), {}
    for i in (0, 1):
        save_file({n: tensors[n] for n in names[i::2]}, folder / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(names[i::2], f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_sharded_repository_and_its_pin(hub: HubServer, cache: Path, sharded: Path) -> None:
    whole = load(hub, cache)
    hub.add("t5-small", sharded)
    report = load(hub, cache.parent / "other")
    assert report.tensors_sha256 == whole.tensors_sha256
    assert set(report.files) == {p.name for p in sharded.iterdir()}
    lines = subprocess.run(
        "sha256sum model-*.safetensors | sha256sum",
        shell=True, cwd=sharded, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert lines.split()[0] == report.weights_sha256
    load(hub, cache.parent / "other", expected_sha256=report.weights_sha256)
    last = report.files["model-1.safetensors"]
    with pytest.raises(WeightsError, match=r"backbone\.sha256"):
        load(hub, cache.parent / "other", expected_sha256=last)


def test_no_disk_space(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", mock.Mock(side_effect=full))
        refused(hub, cache, "No space left", "disk space", "HF_HOME")
    assert not list(cache.rglob("*.incomplete"))
    assert load(hub, cache).revision == COMMIT


def test_cache_that_is_no_folder(hub: HubServer, cache: Path) -> None:
    cache.write_text("a file")
    refused(hub, cache, "cannot be used", "HF_HOME")


def test_two_runs_at_once_download_once(hub: HubServer, cache: Path) -> None:
    hub.faults = [Fault(where="/cdn/", hang_s=0.3, times=1)]
    reports: list[LoadReport] = []
    threads = [threading.Thread(target=lambda: reports.append(load(hub, cache))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 2
    assert reports[0] == reports[1]
    bodies = [h for h in hub.asked("GET", "/cdn/") if h.get("range") != "bytes=0-0"]
    assert len(bodies) == 1


SCRIPT = """
import sys
from t5ts.errors import WeightsError
from t5ts.model.weights import describe, load_checkpoint
assert "huggingface_hub" not in sys.modules and "transformers" not in sys.modules
try:
    print(describe(load_checkpoint(hub_id="t5-small")[1])[0])
except WeightsError as error:
    print(error)
    sys.exit(2)
assert "transformers" not in sys.modules
"""


def test_environment_variables_steer_it(hub: HubServer, cache: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE are read at import: new processes."""
    hub.token = "hf_right"
    home = {"HF_HOME": str(cache), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_right"}

    def run(**env: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **home, **env},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    code, text = run(HF_HUB_OFFLINE="1")
    assert code == 2
    assert "HF_HUB_OFFLINE" in text
    assert not hub.requests
    code, text = run()
    assert code == 0
    assert f"t5-small at {COMMIT[:12]}" in text
    assert str(cache / "hub") in text
    asked = len(hub.requests)
    assert run(HF_HUB_OFFLINE="1") == (0, text)
    assert len(hub.requests) == asked
