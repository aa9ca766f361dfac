"""The download command, against a local server that speaks the hub's protocol."""

import signal
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from data.ett_files import write_ett
from hub_server import Fault, HubServer, at, serve
from runs import HUB_BACKBONE as BACKBONE
from runs import HUB_ID, Command, command_line, flip, local_t5, wait_for

from t5ts.download import command, main
from t5ts.model import hub as hub_module
from t5ts.model.checkpoint_file import file_sha256


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    with serve() as server, at(server.endpoint, tmp_path / "cache"):
        server.add(HUB_ID, local_t5(tmp_path / "served"))
        yield server


@pytest.fixture(autouse=True)
def _environment(monkeypatch) -> None:
    """Environment variables that options set are restored afterwards."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")


def test_fetch_verifies_and_prints_the_verdict(hub, capsys):
    assert main([*BACKBONE, "--token", "secret"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "weights", "d_model", "full", "encoder", "verdict", "RMS",
    ]  # fmt: skip
    assert HUB_ID in lines[0]
    assert "pretrained T5, verified" in lines[4]
    assert any(request.get("authorization") == "Bearer secret" for request in hub.asked("GET", ""))


@pytest.mark.usefixtures("hub")
def test_list_shows_what_is_cached(capsys):
    assert main(BACKBONE) == 0
    capsys.readouterr()
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    licences = ("apache-2.0", "mit", "opt-175b", "llama3.2")
    assert sum(any(f" {name} " in line for name in licences) for line in lines) == len(lines) == 20
    cached = [line for line in lines if "MB in" in line]
    assert [line.split()[0] for line in cached] == ["t5_efficient_tiny"]
    assert sum(" no" in line[84:] for line in lines) == 18
    assert all(len(line.partition("; ")[2].split()) > 3 for line in lines)  # its card


def test_verify_needs_no_network_and_finds_damage(hub, tmp_path, capsys):
    main(BACKBONE)
    asked = len(hub.asked("GET", ""))
    refs = [(path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("refs/*")]
    assert main(["--verify", *BACKBONE]) == main(BACKBONE) == 0
    assert len(hub.asked("GET", "")) == asked
    assert [(path, path.stat().st_mtime_ns) for path, _ in refs] == refs  # may be read-only
    (blob,) = [p for p in (tmp_path / "cache").rglob("blobs/*") if p.stat().st_size > 10_000]
    flip(blob, -100)
    assert main(["--verify", *BACKBONE]) == 2
    assert "t5ts: " in capsys.readouterr().err


def download_command(*arguments: str) -> None:
    """What `python -m t5ts.download` does."""
    sys.argv = ["t5ts.download", *arguments]
    command()


@pytest.mark.parametrize(
    ("module", "number"),
    [("download", signal.SIGTERM), ("download", signal.SIGKILL), ("run", signal.SIGINT)],
)
def test_a_signal_ends_a_download_and_the_same_command_completes_it(hub, tmp_path, module, number):
    """It stops at once, with one line; the unfinished file is never used as a checkpoint."""
    hub.faults = [Fault("cdn/", stall_after=1000)]
    home = tmp_path / "home"
    places = {"HF_HUB_CACHE": str(home), "HF_ENDPOINT": hub.endpoint}
    options = ["--endpoint", hub.endpoint, "--cache-dir", str(home)]
    run = ["init=t5", "data=synthetic", "hydra.run.dir=run"]
    process = Command(
        *BACKBONE, *(run if module == "run" else options),
        cwd=tmp_path, program=command_line if module == "run" else download_command,
        HF_HUB_DOWNLOAD_TIMEOUT="120",  # the server stalls
        **(places if module == "run" else {}),
    )  # fmt: skip
    asked = partial(hub.asked, "GET", "cdn/")
    wait_for(process, lambda: any(h.get("range") != "bytes=0-0" for h in asked()))
    process.send_signal(number)
    _, errors = process.wait()
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130
        (line,) = [line for line in errors.splitlines() if "stopped" in line]
        assert "model.safetensors" in line
        assert "Traceback" not in errors
        assert not list(home.rglob("*.incomplete"))
    with at(hub.endpoint, home):
        assert hub_module.cached_snapshot(HUB_ID) is None
        hub.faults = []
        assert main(BACKBONE) == 0
        assert main(["--verify", *BACKBONE]) == 0


def test_data_is_fetched_or_read_by_name(tmp_path, capsys):
    write_ett(tmp_path, "etth1")
    digest = file_sha256(tmp_path / "ETTh1.csv")
    assert main(["data=etth1", f"data.dir={tmp_path}", f"data.sha256={digest}"]) == 0
    assert "17420" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["backbone=t5_tiny"], 2, "t5_efficient_tiny"),
        (["backbone=shared"], 2, "no checkpoint"),
        (["optim=adamw"], 2, "nothing to fetch"),
        (["data=etth1", "data.dir=nowhere"], 2, "nowhere"),
        (["data=etth1", "data.ar=[1]"], 2, "data.ar"),
        (["--verify", "backbone=linear"], 2, "linear"),
        (["backbone=local", "backbone.path=nowhere"], 2, "nowhere"),
    ],
)
def test_bad_input_is_one_message(arguments, status, word, capsys):
    assert main(arguments) == status
    message = capsys.readouterr().err
    assert word in message
    assert "+" not in message  # Hydra's advice would add a key that nothing reads
