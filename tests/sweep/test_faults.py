"""What a sweep does when a trial, a disk, a GPU, another worker or a record of it is at fault.

Real sweeps on real storages, in this process; only the training is a stand-in.
"""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial
from runs import read
from sweep.sweeps import attempts, run_dirs, states

from t5ts.analysis.results import read_json
from t5ts.config import Config
from t5ts.errors import DataError, DirectoryInUse, TrainingError, UserError
from t5ts.interruption import stop_on_signals
from t5ts.provenance import write_json
from t5ts.sweep.ledger import RELEASED
from t5ts.sweep.storage import JOURNAL
from t5ts.sweep.worker import disk_fault

#: Four settings; a fault is known by its learning rate.
GRID = ["init=random", "hydra/sweeper/sampler=grid", "optim.lr=1e-3,2e-3,3e-3,4e-3"]
BAD = 2e-3
RATE = "hydra.sweeper.max_failure_rate=0.5"


def raises(error: BaseException, *, times: float = float("inf"), lr: float | None = BAD) -> Any:
    """A fault of the setting with this rate (None: of all), so many times."""
    left = [times]

    def fault(config: Config) -> None:
        if config.optim.lr in (lr or config.optim.lr,) and left[0] > 0:
            left[0] -= 1
            raise error

    return fault


def attempts_at(folder: Path, slot: int) -> list[FrozenTrial]:
    return [t for t in attempts(folder, study="sweep") if t.user_attrs.get("slot") == slot]


@pytest.mark.parametrize(
    ("error", "times", "ended"),
    [
        (DataError("too few windows"), 9, "fail"),  # the setting's own fault fails it alone
        (OSError("odd name"), 9, "fail"),
        (DataError("the server does not answer"), 1, "complete"),  # it passes: no trial is lost
    ],
)
def test_a_settings_fault_is_tried_again_after_the_others(
    sweep, training, tmp_path, error, times, ended
):
    training.fault = raises(error, times=times)
    assert sweep("s", *GRID, RATE)[0] == 0
    assert states(tmp_path / "s") == ["complete", ended, "complete", "complete"]
    first, last = attempts_at(tmp_path / "s", 1)
    assert first.user_attrs["reason"] == str(error)
    assert last.user_attrs.get("reason") == (str(error) if ended == "fail" else None)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.tmp")


def caused_by_full_disk(error: Exception) -> Exception:
    error.__cause__ = FULL
    return error


@pytest.mark.parametrize(
    ("error", "is_disk"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),  # safetensors
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), True),
        (caused_by_full_disk(UserError("the checkpoint could not be written")), True),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "my.csv"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_what_a_full_disk_is(error, is_disk):
    assert (disk_fault(error) is not None) == is_disk


@pytest.mark.parametrize(
    ("error", "lr", "when"),
    [
        (DataError("my.csv does not exist"), None, "fault"),
        (FULL, BAD, "fault"),
        (FULL, BAD, "after"),
    ],
)
def test_a_fault_of_the_machine_is_one_message_and_costs_no_trial(
    sweep, training, tmp_path, error, lr, when
):
    command = [*GRID, "hydra.sweeper.max_failure_rate=1"]
    setattr(training, when, raises(error, lr=lr))
    status, _, output = sweep("s", *command)
    assert (status, output.count("t5ts: "), str(error) in output) == (2, 1, True)
    assert "fail" not in states(tmp_path / "s")
    setattr(training, when, lambda _: None)
    assert sweep("s", *command)[0] == 0
    assert states(tmp_path / "s") == ["complete"] * 4
    assert sorted(training.done) == [1e-3, 2e-3, 3e-3, 4e-3]  # nothing was trained twice


@pytest.mark.parametrize("patience_s", [0.02, 90])
def test_a_frozen_workers_directory_is_waited_for(sweep, training, tmp_path, patience_s):
    """A frozen worker is presumed dead; when it wakes it stops, and the trial has not failed."""
    training.fault = raises(DirectoryInUse("another process is running in it"), times=200)
    patience = ["hydra.sweeper.heartbeat_s=0.01", f"hydra.sweeper.lost_after_s={patience_s}"]
    assert sweep("s", *GRID, *patience, "hydra.sweeper.max_failure_rate=0")[0] == 0
    assert states(tmp_path / "s") == ["complete"] * 4
    assert len(attempts(tmp_path / "s", study="sweep")) < 100


def test_a_stop_that_reaches_a_run_after_its_last_step_ends_the_sweep(sweep, training, tmp_path):
    def stop(_: Config) -> None:
        with stop_on_signals():  # as a run has it, until its end
            os.kill(os.getpid(), signal.SIGTERM)

    training.after = stop
    assert sweep("s", *GRID)[0] == 130
    assert states(tmp_path / "s") == ["complete"]  # that trial's result is there, no other began
    assert sweep("plain", *GRID[2:], plain=True)[0] == 130
    assert len(list((tmp_path / "plain").glob("*/result.json"))) == 1


class AcceleratorError(RuntimeError):
    """torch's name for it."""


@pytest.mark.parametrize(
    ("error", "times", "ended"),
    [
        (AcceleratorError("launch failure"), 1, "complete"),
        (RuntimeError("CUDA error: illegal access"), 9, "fail"),
    ],
)
def test_a_gpu_that_fails_ends_the_worker_and_the_trial_only_if_it_breaks_each(
    sweep, training, tmp_path, monkeypatch, error, times, ended
):
    monkeypatch.setattr("t5ts.sweep.worker.MAX_DEATHS", 1 + (times == 1))
    training.fault = raises(error, times=times)
    status, _, output = sweep("s", *GRID)
    assert (status, states(tmp_path / "s")[1:2]) == (2, ["open"])
    assert str(error) in output
    assert sweep("s", *GRID)[0] == 0
    assert states(tmp_path / "s") == ["complete", ended, "complete", "complete"]
    assert [t.user_attrs.get(RELEASED) for t in attempts_at(tmp_path / "s", 1)] == ["died", None]


def test_a_result_whose_worker_died_before_it_said_so_counts_with_its_epochs(
    sweep, training, tmp_path
):
    training.after = raises(KeyboardInterrupt(), times=1)
    random = ["init=random", "hydra/sweeper/sampler=random", "optim.lr=1e-3,2e-3"]
    random.append("hydra.sweeper.n_trials=6")
    assert sweep("s", *random)[0] == 130
    assert sweep("s", *random)[0] == 0
    (lost,) = (t for t in attempts(tmp_path / "s", study="sweep") if RELEASED in t.user_attrs)
    _lost, again = attempts_at(tmp_path / "s", lost.user_attrs["slot"])
    assert again.user_attrs["epochs"] == {"asked": 3, "trained": 3, "reused": 0}
    assert sorted(again.intermediate_values) == [0, 1, 2, 3]  # the pruner knows them too


@pytest.mark.usefixtures("training")
def test_repeated_draws_are_counted_and_said(sweep, tmp_path):
    space = ["hydra/sweeper/sampler=random", "hydra.sweeper.arms=[init]", "init=random,matched"]
    few = [*space, "optim.lr=1e-3,2e-3", "hydra.sweeper.n_trials=5"]
    status, output, _ = sweep("s", *few)
    assert status == 0
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())["arms"]
    for name, arm in found.items():
        folders = [d for d in (tmp_path / "s" / name).iterdir() if (d / "trial.json").exists()]
        records = [read(folder / "trial.json") for folder in folders]
        settings = {json.dumps(record["params"]) for record in records}
        assert (arm["trials"], arm["settings"]) == (5, len(settings))
        assert f"{name}: {5 - len(settings)} trials of 5" in output
        trained = sum(record["epochs"]["trained"] for record in records)
        assert arm["epochs"]["trained"] == trained == 15


def journal_lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def with_other_value(folder: Path, *, checksums: bool) -> None:
    """Give the first finished trial the best value of all, as a flipped byte might."""
    lines = []
    for line in journal_lines(folder):
        record = json.loads(line)
        changed = line
        if record.get("values") and not any(b"1e-07" in before for before in lines):
            changed = line.replace(json.dumps(record["values"]).encode(), b"[1e-07]")
            assert changed != line
        if not checksums:  # as Optuna writes it, and an earlier t5ts did
            record = json.loads(changed)
            record.pop("crc")
            changed = json.dumps(record).encode() + b"\n"
        lines.append(changed)
    (folder / JOURNAL).write_bytes(b"".join(lines))


def corrupt_result(folder: Path) -> None:
    path = run_dirs(folder)[2] / "result.json"
    path.write_bytes(path.read_bytes().replace(b'"objective":', b'"objectivf":'))


@pytest.mark.parametrize(
    ("damage", "trained_again"),
    [
        (lambda folder: with_other_value(folder, checksums=True), 0),
        (lambda folder: with_other_value(folder, checksums=False), 0),
        (corrupt_result, 1),
    ],
    ids=["value", "value-without-checksum", "result"],
)
def test_a_corrupt_record_is_one_message_whose_remedy_works(
    sweep, training, tmp_path, damage, trained_again
):
    folder, command = tmp_path / "s", GRID
    assert sweep("s", *command)[0] == 0
    before = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    trials = len(training.done)
    damage(folder)
    status, _, output = sweep("s", *command)
    assert status == 2
    assert f"mv '{folder / JOURNAL}' '{folder / JOURNAL}.corrupt'" in output
    shutil.move(folder / JOURNAL, folder / f"{JOURNAL}.corrupt")  # as the message says
    assert sweep("s", *command)[0] == 0
    assert yaml.safe_load((folder / "optimization_results.yaml").read_text()) == before
    assert len(training.done) == trials + trained_again


def test_a_database_that_contradicts_a_result_is_refused_and_rebuilt(sweep, training, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    command = [*GRID, f"hydra.sweeper.storage={url}"]
    assert sweep("s", *command)[0] == 0
    before = (tmp_path / "s" / "optimization_results.yaml").read_text()
    # A machine that lost a trial to another has only the trial's beginning.
    record = read_json(run_dirs(tmp_path / "s")[0] / "trial.json")
    (tmp_path / "lost" / "0").mkdir(parents=True)
    write_json(tmp_path / "lost" / "0" / "trial.json", record | {"state": "running"})
    assert sweep("lost", *command)[0] == 0
    path = run_dirs(tmp_path / "s")[0] / "result.json"
    whole = path.read_text()
    path.write_text(whole.replace('"objective": 0.00', '"objective": 0.01'))
    status, _, output = sweep("s", *command)
    assert (status, "optuna delete-study" in output) == (2, True)
    path.write_text(whole)
    optuna.delete_study(study_name="sweep", storage=url)
    assert sweep("s", *command)[0] == 0
    assert (tmp_path / "s" / "optimization_results.yaml").read_text() == before
    assert len(training.done) == 4


def test_a_rebuilt_study_is_still_the_one_that_it_was_made_for(sweep, training, tmp_path):
    tpe = ["init=random", "optim.lr=interval(1e-4,1e-2)", "hydra.sweeper.n_trials=2"]
    assert sweep("s", *tpe)[0] == 0
    (tmp_path / "s" / JOURNAL).unlink()
    status, _, output = sweep("s", *tpe, "train.batch_size=32")
    assert (status, "train.batch_size: 64 → 32" in output) == (2, True)
    tpe[-1] = "hydra.sweeper.n_trials=3"
    assert sweep("s", *tpe)[0] == 0
    assert len(training.done) == 3


@pytest.mark.parametrize(
    ("subdir", "names"),
    [
        ("'lr${optim.lr}-s${seed}'", {"lr0.001-s0", "lr0.002-s0", "lr0.003-s0", "lr0.004-s0"}),
        ("one", {"one", "one-1", "one-2", "one-3"}),
    ],
)
@pytest.mark.usefixtures("training")
def test_trials_never_share_a_directory(sweep, tmp_path, subdir, names):
    assert sweep("s", *GRID, f"hydra.sweep.subdir={subdir}")[0] == 0
    found = run_dirs(tmp_path / "s")
    assert {folder.name for folder in found.values()} == names
    for folder in found.values():
        record = read(folder / "trial.json")
        assert read(folder / "result.json")["objective"] == record["params"]["optim.lr"]


@pytest.mark.parametrize(
    ("space", "values"),
    [("optim.clip_norm=null,1.0", [None, 1.0]), ("data.ar=[0.7],[0.5,0.2]", [[0.7], [0.5, 0.2]])],
)
def test_lists_and_null_are_choices_as_on_the_plain_grid(sweep, training, space, values):
    seen: list[Any] = []
    group, _, key = space.partition("=")[0].partition(".")
    training.fault = lambda config: seen.append(getattr(getattr(config, group), key))
    status, _, output = sweep("s", *GRID[:2], "optim.clip_norm=1.0", space)
    assert status == 0, output
    assert sorted(map(str, seen)) == sorted(map(str, values))


def test_trials_draw_nothing_but_the_best_ones_do(sweep, training, tmp_path):
    assert sweep("s", *GRID)[0] == 0
    assert training.pictures == [False] * 4
    best = next(
        d for d in run_dirs(tmp_path / "s").values() if read(d / "trial.json")["values"] == [1e-3]
    )
    assert sweep.drawn == [best]
    assert sweep("plain", *GRID[2:], plain=True)[0] == 0
    assert training.pictures == [False] * 8


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingError("not finite"), 2), (ZeroDivisionError("a bug"), 1)]
)
def test_a_plain_multirun_runs_every_job_and_reports_the_failed_ones(
    sweep, training, tmp_path, error, status
):
    training.fault = raises(error)
    ended, _, output = sweep("s", GRID[2], plain=True)
    assert (ended, training.done) == (status, [1e-3, 3e-3, 4e-3])
    report = output[output.index("t5ts: 1 of 4 jobs failed") :]
    assert "#1 optim.lr=0.002" in report
    assert str(error) in report
    assert len(list((tmp_path / "s").glob("*/result.json"))) == 3


def test_a_plain_multirun_goes_on_past_a_job_that_cannot_be(sweep, training):
    status, _, output = sweep("s", "optim.lr=-1,1e-3", plain=True)
    assert (status, training.done) == (2, [1e-3])
    assert "#0 optim.lr=-1" in output


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("subdir", ["../x", "a/../../x", "/tmp/x", "", ".", "null", "'${x:}'"])
def test_trials_stay_in_the_sweeps_directory(sweep, training, tmp_path, subdir, plain):
    OmegaConf.register_new_resolver("x", lambda: "../x", replace=True)
    grid = ["init=random", "optim.lr=1e-3,2e-3", f"hydra.sweep.subdir={subdir}"]
    grid += [] if plain else GRID[1:2]
    status, _, output = sweep("s/t", *grid, plain=plain)
    assert (status, "hydra.sweep.subdir" in output) == (2, True)
    assert not training.done
    assert not list(tmp_path.iterdir())


def test_a_journal_whose_trial_lost_a_parameter_is_refused_and_rebuilt(sweep, training, tmp_path):
    """Each record has a checksum, but one that is gone leaves no trace in the others."""
    journal = tmp_path / "s" / JOURNAL
    assert sweep("s", *GRID)[0] == 0
    best = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    records = journal.read_text().splitlines(keepends=True)
    kept = [line for line in records if '"param_name":"optim.lr"' not in line]
    journal.write_text("".join(kept))
    status, _, output = sweep("s", *GRID)
    assert (status, "optim.lr" in output) == (2, True)
    journal.unlink()
    assert sweep("s", *GRID)[0] == 0
    assert yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text()) == best
    assert len(training.done) == 4
