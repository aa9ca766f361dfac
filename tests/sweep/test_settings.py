"""The sweeper's settings: what is refused by name, and what the words make."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir

from t5ts.config import CONF, register
from t5ts.errors import ConfigError
from t5ts.sweep.settings import SweepSettings, read_settings


@pytest.fixture(scope="module")
def make() -> Callable[..., SweepSettings]:
    register()

    def settings(*overrides: str, **more: Any) -> SweepSettings:
        named = [
            o if o.startswith("hydra") else f"+hydra.sweeper.{o[1:]}" if o[0] == "+" else
            f"hydra.sweeper.{o}" for o in overrides
        ]  # fmt: skip
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", ["hydra/sweeper=t5ts", *named], return_hydra_config=True)
        return read_settings(
            config.hydra.sweeper, objective=config.objective, **({"experiment": None} | more)
        )

    return settings


def test_defaults_follow_the_run(make: Callable[..., SweepSettings]) -> None:
    settings = make()
    assert settings.objectives == ("val_loss",)
    assert settings.directions == ("minimize",)
    assert settings.study_name == "sweep"
    assert make(experiment="unfreeze_lr").study_name == "unfreeze_lr"
    assert make("study_name=mine", experiment="unfreeze_lr").study_name == "mine"


def test_each_objective_brings_its_direction(make: Callable[..., SweepSettings]) -> None:
    settings = make("objective=[val_corr,seconds]")
    assert settings.directions == ("maximize", "minimize")
    # Optuna has no rule by which several objectives prune.
    assert not settings.prunes
    assert isinstance(settings.make_pruner(), optuna.pruners.NopPruner)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("n_trials=0", ["n_trials=0", "1 or more"]),
        ("n_trials=2.5", ["n_trials=2.5", "whole number"]),
        ("n_trials=true", ["n_trials=True"]),
        ("n_jobs=-1", ["n_jobs=-1"]),
        ("seed=-1", ["seed=-1", "0 or more"]),
        ("grace_epochs=-0.5", ["grace_epochs=-0.5"]),
        ("reuse_max_gb=much", ["reuse_max_gb=much"]),
        ("max_failure_rate=1.5", ["max_failure_rate=1.5", "at most 1"]),
        ("heartbeat_s=0", ["heartbeat_s=0", "above 0"]),
        ("heartbeat_s=60", ["lost_after_s=90", "twice heartbeat_s"]),
        ("on_change=ask", ["on_change=ask", "refuse, record"]),
        ("objective=loss", ["objective=loss", "val_loss"]),
        ("direction=down", ["direction=down", "minimize, maximize"]),
        ("direction=maximize", ["direction=maximize for val_loss", "minimize"]),
        ("direction=[minimize,minimize]", ["one direction for each objective"]),
        ("sampler=tpe", ["sampler=tpe", "hydra/sweeper/sampler"]),
        ("pruner=null", ["pruner=None", "hydra/sweeper/pruner"]),
        ("lost_after_s=inf", ["lost_after_s=inf"]),
        ("grace_epochs=nan", ["grace_epochs=nan"]),
        ("reuse=maybe", ["reuse=maybe", "true, false"]),
        ("arms=init", ["arms=init", "NAME"]),
        ("params=5", ["params=5"]),
        ("study_name=7", ["study_name=7"]),
        ("study_name=../../x", ["study_name=../../x", "name"]),
        ("storage=3", ["storage=3"]),
        ("+n_trails=3", ["n_trails", "n_trials"]),
        ("+conditions.a=b", ["conditions"]),
    ],
)
def test_bad_settings_are_refused_by_name(
    make: Callable[..., SweepSettings], override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(override)
    for word in ["hydra.sweeper.", *words]:
        assert word in str(caught.value)


def test_all_problems_stand_in_one_message(make: Callable[..., SweepSettings]) -> None:
    with pytest.raises(ConfigError) as caught:
        make("n_trials=0", "n_jobs=0", "on_change=x")
    assert str(caught.value).count("is not allowed") == 3


def draws(settings: SweepSettings, slot: int) -> list[float]:
    study = optuna.create_study(sampler=settings.make_sampler(slot))
    return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]


def test_a_slots_draws_follow_from_seed_and_slot(make: Callable[..., SweepSettings]) -> None:
    settings = make()
    assert draws(settings, 3) == draws(settings, 3)
    assert draws(settings, 3) != draws(settings, 4)
    assert draws(settings, 3) != draws(make("seed=1"), 3)
    # A seed of the sampler's own wins; 0 is a seed.
    assert draws(make("sampler.seed=0"), 3) == draws(make("sampler.seed=0", "seed=7"), 3)


SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
}
PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "asha": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "none": optuna.pruners.NopPruner,
}


def test_every_preset_makes_its_sampler_or_pruner(make: Callable[..., SweepSettings]) -> None:
    folder = CONF / "hydra" / "sweeper"
    assert {p.stem for p in (folder / "pruner").glob("*.yaml")} == set(PRUNERS)
    assert {p.stem for p in (folder / "sampler").glob("*.yaml")} == {*SAMPLERS, "grid"}
    for group, kinds in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name, kind in kinds.items():
            settings = make(f"hydra/sweeper/{group}={name}")
            made = settings.make_pruner() if group == "pruner" else settings.make_sampler(0)
            assert type(made) is kind


def test_any_optuna_class_by_its_target(make: Callable[..., SweepSettings]) -> None:
    target = "sampler._target_=optuna.samplers.QMCSampler"
    settings = make("hydra/sweeper/sampler=random", target)
    assert isinstance(settings.make_sampler(0), optuna.samplers.QMCSampler)
    # A low-discrepancy sequence is one sequence: all slots draw from it with one seed.
    assert settings.make_sampler(0)._seed == settings.make_sampler(5)._seed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # The preset's own arguments stay beside another class.
        ("sampler._target_=optuna.samplers.QMCSampler", ["sampler", "n_startup_trials"]),
        ("sampler._target_=optuna.samplers.TPE", ["sampler", "optuna.samplers.TPE"]),
        ("pruner._target_=optuna.samplers.RandomSampler", ["pruner", "n_startup_trials"]),
        ("pruner.n_startup_trials=-1", ["pruner", "negative"]),
    ],
)
def test_a_class_that_cannot_be_made_is_refused_before_any_trial(
    make: Callable[..., SweepSettings], override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(override)
    for word in ["hydra.sweeper.", "hydra/sweeper/", *words]:
        assert word in str(caught.value)


def test_a_sampler_whose_library_is_missing_is_refused(
    make: Callable[..., SweepSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"needs cmaes: pip install cmaes"):
        make("hydra/sweeper/sampler=cmaes")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_draws_in_and_after_its_start_up(
    make: Callable[..., SweepSettings], name: str
) -> None:
    settings = make(f"hydra/sweeper/sampler={name}")
    study = optuna.create_study()
    for slot in range(14):
        study.sampler = settings.make_sampler(slot)
        trial = study.ask()
        x, n = trial.suggest_float("x", 0.1, 1, log=True), trial.suggest_int("n", 0, 8)
        study.tell(trial, x + n)
    assert len({trial.params["x"] for trial in study.get_trials()}) > 10
