"""The sweeper's settings; `conf/hydra/sweeper/t5ts.yaml` explains each word."""

import difflib
import hashlib
import importlib.util
import math
import operator
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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

#: What a field's metadata may ask of its value.
RULES: dict[str, Callable[[Any, Any], bool]] = {
    "least": operator.ge,
    "most": operator.le,
    "above": operator.gt,
    "choices": lambda value, choices: value in choices,
    "holds": lambda value, holds: holds(value),
}


def _is_sampler_or_pruner(value: dict[str, Any]) -> bool:
    return isinstance(value.get("_target_"), str)


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """`hydra.sweeper`, checked: types by the annotations, `least`, `most`, … by the metadata.

    Attributes:
        objectives: Names; the first is what pruning looks at.
        directions: One for each objective.
        sampler, pruner: `_target_` and arguments.
    """

    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    params: dict[str, Any]
    n_trials: int = field(metadata={"least": 1})
    n_jobs: int = field(metadata={"least": 1})
    storage: str | None
    study_name: str = field(
        metadata={
            "holds": lambda name: name.strip(". ") != "" and not set(name) & set("/\\\0"),
            "allowed": "a name without slashes",
        }
    )
    max_failure_rate: float = field(metadata={"least": 0, "most": 1})
    custom_search_space: str | None
    best_of: str | None = field(
        metadata={
            "holds": lambda folder: folder not in (NOT_GIVEN, ""),
            "allowed": "the directory of a finished sweep (hydra.sweeper.best_of=DIR)",
        }
    )
    arms: tuple[str, ...]
    seed: int = field(metadata={"least": 0, "most": 2**32 - 1})
    grace_epochs: float = field(metadata={"least": 0})
    reuse: bool
    reuse_max_gb: float = field(metadata={"least": 0})
    keep_last: bool
    heartbeat_s: float = field(metadata={"above": 0})
    lost_after_s: float = field(metadata={"above": 0})
    on_change: str = field(metadata={"choices": ("refuse", "record")})
    conditions: dict[str, dict[str, tuple[str, ...]]]
    sampler: dict[str, Any] = field(
        metadata={
            "holds": _is_sampler_or_pruner,
            "allowed": "an option of hydra/sweeper/sampler,"
            " or any Optuna class by sampler._target_",
        }
    )
    pruner: dict[str, Any] = field(
        metadata={
            "holds": _is_sampler_or_pruner,
            "allowed": "an option of hydra/sweeper/pruner, or any Optuna class by pruner._target_",
        }
    )

    @property
    def is_grid(self) -> bool:
        """Whether every point is tried once."""
        return str(self.sampler["_target_"]).endswith("GridSampler")

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early: never in a grid, which would then have holes."""
        return not self.is_grid and not str(self.pruner["_target_"]).endswith("NopPruner")

    @property
    def sampler_seed(self) -> int:
        """The sampler's own seed, or else the sweeper's."""
        own = self.sampler.get("seed")
        return self.seed if own is None else own

    def make_sampler(self, slot: int) -> BaseSampler:
        """The sampler of a slot: a function of the seed and the slot, not of who asks when."""
        if self.is_grid:
            return RandomSampler()  # a grid's points are given, nothing is drawn
        target = str(self.sampler["_target_"]).rpartition(".")[2]
        seed = self.sampler_seed
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
    for key in ("_target_", "_recursive_", "_convert_"):
        values.pop(key, None)
    named, given = values.pop("objective"), values.pop("direction")
    objectives = _as_list(objective if named is None else named)
    directions = [_direction(name) for name in objectives] if given is None else _as_list(given)
    for key, empty in (("arms", ()), ("params", {}), ("conditions", {})):
        values[key] = empty if values[key] is None else values[key]
    if values["study_name"] is None:
        values["study_name"] = experiment or "sweep"
    values |= {"objectives": objectives, "directions": directions}
    problems = [*_field_problems(values), *_pair_problems(values)]
    if problems:
        raise ConfigError("\n".join(f"hydra.sweeper.{problem}" for problem in problems))
    if len(objectives) > 1 and not str(values["pruner"]["_target_"]).endswith("NopPruner"):
        # Optuna has no rule for several; one of them alone would not be what was asked for.
        values["pruner"] = {"_target_": "optuna.pruners.NopPruner"}
    for key in ("objectives", "directions", "arms"):
        values[key] = tuple(values[key])
    settings = SweepSettings(**values)
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


def _field_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with single settings: unknown, of another type, or out of range."""
    known = {field.name: field for field in fields(SweepSettings)}
    kinds = get_type_hints(SweepSettings)
    problems = []
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" It has: {', '.join(known)}."
            problems.append(f"{key} is not a setting of the sweeper.{hint}")
            continue
        rules = known[key].metadata
        if not _is_of(value, kinds[key]) or not _holds(value, rules):
            allowed = rules.get("allowed") or _allowed(kinds[key], rules)
            problems.append(f"{key}={value} is not allowed; allowed: {allowed}.")
    return problems


def _is_of(value: Any, kind: Any) -> bool:
    """Whether YAML's or the command line's value is of an annotation's type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_of(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of(k, parts[0]) and _is_of(v, parts[1]) for k, v in value.items()
        )
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return kind is Any or isinstance(value, kind)


def _holds(value: Any, rules: Mapping[str, Any]) -> bool:
    return value is None or all(
        rule(value, rules[name]) for name, rule in RULES.items() if name in rules
    )


def _allowed(kind: Any, rules: Mapping[str, Any]) -> str:
    if "choices" in rules:
        return ", ".join(rules["choices"])
    words = {int: "a whole number", float: "a number", bool: "true, false"}
    ranges = {"least": "{} or more", "most": "at most {}", "above": "above {}"}
    said = [text.format(rules[key]) for key, text in ranges.items() if key in rules]
    return ", ".join([words.get(kind, str(kind).replace("tuple[str, ...]", "[NAME, …]")), *said])


def _pair_problems(values: Mapping[str, Any]) -> list[str]:
    objectives, directions = values["objectives"], values["directions"]
    heartbeat_s, lost_after_s = values["heartbeat_s"], values["lost_after_s"]
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
            len(directions) == len(objectives) > 0,
            "one direction for each objective",
        ),
        (
            f"heartbeat_s={heartbeat_s}, lost_after_s={lost_after_s}",
            not (_is_of(heartbeat_s, float) and _is_of(lost_after_s, float))
            or 2 * heartbeat_s <= lost_after_s,
            "lost_after_s at least twice heartbeat_s",
        ),
    ]
    return [
        f"{what} is not allowed; allowed: {allowed_values}."
        for what, holds, allowed_values in rules
        if not holds
    ]
