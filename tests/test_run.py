"""The command line as a user meets it: a process, its words and its exit status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, TINY_T5
from data.ett_files import write_ett
from hub_server import COMMIT, serve
from runs import HUB_BACKBONE, HUB_ID, local_t5, read, rows

from t5ts.config import CONF
from t5ts.model.checkpoint_file import file_sha256


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "t5ts.run", *arguments]


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONF.parent)} | changes


def t5ts(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_explains_every_group_and_option(tmp_path: Path) -> None:
    done = t5ts("--help", cwd=tmp_path)
    assert done.returncode == 0
    for folder in CONF.iterdir():
        if folder.is_dir() and folder.name not in ("hydra", "experiment"):
            explained, found = done.stdout.split("== Options found ==")
            assert f"\n  {folder.name} " in explained, folder.name
            assert all(option.stem in found for option in folder.glob("*.yaml"))


def test_cfg_job_prints_the_configuration(tmp_path: Path) -> None:
    done = t5ts("--cfg", "job", "init=t5", "freeze=staged", cwd=tmp_path)
    assert done.returncode == 0
    assert "unfreeze_epoch: 3.0" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["optim.lrr=1"], 2, ["optim.lrr"]),
        (["backbone=0"], 2, ["t5ts: backbone=0", "t5_small"]),
        (["data=etth3"], 2, ["t5ts: data=etth3", "etth1"]),
        (["optim.lr=fast"], 2, ["optim.lr", "Float"]),
        (["backbone=shared", "init=t5"], 2, ["t5ts: init=t5", "backbone=shared"]),
        (["data=csv", "data.path=missing.csv"], 2, ["t5ts: ", "missing.csv"]),
        (["backbone=local", "backbone.path=nowhere", "init=t5"], 2, ["t5ts: ", "nowhere"]),
    ],
)
def test_user_errors_are_one_message_without_a_traceback(
    arguments: list[str], status: int, words: list[str], tmp_path: Path
) -> None:
    done = t5ts(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not list(tmp_path.rglob("run.log"))  # no directory of a run that never began


def test_t5_without_a_network_stops_with_the_remedy(tmp_path: Path) -> None:
    """Nothing listens on port 9 of this machine: a refused connection, as without a network."""
    done = t5ts(
        "init=t5", "freeze=staged", "tracker=none", cwd=tmp_path,
        HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in ("t5-small", "backbone=t5_tiny_en", "backbone.path=DIR", "t5ts.download"):
        assert word in done.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_the_mission_with_a_checkpoint_from_a_hub_and_ett_data(tmp_path: Path) -> None:
    (tmp_path / "ett").mkdir()
    write_ett(tmp_path / "ett", "etth1")
    digest = file_sha256(tmp_path / "ett" / "ETTh1.csv")
    mission = [
        *HUB_BACKBONE, "init=t5", "freeze=staged",
        "freeze.unfreeze_epoch=0.5", "freeze.epochs_per_stage=0.25", "freeze.blocks_per_stage=1",
        "data=etth1", f"data.dir={tmp_path / 'ett'}", f"data.sha256={digest}",
        "data.windows_per_epoch=64", "train.epochs=1", "train.batch_size=8", "train.log_every=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with serve() as hub:
        hub.add(HUB_ID, local_t5(tmp_path / "served"))
        at_hub = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
        done = t5ts(*mission, cwd=tmp_path, WANDB_MODE="offline", **at_hub)
    assert done.returncode == 0, done.stderr
    assert "pretrained T5, verified" in done.stdout
    assert "W&B: offline" in done.stdout
    assert "learning_curve" in done.stdout
    run_dir = tmp_path / "run"
    provenance = read(run_dir / "provenance.json")
    assert provenance["weights"]["init"] == "t5"
    assert provenance["weights"]["revision"] == COMMIT
    assert provenance["weights"]["files"] == {
        name: file_sha256(tmp_path / "served" / name) for name in provenance["weights"]["files"]
    }
    assert provenance["windows"]["val"] == 2880 - 24 + 1
    assert provenance["windows"]["test"] == 2880 - 24 + 1
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    assert [row["step/grad_norm/block_1"] > 0 for row in steps] == [False] * 4 + [True] * 4
    assert [row["step/grad_norm/block_0"] > 0 for row in steps] == [False] * 6 + [True] * 2
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def wait_for_rows(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)


def test_kill_and_resume_agree_bit_for_bit(tmp_path: Path) -> None:
    arguments = [*SMALL, *TINY_T5, "freeze=staged", "freeze.unfreeze_epoch=2", "train.epochs=12"]
    done = t5ts(*arguments, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "parts"
    for number, rows_first in ((signal.SIGTERM, 6), (signal.SIGKILL, 25), (signal.SIGINT, 40)):
        process = subprocess.Popen(
            command(*arguments, f"hydra.run.dir={run_dir}"), cwd=tmp_path, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_rows(run_dir, rows_first, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130
            assert "the same command resumes it" in stderr
    done = t5ts(*arguments, f"hydra.run.dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(run_dir) == rows(tmp_path / "whole")
    assert (
        read(run_dir / "result.json")["metrics"]
        == read(tmp_path / "whole" / "result.json")["metrics"]
    )


def test_multirun_gives_every_run_a_directory(tmp_path: Path) -> None:
    done = t5ts(
        "--multirun", "seed=0,1", *SMALL, *TINY_T5, "debug=fast_dev_run",
        f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = sorted((tmp_path / "sweep").glob("*/result.json"))
    assert [read(path)["seed"] for path in results] == [0, 1]


def test_the_default_directory_is_named_by_identity(tmp_path: Path) -> None:
    for lr in ("1e-3", "1e-3", "2e-3"):
        done = t5ts(*SMALL, *TINY_T5, "debug=fast_dev_run", f"optim.lr={lr}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "outputs" / "synthetic").iterdir())
    assert len(folders) == 2  # the same command twice is the same run
    for folder in folders:
        assert folder.name.endswith(read(folder / "result.json")["identity"])
