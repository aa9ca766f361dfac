"""The command line as a user meets it: what it prints, leaves, and exits with."""

import re
import signal

import pytest
from conftest import SMALL, TINY_T5
from data.ett_files import write_ett
from hub_server import COMMIT, serve
from runs import HUB_BACKBONE, HUB_ID, Command, local_t5, read, rows, wait_for_rows

from t5ts.config import CONF
from t5ts.model.checkpoint_file import file_sha256


def test_help_explains_every_group_and_option(tmp_path):
    text, _ = Command("--help", cwd=tmp_path).finish()
    assert len(text.splitlines()) <= 40, "one screen"
    for folder in CONF.iterdir():
        if folder.is_dir() and folder.name != "hydra":
            assert f"\n  {folder.name} " in text, folder.name
            for option in folder.glob("*.yaml"):
                assert re.search(rf"\b{option.stem}\b", text), option


def test_cfg_job_prints_the_configuration(tmp_path):
    out, _ = Command("--cfg", "job", "init=t5", "freeze=staged", cwd=tmp_path).wait()
    assert "unfreeze_epoch: 3.0" in out
    assert not list(tmp_path.iterdir())


def test_one_switch_shows_every_line_and_a_log_that_takes_none_ends_the_run(tmp_path):
    dry = [*SMALL, *TINY_T5, "debug=fast_dev_run", "hydra.run.dir=run", "hydra.verbose=t5ts"]
    out, err = Command(*dry, cwd=tmp_path).wait()
    assert "at step 0, RMS" in out, err
    for refused in (["run.log"], ["run.log", ".lock"]):
        for name in refused:
            (tmp_path / "other" / name).mkdir(parents=True)
        _, err = Command(*dry, "hydra.run.dir=other", cwd=tmp_path).finish(2)
        assert err.startswith("t5ts: ")
        assert "other cannot be written" in err
        assert len(err.splitlines()) == 1


REMEDIES = ["t5-small", "backbone=t5_tiny_en", "backbone.path=DIR", "t5ts.download"]
#: Nothing listens on port 9 of this machine: a refused connection, as without a network.
WRONG = [
    ("data=csv data.path=missing.csv", {}, ["missing.csv"]),
    ("backbone=local backbone.path=nowhere init=t5", {}, ["nowhere"]),
    ("init=t5 freeze=staged tracker=none", {"HF_ENDPOINT": "http://127.0.0.1:9"}, REMEDIES),
]


@pytest.mark.parametrize(("arguments", "environment", "named"), WRONG)
def test_user_errors_are_one_message_and_leave_nothing(arguments, environment, named, tmp_path):
    """Found by a run that has begun; tests/test_overrides.py has those that are found before it."""
    hub = {"HF_HOME": str(tmp_path / "cache")} | environment
    _, err = Command(*arguments.split(), "hydra.run.dir=run", cwd=tmp_path, **hub).finish(2)
    assert err.startswith("t5ts: ")
    assert [word for word in named if word not in err] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_ETAG_TIMEOUT", "soon"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "10s"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999"),
    ],
)
def test_a_wrong_variable_of_the_hub_is_one_message_where_the_hub_is_needed(name, value, tmp_path):
    hub = {name: value, "HF_HOME": str(tmp_path / "cache")}
    run = ["tracker=none", "hydra.run.dir=run"]
    _, err = Command("init=t5", *run, cwd=tmp_path, **hub).finish(2)
    assert name in err
    assert not (tmp_path / "run").exists()
    linear = [*SMALL, "backbone=linear", "debug=fast_dev_run"]
    Command(*linear, *run, cwd=tmp_path, **hub).finish()


def test_the_mission_with_a_checkpoint_from_a_hub_and_ett_data(tmp_path):
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
        at_hub["WANDB_MODE"] = "offline"
        out, _ = Command(*mission, cwd=tmp_path, pictures=True, **at_hub).finish()
    assert "pretrained T5, verified" in out
    assert "W&B: offline" in out
    run_dir = tmp_path / "run"
    before, *_, last = out.split("epoch   0/")[0], *out.splitlines()
    assert len(before.splitlines()) <= 8
    assert last.strip() == "python -m t5ts.predict run --out forecast.csv"
    assert (run_dir / "plots" / "learning_curve.png").is_file()
    assert "at step 0, RMS" not in out
    assert "at step 0, RMS" in (run_dir / "run.log").read_text()
    provenance = read(run_dir / "provenance.json")
    assert provenance["weights"]["init"] == "t5"
    assert provenance["weights"]["revision"] == COMMIT
    assert provenance["weights"]["files"] == {
        name: file_sha256(tmp_path / "served" / name) for name in provenance["weights"]["files"]
    }
    assert provenance["windows"]["val"] == provenance["windows"]["test"] == 2880 - 24 + 1
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    assert [row["step/grad_norm/block_1"] > 0 for row in steps] == [False] * 4 + [True] * 4
    assert [row["step/grad_norm/block_0"] > 0 for row in steps] == [False] * 6 + [True] * 2
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def test_kill_and_resume_agree_bit_for_bit(tmp_path):
    arguments = [*SMALL, *TINY_T5, "freeze=staged", "freeze.unfreeze_epoch=2", "train.epochs=12"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Command(*arguments, f"hydra.run.dir={whole}", cwd=tmp_path).finish()
    command = [*arguments, f"hydra.run.dir={parts}"]
    for number, rows_first in ((signal.SIGTERM, 6), (signal.SIGKILL, 25), (signal.SIGINT, 40)):
        process = Command(*command, cwd=tmp_path)
        wait_for_rows(parts, rows_first, process)
        process.send_signal(number)
        is_kill = number == signal.SIGKILL
        _, err = process.finish(-number if is_kill else 130)
        assert is_kill or str(parts) in err
    Command(*command, cwd=tmp_path).finish()
    assert rows(parts) == rows(whole)
    metrics = [read(run_dir / "result.json")["metrics"] for run_dir in (parts, whole)]
    assert metrics[0] == metrics[1]


def test_every_run_has_a_directory_named_by_its_identity_or_its_place_in_the_sweep(tmp_path):
    dry = [*SMALL, *TINY_T5, "debug=fast_dev_run"]
    sweep = "hydra.sweep.dir=sweep"
    for command in (
        [*dry, "optim.lr=1e-3"],
        [*dry, "optim.lr=1e-3"],  # the same command twice is the same run
        [*dry, "optim.lr=2e-3"],
        ["--multirun", "seed=0,1", *dry, sweep],
    ):
        out, _ = Command(*command, cwd=tmp_path).finish()
    told = [line for line in out.splitlines() if line.startswith("t5_efficient_tiny-random-none  ")]
    assert [line.split()[-1][:7] for line in told] == ["sweep/0", "sweep/1"]
    assert out.splitlines()[-1].endswith("python -m t5ts.report sweep")
    assert len(out.splitlines()) == len(told) + 2  # a warning is shown once
    folders = list((tmp_path / "outputs" / "synthetic").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert folder.name.endswith(read(folder / "result.json")["identity"])
    results = sorted((tmp_path / "sweep").glob("*/result.json"))
    assert [read(path)["seed"] for path in results] == [0, 1]
    assert not list((tmp_path / "sweep").glob("*/plots"))  # drawn when someone looks
