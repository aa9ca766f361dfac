"""Whole sweeps by their command line, with the workers' loop in this process: it saves imports."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.plugins import Plugins
from optuna.trial import TrialState
from runs import read, rows
from sweep.conftest import Sweep
from sweep.sweeps import attempts, results, run_dirs

from t5ts.analysis.results import Result
from t5ts.sweep import coordinator
from t5ts.sweep.worker import Work, work

GRID = ["hydra/sweeper/sampler=grid"]
LR = "optim.lr=tag(log,interval(1e-4,1e-2))"
#: A pruner that gives up every trial as soon as it is asked.
MERCILESS = [
    "hydra/sweeper/pruner=none",
    "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
    "+hydra.sweeper.pruner.upper=-1",
]


def params(folder: Path, study: str = "sweep") -> dict[int, dict[str, Any]]:
    return {t.user_attrs["slot"]: t.params for t in attempts(folder, study=study)}


def test_a_larger_budget_goes_on_as_if_it_had_been_asked_for_at_once(
    sweep: Sweep, tmp_path: Path
) -> None:
    tpe = ["init=random", LR, "hydra.sweeper.sampler.n_startup_trials=1"]
    assert sweep("whole", *tpe, "hydra.sweeper.n_trials=4")[0] == 0
    assert sweep("parts", *tpe, "hydra.sweeper.n_trials=2")[0] == 0
    first = {
        slot: (d / "result.json").stat().st_mtime_ns
        for slot, d in run_dirs(tmp_path / "parts").items()
    }
    status, said, _ = sweep("parts", *tpe, "hydra.sweeper.n_trials=4")
    assert status == 0
    assert "2 of 4 done" in said
    assert params(tmp_path / "parts") == params(tmp_path / "whole")
    assert len({p["optim.lr"] for p in params(tmp_path / "parts").values()}) == 4
    dirs = run_dirs(tmp_path / "parts")
    assert sorted(dirs) == [0, 1, 2, 3]
    assert all((dirs[slot] / "result.json").stat().st_mtime_ns == t for slot, t in first.items())

    status, said, _ = sweep("parts", *tpe, "hydra.sweeper.n_trials=3")
    assert status == 0
    assert "All of them are done; hydra.sweeper.n_trials=N" in said
    assert len(run_dirs(tmp_path / "parts")) == 4


def test_a_command_leads_to_one_directory_and_back_to_it(sweep: Sweep, tmp_path: Path) -> None:
    command = ["init=random", "normalize=instance,none", "optim.lr=1e-3,3e-3", *GRID]
    assert sweep(None, *command, "hydra.sweeper.n_trials=1")[0] == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert len(list(folder.rglob("trial.json"))) == 1
    status, said, _ = sweep(None, *command, "hydra.sweeper.n_trials=3")
    assert status == 0
    assert "1 of 3 done" in said
    assert list((tmp_path / "multirun").iterdir()) == [folder]
    assert len(run_dirs(folder)) == 3
    assert sweep(None, *command, "seed=1", "hydra.sweeper.n_trials=1")[0] == 0
    assert len(list((tmp_path / "multirun").iterdir())) == 2  # another command, another place


def test_another_space_is_refused_by_name_or_recorded(sweep: Sweep, tmp_path: Path) -> None:
    one = ["init=random", "hydra.sweeper.n_trials=1"]
    assert sweep("s", *one, LR)[0] == 0
    status, _, said = sweep("s", *one, LR, "train.batch_size=32", "hydra.sweeper.n_trials=2")
    assert status == 2
    assert "settings.train.batch_size: 64 → 32" in said
    assert "Traceback" not in said
    other = [*one, LR, "train.batch_size=32", "hydra.sweeper.n_trials=2"]
    assert sweep("s", *other, "hydra.sweeper.on_change=record")[0] == 0
    assert results(attempts(tmp_path / "s", study="sweep")) == [0, 1]


@pytest.mark.parametrize(
    ("freeze", "pruned_at"),
    [
        (["freeze=none"], 1),
        (["freeze=staged", "freeze.unfreeze_epoch=1"], 2),
        (["freeze=staged", "freeze.unfreeze_epoch=2"], None),  # epoch 3 is the last: it is done
        (["freeze=all"], 1),
    ],
    ids=["none", "staged-1", "staged-2", "all"],
)
def test_no_trial_is_pruned_before_its_grace_is_over(
    sweep: Sweep, tmp_path: Path, freeze: list[str], pruned_at: int | None
) -> None:
    arguments = ["init=random", *freeze, LR, *MERCILESS, "hydra.sweeper.n_trials=1"]
    status, said, _ = sweep("s", *arguments)
    assert status == 0
    (folder,) = run_dirs(tmp_path / "s").values()
    trial = read(folder / "trial.json")
    last = rows(folder)[-1]["epoch"]
    if pruned_at is None:
        assert (trial["state"], last) == ("complete", 3)
    else:
        assert (trial["state"], last) == ("pruned", pruned_at)
        assert f"epochs     {pruned_at} trained of 3 asked for ({3 - pruned_at} saved" in said
    assert not (folder / "checkpoint" / "last.safetensors").exists()


def test_a_grid_is_never_pruned(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("s", "init=random", *GRID, *MERCILESS, "optim.lr=1e-3,3e-3")[0] == 0
    states = {read(d / "trial.json")["state"] for d in run_dirs(tmp_path / "s").values()}
    assert states == {"complete"}


def test_failed_trials_are_recorded_and_too_many_end_the_sweep(
    sweep: Sweep, tmp_path: Path
) -> None:
    lrs = "optim.lr=1e-3,1e30,2e-3,3e-3,1e31"
    status, _, said = sweep("s", "init=random", *GRID, lrs, "hydra.sweeper.max_failure_rate=0.3")
    assert status == 2
    assert "2 of 5 trials failed" in said
    assert "Traceback" not in said
    dirs = run_dirs(tmp_path / "s")
    states = [read(dirs[slot] / "trial.json") for slot in range(5)]
    assert [s["state"] for s in states] == ["complete", "failed", "complete", "complete", "failed"]
    assert "not finite" in states[1]["reason"]

    status, said, _ = sweep("s", "init=random", *GRID, lrs, "hydra.sweeper.max_failure_rate=0.4")
    assert status == 0
    assert "5 of 5 done (3 complete, 0 pruned, 2 failed)" in said


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out of memory: CUDA out of memory."),
        (MemoryError(), "out of memory: "),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
        (math.nan, "an objective is not finite: nan"),
        (math.inf, "an objective is not finite: inf"),
    ],
)
def test_how_a_trial_failed_is_recorded_and_the_sweep_goes_on(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any, reason: str
) -> None:
    def run(*_: Any, **__: Any) -> Result:
        if isinstance(ends, Exception):
            raise ends
        return Result(
            identity="", arm="", data="", seed=0, objective_name="val_loss", objective=ends,
            best_epoch=0, metrics={}, initial={}, baselines={}, baseline_season=1,
            best_achievable_loss=None, scale_audit={}, seconds=1.0, peak_memory_bytes=1,
            skipped_steps=0, debug="none",
        )  # fmt: skip

    monkeypatch.setattr("t5ts.experiment.run", run)
    arguments = ["init=random", LR, "hydra.sweeper.n_trials=2"]
    status, said, _ = sweep("s", *arguments, "hydra.sweeper.max_failure_rate=1")
    assert status == 0
    assert f"all 2/2  #1 failed {reason}" in said
    for trial in attempts(tmp_path / "s", study="sweep"):
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, reason)
    for folder in run_dirs(tmp_path / "s").values():
        told = read(folder / "trial.json")
        assert (told["state"], told["reason"]) == ("failed", reason)


@pytest.mark.parametrize("has_others", [True, False])
def test_a_launcher_whose_worker_dies(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_others: bool
) -> None:
    """The others finish the sweep; without others the message says how to go on."""

    class Launcher:
        def __init__(self, task_function: Work, **_: Any) -> None:
            self.work = task_function

        def launch(self, overrides: list[list[str]], *, initial_job_idx: int) -> None:
            assert (len(overrides), initial_job_idx) == (2, 0)
            if has_others:
                work(self.work, worker=1)
            raise RuntimeError("A worker process was killed.\nMore.\nAnd more.")

    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", Launcher)
    monkeypatch.setattr(coordinator, "IDLE_S", 0.0)
    arguments = ["init=random", LR, "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=2"]
    status, said, error = sweep("s", *arguments, "hydra/launcher=joblib")
    if has_others:
        assert (status, results(attempts(tmp_path / "s", study="sweep"))) == (0, [0])
        assert "best trials" in said
    else:
        assert status == 2
        assert "JoblibLauncher ended before the sweep did: A worker process was killed." in error
        assert "the same command goes on" in error
        assert "Traceback" not in error


def test_shared_frozen_epochs_change_no_number(sweep: Sweep, tmp_path: Path) -> None:
    space = [
        "init=random", *GRID, "freeze=none,staged", "freeze.unfreeze_epoch=range(1,3)",
        "optim.encoder_lr_scale=0.1,0.3",
    ]  # fmt: skip
    status, said, _ = sweep("shared", *space)
    assert status == 0
    # A grid's numbers do not depend on it: one that goes on without reuse leaves no point out.
    assert sweep("cold", *space, "hydra.sweeper.n_trials=1")[0] == 0
    assert sweep("cold", *space, "hydra.sweeper.reuse=false")[0] == 0
    assert "by reuse" in said

    def found(name: str) -> dict[str, Any]:
        return {
            str(sorted(read(d / "trial.json")["params"].items())): (
                rows(d),
                read(d / "result.json")["metrics"],
            )
            for d in run_dirs(tmp_path / name).values()
        }

    shared, cold = found("shared"), found("cold")
    assert len(cold) == 2 + 2 * 2  # an unfreeze epoch means nothing without staging
    assert shared == cold
    reused = [
        read(d / "trial.json")["reused_epochs"] for d in run_dirs(tmp_path / "shared").values()
    ]
    # The longest of a lr scale trains its frozen phase, and all of them share the head's.
    assert sum(reused) == 2 + 1 + 1


def test_final_runs_each_arms_best_point_on_new_seeds_cold(sweep: Sweep, tmp_path: Path) -> None:
    arms = ["init=random", "normalize=instance,none", "hydra.sweeper.arms=[normalize]"]
    assert sweep("search", *arms, *GRID, "optim.lr=1e-5,3e-3")[0] == 0
    found = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    assert sorted(found["arms"]) == ["normalize=instance", "normalize=none"]

    final = ["experiment=final", f"hydra.sweeper.best_of={tmp_path / 'search'}", "seed=7,8"]
    assert sweep("final", *final)[0] == 0
    runs = sorted((tmp_path / "final").rglob("trial.json"))
    assert len(runs) == 4
    for path in runs:
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        best = found["arms"][path.parent.parent.name]
        assert config["normalize"]["name"] == best["arm"]["normalize"]
        assert config["optim"]["lr"] == best["best_params"]["optim.lr"]
        assert config["train"]["epochs"] == 3
        assert config["train"]["reuse_dir"] is None
        assert config["seed"] in (7, 8)
        # The report may then blame the weights although each arm has settings of its own.
        before = read(path)["searched_before"]
        assert (before["keys"], before["trials"], before["settings"]) == (["optim.lr"], 2, 2)
        assert before["epochs"] == {"asked": 6, "trained": 6, "reused": 0, "pruned": 0}


def test_several_objectives_give_a_front(sweep: Sweep, tmp_path: Path) -> None:
    objectives = "hydra.sweeper.objective=[val_loss,seconds]"
    assert sweep("s", "init=random", LR, objectives, "hydra.sweeper.n_trials=2")[0] == 0
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert all(len(solution["values"]) == 2 for solution in found["solutions"])
    assert found["solutions"]


def test_a_space_that_the_grammar_cannot_say(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function of `custom_search_space`, as hydra-optuna-sweeper calls it."""
    (tmp_path / "t5ts_test_space.py").write_text(
        "def ties(config, trial):\n"
        "    base = config.optim.weight_decay\n"
        "    trial.suggest_float('optim.weight_decay', base, 2 * base)\n"
        "def wrong(config, trial):\n"
        "    raise ValueError('no such tie')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    space = ["init=random", "optim.weight_decay=0.25", "hydra.sweeper.n_trials=1"]
    function = "hydra.sweeper.custom_search_space=t5ts_test_space"
    status, said, _ = sweep("s", *space, f"{function}.ties")
    assert status == 0
    assert "┃ val_loss ┃ weight_decay ┃" in said
    (folder,) = run_dirs(tmp_path / "s").values()
    decay = read(folder / "trial.json")["params"]["optim.weight_decay"]
    assert 0.25 <= decay <= 0.5
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["optim"]["weight_decay"] == decay

    status, said, _ = sweep("w", *space, f"{function}.wrong", "hydra.sweeper.max_failure_rate=1")
    assert status == 0
    assert "t5ts_test_space.wrong raised ValueError: no such tie" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([LR, "hydra.sweeper.custom_search_space=no.such.f"], "no.such.f cannot be had"),
        (["init=random"], "nothing to sweep"),
        (["optim.lrr=1,2"], "optim.lrr is not a setting"),
        (["init=random,pretrained"], "init=pretrained does not exist"),
        (["train.epochs=interval(1,9)"], "train.epochs is a whole number"),
        (
            ["freeze=staged", "freeze.unfreeze_epoch=range(0,9)"],
            "cannot run (freeze.unfreeze_epoch=8)",
        ),
        ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is not allowed"),
        ([LR, "hydra.sweeper.storage=sqlite:////no/such/folder/x.db"], "cannot be opened"),
        ([LR, "hydra.sweep.dir=/proc/no"], "cannot be written"),
        (["experiment=final"], "hydra.sweeper.best_of"),
        (
            ["experiment=final", "hydra.sweeper.best_of=nowhere"],
            "nowhere/optimization_results.yaml",
        ),
    ],
)
def test_bad_sweeps_are_one_message_before_any_trial(
    sweep: Sweep, tmp_path: Path, overrides: list[str], said: str
) -> None:
    status, _, message = sweep("s", *overrides)
    assert status == 2
    assert said in message
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("metrics.jsonl"))
