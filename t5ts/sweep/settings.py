"""The sweeper's settings; `conf/hydra/sweeper/t5ts.yaml` explains each word."""

import hashlib
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna import Trial
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler

from t5ts.config import OBJECTIVES
from t5ts.errors import ConfigError

DIRECTIONS = ("minimize", "maximize")
#: Whole-run figures that can be objectives beside the metrics, all of them better when smaller.
COSTS = ("seconds", "peak_memory_bytes")
#: Of a preset that cannot do without a value. (Hydra's ??? would leave the default standing.)
NOT_GIVEN = "(not given)"
#: What a sampler imports only when it first draws.
NEEDS = {"CmaEsSampler": "cmaes", "GPSampler": "scipy"}
#: Samplers whose draws belong together over the study, so that one seed must serve all slots.
ONE_SEED = ("QMCSampler", "BruteForceSampler")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """`hydra.sweeper`, checked.

    Attributes:
        objectives: Names; the first is what pruning looks at.
        directions: One for each objective.
        sampler, pruner: `_target_` and arguments.
    """

    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    params: dict[str, Any]
    n_trials: int
    n_jobs: int
    storage: str | None
    study_name: str
    max_failure_rate: float
    custom_search_space: str | None
    best_of: str | None
    arms: tuple[str, ...]
    seed: int
    grace_epochs: float
    reuse: bool
    reuse_max_gb: float
    keep_last: bool
    heartbeat_s: float
    lost_after_s: float
    on_change: str
    conditions: dict[str, dict[str, list[str]]]
    sampler: dict[str, Any]
    pruner: dict[str, Any]

    @property
    def is_grid(self) -> bool:
        """Whether every point is tried once."""
        return str(self.sampler["_target_"]).endswith("GridSampler")

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early: never in a grid, which would then have holes."""
        return not self.is_grid and not str(self.pruner["_target_"]).endswith("NopPruner")

    def make_sampler(self, slot: int) -> BaseSampler:
        """The sampler of a slot: a function of the seed and the slot, not of who asks when."""
        if self.is_grid:
            return RandomSampler()  # a grid's points are given, nothing is drawn
        target = str(self.sampler["_target_"]).rpartition(".")[2]
        seed = self.sampler.get("seed")
        seed = self.seed if seed is None else seed
        if target not in ONE_SEED:
            digest = hashlib.sha256(f"{seed}/{slot}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big")
        sampler: BaseSampler = _made("sampler", {**self.sampler, "seed": seed}, BaseSampler)
        return sampler

    def make_pruner(self) -> BasePruner:
        """Optuna's pruner; none for several objectives."""
        pruner: BasePruner = (
            _made("pruner", self.pruner, BasePruner) if self.prunes else NopPruner()
        )
        return pruner


def read_settings(sweeper: DictConfig, *, objective: str, experiment: str | None) -> SweepSettings:
    """Check `hydra.sweeper`.

    Args:
        sweeper: The composed node.
        objective: The run's.
        experiment: Option of the experiment group, names the study by default.

    Raises:
        ConfigError: all problems in one message.
    """
    values: dict[str, Any] = OmegaConf.to_container(sweeper, resolve=True)  # type: ignore[assignment]
    values.pop("_target_"), values.pop("_recursive_", None), values.pop("_convert_", None)
    named = values.pop("objective")
    objectives = _as_list(objective if named is None else named)
    given = values.pop("direction")
    directions = [_direction(name) for name in objectives] if given is None else _as_list(given)
    problems = _problems(values, objectives, directions)
    if problems:
        raise ConfigError("\n".join(problems))
    if len(objectives) > 1 and not str(values["pruner"]["_target_"]).endswith("NopPruner"):
        # Optuna has no rule for several; one of them alone would not be what was asked for.
        values["pruner"] = {"_target_": "optuna.pruners.NopPruner"}
    values["arms"] = tuple(values["arms"] or ())
    values["params"] = values["params"] or {}
    values["conditions"] = values["conditions"] or {}
    values["study_name"] = values["study_name"] or experiment or "sweep"
    known = {field.name for field in fields(SweepSettings)}
    settings = SweepSettings(
        objectives=tuple(objectives),
        directions=tuple(str(direction) for direction in directions),
        **{key: value for key, value in values.items() if key in known},
    )
    # What cannot be made or found is said now.
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
            raise TypeError(f"a {type(found).__name__} is no function")
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ConfigError(
            f"hydra.sweeper.custom_search_space={path} cannot be had: {error}. Give the dotted"
            " path of a function f(config, trial) that Python can import here."
        ) from error
    return found


def _made(key: str, node: dict[str, Any], kind: type) -> Any:
    """The object that a node describes.

    Raises:
        ConfigError: if there is no such class, or it does not take these arguments.
    """
    needed = NEEDS.get(str(node["_target_"]).rpartition(".")[2])
    if needed is not None and importlib.util.find_spec(needed) is None:
        raise ConfigError(
            f"hydra.sweeper.{key}: {node['_target_']} needs {needed}: pip install {needed} (or"
            " 't5ts[sweep]'), or choose hydra/sweeper/sampler=tpe."
        )
    try:
        with warnings.catch_warnings():
            # That Optuna may yet change what the user has named is no news at every trial.
            warnings.simplefilter("ignore", ExperimentalWarning)
            made = instantiate(node)
        if not isinstance(made, kind):
            raise TypeError(f"a {type(made).__name__} is no {key}")
    except Exception as error:  # whatever the class raises: all of it is about this node
        raise ConfigError(
            f"hydra.sweeper.{key}: {node['_target_']} cannot be made: {error.__cause__ or error}."
            f" Choose one with hydra/sweeper/{key}=NAME, whose arguments are those of"
            f" conf/hydra/sweeper/{key}/NAME.yaml (they stay when only _target_ is changed)."
        ) from error
    return made


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _direction(objective: str) -> str:
    return "maximize" if OBJECTIVES.get(objective) == "max" else "minimize"


def _problems(
    values: dict[str, Any], objectives: Sequence[str], directions: Sequence[str]
) -> list[str]:
    allowed = (*OBJECTIVES, *COSTS)
    rules: list[tuple[str, bool, str]] = [
        *((f"objective={name}", name in allowed, ", ".join(allowed)) for name in objectives),
        *((f"direction={name}", name in DIRECTIONS, ", ".join(DIRECTIONS)) for name in directions),
        *(
            (
                f"direction={direction} for {name}",
                direction not in DIRECTIONS or name not in allowed or direction == _direction(name),
                f"{_direction(name)} (a smaller loss and a larger correlation are better)",
            )
            for name, direction in zip(objectives, directions, strict=False)
        ),
        (
            f"direction={list(directions)} beside objective={list(objectives)}",
            len(directions) == len(objectives),
            "one direction for each objective",
        ),
        _at_least(values, "n_trials", 1, whole=True),
        _at_least(values, "n_jobs", 1, whole=True),
        _at_least(values, "seed", 0, whole=True),
        _at_least(values, "grace_epochs", 0),
        _at_least(values, "reuse_max_gb", 0),
        (
            f"max_failure_rate={values['max_failure_rate']}",
            _is_number(values["max_failure_rate"]) and 0 <= values["max_failure_rate"] <= 1,
            "0 to 1",
        ),
        (
            f"heartbeat_s={values['heartbeat_s']}, lost_after_s={values['lost_after_s']}",
            _is_number(values["heartbeat_s"])
            and _is_number(values["lost_after_s"])
            and 0 < 2 * values["heartbeat_s"] <= values["lost_after_s"],
            "seconds above 0, lost_after_s at least twice heartbeat_s",
        ),
        (
            f"best_of={values['best_of']}",
            values["best_of"] != NOT_GIVEN,
            "the directory of a finished sweep (hydra.sweeper.best_of=DIR)",
        ),
        (
            f"on_change={values['on_change']}",
            values["on_change"] in ("refuse", "record"),
            "refuse, record",
        ),
        *(
            (
                f"{key}={values[key]}",
                isinstance(values[key], dict) and "_target_" in values[key],
                f"an option of hydra/sweeper/{key}, or any Optuna class by {key}._target_",
            )
            for key in ("sampler", "pruner")
        ),
    ]
    return [
        f"hydra.sweeper.{what} is not allowed; allowed: {allowed_values}."
        for what, holds, allowed_values in rules
        if not holds
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_least(
    values: dict[str, Any], key: str, least: int, *, whole: bool = False
) -> tuple[str, bool, str]:
    value = values[key]
    holds = _is_number(value) and value >= least and (isinstance(value, int) or not whole)
    kind = "a whole number" if whole else "a number"
    return f"{key}={value}", holds, f"{kind}, {least} or more"
