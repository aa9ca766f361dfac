"""Sweeps by their command line; most with a stand-in for the training."""

import math
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from runs import read, rows
from sweep.sweeps import attempts, results, run_dirs, states

from t5ts.errors import OutOfMemory
from t5ts.sweep import coordinator
from t5ts.sweep.trial import Work

GRID = ["hydra/sweeper/sampler=grid"]
LR = "optim.lr=tag(log,interval(1e-4,1e-2))"
#: A pruner that stops every trial as soon as it is asked.
MERCILESS = [
    "hydra/sweeper/pruner=none",
    "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
    "+hydra.sweeper.pruner.upper=-1",
]


def params(folder: Path, study: str = "sweep") -> dict[int, dict[str, Any]]:
    return {t.user_attrs["slot"]: t.params for t in attempts(folder, study=study)}


@pytest.mark.usefixtures("training")
def test_a_larger_budget_goes_on_as_if_it_had_been_asked_for_at_once(sweep, tmp_path):
    tpe = ["init=random", LR, "hydra.sweeper.sampler.n_startup_trials=1"]
    assert sweep("whole", *tpe, "hydra.sweeper.n_trials=4")[0] == 0
    assert sweep("parts", *tpe, "hydra.sweeper.n_trials=2")[0] == 0
    first = {
        slot: (d / "result.json").stat().st_mtime_ns
        for slot, d in run_dirs(tmp_path / "parts").items()
    }
    status, _, _ = sweep("parts", *tpe, "hydra.sweeper.n_trials=4")
    assert status == 0
    assert params(tmp_path / "parts") == params(tmp_path / "whole")
    assert len({p["optim.lr"] for p in params(tmp_path / "parts").values()}) == 4
    dirs = run_dirs(tmp_path / "parts")
    assert sorted(dirs) == [0, 1, 2, 3]
    assert all((dirs[slot] / "result.json").stat().st_mtime_ns == t for slot, t in first.items())

    assert sweep("parts", *tpe, "hydra.sweeper.n_trials=3")[0] == 0
    assert len(run_dirs(tmp_path / "parts")) == 4
    resume = (tmp_path / "parts" / "command.txt").read_text()
    assert resume.startswith("python -m t5ts.run --multirun hydra/sweeper=t5ts")
    assert "'optim.lr=tag(log,interval(1e-4,1e-2))'" in resume


@pytest.mark.usefixtures("training")
def test_a_command_leads_to_one_directory_and_back_to_it(sweep, tmp_path):
    command = ["init=random", "normalize=instance,none", "optim.lr=1e-3,3e-3", *GRID]
    assert sweep(None, *command, "hydra.sweeper.n_trials=1")[0] == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert len(list(folder.rglob("trial.json"))) == 1
    status, _, _ = sweep(None, *command, "hydra.sweeper.n_trials=3")
    assert status == 0
    assert list((tmp_path / "multirun").iterdir()) == [folder]
    assert len(run_dirs(folder)) == 3
    assert sweep(None, *command, "seed=1", "hydra.sweeper.n_trials=1")[0] == 0
    assert len(list((tmp_path / "multirun").iterdir())) == 2  # another command, another place


@pytest.mark.parametrize(
    ("freeze", "state", "last"),
    [
        (["freeze=none"], "pruned", 1),
        (["freeze=staged", "freeze.unfreeze_epoch=1"], "pruned", 2),
        (["freeze=staged", "freeze.unfreeze_epoch=2"], "complete", 3),  # its last epoch: it is done
        (["freeze=all"], "pruned", 1),
        (["freeze=all", "train.early_stopping_epochs=1"], "complete", 1),
        (["freeze=none", *GRID, "optim.lr=1e-3,2e-3"], "complete", 3),
    ],
    ids=["none", "staged-1", "staged-2", "all", "stopped early", "grid"],
)
@pytest.mark.usefixtures("training")
def test_no_trial_is_pruned_before_its_grace_is_over(sweep, tmp_path, freeze, state, last):
    arguments = ["init=random", LR, *freeze, *MERCILESS, "hydra.sweeper.n_trials=1"]
    assert sweep("s", *arguments)[0] == 0
    (folder,) = run_dirs(tmp_path / "s").values()
    trial = read(folder / "trial.json")
    assert (trial["state"], rows(folder)[-1]["epoch"]) == (state, last)
    assert not (folder / "checkpoint" / "last.safetensors").exists()


def test_too_many_failures_end_the_sweep(sweep, training, tmp_path):
    training.loss = lambda config: math.inf if config.optim.lr > 1 else config.optim.lr
    lrs = "optim.lr=1e-3,1e30,2e-3,3e-3,1e31"
    expected = ["complete", "fail", "complete", "complete", "fail"]
    for rate, status in (("0.3", 2), ("0.4", 0)):
        rate = f"hydra.sweeper.max_failure_rate={rate}"
        assert sweep("s", "init=random", *GRID, lrs, rate)[0] == status
        assert states(tmp_path / "s") == expected


def test_how_a_trial_failed_is_recorded_and_the_sweep_goes_on(sweep, training, tmp_path):
    ends = {
        1e-3: OutOfMemory("out of memory: lower train.batch_size"),
        3e-3: RuntimeError("a bug"),
        4e-3: math.nan,
    }

    def loss(config: Any) -> float:
        end = ends[config.optim.lr]
        if isinstance(end, Exception):
            raise end
        return end

    training.loss = loss
    lrs = f"optim.lr={','.join(map(str, ends))}"
    assert sweep("s", "init=random", *GRID, lrs, "hydra.sweeper.max_failure_rate=1")[0] == 0
    reasons = [
        "out of memory: lower train.batch_size",
        "RuntimeError: a bug",
        "the objective is not finite: nan",
    ]
    assert states(tmp_path / "s") == ["fail"] * 3
    trials = attempts(tmp_path / "s", study="sweep")
    assert [trial.user_attrs["reason"] for trial in trials] == reasons
    dirs = run_dirs(tmp_path / "s")
    assert [read(dirs[slot] / "trial.json")["reason"] for slot in range(3)] == reasons


@pytest.mark.parametrize("has_others", [True, False])
def test_a_launcher_whose_worker_dies(sweep, training, tmp_path, monkeypatch, has_others):
    """The others finish the sweep; without others the message says how to resume."""

    class Launcher:
        def __init__(self, task_function: Any, **_: Any) -> None:
            self.task = task_function

        def launch(self, overrides: list[list[str]], *, initial_job_idx: int) -> None:
            assert (len(overrides), initial_job_idx) == (2, 0)
            if has_others:
                self.task(None)
            raise RuntimeError("A worker process was killed.\nMore.\nAnd more.")

    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", Launcher)
    monkeypatch.setattr(coordinator, "IDLE_S", 0.0)
    arguments = ["init=random", LR, "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=2"]
    status, _, error = sweep("s", *arguments, "hydra/launcher=joblib")
    if has_others:
        assert (status, results(attempts(tmp_path / "s", study="sweep"))) == (0, [0])
        assert training.done
    else:
        assert status == 2
        assert "A worker process was killed." in error


def test_a_point_is_composed_as_hydra_composes_it(sweep, monkeypatch):
    compared = []

    def compare(job: Work, _display: Any) -> None:
        (arm,) = job.space.arms
        for setting in job.space.corners(arm):
            lines = job.space.overrides(setting, arm)
            expected = job.hydra_context.config_loader.load_sweep_config(job.config, lines)
            ours, theirs = map(OmegaConf.to_container, (job.compose(setting, arm), expected))
            assert ours == theirs
            compared.append(setting)

    monkeypatch.setattr(coordinator, "_with_pool", compare)
    space = ["init=random", "freeze=none,staged", "freeze.unfreeze_epoch=range(0,2)"]
    space += ["optim.clip_norm=null,1.0", "data.ar=[0.7],[0.5,0.2]", LR]
    assert sweep("s", *space)[0] == 130  # no worker did a trial
    assert len(compared) > 5


def test_shared_frozen_epochs_change_no_number(sweep, tmp_path):
    space = [
        "init=random", *GRID, "freeze=none,staged", "freeze.unfreeze_epoch=range(1,3)",
        "optim.encoder_lr_scale=0.1,0.3",
    ]  # fmt: skip
    assert sweep("shared", *space)[0] == 0
    assert sweep("cold", *space, "hydra.sweeper.reuse=false")[0] == 0

    def found(name: str) -> dict[str, Any]:
        """Each run's rows and metrics, by its setting."""
        numbers = {}
        for folder in run_dirs(tmp_path / name).values():
            setting = str(sorted(read(folder / "trial.json")["params"].items()))
            numbers[setting] = rows(folder), read(folder / "result.json")["metrics"]
        return numbers

    shared, cold = found("shared"), found("cold")
    assert len(cold) == 2 + 2 * 2  # an unfreeze epoch means nothing without staging
    assert shared == cold
    folders = run_dirs(tmp_path / "shared").values()
    # The longest of a lr scale trains its frozen phase, and all of them share the head's.
    assert sum(read(d / "trial.json")["reused_epochs"] for d in folders) == 2 + 1 + 1


def test_final_runs_each_arms_best_point_on_new_seeds_cold(sweep, training, tmp_path):
    best = {"instance": 0.1, "none": 0.3}
    training.loss = lambda config: abs(config.optim.weight_decay - best[config.normalize.name])
    arms = ["init=random", "normalize=instance,none", "hydra.sweeper.arms=[normalize]"]
    assert sweep("search", *arms, *GRID, "optim.weight_decay=0.1,0.3")[0] == 0
    configs: list[Any] = []
    training.fault = configs.append
    final = ["experiment=final", f"hydra.sweeper.best_of={tmp_path / 'search'}", "seed=7,8"]
    assert sweep("final", *final)[0] == 0
    assert {(c.normalize.name, c.optim.weight_decay, c.seed) for c in configs} == {
        (name, decay, seed) for name, decay in best.items() for seed in (7, 8)
    }
    assert {(c.train.epochs, c.train.reuse_dir) for c in configs} == {(3, None)}
    for path in (tmp_path / "final").rglob("trial.json"):
        # The report may then blame the weights although each arm has settings of its own.
        before = read(path)["searched_before"]
        assert before["keys"] == ["optim.weight_decay"]
        assert (before["trials"], before["settings"]) == (2, 2)
        assert before["epochs"] == {"asked": 6, "trained": 6, "reused": 0, "pruned": 0}


@pytest.mark.usefixtures("training")
def test_what_the_command_line_of_final_may_say(sweep, tmp_path):
    search = ["init=random,matched", *GRID, "optim.weight_decay=0.1,0.3"]
    assert sweep("search", *search, "seed=8")[0] == 0
    final = ["experiment=final", f"hydra.sweeper.best_of={tmp_path / 'search'}", "seed=7"]
    for override, arms, said in (
        ("init=matched", ["matched"], ""),
        ("init=matched,random", ["matched", "random"], ""),
        ("init=t5", [], "it has: init=random; init=matched"),
        ("optim.weight_decay=0.2", [], "searched optim.weight_decay"),
        ("backbone=linear,shared", [], "backbone"),  # not compared there
        ("seed=3,8", [], "seed=8"),  # the search's own
        ("seed=range(6,9)", [], "seed=8"),
        ("++seed=8", [], "seed=8"),
        ("hydra.sweeper.seeds=2", [], "seed=8"),
        ("seed=${oc.env:HOME}", [], "seed=${oc.env:HOME}"),
        ("init=random,random", [], "init=random,random"),
        ("train.progress=false", ["matched", "random"], ""),  # moves no number
        ("train.epochs=2", ["matched", "random"], "changed  train.epochs: 3 → 2"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        status, *output = sweep(folder.name, *final, override)
        assert status == (0 if arms else 2), override
        assert said in "".join(output)
        assert ("changed" in "".join(output)) == ("changed" in said)
        trained = [read(path)["arm"] for path in folder.rglob("trial.json")]
        assert sorted(trained) == [f"init={arm}" for arm in arms]
    assert sweep("seeds", "init=random", *GRID, "seed=0,1")[0] == 0
    for seed in (0, 1):  # also the one that the best trial does not have
        best_of = f"hydra.sweeper.best_of={tmp_path / 'seeds'}"
        assert sweep("reused", "experiment=final", best_of, f"seed={seed}")[0] == 2
    results = tmp_path / "search" / "optimization_results.yaml"
    for damaged in ("", "- a", "{a: [", "arms: {}", "arms: [1]", "arms: {a: 5}"):
        results.write_text(damaged)
        assert sweep("damaged", *final)[0] == 2, damaged


def test_a_space_that_the_grammar_cannot_say(sweep, training, tmp_path, monkeypatch):
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
    decays: list[float] = []
    training.fault = lambda config: decays.append(config.optim.weight_decay)
    assert sweep("s", *space, f"{function}.ties")[0] == 0
    (folder,) = run_dirs(tmp_path / "s").values()
    decay = read(folder / "trial.json")["params"]["optim.weight_decay"]
    assert 0.25 <= decay <= 0.5
    assert decays == [decay]

    wrong = [*space, f"{function}.wrong", "hydra.sweeper.max_failure_rate=1"]
    status, _, said = sweep("w", *wrong)
    assert (status, "Traceback" in said) == (0, False)
    (attempt,) = attempts(tmp_path / "w", study="sweep")
    reason = attempt.user_attrs["reason"]
    for part in ("hydra.sweeper.custom_search_space", "no such tie", "t5ts_test_space.py, line 5"):
        assert part in reason


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (["init=random"], "nothing to sweep"),
        (["~experiment", "init=random"], "nothing to sweep"),
        ([LR, "hydra.sweeper.storage=3"], "hydra.sweeper.storage=3"),
        (["optim.lrr=1,2"], "optim.lrr"),
        (["+hydra.sweeper.params.optim.lrr='1,2'"], "lrr"),
        (["init=random,pretrainde"], "init=pretrainde"),
        (["train.epochs=interval(1,9)"], "int(interval(A,B))"),
        (["train.epochs=1.5,2"], "train.epochs=1.5"),
        (["freeze=staged", "freeze.unfreeze_epoch=range(0,9)"], "(freeze.unfreeze_epoch=8)"),
        ([LR, "hydra.sweeper.storage=sqlite:////no/such/folder/x.db"], "hydra.sweeper.storage"),
        ([LR, "hydra.sweep.dir=/proc/no"], "hydra.sweep.dir"),
        (["experiment=final"], "hydra.sweeper.best_of"),
        (["experiment=final", "hydra.sweeper.best_of=nowhere"], "nowhere/optimization_results"),
    ],
)
def test_bad_sweeps_are_one_message_before_any_trial(sweep, tmp_path, overrides, output):
    status, _, message = sweep("s", *overrides)
    assert status == 2
    assert output in message
    assert not list(tmp_path.rglob("metrics.jsonl"))
