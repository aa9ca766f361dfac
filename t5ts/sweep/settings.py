"""The sweeper's settings: a schema like the configuration's."""

import hashlib
import importlib
import pkgutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna import Trial
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler

from t5ts.checks import field_problems, is_key
from t5ts.config import OBJECTIVES
from t5ts.errors import ConfigError
from t5ts.schema import choice, named, number, text

#: Whole-run costs that can be objectives in addition to the metrics; smaller is better for all.
COSTS = ("seconds", "peak_memory_bytes")
#: Value of a preset's mandatory setting. (With Hydra's ??? the default would win.)
NOT_GIVEN = "(not given)"
#: Samplers whose draws belong together over the study, so that one seed must serve all slots.
ONE_SEED = ("QMCSampler", "BruteForceSampler")


@dataclass(kw_only=True)
class SweepSettings:
    """`hydra.sweeper`; each key is explained in `conf/hydra/sweeper/t5ts.yaml`.

    Attributes:
        sampler, pruner: `_target_` and arguments.
    """

    objective: str = choice(MISSING, *OBJECTIVES, *COSTS)
    direction: str = choice(MISSING, "minimize", "maximize")
    params: dict[str, Any] = MISSING
    n_trials: int = number(MISSING, "[1, 1e9]")
    seeds: int = number(MISSING, "[1, 1e4]")
    n_jobs: int = number(MISSING, "[1, 1e4]")
    storage: str | None = text(MISSING)
    study_name: str = named()
    max_failure_rate: float = number(MISSING, "[0, 1]")
    custom_search_space: str | None = text(MISSING)
    best_of: str | None = text(MISSING)
    arms: list[str] = text(MISSING)  # noqa: RUF009 - a field
    seed: int = number(MISSING, "[0, 4294967295]")
    grace_epochs: float = number(MISSING, "[0, 1e9]")
    reuse: bool = MISSING
    reuse_max_gb: float = number(MISSING, "[0, 1e6]")
    keep_last: bool = MISSING
    heartbeat_s: float = number(MISSING, "(0, 1e9]")
    lost_after_s: float = number(MISSING, "(0, 1e9]")
    on_change: str = choice(MISSING, "refuse", "record")
    conditions: dict[str, dict[str, list[str]]] = MISSING
    sampler: dict[str, Any] = MISSING
    pruner: dict[str, Any] = MISSING

    @property
    def is_grid(self) -> bool:
        """Whether every setting is tried exactly once."""
        return str(self.sampler.get("_target_")).endswith("GridSampler")

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early: never in a grid, which would then have holes."""
        is_off = str(self.pruner.get("_target_")).endswith("NopPruner")
        return not (self.is_grid or is_off or self.objective in COSTS)

    @property
    def sampler_seed(self) -> int:
        """The sampler's own seed, else the sweeper's."""
        own = self.sampler.get("seed")
        return self.seed if own is None else own

    def make_sampler(self, slot: int) -> BaseSampler:
        """The sampler of a slot: a function of the seed and the slot, not of who asks when."""
        if self.is_grid:
            return RandomSampler()  # a grid's settings are fixed, nothing is drawn
        seed = self.sampler_seed
        if not str(self.sampler.get("_target_")).endswith(ONE_SEED):
            digest = hashlib.sha256(f"{seed}/{slot}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big")
        sampler: BaseSampler = _instance("sampler", {**self.sampler, "seed": seed}, BaseSampler)
        return sampler

    def make_pruner(self) -> BasePruner:
        """Optuna's pruner."""
        if not self.prunes:
            return NopPruner()
        pruner: BasePruner = _instance("pruner", self.pruner, BasePruner)
        return pruner


def read_settings(sweeper: DictConfig, *, objective: str, experiment: str | None) -> SweepSettings:
    """Check `hydra.sweeper`; the run's objective and experiment's name are its defaults.

    Raises:
        ConfigError: naming the settings that are unknown or not allowed.
    """
    values: dict[str, Any] = OmegaConf.to_container(sweeper, resolve=True)  # type: ignore[assignment]
    for key in ("_target_", "_recursive_", "_convert_"):
        values.pop(key, None)
    name = values["objective"] or objective
    best = "maximize" if OBJECTIVES.get(str(name)) == "max" else "minimize"
    defaults = {"objective": name, "direction": best, "study_name": experiment or "sweep"}
    defaults |= {"params": {}, "conditions": {}, "arms": []}
    values |= {key: values[key] or default for key, default in defaults.items()}
    try:
        settings: Any = OmegaConf.to_object(OmegaConf.merge(SweepSettings, values))
    except OmegaConfBaseException as error:
        known = [f.name for f in fields(SweepSettings)]
        near = get_close_matches(str(error.full_key), known, n=1)
        hint = f" Did you mean {near[0]}?" if near and near[0] != error.full_key else ""
        words = str(error).splitlines()[0]
        raise ConfigError(f"hydra.sweeper.{error.full_key}: {words}.{hint}") from error
    problems = list(field_problems(settings))
    unknown = [key for key in settings.arms if not is_key(key.partition("@")[0])]
    problems += [f"arms: {key} is not a setting or a group." for key in unknown]
    if not problems and settings.direction != best:
        problems.append(f"direction={settings.direction}: must be {best} for objective={name}.")
    if not problems and 2 * settings.heartbeat_s > settings.lost_after_s:
        problems.append("lost_after_s must be at least twice hydra.sweeper.heartbeat_s.")
    if settings.best_of == NOT_GIVEN:
        problems.append("best_of=DIR must be given: the directory of a finished sweep.")
    if problems:
        raise ConfigError("\n".join(f"hydra.sweeper.{problem}" for problem in problems))
    # Anything that cannot be created or found is an error now, before any trial.
    settings.make_sampler(0), settings.make_pruner()
    if settings.custom_search_space is not None:
        find_function(settings.custom_search_space)
    return settings


def find_function(path: str) -> Callable[[DictConfig, Trial], object]:
    """The function of `custom_search_space`.

    Raises:
        ConfigError: if there is none.
    """
    try:
        found = pkgutil.resolve_name(path)
        if not callable(found):
            raise TypeError(f"a {type(found).__name__} is not a function")
    except Exception as error:  # any error that importing the user's module raises
        raise ConfigError(
            f"hydra.sweeper.custom_search_space={path} cannot be imported: {error}. Use the dotted"
            " path of a function f(config, trial) that Python can import here."
        ) from error
    return found


def _instance(key: str, node: dict[str, Any], kind: type) -> Any:
    """The sampler or pruner that a config node describes."""
    try:
        if str(node.get("_target_")).endswith("CmaEsSampler"):
            importlib.import_module("cmaes")  # which Optuna does only when it first draws
        with warnings.catch_warnings():
            # The user chose an experimental class; no warning at every trial.
            warnings.simplefilter("ignore", ExperimentalWarning)
            instance = instantiate(node)
        if not isinstance(instance, kind):
            raise TypeError(f"a {type(instance).__name__} is not a {key}")
    except Exception as error:  # any error of the class is about this node
        raise ConfigError(
            f"hydra.sweeper.{key}: cannot create {node.get('_target_')}:"
            f" {error.__cause__ or error}. Choose one with hydra/sweeper/{key}=NAME, whose"
            f" arguments are those of conf/hydra/sweeper/{key}/NAME.yaml; for cmaes: pip install"
            " 't5ts[sweep]'."
        ) from error
    return instance
