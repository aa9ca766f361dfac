"""What a sweep may try: Hydra's sweep grammar as Optuna distributions, split into arms.

The grammar and its meaning are those of hydra-optuna-sweeper 1.4 (read with Hydra 1.3's parser),
so the same command lines give the same distributions, with one exception: an unfreeze epoch is a
whole number unless fractions are asked for.
"""

import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, IntegerNode, OmegaConf
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from t5ts.errors import ConfigError
from t5ts.schedule import ACTS_LATER

#: Whole numbers unless fractions are asked for, by tag(fraction, …) or bounds that are fractions.
WHOLE = ("freeze.unfreeze_epoch",)
#: Points above which a grid is taken for a mistake.
MAX_GRID = 100_000
Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Base:
    """The best point of another sweep's study, where an arm's trials start from.

    Attributes:
        overrides: Its command line.
        searched: Keys that were searched there.
        budget: What the search cost: its trials, distinct settings, and epochs.
    """

    overrides: tuple[str, ...]
    searched: tuple[str, ...]
    budget: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is sampled, what is fixed, and what is compared.

    Attributes:
        distributions: By key; config groups first, since other keys may depend on them.
        fixed: Overrides that every trial has, as they were written.
        arms: Every combination of the compared keys' values; one study each. `({},)` for one study.
        conditions: Key → group → options of that group under which the key means something.
        bases: Name of an arm → where its trials start from.
    """

    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]
    arms: tuple[dict[str, Value], ...]
    conditions: dict[str, dict[str, tuple[str, ...]]]
    bases: dict[str, Base] = field(default_factory=dict)

    def suggest(
        self, trial: Trial, *, arm: Mapping[str, Value], choices: Mapping[str, str]
    ) -> None:
        """Sample every key that means something at this point.

        Args:
            trial: Its parameters are set.
            arm: The arm's values.
            choices: Option of each config group, before anything is sampled.
        """
        for key, distribution in self.distributions.items():
            if self.is_active(key, {**choices, **arm, **trial.params}):
                _suggest(trial, key, distribution)

    def is_active(self, key: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a key means something under the chosen group options."""
        return all(
            str(chosen.get(group, "")) in options
            for group, options in self.conditions.get(key, {}).items()
        )

    def overrides(self, params: Mapping[str, Value], arm: Mapping[str, Value]) -> list[str]:
        """The command line of a point: fixed overrides, then the arm's, then the sampled ones."""
        base = self.bases.get(arm_name(arm))
        chosen = (f"{key}={_as_text(value)}" for key, value in {**arm, **params}.items())
        return [*(base.overrides if base else ()), *self.fixed, *chosen]

    def grid(self, *, arm: Mapping[str, Value], choices: Mapping[str, str]) -> list[dict[str, Any]]:
        """Every point once, keys without meaning left out, in the order of the command line.

        Raises:
            ConfigError: if a key is continuous, or the grid is absurdly large.
        """
        values = {key: _grid_values(key, d) for key, d in self.distributions.items()}
        size = math.prod(len(v) for v in values.values())
        if size > MAX_GRID:
            raise ConfigError(
                f"the grid has {size:,} points, above {MAX_GRID:,}: name fewer values, or search"
                " with hydra/sweeper/sampler=tpe."
            )
        points: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
        for combination in itertools.product(*values.values()):
            point = dict(zip(values, combination, strict=True))
            active = {
                k: v for k, v in point.items() if self.is_active(k, {**choices, **arm, **point})
            }
            points.setdefault(tuple(active.items()), active)
        return list(points.values())

    def corners(self, *, arm: Mapping[str, Value], choices: Mapping[str, str]) -> Iterator[dict]:
        """Extreme points: every value of a choice beside both ends of every range.

        Enough to find what a space could never run; not the product, but each key's extremes
        with the other keys at their first value, and all lowest and all highest together.
        """
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        last = {key: values[-1] for key, values in ends.items()}
        varied = ({**first, key: value} for key, values in ends.items() for value in values)
        for point in (first, last, *varied):
            yield {k: v for k, v in point.items() if self.is_active(k, {**choices, **arm, **point})}

    def describe(self) -> list[str]:
        """A line per key."""
        return [
            f"{key}: {describe(distribution)}" for key, distribution in self.distributions.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """JSON-able twin, to compare a study's space with this one."""
        return {
            "distributions": {k: distribution_to_json(d) for k, d in self.distributions.items()},
            "fixed": sorted(self.fixed),
            "conditions": {
                key: {group: list(options) for group, options in groups.items()}
                for key, groups in self.conditions.items()
                if key in self.distributions
            },
            "bases": {name: list(base.overrides) for name, base in self.bases.items()},
        }


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest ending that no other of them has: `lr` for `optim.lr`."""
    endings = {key: [key.split(".", n)[n] for n in range(key.count("."), -1, -1)] for key in keys}
    taken = Counter(ending for of_key in endings.values() for ending in of_key)
    return {
        key: next(ending for ending in of_key if taken[ending] == 1 or ending == key)
        for key, of_key in endings.items()
    }


def sharing_order(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A grid's points, so ordered that a frozen phase is there before others ask for it.

    Of the points that share a frozen phase the one with the longest comes first, and the others
    from the shortest up: while the first trains the phase, a second worker does those that need
    none of it.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        shared = json.dumps({k: v for k, v in point.items() if k not in ACTS_LATER})
        groups.setdefault(shared, []).append(point)
    ordered = []
    for group in groups.values():
        rising = sorted(group, key=lambda point: point.get("freeze.unfreeze_epoch") or 0)
        ordered += [rising[-1], *rising[:-1]]
    return ordered


def arm_name(arm: Mapping[str, Value]) -> str:
    """`init=t5`, or `all` where nothing is compared."""
    return ",".join(f"{key}={_as_text(value)}" for key, value in arm.items()) or "all"


def parse_space(
    params: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    arms: Sequence[str],
    conditions: Mapping[str, Mapping[str, Sequence[str]]],
    config: DictConfig,
    groups: Sequence[str],
    may_be_empty: bool = False,
) -> Space:
    """Read `hydra.sweeper.params` and the command line; the command line wins key by key.

    Args:
        params: The preset's parameters.
        arguments: The command line's task overrides.
        arms: Keys whose choices are compared, one study for each.
        conditions: See `Space`.
        config: The composed configuration, to know each key's type.
        groups: Names of the config groups.
        may_be_empty: Whether more is sampled elsewhere (`custom_search_space`).

    Raises:
        ConfigError: for a key that does not exist, a distribution that is empty or of the wrong
            kind, or an arm that is not a choice.
    """
    lines = [f"{key}={_as_text(value)}" for key, value in params.items()] + list(arguments)
    swept: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for line, override in zip(lines, _parse(lines), strict=True):
        key = override.get_key_element()
        swept.pop(key, None)
        fixed.pop(key, None)
        if override.is_delete() or not override.is_sweep_override():
            fixed[key] = line
            continue
        swept[key] = _distribution(override, key)
        _check_key(key, swept[key], config, groups)
    compared: dict[str, tuple[Value, ...]] = {}
    for key in arms:
        if key not in swept:
            continue  # one value only: nothing to compare there
        distribution = swept.pop(key)
        if not isinstance(distribution, CategoricalDistribution):
            raise ConfigError(
                f"hydra.sweeper.arms: {key} is {describe(distribution)}, and arms are compared by"
                f" choices: write {key}=A,B, or take it out of hydra.sweeper.arms."
            )
        compared[key] = distribution.choices
    if not swept and not compared and not may_be_empty:
        raise ConfigError(
            "nothing to sweep: give at least one parameter a choice or a range, such as"
            " init=random,t5 or 'optim.lr=tag(log,interval(1e-4,1e-2))', or name a preset with"
            " experiment=unfreeze_lr."
        )
    groups_first = sorted(swept, key=lambda key: key not in groups)
    return Space(
        distributions={key: swept[key] for key in groups_first},
        fixed=tuple(fixed.values()),
        arms=tuple(
            dict(zip(compared, values, strict=True))
            for values in itertools.product(*compared.values())
        ),
        conditions={
            key: {group: tuple(options) for group, options in groups_of.items()}
            for key, groups_of in conditions.items()
        },
    )


def _parse(lines: Sequence[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(list(lines)))
    except HydraException as error:
        raise ConfigError(f"hydra.sweeper.params: {error}") from error


def _distribution(override: Override, key: str) -> BaseDistribution:
    """The Optuna distribution of a sweep override."""
    value = override.value()
    try:
        if isinstance(value, ChoiceSweep):
            return CategoricalDistribution(_choices(override, key))
        if isinstance(value, RangeSweep):
            return _range(override, value, key)
        if isinstance(value, IntervalSweep):
            return _interval(value, key)
    except ConfigError:
        raise
    except ValueError as error:  # Optuna's own, such as a logarithm of 0
        raise ConfigError(f"{override.input_line}: {error}") from error
    raise ConfigError(
        f"{override.input_line}: not a space that can be searched; allowed: A,B or choice(A,B),"
        " range(A,B,STEP), interval(A,B), tag(log,interval(A,B)), int(interval(A,B))."
    )


def _choices(override: Override, key: str) -> list[Value]:
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    if len(set(choices)) < len(choices):
        raise ConfigError(f"{override.input_line}: a value of {key} is named twice.")
    return choices


def _range(override: Override, value: RangeSweep, key: str) -> BaseDistribution:
    if not value.step:
        raise ConfigError(f"{override.input_line}: the step must not be 0.")
    # In decimals, as they were written: by adding 0.1 thrice one does not get 0.3.
    start, stop, step = (Decimal(str(end)) for end in (value.start, value.stop, value.step))
    count = math.ceil((stop - start) / step)
    if count <= 0:
        raise ConfigError(f"{override.input_line}: empty; the stop is not part of a range.")
    # Hydra 1.4 applies casts to the values, 1.3 has applied them to the ends.
    if value.shuffle or getattr(value, "transformers", None):
        return CategoricalDistribution(_choices(override, key))
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(end, int) for end in (value.start, value.stop, value.step)):
        return IntDistribution(int(low), int(high), step=abs(int(step)))
    return FloatDistribution(float(low), float(high), step=abs(float(step)))


def _interval(value: IntervalSweep, key: str) -> BaseDistribution:
    assert value.start is not None
    assert value.end is not None
    low, high = value.start, value.end
    if low > high:
        raise ConfigError(
            f"{key}: interval({low:g}, {high:g}) is empty; the lower end comes first."
        )
    if low == high:
        raise ConfigError(f"{key}: interval({low:g}, {high:g}) has one value: write {key}={low:g}.")
    if unknown := value.tags - {"log", "fraction"}:
        raise ConfigError(f"{key}: tag({unknown.pop()}, …) means nothing; allowed: log, fraction.")
    log = "log" in value.tags
    whole = isinstance(low, int) and isinstance(high, int)
    if key in WHOLE and "fraction" not in value.tags:
        whole = whole or (float(low).is_integer() and float(high).is_integer())
    if whole:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _check_key(
    key: str, distribution: BaseDistribution, config: DictConfig, groups: Sequence[str]
) -> None:
    """Refuse a key that is no setting, and fractions for a setting that is a whole number."""
    if key in groups:
        return  # its options were checked on the command line, and are when a point is composed
    parent_key, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, parent_key) if parent_key else config
    if not isinstance(parent, DictConfig) or leaf not in parent:
        known = _keys(config)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key} is not a setting, so it cannot be swept.{hint} See --help.")
    if isinstance(parent._get_node(leaf), IntegerNode) and not _is_whole(distribution):
        raise ConfigError(
            f"{key} is a whole number, but {describe(distribution)} also has fractions:"
            f" write {key}=int(interval(A,B)), range(A,B) or a choice of whole numbers."
        )


def _is_whole(distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return all(_is_integer_text(choice) for choice in distribution.choices)
    return isinstance(distribution, IntDistribution)


def _is_integer_text(choice: Value) -> bool:
    if choice is None or choice == "null":
        return True  # whether null is allowed is the schema's matter
    try:
        return float(str(choice)) == int(str(choice))
    except ValueError:
        return False


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, node):
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        name = f"{prefix}{key}"
        keys += _keys(child, f"{name}.") if isinstance(child, DictConfig) else [name]
    return keys


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(
            key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    else:
        assert isinstance(distribution, FloatDistribution)
        trial.suggest_float(
            key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )


def _grid_values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        # Rounded, so that 0.1 + 2 · 0.1 is written 0.3.
        return [round(distribution.low + i * distribution.step, 12) for i in range(count)]
    raise ConfigError(
        f"{key} is {describe(distribution)}, which has no grid: name its values with"
        f" choice(…) or range(…), or search with hydra/sweeper/sampler=tpe."
    )


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def describe(distribution: BaseDistribution) -> str:
    """A distribution in words."""
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(_as_text(choice) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "whole number" if isinstance(distribution, IntDistribution) else "number"
    step = "" if distribution.step in (None, 1) else f" in steps of {distribution.step:g}"
    log = " on a logarithmic scale" if distribution.log else ""
    return f"{kind} from {distribution.low:g} to {distribution.high:g}{step}{log}"


def value_of(value: Value) -> Any:
    """A choice as a configuration holds it: `null` and lists are searched by their text."""
    return OverridesParser.create().parse_override(f"key={_as_text(value)}").value()


def _as_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
