"""What a sweep prints: which trials are best, and what they cost."""

from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sweep.conftest import compose_sweep

from t5ts.sweep.display import Display, budget_of
from t5ts.sweep.ledger import Ledger
from t5ts.sweep.settings import read_settings
from t5ts.sweep.space import parse_space

SETTINGS = read_settings(compose_sweep().hydra.sweeper, objective="val_loss", experiment=None)


def ended(values: list[Any], direction: str = "minimize", arm: Any = None) -> Ledger:
    """A ledger whose trials ended with these values; None is a failure."""
    study = optuna.create_study(direction=direction)
    for slot, value in enumerate(values):
        trial = study.ask()
        trial.set_user_attr("slot", slot)
        trial.suggest_float("optim.lr", 0.1234567, 0.1234567)
        study.tell(trial, value, state=TrialState.FAIL if value is None else None)
    return Ledger(
        study, n_trials=len(values), lost_after_s=1, sampler_of=SETTINGS.make_sampler, arm=arm
    )


@pytest.mark.parametrize(("direction", "best"), [("minimize", [1, 0]), ("maximize", [0, 1])])
def test_the_summary_has_a_row_for_each_arms_best(direction, best, capsys):
    space = parse_space(
        {}, ["init=random,t5", "optim.lr=interval(0.1,0.2)"], arms=["init"], conditions={},
        choices={"init": "random"},
    )  # fmt: skip
    values = [0.75, 0.25, None]
    ledgers = [ended(values, direction, space.arms[0]), ended([None], direction, space.arms[1])]
    Display(ledgers, space, replace(SETTINGS, direction=direction)).summarize()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row.strip("│").split("│")] for row in rows] == [
        ["init=random", str(slot), str(values[slot]), "0.1235"] for slot in best
    ]


def test_epochs_are_summed_over_trials_that_have_them():
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
    summed = {"asked": 30, "trained": 12, "reused": 5, "pruned": 7}
    assert budget_of(study.get_trials())["epochs"] == summed
