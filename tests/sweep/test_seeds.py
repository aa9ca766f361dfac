"""A trial as the mean over paired seeds: `hydra.sweeper.seeds`."""

import math
import os
import signal
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from runs import KILLS, Killed, kill_points, killed_at_write, read, rows
from sweep.sweeps import attempts, results, states

from t5ts.analysis.arms import conditions
from t5ts.analysis.conclusions import _progress
from t5ts.analysis.study import collect
from t5ts.config import Config
from t5ts.interruption import stop_on_signals
from t5ts.sweep.ledger import is_released, owner_name
from t5ts.sweep.storage import JOURNAL, Journal
from t5ts.sweep.trial import TrialTask
from t5ts.tracking import Tracker

Runs = list[tuple[float, int]]
#: Two settings on three seeds each.
THREE = ["init=random", "seed=4", "hydra.sweeper.seeds=3"]
GRID = [*THREE, "hydra/sweeper/sampler=grid", "optim.lr=1e-3,2e-3"]
#: The same sampled; the pruner's bound comes on top.
SAMPLED = [*THREE, "hydra/sweeper/sampler=random", "optim.lr=1e-3,2e-3"]
SAMPLED += ["hydra/sweeper/pruner=none"]
SAMPLED += ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner"]
#: The objective that the stand-in gives: the seeds' noise is larger than the settings' difference.
NOISE = {4: 0.5, 5: 0.1, 6: 0.3}


def seed_dirs(folder: Path) -> dict[tuple[int, int], Path]:
    """Run directories by slot and seed."""
    found: dict[tuple[int, int], Path] = {}
    for path in folder.glob("*/seed-*/trial.json"):
        key = read(path)["number"], int(path.parent.name.removeprefix("seed-"))
        assert key not in found
        found[key] = path.parent
    assert len(list(folder.rglob("trial.json"))) == len(found)  # and none beside them
    return found


def values(folder: Path, url: str | None = None) -> dict[int, float]:
    """The study's value of each slot; of attempts at one slot only one may count."""
    trials = [t for t in attempts(folder, url=url, study="sweep") if not is_released(t)]
    assert results(trials) == sorted({t.user_attrs["slot"] for t in trials})
    return {trial.user_attrs["slot"]: trial.value for trial in trials}


@pytest.fixture
def done(training) -> Runs:
    """Learning rate and seed of each run that was trained."""
    done: Runs = []

    def loss(config: Config) -> float:
        done.append((config.optim.lr, config.seed))
        return config.optim.lr + NOISE[config.seed]

    training.loss = loss
    return done


EVERY = [(lr, seed) for lr in (1e-3, 2e-3) for seed in NOISE]


def test_a_trial_is_the_mean_over_its_seeds(sweep, done, tmp_path):
    status, output, _ = sweep("s", *GRID)
    assert (status, done) == (0, EVERY)
    means = {slot: lr + 0.3 for slot, lr in enumerate((1e-3, 2e-3))}
    assert values(tmp_path / "s") == pytest.approx(means)
    folders = seed_dirs(tmp_path / "s")
    assert sorted(folders) == [(slot, seed) for slot in (0, 1) for seed in NOISE]
    for (slot, seed), folder in folders.items():
        record = read(folder / "trial.json")
        assert record["seed_of"] == [4, 5, 6]
        assert (record["state"], record["values"]) == ("complete", [values(tmp_path / "s")[slot]])
        assert read(folder / "result.json")["objective"] == (slot + 1) * 1e-3 + NOISE[seed]
        assert record["epochs"] == {"asked": 9, "trained": 9, "reused": 0}
    assert "2 trials of 3 seeds, 2 to do: at most 18 epochs" in output
    assert "all 2/2" in output
    best = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert (best["trials"], best["settings"], best["seeds"], best["trial"]) == (2, 2, 3, 0)
    assert best["best_value"] == pytest.approx(0.301)
    assert [path.name for path in sweep.drawn] == ["seed-4"]
    assert sweep("s", *GRID)[0] == 0
    assert len(done) == 6


@pytest.mark.usefixtures("done")
def test_a_failed_seed_fails_its_setting_with_its_reason(sweep, training, tmp_path):
    of_noise = training.loss
    training.loss = lambda c: math.nan if (c.optim.lr, c.seed) == (1e-3, 5) else of_noise(c)
    assert sweep("s", *GRID, "hydra.sweeper.max_failure_rate=0.5")[0] == 0
    assert states(tmp_path / "s") == ["fail", "complete"]
    folders = seed_dirs(tmp_path / "s")
    assert sorted(folders) == [(0, 4), (0, 5), (1, 4), (1, 5), (1, 6)]
    reason = "seed 5: the objective is not finite: nan"
    assert read(folders[0, 4] / "trial.json")["reason"] == reason
    assert attempts(tmp_path / "s", study="sweep")[0].user_attrs["reason"] == reason


@pytest.mark.usefixtures("training")
def test_the_first_seed_decides_on_pruning_for_all(sweep, tmp_path):
    command = [*SAMPLED, "+hydra.sweeper.pruner.upper=0.0015", "hydra.sweeper.n_trials=6"]
    assert sweep("s", *command)[0] == 0
    trials = attempts(tmp_path / "s", study="sweep")
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        is_bad = trial.params["optim.lr"] == 2e-3
        assert trial.state.name == ("PRUNED" if is_bad else "COMPLETE")
        trained = 1 if is_bad else 9
        assert trial.user_attrs["epochs"] == {"asked": 9, "trained": trained, "reused": 0}
        assert sorted(trial.intermediate_values) == list(range(2 if is_bad else 4))
    (tmp_path / "s" / JOURNAL).unlink()
    assert sweep("s", *command)[0] == 0
    for trial, rebuilt in zip(trials, attempts(tmp_path / "s", study="sweep"), strict=True):
        for value in ("state", "intermediate_values"):
            assert getattr(trial, value) == getattr(rebuilt, value)
        assert trial.user_attrs["epochs"] == rebuilt.user_attrs["epochs"]


@pytest.mark.parametrize(
    ("seed", "when", "stop", "database"),
    [
        (4, "after", "asked", None),  # the first is done, no other begins
        (5, "fault", "at once", None),
        (5, "after", "at once", "sqlite:///study.db"),
        (6, "after", "at once", None),  # all are done, but the study does not know
        (6, "after", "asked", "sqlite:///study.db"),
    ],
)
def test_a_stop_at_any_seed_loses_and_doubles_nothing(
    sweep, training, done, tmp_path, seed, when, stop, database
):
    command = [*GRID, f"hydra.sweeper.storage={database or 'null'}"]
    stops = [seed]

    def once(config: Config) -> None:
        if config.seed in stops:
            stops.clear()
            if stop == "at once":
                raise KeyboardInterrupt
            with stop_on_signals():
                os.kill(os.getpid(), signal.SIGTERM)

    setattr(training, when, once)
    assert sweep("s", *command)[0] == 130
    # A stop that was asked for does not start another seed.
    assert len(done) <= 1 + list(NOISE).index(seed)
    assert sweep("s", *command)[0] == 0
    assert values(tmp_path / "s", database) == pytest.approx({0: 0.301, 1: 0.302})
    assert done == EVERY
    assert len(seed_dirs(tmp_path / "s")) == 6


@KILLS
@pytest.mark.parametrize(
    ("space", "seeds"), [(GRID, 2), ([*SAMPLED, "+hydra.sweeper.pruner.upper=1e-4"], 1)]
)  # of a pruned trial the other seed never starts
def test_a_kill_at_any_write_loses_and_doubles_nothing(
    space, seeds, every, sweep, done, tmp_path, monkeypatch
):
    dead = owner_name().replace(f"/{os.getpid()}/", "/0/")  # no process has this number
    monkeypatch.setattr("t5ts.sweep.worker.owner_name", lambda: dead)
    command = [*space, "hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=1"]
    journal = (Journal, "append_logs", _record_kinds)
    with killed_at_write(None, journal) as kinds:
        assert sweep("whole", *command)[0] == 0
    whole, ends = values(tmp_path / "whole"), states(tmp_path / "whole")
    assert ends == ["complete" if seeds == 2 else "pruned"]
    # Until a run starts the two are the same.
    first = 0 if seeds == 2 or every else kinds.index(["seed-4", "trial.json"])
    points = kill_points(kinds[first:], every=every)
    assert len(points) > (15 if every else 7)
    for number in points:
        name = str(first + number)
        done.clear()
        with pytest.raises(Killed), killed_at_write(first + number, journal):
            sweep(name, *command)
        assert sweep(name, *command)[0] == 0
        assert (values(tmp_path / name), states(tmp_path / name)) == (whole, ends)
        assert len(set(done)) == len(seed_dirs(tmp_path / name)) == seeds
        assert len(done) <= seeds + 1  # the stand-in does not resume the one that was killed


def _record_kinds(_: Journal, logs: list[dict[str, Any]]) -> object:
    return [(log["op_code"], *log.get("user_attr", ())) for log in logs]


@pytest.mark.parametrize(("lost", "trained"), [("result.json", [(2e-3, 5)]), ("trial.json", [])])
def test_a_study_is_rebuilt_from_all_seeds(sweep, done, tmp_path, lost, trained):
    assert sweep("s", *GRID)[0] == 0
    before = (tmp_path / "s" / "optimization_results.yaml").read_text()
    done.clear()
    (seed_dirs(tmp_path / "s")[1, 5] / lost).unlink()
    assert sweep("s", *GRID)[0] == (2 if lost == "result.json" else 0)
    (tmp_path / "s" / JOURNAL).unlink()
    assert sweep("s", *GRID)[0] == 0
    assert (tmp_path / "s" / "optimization_results.yaml").read_text() == before
    assert done == trained


@pytest.mark.usefixtures("done")
def test_other_seeds_are_refused(sweep):
    assert sweep("s", *GRID)[0] == 0
    for change, message in (
        ("hydra.sweeper.seeds=1", "seeds: 3 → 1"),
        ("seed=5", "settings.seed: 4 → 5"),
        ("seed=4,5", "hydra.sweeper.seeds=3"),
    ):
        status, _, output = sweep("s", *GRID, change, "hydra.sweeper.on_change=record")
        assert (status, message in output, output.count("t5ts: ")) == (2, True, 1)


def test_its_runs_are_those_of_the_seeds_alone_and_the_report_pairs_them(
    sweep, tmp_path, monkeypatch
):
    """Real training: shared frozen epochs, and a kill in every run."""
    trackers: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "t5ts.experiment.WandbTracker", lambda **of: trackers.append(of) or Tracker()
    )
    plan = ["freeze=staged", "tracker=wandb", "tracker.tags=[noise]"]
    space = [
        *plan, "init=random", "hydra/sweeper/sampler=grid", "hydra.sweeper.seeds=2",
        "freeze.unfreeze_epoch=2,1",
    ]  # fmt: skip
    to_kill = [(0, 1), (1, 0)]
    after_epoch = TrialTask.after_epoch

    def kill(self: TrialTask, row: Any) -> None:
        after_epoch(self, row)
        if row["epoch"] == 2 and [(self.claim.slot, self._now.seed)] == to_kill[:1]:
            del to_kill[0]
            raise KeyboardInterrupt

    monkeypatch.setattr(TrialTask, "after_epoch", kill)
    for ended in range(2):
        assert sweep("s", *space)[0] == 130
        assert len(to_kill) == 1 - ended
        ((_, *progress),) = _progress(study := collect([tmp_path / "s"]), _arms(study))
        assert progress == [ended, 2]
    assert sweep("s", *space)[0] == 0
    alone = [*plan, "tracker=none", "init=random", "freeze.unfreeze_epoch=2,1", "seed=0,1"]
    assert sweep("alone", *alone, plain=True)[0] == 0
    folders = seed_dirs(tmp_path / "s")
    assert sorted(folders) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for (slot, seed), folder in folders.items():
        assert read(folder / "trial.json")["reused_epochs"] == slot
        is_resumed = read(folder / "provenance.json")["resumed_from"] is not None
        assert is_resumed == ((slot, seed) in [(0, 1), (1, 0)])
        (own,) = (tmp_path / "alone").glob(f"{2 * slot + seed}-*")
        assert rows(folder) == rows(own)
    assert {of["group"] for of in trackers} == {"s"}
    assert {tuple(of["settings"].tags) for of in trackers} == {("noise",)}
    assert len({(of["run_dir"], of["name"]) for of in trackers}) == 4

    (arm,) = _arms(collect([tmp_path / "s"]))
    assert (arm.tried, arm.trials) == (2, 2)
    assert all(sorted(setting.finished) == [0, 1] for setting in arm.settings)
    means = [fmean(r.result.objective for r in s.finished.values()) for s in arm.settings]
    assert sorted(means) == sorted(values(tmp_path / "s").values())


def _arms(study: Any) -> list[Any]:
    return [arm for condition in conditions(study) for arm in condition.arms]
