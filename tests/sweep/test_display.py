"""What a sweep says of itself."""

import io
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from optuna.trial import TrialState
from rich.console import Console

from t5ts.config import CONF, register
from t5ts.sweep.display import best_table, best_trials, duration, epochs_of
from t5ts.sweep.ledger import Ledger
from t5ts.sweep.settings import SweepSettings, read_settings
from t5ts.sweep.space import parse_space, short_names


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (200, "3 min"),
        (5399, "1 h 30 min"),
        (5400, "1 h 30 min"),
        (7500, "2 h 05 min"),
        (float("inf"), "–"),
        (float("nan"), "–"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.fixture(scope="module")
def settings() -> SweepSettings:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["hydra/sweeper=t5ts"], return_hydra_config=True)
    return read_settings(config.hydra.sweeper, objective="val_loss", experiment=None)


def told(values: list[Any], directions: tuple[str, ...] = ("minimize",)) -> Ledger:
    """A ledger whose trials ended with these values; None is a failure."""
    study = optuna.create_study(directions=list(directions))
    for slot, value in enumerate(values):
        trial = study.ask()
        trial.set_user_attr("slot", slot)
        trial.suggest_float("optim.lr", 0.1234567, 0.1234567)
        state = TrialState.FAIL if value is None else None
        study.tell(trial, value, state=state)
    return Ledger(study, n_trials=len(values), lost_after_s=1)


def slots(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    return [trial.user_attrs["slot"] for trial in trials]


def test_the_best_come_first_and_failures_not_at_all(settings: SweepSettings) -> None:
    ledger = told([3.0, None, 1.0, float("inf"), 2.0])
    assert slots(best_trials(ledger, settings))[:3] == [2, 4, 0]
    upwards = replace(settings, objectives=("val_corr",), directions=("maximize",))
    assert slots(best_trials(told([0.1, 0.3, 0.2], ("maximize",)), upwards)) == [1, 2, 0]


def test_several_objectives_have_a_front(settings: SweepSettings) -> None:
    two = replace(settings, objectives=("val_loss", "seconds"), directions=("minimize",) * 2)
    ledger = told([(1.0, 3.0), (2.0, 2.0), (3.0, 3.0), None], ("minimize", "minimize"))
    assert sorted(slots(best_trials(ledger, two))) == [0, 1]
    assert best_trials(told([None], ("minimize", "minimize")), two) == []


def test_the_table_has_a_section_for_each_arm(settings: SweepSettings) -> None:
    register()
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config")
    space = parse_space(
        {}, ["init=random,t5", "optim.lr=interval(0.1,0.2)"], arms=["init"], conditions={},
        config=config, groups=groups,
    )  # fmt: skip
    output = io.StringIO()
    table = best_table(space, settings, [told([0.25, 0.75]), told([None])])
    Console(file=output, width=120).print(table)
    lines = [line for line in output.getvalue().splitlines() if "init=" in line]
    assert "┃ val_loss ┃     lr ┃" in output.getvalue()  # not the whole of optim.lr
    assert [[c.strip() for c in line.strip("│").split("│")] for line in lines] == [
        ["init=random", "0", "0.2500", "0.1235"],
        ["init=random", "1", "0.7500", "0.1235"],
    ]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ([], []),
        (["seed", "optim.lr"], ["seed", "lr"]),
        (["freeze", "freeze.unfreeze_epoch"], ["freeze", "unfreeze_epoch"]),
        (["task.name", "init.name", "name"], ["task.name", "init.name", "name"]),
        (["a.b.lr", "c.b.lr", "b.lr"], ["a.b.lr", "c.b.lr", "b.lr"]),
        (["a.b.lr", "a.c.lr"], ["b.lr", "c.lr"]),
    ],
)
def test_keys_are_shown_by_the_ending_that_no_other_has(keys: list[str], names: list[str]) -> None:
    assert short_names(keys) == dict(zip(keys, names, strict=True))


def test_epochs_are_summed_over_trials_that_say_them() -> None:
    study = optuna.create_study()
    for state, epochs in (
        (TrialState.FAIL, {"asked": 10, "trained": 4, "reused": 0}),
        (TrialState.FAIL, None),
        (TrialState.PRUNED, {"asked": 10, "trained": 1, "reused": 2}),
        (TrialState.COMPLETE, {"asked": 10, "trained": 7, "reused": 3}),
    ):
        trial = study.ask()
        if epochs is not None:
            trial.set_user_attr("epochs", epochs)
        study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)
    # What a failed trial did not train was not saved.
    assert epochs_of(study.get_trials()) == {"asked": 30, "trained": 12, "reused": 5, "pruned": 7}
