"""The search space: Hydra's sweep grammar as Optuna distributions, split into arms.

The grammar has the meaning it has in hydra-optuna-sweeper 1.4, so the same command lines give the
same distributions, with one exception: an unfreeze epoch is a whole number unless fractions are
requested.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from t5ts.errors import ConfigError
from t5ts.schedule import ACTS_LATER

#: Whole numbers unless fractions are requested, by tag(fraction, …) or fractional bounds.
WHOLE = ("freeze.unfreeze_epoch",)
#: A grid with more settings than this is treated as a mistake.
MAX_GRID = 100_000
Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Space:
    """The parameters that are sampled, fixed, and compared.

    Attributes:
        distributions: By key; config groups first, since other keys may depend on them.
        fixed: Overrides shared by every trial, as they were written.
        arms: Every combination of the compared keys' values; one study each. `({},)` for one study.
        conditions: Key → group → options of that group for which the key is meaningful.
        choices: Option of each config group, before anything is sampled.
        bases: Name of an arm → the best setting of another sweep that its trials start from, as
            that sweep's results have it.
    """

    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]
    arms: tuple[dict[str, Value], ...]
    conditions: Mapping[str, Mapping[str, Sequence[str]]]
    choices: Mapping[str, str]
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def suggest(self, trial: Trial, arm: Mapping[str, Value]) -> None:
        """Sample every meaningful key of an arm, setting the trial's parameters."""
        for key, distribution in self.distributions.items():
            if self._is_active(key, {**arm, **trial.params}):
                trial._suggest(key, distribution)

    def _is_active(self, key: str, params: Mapping[str, Any]) -> bool:
        """Whether a key is meaningful with these group options."""
        chosen, conditions = {**self.choices, **params}, self.conditions.get(key, {})
        return all(str(chosen.get(group, "")) in options for group, options in conditions.items())

    def _meaningful(self, params: Mapping[str, Any], arm: Mapping[str, Value]) -> dict[str, Any]:
        return {k: v for k, v in params.items() if self._is_active(k, {**arm, **params})}

    def overrides(self, params: Mapping[str, Value], arm: Mapping[str, Value]) -> list[str]:
        """A setting's command line: fixed overrides, then the arm's, then the sampled ones."""
        base = self.bases.get(arm_name(arm), {"overrides": ()})
        chosen = (f"{key}={as_text(value)}" for key, value in {**arm, **params}.items())
        return [*base["overrides"], *self.fixed, *chosen]

    def grid(self, arm: Mapping[str, Value]) -> list[dict[str, Any]]:
        """Every setting once, without meaningless keys.

        Ordered so that a frozen phase is stored before other settings need it: of those that share
        one, the longest comes first and the others from the shortest up. While the first trains the
        phase, a second worker does those that need little of it.

        Raises:
            ConfigError: if a key is continuous, or the grid is absurdly large.
        """
        values = {key: grid_values(key, d) for key, d in self.distributions.items()}
        if (size := math.prod(map(len, values.values()))) > MAX_GRID:
            raise ConfigError(
                f"the grid has {size:,} settings, above {MAX_GRID:,}: use fewer values, or search"
                " with hydra/sweeper/sampler=tpe."
            )
        phases: dict[str, dict[str, dict[str, Any]]] = {}
        for combination in itertools.product(*values.values()):
            setting = self._meaningful(dict(zip(values, combination, strict=True)), arm)
            shared = str({k: v for k, v in setting.items() if k not in ACTS_LATER})
            phases.setdefault(shared, {})[str(setting)] = setting
        ordered = []
        for group in phases.values():
            rising = sorted(group.values(), key=lambda p: p.get("freeze.unfreeze_epoch") or 0)
            ordered += [rising[-1], *rising[:-1]]
        return ordered

    def corners(self, arm: Mapping[str, Value]) -> Iterator[dict[str, Any]]:
        """Extreme settings: every choice and both ends of every range.

        Not the product: each key's extremes with the other keys at their first value, and all
        lowest and all highest together.
        """
        ends: dict[str, Sequence[Any]] = {
            key: d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)  # type: ignore[attr-defined]
            for key, d in self.distributions.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        last = {key: values[-1] for key, values in ends.items()}
        varied = ({**first, key: value} for key, values in ends.items() for value in values)
        for setting in {str(setting): setting for setting in (first, last, *varied)}.values():
            yield self._meaningful(setting, arm)


def arm_name(arm: Mapping[str, Value]) -> str:
    """`init=t5`, or `all` if nothing is compared."""
    return ",".join(f"{key}={as_text(value)}" for key, value in arm.items()) or "all"


def parse_space(
    params: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    arms: Collection[str] = (),
    conditions: Mapping[str, Mapping[str, Sequence[str]]],
    choices: Mapping[str, str],
    may_be_empty: bool = False,
) -> Space:
    """Read `hydra.sweeper.params` and the command line; the command line wins key by key.

    Whether the keys exist and allow these values is checked when settings are composed.

    Args:
        params: The preset's parameters.
        arguments: The command line's task overrides.
        arms: Keys whose choices are compared, one study for each.
        conditions, choices: See `Space`.
        may_be_empty: Whether parameters are also sampled elsewhere (`custom_search_space`).

    Raises:
        ConfigError: for a distribution that is empty or of the wrong kind, or an arm that is not a
            choice.
    """
    lines = [f"{key}={as_text(value)}" for key, value in params.items()] + list(arguments)
    try:
        overrides = OverridesParser.create().parse_overrides(lines)
    except HydraException as error:
        raise ConfigError(f"hydra.sweeper.params: {error}") from error
    swept: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for line, override in zip(lines, overrides, strict=True):
        key = override.get_key_element()
        swept.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            swept[key] = _distribution(override, key)
        else:
            fixed[key] = line
    compared = {key: swept.pop(key) for key in arms if key in swept}
    for key, distribution in compared.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise ConfigError(
                f"hydra.sweeper.arms: {key} is {describe(distribution)}, but arms need"
                f" choices: write {key}=A,B, or take it out of hydra.sweeper.arms."
            )
    if not swept and not compared and not may_be_empty:
        raise ConfigError(
            "nothing to sweep: give at least one parameter a choice or a range, such as"
            " init=random,t5 or 'optim.lr=tag(log,interval(1e-4,1e-2))', or use a preset with"
            " experiment=unfreeze_lr."
        )
    products = itertools.product(*(d.choices for d in compared.values()))  # type: ignore[attr-defined]
    return Space(
        distributions=dict(sorted(swept.items(), key=lambda item: item[0] not in choices)),
        fixed=tuple(fixed.values()),
        arms=tuple(dict(zip(compared, values, strict=True)) for values in products),
        conditions=conditions,
        choices=choices,
    )


def _distribution(override: Override, key: str) -> BaseDistribution:
    """The Optuna distribution of a sweep override."""
    value = override.value()
    try:
        if isinstance(value, ChoiceSweep):
            return CategoricalDistribution(choices_of(override))
        if isinstance(value, RangeSweep):
            return _range(override, value)
        if isinstance(value, IntervalSweep):
            return _interval(value, key)
        raise ValueError(
            "not a searchable space; allowed: A,B or choice(A,B), range(A,B,STEP),"
            " interval(A,B), tag(log,interval(A,B)), int(interval(A,B))."
        )
    except ConfigError:
        raise
    except ValueError as error:  # Optuna's too, such as a logarithm of 0
        raise ConfigError(f"{override.input_line}: {error}") from error


def choices_of(override: Override) -> list[Value]:
    """The values of a choice or a range, or the one value that is given; none of them twice."""
    if not override.is_sweep_override():
        return [override.value()]  # type: ignore[list-item]
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    if len(set(choices)) < len(choices):
        raise ConfigError(f"{override.input_line}: a value appears twice.")
    return choices


def _range(override: Override, value: RangeSweep) -> BaseDistribution:
    if not value.step:
        raise ValueError("the step must not be 0.")
    # In decimal arithmetic: adding 0.1 three times in floats does not give 0.3.
    start, stop, step = (Decimal(str(end)) for end in (value.start, value.stop, value.step))
    count = math.ceil((stop - start) / step)
    if count <= 0:
        raise ValueError("empty; the stop is not part of a range.")
    # Hydra 1.4 applies casts to the values, 1.3 has already applied them to the ends.
    if value.shuffle or getattr(value, "transformers", None):
        return CategoricalDistribution(choices_of(override))
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(end, int) for end in (value.start, value.stop, value.step)):
        return IntDistribution(int(low), int(high), step=abs(int(step)))
    return FloatDistribution(float(low), float(high), step=abs(float(step)))


def _interval(value: IntervalSweep, key: str) -> BaseDistribution:
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    if low >= high:
        raise ValueError("the lower end comes first; for a single value write KEY=VALUE.")
    if unknown := value.tags - {"log", "fraction"}:
        raise ValueError(f"tag({unknown.pop()}, …) has no meaning; allowed: log, fraction.")
    log, whole = "log" in value.tags, isinstance(low, int) and isinstance(high, int)
    if key in WHOLE and "fraction" not in value.tags:
        whole = float(low).is_integer() and float(high).is_integer()
    if whole:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def grid_values(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    """Every value of a key; a ConfigError if it is continuous."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices
        case IntDistribution(log=False, low=low, high=high, step=step):
            return range(low, high + 1, step)
        case FloatDistribution(low=low, high=high, step=float(step)):
            # Rounded, so that 0.1 + 2 · 0.1 is written 0.3.
            return [round(low + i * step, 12) for i in range(round((high - low) / step) + 1)]
    raise ConfigError(
        f"{key} is {describe(distribution)}, which has no grid: list its values with"
        " choice(…) or range(…), or search with hydra/sweeper/sampler=tpe."
    )


def describe(distribution: BaseDistribution) -> str:
    """A distribution as text."""
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(as_text(choice) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "whole number" if isinstance(distribution, IntDistribution) else "number"
    step = "" if distribution.step in (None, 1) else f" in steps of {distribution.step:g}"
    log = " on a logarithmic scale" if distribution.log else ""
    return f"{kind} from {distribution.low:g} to {distribution.high:g}{step}{log}"


def as_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
