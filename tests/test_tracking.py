"""metrics.jsonl is exact, and the tracker can fail in any way without costing a run."""

import json
import socket
from pathlib import Path

import pytest

from t5ts.tracking import MetricsFile, NullTracker, WandbTracker, choose_mode

WANDB_VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HTTPS_PROXY", "https_proxy")


@pytest.fixture(autouse=True)
def _no_wandb_environment(monkeypatch, tmp_path) -> None:
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def wandb_tracker(run_dir: Path, **changes) -> WandbTracker:
    values = {
        "run_dir": run_dir,
        "config": {"optim.lr": 0.1, "freeze.always": ["a"]},
        "project": "t5ts-test",
        "entity": None,
        "group": "study",
        "job_type": "t5_small-t5-staged",
        "name": "t5_small-t5-staged-s0",
        "tags": ["x"],
        "mode": "offline",
        "run_id": "abc123",
    }
    run_dir.mkdir(exist_ok=True)
    return WandbTracker(**(values | changes))


def test_metrics_file_appends_cuts_and_writes_only_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1, "loss": 0.1 + 0.2})
    length, _crc32 = file.sync()
    file.append({"step": 2, "loss": float("nan"), "norm": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "loss": None, "norm": None},
    ]
    file.cut(length)
    file.append({"step": 3})
    file.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 3]


def test_modes_that_are_asked_for_are_obeyed() -> None:
    assert choose_mode("online")[0] == "online"
    assert choose_mode("offline")[0] == "offline"


def test_auto_obeys_the_environment(monkeypatch) -> None:
    for mode in ("online", "offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert choose_mode("auto") == (mode, f"WANDB_MODE={mode}")


def test_auto_is_offline_when_not_logged_in() -> None:
    assert choose_mode("auto") == ("offline", "not logged in")


def test_auto_is_online_when_logged_in_and_reachable(monkeypatch, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
        assert choose_mode("auto") == ("online", "logged in")


def test_auto_is_offline_at_once_when_the_network_is_dead(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    mode, why = choose_mode("auto")
    assert mode == "offline"
    assert str(port) in why


def test_auto_knocks_at_the_proxy_instead(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gate:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{gate.getsockname()[1]}")
        assert choose_mode("auto")[0] == "online"


def test_an_offline_run_reads_back_with_wandbs_own_tool(
    tmp_path: Path, caplog, wandb_summary
) -> None:
    caplog.set_level("INFO", logger="t5ts")
    tracker = wandb_tracker(tmp_path / "run")
    for epoch, (loss, corr) in enumerate([(0.9, 0.1), (0.5, 0.6), (0.7, 0.4)]):
        tracker.log({"kind": "eval", "epoch": epoch, "step": 10 * epoch, "val_loss": loss,
                     "val_corr": corr})  # fmt: skip
        norms = {"grad_norm/total": 1.5, "grad_norm/block_0": 0.5}
        tracker.log({"kind": "step", "epoch": epoch, "step": 10 * epoch + 5, **norms})
    tracker.finish({"objective": 0.5}, [])
    assert "W&B: offline (tracker.mode=offline)" in caplog.text
    assert "wandb sync" in caplog.text
    found = wandb_summary(tmp_path / "run")
    assert found["config"]["optim.lr"] == 0.1
    summary = json.dumps(found["summary"])
    for key in ("val_loss", "val_corr", "grad_norm/total", "grad_norm/block_0", "objective"):
        assert key in summary
    # define_metric's min and max are what W&B's dashboard sorts by.
    assert found["summary"]["val_loss"]["min"] == 0.5
    assert found["summary"]["val_corr"]["max"] == 0.6


def test_a_failing_tracker_falls_silent_and_says_so_once(tmp_path: Path, caplog) -> None:
    tracker = wandb_tracker(tmp_path / "run")
    run, tracker._run = tracker._run, Failing()
    tracker.log({"val_loss": 1.0})
    tracker.log({"val_loss": 1.0})
    tracker.finish({}, [])
    run.finish()
    assert caplog.text.count("W&B failed and is left out") == 1
    assert "the cable is cut" in caplog.text


class Failing:
    """A W&B run whose every call fails, as with a full disk or a dead service process."""

    def log(self, row: object) -> None:  # noqa: ARG002 - W&B's signature
        raise RuntimeError("the cable is cut")

    def finish(self) -> None:
        raise RuntimeError("the cable is cut")


def test_a_tracker_that_cannot_start_is_left_out(tmp_path: Path, caplog) -> None:
    tracker = wandb_tracker(tmp_path / "run", project="no/slash:allowed")
    tracker.log({"val_loss": 1.0})
    tracker.finish({}, [])
    assert "W&B failed and is left out" in caplog.text


def test_no_tracker_takes_everything() -> None:
    tracker = NullTracker()
    tracker.log({"val_loss": 1.0})
    tracker.finish({}, [])
    assert vars(tracker) == {}
