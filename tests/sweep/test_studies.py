"""A study of another sweep is refused, or the change is recorded, by name."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from optuna.storages import BaseStorage, InMemoryStorage

from t5ts.config import CONF, register
from t5ts.errors import ConfigError
from t5ts.sweep.settings import read_settings
from t5ts.sweep.space import parse_space
from t5ts.sweep.studies import CHANGES, MADE_FOR, differences, made_for, open_studies

Open = Callable[..., list[optuna.Study]]


@pytest.fixture(scope="module")
def open_sweep(tmp_path_factory: pytest.TempPathFactory) -> Open:
    register()
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())

    def make(
        storage: BaseStorage, *arguments: str, space: str = "optim.lr=interval(1e-4,1e-2)"
    ) -> list[optuna.Study]:
        tasks = [a for a in arguments if not a.startswith("hydra")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(
                "config",
                overrides=["hydra/sweeper=t5ts", *(a for a in arguments if "," not in a)],
                return_hydra_config=True,
            )
        settings = read_settings(config.hydra.sweeper, objective=config.objective, experiment=None)
        found = parse_space(
            {}, [*tasks, space], arms=settings.arms, conditions={}, config=config, groups=groups
        )
        purpose = made_for(found, settings, config)
        return open_studies(storage, found, settings, purpose, tmp_path_factory.mktemp("sweep"))

    return make


def test_the_same_sweep_finds_its_studies_again(open_sweep: Open) -> None:
    storage = InMemoryStorage()
    first = open_sweep(storage, "init=random,t5")
    assert [study.study_name for study in first] == ["sweep/init=random", "sweep/init=t5"]
    again = open_sweep(storage, "init=random,t5")
    assert [s._study_id for s in again] == [s._study_id for s in first]
    assert len(storage.get_all_studies()) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"space": "optim.lr=interval(1e-4,1e-1)"},
            ["space.optim.lr: number from 0.0001 to 0.01 → number from 0.0001 to 0.1"],
        ),
        ({"space": "optim.min_lr_ratio=interval(0,1)"}, ["space.optim.lr", "optim.min_lr_ratio"]),
        ({"arguments": ["train.epochs=3"]}, ["settings.train.epochs: 20 → 3"]),
        ({"arguments": ["objective=val_mae"]}, ["objectives.val_loss", "objectives.val_mae"]),
        ({"arguments": ["seed=1"]}, ["settings.seed: 0 → 1"]),
        ({"arguments": ["freeze=staged"]}, ["settings.freeze.name: none → staged"]),
        (
            {"arguments": ["hydra/sweeper/sampler=random"]},
            ["sampler._target_: optuna.samplers.TPESampler → optuna.samplers.RandomSampler"],
        ),
        ({"arguments": ["hydra.sweeper.seed=1"]}, ["sampler.seed: 0 → 1"]),
        ({"arguments": ["hydra/sweeper/pruner=asha"]}, ["pruner._target_", "pruner.min_resource"]),
        ({"arguments": ["hydra/sweeper/pruner=none"]}, ["pruner: absent → None"]),
        ({"arguments": ["hydra.sweeper.grace_epochs=3"]}, ["pruner.grace_epochs: 1.0 → 3"]),
    ],
)
def test_another_purpose_is_refused_by_name(
    open_sweep: Open, changes: dict[str, Any], said: list[str]
) -> None:
    storage = InMemoryStorage()
    open_sweep(storage, "train.epochs=20") if "train" in str(changes) else open_sweep(storage)
    arguments = changes.pop("arguments", [])
    with pytest.raises(ConfigError) as caught:
        open_sweep(storage, *arguments, **changes)
    for word in [*said, "on_change=record", "hydra.sweep.dir=DIR", "study_name=NAME"]:
        assert word in str(caught.value)


def test_what_cannot_change_a_number_may_change(open_sweep: Open) -> None:
    storage = InMemoryStorage()
    open_sweep(storage)
    open_sweep(
        storage, "tracker=none", "train.progress=false", "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.n_trials=99", "hydra.sweeper.max_failure_rate=1",
    )  # fmt: skip


def test_other_code_is_another_study(open_sweep: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = InMemoryStorage()
    monkeypatch.setattr("t5ts.sweep.studies.code_digest", lambda: "0" * 64)
    open_sweep(storage)
    monkeypatch.setattr("t5ts.sweep.studies.code_digest", lambda: "1" * 64)
    with pytest.raises(ConfigError, match=r"code: .*\(0{12}\) → .*\(1{12}\)"):
        open_sweep(storage)


def test_a_grid_does_not_go_on_as_another_one(open_sweep: Open) -> None:
    """Its slots would be done at points that are not in it, and points of it never."""
    storage = InMemoryStorage()
    record = "hydra.sweeper.on_change=record"
    open_sweep(storage, space="optim.lr=1e-3,1e-2")
    for changed in ({"space": "optim.lr=1e-4,1e-3,1e-2"}, {"space": "optim.lr=1e-3,1e-2"}):
        with pytest.raises(ConfigError, match="a grid's points are numbered"):
            open_sweep(storage, "hydra/sweeper/sampler=grid", record, **changed)
    open_sweep(storage, record, "seed=1", space="optim.lr=1e-3,1e-2")


def test_a_change_is_recorded_once_with_the_trial_it_starts_from(open_sweep: Open) -> None:
    storage = InMemoryStorage()
    (study,) = open_sweep(storage)
    study.tell(study.ask(), 1.0)
    changed = ["seed=1", "hydra.sweeper.on_change=record"]
    open_sweep(storage, *changed)
    (study,) = open_sweep(storage, *changed)
    assert study.user_attrs[CHANGES] == [{"from_trial": 1, "changes": ["settings.seed: 0 → 1"]}]
    assert study.user_attrs[MADE_FOR]["settings"]["seed"] == 1


def test_differences_names_leaves() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert differences(before, before) == []
    now = {"a": {"b": 2, "c": (1, 2)}, "e": 0}
    assert differences(before, now) == [
        "a.b: 1 → 2",
        "d: None → absent",
        "e: absent → 0",
    ]
