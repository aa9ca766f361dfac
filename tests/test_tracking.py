"""metrics.jsonl is exact, and the tracker can fail in any way without costing a run."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from conftest import SMALL
from runs import Command, command_line, rows, run, run_until, wandb_records, wandb_summary
from wandb.sdk import wandb_setup

from benchmarks.simulated_runs import Arm, write_run
from t5ts import experiment, report, tracking
from t5ts.analysis.page import Written
from t5ts.config import searched
from t5ts.schema import TrackerConfig
from t5ts.tracking import MetricsFile, Tracker, WandbTracker, choose_mode, one_line

WANDB_VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HTTPS_PROXY", "https_proxy")


@pytest.fixture(autouse=True)
def _no_wandb_environment(monkeypatch, tmp_path) -> None:
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def wandb_tracker(run_dir: Path, *, mode: str = "offline", project: str = "test") -> WandbTracker:
    run_dir.mkdir(exist_ok=True)
    return WandbTracker(
        run_dir=run_dir,
        config={"optim.lr": 0.1, "freeze.always": ["a"]},
        settings=TrackerConfig(name="wandb", project=project, tags=["x"], mode=mode),
        group="study",
        job_type="t5_small-t5-staged",
        name="t5_small-t5-staged-s0",
    )


def test_metrics_file_appends_cuts_and_writes_only_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1, "loss": 0.1 + 0.2})
    length, _crc32 = file.sync()
    file.append({"step": 2, "loss": float("nan"), "norm": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "loss": None, "norm": None},
    ]
    assert file.cut(length) == 1
    file.append({"step": 3})
    file.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 3]


@pytest.mark.parametrize(
    ("asked", "environment", "listens", "mode"),
    [
        ("online", {}, False, "online"),
        ("offline", {"WANDB_MODE": "online"}, True, "offline"),
        *(("auto", {"WANDB_MODE": mode}, True, mode) for mode in ("online", "offline", "disabled")),
        ("auto", {}, True, "offline"),  # not logged in
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://SERVER"}, True, "online"),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://SERVER"}, False, "offline"),
        ("auto", {"WANDB_API_KEY": "k" * 40, "HTTPS_PROXY": "http://SERVER"}, True, "online"),
        ("auto", {"NETRC": "NETRC", "WANDB_BASE_URL": "http://SERVER"}, True, "online"),
    ],
)
def test_the_mode_is_what_is_asked_for_or_what_works(
    asked, environment, listens, mode, monkeypatch, tmp_path
):
    login = tmp_path / "login"
    login.write_text("machine 127.0.0.1 login user password key\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        for name, value in environment.items():
            value = value.replace("SERVER", place)
            monkeypatch.setenv(name, str(login) if value == "NETRC" else value)
        assert choose_mode(asked)[0] == mode


def test_an_offline_run_reads_back_with_wandbs_own_tool(tmp_path, caplog):
    caplog.set_level("INFO", logger="t5ts")
    tracker = wandb_tracker(tmp_path / "run")
    for epoch, (loss, corr) in enumerate([(0.9, 0.1), (0.5, 0.6), (0.7, 0.4)]):
        tracker.log({"kind": "eval", "epoch": epoch, "step": 10 * epoch, "val_loss": loss,
                     "val_corr": corr})  # fmt: skip
        norms = {"grad_norm/total": 1.5, "grad_norm/block_0": 0.5}
        norms |= {"val_corr_constant_channels": 0.0, "test_corr_constant_channels": 2.0}
        tracker.log({"kind": "step", "epoch": epoch, "step": 10 * epoch + 5, **norms})
    tracker.finish({"objective": 0.5}, [])
    assert "W&B: offline (tracker.mode=offline)" in caplog.text
    assert "wandb sync" in caplog.text
    found = wandb_summary(tmp_path / "run")
    assert found["config"]["optim.lr"] == 0.1
    assert found["summary"]["trainer/global_step"] == 25
    clutter = {"kind", "step", "val_corr_constant_channels"}
    assert not clutter & found["summary"].keys()
    assert found["summary"]["test_corr_constant_channels"] == 2
    summary = json.dumps(found["summary"])
    for key in ("val_loss", "val_corr", "grad_norm/total", "grad_norm/block_0", "objective"):
        assert key in summary
    assert "artifact" not in {record["type"] for record in wandb_records(tmp_path / "run")}
    # define_metric's min and max are what W&B's dashboard sorts by.
    assert found["summary"]["val_loss"]["min"] == 0.5
    assert found["summary"]["val_corr"]["max"] == 0.6


def test_a_study_and_its_report_are_one_group_with_artifacts(small, tmp_path, monkeypatch):
    """The records that W&B's client wrote offline, as its own tool reads them."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    study = tmp_path / "study"
    config = small("backbone=linear", "tracker=wandb", "tracker.artifacts=true")
    run(config, run_dir=study / "0", group="study")

    def page_alone(_findings: object, out: Path) -> Written:
        out.mkdir()
        (out / "report.html").touch()
        return Written(page=out / "report.html", pictures=[])

    monkeypatch.setattr("t5ts.analysis.write_report", page_alone)
    assert report.main([str(study), "--wandb", "t5ts-test"]) == 0
    started, artifacts = {}, {}
    for folder in (study / "0", study / "report"):
        records = wandb_records(folder)
        *_, begun = (record["run"] for record in records if record["type"] == "run")
        started[begun["job_type"]] = begun
        artifacts[folder.name] = str([r for r in records if r["type"] == "artifact"])
    assert set(started) == {config.arm, "report"}
    assert {one["run_group"] for one in started.values()} == {"study"}
    stored = started[config.arm]["config"]["update"]
    assert stored["optim"]["lr"] == config.optim.lr  # nested
    assert stored["arm"] == "linear, trained from scratch"
    assert "checkpoint/best.safetensors" in artifacts["0"]
    assert "report.html" in artifacts["report"]


def test_a_failing_tracker_falls_silent_and_says_so_once(tmp_path, caplog):
    """As with a full disk or a dead service process; the next trial of the process is its own."""
    lost = wandb_tracker(tmp_path / "lost")
    lost._run = object()  # whose every call fails
    for _ in range(2):
        lost.log({"val_loss": 1.0})
    lost.finish({}, [])
    wandb_tracker(tmp_path / "run", project="no/slash:allowed").log({"val_loss": 1.0})
    assert caplog.text.count("W&B failed and is left out") == 2
    assert one_line(ValueError("1 error:\n  mode\n")) == "1 error: mode"  # as pydantic's
    tracker = wandb_tracker(tmp_path / "next")
    tracker.log({"epoch": 0, "val_loss": 0.25})
    tracker.finish({}, [])
    assert wandb_summary(tmp_path / "next")["summary"]["val_loss"]["min"] == 0.25


def stop_service() -> None:
    """Stop W&B's own process: it takes what its socket's buffer holds, and answers nothing."""
    process = wandb_setup.singleton()._connection._proc._process
    os.kill(process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("rows_sent", [0, 300])
def test_a_tracker_that_hangs_is_left_out_in_time(rows_sent, tmp_path, caplog, monkeypatch):
    """Few rows fit into the buffer, so the end waits for it; many do not, so a row does."""
    monkeypatch.setattr(tracking, "ANSWER_S", 1.0)
    hung = wandb_tracker(tmp_path / "hung")
    stop_service()
    for step in range(rows_sent):
        hung.log({f"value/{number}": step + number / 7 for number in range(500)})
    assert ("left out" in caplog.text) == (rows_sent > 0)
    hung.finish({"objective": 0.5}, [])
    assert caplog.text.count("left out") == 1
    after = wandb_tracker(tmp_path / "next")
    after.finish({"objective": 0.25}, [])
    assert caplog.text.count("left out") == 1
    assert wandb_summary(tmp_path / "next")["summary"]["objective"] == 0.25


def stopped_with_the_first_step(*arguments: str) -> None:
    """The command line; W&B's process is stopped when training begins."""
    tracking.ANSWER_S = 1.0
    real_fit = experiment.fit

    def fit(*args, **kwargs):
        stop_service()
        return real_fit(*args, **kwargs)

    experiment.fit = fit
    command_line(*arguments)


def test_a_run_whose_tracker_hangs_ends_with_its_result(tmp_path):
    """Also its process ends, which waits for W&B's when it exits."""
    arguments = [*SMALL, "backbone=linear", "tracker=wandb", "hydra.run.dir=run"]
    process = Command(
        *arguments, cwd=tmp_path, program=stopped_with_the_first_step, WANDB_MODE="offline"
    )
    out, err = process.finish()
    assert (tmp_path / "run" / "result.json").is_file()
    assert (out + err).count("left out") == 1


#: Variables that are wrong, and what the one message must name.
WRONG_VARIABLES = {
    "a port": ({"WANDB_BASE_URL": "http://127.0.0.1:99999"}, "Port out of range"),
    "an address": ({"WANDB_BASE_URL": "http://[::1"}, "Invalid IPv6 URL"),
    "a proxy": ({"WANDB_BASE_URL": "http://w.example.org", "http_proxy": "h:99999"}, "Port"),
}


@pytest.mark.parametrize(("variables", "named"), WRONG_VARIABLES.values(), ids=WRONG_VARIABLES)
def test_a_wrong_variable_costs_no_run_and_refuses_a_report(
    variables, named, tmp_path, caplog, capsys, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracker = wandb_tracker(tmp_path / "run", mode="auto")
    tracker.log({"val_loss": 1.0})
    (message,) = caplog.messages
    assert "left out" in message
    assert named in message
    write_run(tmp_path / "study", Arm(init="t5", freeze="none"), 0)
    monkeypatch.setattr("t5ts.analysis.figures.PICTURES", {})
    assert report.main([str(tmp_path / "study"), "--wandb", "t5ts-test"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize("login", [b"\xff\xfe", None])
def test_an_unreadable_login_is_none(login, tmp_path, monkeypatch):
    path = tmp_path / "netrc"
    path.mkdir() if login is None else path.write_bytes(login)
    assert choose_mode("auto")[0] == "offline"
    monkeypatch.setenv("NETRC", "~no-such-user/netrc")
    assert choose_mode("auto")[0] == "offline"


def test_an_online_start_that_fails_goes_on_offline(tmp_path, monkeypatch, caplog):
    """The client held the failed start's id for a run in use, and no row went anywhere."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1.0)
    caplog.set_level("INFO", logger="t5ts")
    tracker = wandb_tracker(tmp_path / "run", mode="online")
    tracker.log({"epoch": 0, "val_loss": 0.5})
    tracker.finish({"objective": 0.5}, [])
    assert "W&B: offline (online failed" in caplog.text
    assert "left out" not in caplog.text
    assert wandb_summary(tmp_path / "run")["summary"]["objective"] == 0.5


def test_a_run_directory_is_one_wandb_run(tmp_path):
    """The same command in another directory is another run; resumed, it is the same."""
    ids = {}
    for number, name in enumerate(("a", "b", "a")):
        tracker = wandb_tracker(tmp_path / name)
        ids[number] = tracker._run.id
        assert tracker.resumed == (number == 2)
        tracker.abandon()
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["init=t5", "freeze=staged", "seed=1", "backbone=x", "experiment=demo"], []),
        (["optim.lr=0.00036728194"], ["lr=0.0003673"]),
        (["freeze.unfreeze_epoch=2", "+optim.lr=1e-3"], ["unfreeze_epoch=2", "lr=0.001"]),
        (["data=etth1", "tracker=none", "train.resume=never"], ["data=etth1"]),
        (["tracker.mode=offline", "hydra.sweeper.seed=1", "optim.lr=1e-3"], ["lr=0.001"]),
        (["train.reuse_dir=x", "hydra.sweeper.n_jobs=2"], []),
    ],
)
def test_a_trial_is_called_after_what_was_searched(overrides, named):
    assert searched(overrides) == named


class Recorder(Tracker):
    """Keeps the rows that it is sent, over the processes of a run."""

    def __init__(self) -> None:
        self.sent: list[dict] = []
        self.abandoned = 0

    def abandon(self) -> None:
        self.abandoned += 1

    def log(self, row) -> None:
        self.sent.append({k: v for k, v in row.items() if not k.startswith("perf/")})


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resume_sends_no_row_twice(resumed, small, tmp_path, monkeypatch):
    """A tracker that was there before is sent what is new, another one all that is trained."""
    config = small("backbone=linear", "train.log_every=1")
    recorder = Recorder()
    monkeypatch.setattr(experiment, "_build_tracker", lambda *_: recorder)
    run_until(9, config, tmp_path, politely=False)
    assert len(recorder.sent) > 9
    assert recorder.abandoned == 1
    kept = [{k: v for k, v in row.items() if v is not None} for row in rows(tmp_path)]
    if not resumed:
        recorder = Recorder()
    recorder.resumed = resumed
    run(config, run_dir=tmp_path)
    whole = [{k: v for k, v in row.items() if v is not None} for row in rows(tmp_path)]
    since = next(number for number, row in enumerate(kept) if row["step"] > 6)
    assert recorder.sent == (whole if resumed else whole[since:])


def test_one_key_has_one_meaning(small, run_dir):
    """A step's values and an epoch's means have keys of their own, in the file as in W&B."""
    run(small("backbone=linear", "train.log_every=1", "train.probe_every=1"), run_dir=run_dir)
    kinds: dict[str, set[str]] = {}
    for row in rows(run_dir):
        kinds.setdefault(row["kind"], set()).update(row)
    common = {"kind", "step", "epoch"}
    assert set(kinds) == {"eval", "step", "probe"}
    for one in kinds:
        for other in set(kinds) - {one}:
            assert kinds[one] & kinds[other] == common
    assert {"train_loss", "grad_norm/total", "grad_norm_max/total"} <= kinds["eval"]
    assert {"step/train_loss", "step/grad_norm/total"} <= kinds["step"]
    # `epoch` is how many epochs are done, in every row.
    per_epoch = next(row["step"] for row in rows(run_dir) if row.get("epoch") == 1)
    assert all(row["epoch"] == row["step"] / per_epoch for row in rows(run_dir))
