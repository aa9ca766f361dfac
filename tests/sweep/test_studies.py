"""A study of another sweep is refused, or the change is recorded, by name."""

from collections.abc import Callable

import optuna
import pytest
from optuna.storages import InMemoryStorage
from sweep.conftest import compose_sweep

from t5ts.errors import ConfigError
from t5ts.sweep.settings import read_settings
from t5ts.sweep.space import parse_space
from t5ts.sweep.studies import CHANGES, MADE_FOR, check_purpose
from t5ts.sweep.trial import Work

Open = Callable[..., list[optuna.Study]]
SPACE = "optim.lr=interval(1e-4,1e-2)"
RECORD = "hydra.sweeper.on_change=record"


@pytest.fixture
def open_sweep(tmp_path, monkeypatch) -> Open:
    storage = InMemoryStorage()
    monkeypatch.setattr("t5ts.sweep.trial.open_storage", lambda *_: storage)

    def make(*arguments: str, space: str = SPACE) -> list[optuna.Study]:
        tasks = [a for a in arguments if not a.startswith("hydra")]
        config = compose_sweep(*(a for a in arguments if "," not in a))
        settings = read_settings(config.hydra.sweeper, objective=config.objective, experiment=None)
        found = parse_space(
            {}, [*tasks, space], arms=settings.arms, conditions={},
            choices=config.hydra.runtime.choices,
        )  # fmt: skip
        work = Work(
            config=config, hydra_context=None, settings=settings, space=found, sweep_dir=tmp_path
        )
        ledgers = work.ledgers(create=True)
        check_purpose(work, ledgers)
        return [ledger.study for ledger in ledgers]

    return make


def test_the_same_sweep_finds_its_studies_again(open_sweep):
    first = open_sweep("init=random,t5")
    assert [study.study_name for study in first] == ["sweep/init=random", "sweep/init=t5"]
    # What cannot change a number may change.
    again = open_sweep(
        "init=random,t5", "tracker=none", "train.progress=false", "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.n_trials=99", "hydra.sweeper.max_failure_rate=1",
    )  # fmt: skip
    assert [s._study_id for s in again] == [s._study_id for s in first]


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ("optim.lr=interval(1e-4,1e-1)", "space.optim.lr: number from 0.0001 to 0.01 → number"),
        ("optim.min_lr_ratio=interval(0,1)", "space.optim.min_lr_ratio"),
        ("train.epochs=3", "settings.train.epochs: 10 → 3"),
        ("objective=val_mae", "objectives.val_mae"),
        ("seed=1", "settings.seed: 0 → 1"),
        ("freeze=staged", "settings.freeze.name: none → staged"),
        ("hydra/sweeper/sampler=random", "sampler._target_"),
        ("hydra.sweeper.seed=1", "sampler.seed: 0 → 1"),
        ("hydra/sweeper/pruner=asha", "pruner.min_resource"),
        ("hydra/sweeper/pruner=none", "pruner: absent → None"),
        ("hydra.sweeper.grace_epochs=3", "pruner.grace_epochs: 1.0 → 3.0"),
    ],
)
def test_another_purpose_is_refused_by_name(open_sweep, change, leaf):
    open_sweep()
    with pytest.raises(ConfigError) as caught:
        open_sweep(space=change) if "interval" in change else open_sweep(change)
    assert leaf in str(caught.value)


def test_other_code_is_another_study(open_sweep, monkeypatch):
    open_sweep()
    monkeypatch.setattr("t5ts.sweep.studies.LOADED_CODE", "1" * 64)
    with pytest.raises(ConfigError, match=r"code: .* → .*\(1{12}\)"):
        open_sweep()


def test_a_grid_does_not_go_on_as_another_one(open_sweep):
    """Slots would have settings that are not in the new grid, and some would never run."""
    open_sweep(space="optim.lr=1e-3,1e-2")
    for changed in ("optim.lr=1e-4,1e-3,1e-2", "optim.lr=1e-3,1e-2"):
        with pytest.raises(ConfigError, match="grid"):
            open_sweep("hydra/sweeper/sampler=grid", RECORD, space=changed)
    open_sweep(RECORD, "seed=1", space="optim.lr=1e-3,1e-2")


def test_a_change_is_recorded_once_with_the_trial_it_starts_from(open_sweep):
    (study,) = open_sweep()
    study.tell(study.ask(), 1.0)
    open_sweep("seed=1", RECORD)
    (study,) = open_sweep("seed=1", RECORD)
    assert study.user_attrs[CHANGES] == [{"from_trial": 1, "changes": ["settings.seed: 0 → 1"]}]
    assert study.user_attrs[MADE_FOR]["settings"]["seed"] == 1
