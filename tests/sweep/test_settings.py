"""The sweeper's settings: what is refused by name, and which sampler and pruner they make."""

import sys

import optuna
import pytest
from sweep.conftest import compose_sweep

from t5ts.config import CONF
from t5ts.errors import ConfigError
from t5ts.sweep.settings import SweepSettings, read_settings


def make(*overrides: str, experiment: str | None = None) -> SweepSettings:
    named = (o if o[0] == "+" or o.startswith("hydra") else f"hydra.sweeper.{o}" for o in overrides)
    config = compose_sweep(*named)
    return read_settings(config.hydra.sweeper, objective=config.objective, experiment=experiment)


def test_defaults_follow_the_run():
    settings = make()
    assert (settings.objective, settings.direction) == ("val_loss", "minimize")
    assert settings.study_name == "sweep"
    assert make(experiment="unfreeze_lr").study_name == "unfreeze_lr"
    assert make("study_name=mine", experiment="unfreeze_lr").study_name == "mine"
    assert make("arms=[data@ood,init]").arms == ["data@ood", "init"]


def test_each_objective_brings_its_direction():
    assert make("objective=val_corr").direction == "maximize"
    costs = make("objective=seconds")
    assert costs.direction == "minimize"
    assert not costs.prunes  # known at a run's end only


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("n_trials=0", "n_trials"),
        ("n_trials=2.5", "n_trials"),
        ("arms=[int]", "arms: int"),
        ("n_trials=true", "n_trials"),
        ("n_jobs=-1", "n_jobs"),
        ("seed=-1", "seed"),
        ("grace_epochs=-0.5", "grace_epochs"),
        ("grace_epochs=nan", "grace_epochs"),
        ("reuse_max_gb=much", "reuse_max_gb"),
        ("max_failure_rate=1.5", "max_failure_rate"),
        ("heartbeat_s=0", "heartbeat_s"),
        ("heartbeat_s=60", "lost_after_s"),
        ("lost_after_s=inf", "lost_after_s"),
        ("on_change=ask", "on_change"),
        ("objective=loss", "objective"),
        ("direction=down", "direction"),
        ("direction=maximize", "direction"),
        ("objective=[val_loss,seconds]", "objective"),
        ("best_of='(not given)'", "best_of"),
        ("storage=''", "storage"),
        ("study_name=../../x", "study_name"),
        ("reuse=maybe", "reuse"),
        ("arms=init", "arms"),
        ("params=5", "params"),
        ("custom_search_space=no.such.f", "custom_search_space"),
        ("+hydra.sweeper.n_trails=3", "n_trials"),  # the nearest
        ("+hydra.sweeper.conditions.a=b", "conditions"),
        ("pruner=null", "pruner"),
        # A preset's own arguments stay when the class is replaced.
        ("sampler._target_=optuna.samplers.QMCSampler", "sampler"),
        ("sampler._target_=optuna.samplers.TPE", "sampler"),
        ("sampler=tpe", "sampler"),
        ("pruner._target_=optuna.samplers.RandomSampler", "pruner"),
        ("pruner.n_startup_trials=-1", "pruner"),
    ],
)
def test_bad_settings_are_refused_by_name(override, key):
    with pytest.raises(ConfigError, match=rf"hydra\.sweeper\.(.*\W)?{key}\b"):
        make(override)


def draws(settings: SweepSettings, slot: int) -> list[float]:
    study = optuna.create_study(sampler=settings.make_sampler(slot))
    return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]


def test_a_slots_draws_follow_from_seed_and_slot():
    settings = make()
    assert draws(settings, 3) == draws(settings, 3)
    assert draws(settings, 3) != draws(settings, 4)
    assert draws(settings, 3) != draws(make("seed=1"), 3)
    # A seed of the sampler's own wins; 0 is a seed.
    assert draws(make("sampler.seed=0"), 3) == draws(make("sampler.seed=0", "seed=7"), 3)
    # A low-discrepancy sequence is one sequence, and one order leaves none out: all slots draw from
    # it with one seed.
    for name in ("QMC", "BruteForce"):
        target = f"sampler._target_=optuna.samplers.{name}Sampler"
        settings = make("hydra/sweeper/sampler=random", target)
        studies = [optuna.create_study(sampler=settings.make_sampler(slot)) for slot in (0, 5)]
        first, other = (study.ask().suggest_int("n", 0, 10**3) for study in studies)
        assert first == other


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


def test_every_preset_is_tested():
    folder = CONF / "hydra" / "sweeper"
    assert {p.stem for p in (folder / "pruner").glob("*.yaml")} == set(PRUNERS)
    assert {p.stem for p in (folder / "sampler").glob("*.yaml")} == {*SAMPLERS, "grid"}


@pytest.mark.parametrize(("name", "kind"), PRUNERS.items())
def test_pruner_presets(name, kind):
    assert type(make(f"hydra/sweeper/pruner={name}").make_pruner()) is kind


@pytest.mark.parametrize(("name", "kind"), SAMPLERS.items())
def test_sampler_presets_draw_during_and_after_their_start_up(name, kind, monkeypatch):
    settings = make(f"hydra/sweeper/sampler={name}")
    study = optuna.create_study()
    for slot in range(12):
        study.sampler = settings.make_sampler(slot)
        assert type(study.sampler) is kind
        trial = study.ask()
        x, n = trial.suggest_float("x", 0.1, 1, log=True), trial.suggest_int("n", 0, 8)
        study.tell(trial, x + n)
    assert len({trial.params["x"] for trial in study.get_trials()}) > 9
    if name == "cmaes":
        monkeypatch.setitem(sys.modules, "cmaes", None)
        with pytest.raises(ConfigError, match="pip install"):
            settings.make_sampler(0)
