"""The numbers behind each section: curves with bands, speed, gaps, surfaces, gradients, scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5ts.analysis.arms import Arm, Condition, Pair, Point, shared_epochs
from t5ts.analysis.statistics import (
    Array,
    Estimate,
    crossing,
    effective_data,
    late_slope,
    log_ratio,
    mean_interval,
)


@dataclass(kw_only=True, eq=False)
class Band:
    """A curve over seeds: mean and 95 % interval (NaN with one seed) at each x."""

    x: Array
    mean: Array
    low: Array
    high: Array
    count: int


def band(x: Array, curves_SE: Array) -> Band:
    """Mean over seeds with Student's interval, point by point.

    Args:
        x: (E,) epochs.
        curves_SE: (S, E) a curve per seed.
    """
    points = [mean_interval(column) for column in curves_SE.T]
    return Band(
        x=x,
        mean=np.array([p.value for p in points]),
        low=np.array([p.low for p in points]),
        high=np.array([p.high for p in points]),
        count=len(curves_SE),
    )


def learning_curve(arm: Arm, metric: str) -> Band | None:
    """The arm's best point over its seeds, at the epochs that all its finished runs evaluated.

    While none is finished, the unfinished runs are shown up to the epoch that all have reached.
    """
    done = list(arm.shown.finished.values())
    curves = [run.curve(metric) for run in (done or arm.shown.runs)]
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    epochs, values = shared_epochs(curves)
    return band(epochs, values) if len(epochs) else None


def unfreezing(point: Point) -> list[float]:
    """Epochs at which something is unfrozen, ascending, from the schedule in a run's provenance."""
    for run in point.runs:
        starts = {line["start_epoch"] for line in run.provenance.get("plan", ())}
        return sorted(s for s in starts if s)
    return []


def initial(pair: Pair, metric: str, epoch: int) -> Estimate:
    """Paired difference of a validation metric at an early epoch."""
    epochs, a, b = pair.curves(metric)
    at = np.flatnonzero(epochs == epoch)
    if len(at) == 0:
        return mean_interval([])
    return mean_interval(a[:, at[0]] - b[:, at[0]])


@dataclass(kw_only=True, eq=False)
class Speed:
    """How fast two arms reach the same loss.

    Attributes:
        target: Mean over seeds of the loss to reach: at each seed the worse of both arms' best.
        treatment, control: Geometric-mean epochs to it.
        steps: The same in steps.
        log_speedup: Mean log of control's over treatment's epochs; above 0 the treatment is faster.
        area: Paired difference of the mean val_loss over all epochs (area under the curve).
    """

    target: float
    treatment: float
    control: float
    steps: tuple[float, float]
    log_speedup: Estimate
    area: Estimate


def speed(pair: Pair) -> Speed | None:
    """Speed to a loss that both arms reach at each seed; None without shared epochs.

    Half an epoch is added to both, so that a target met at epoch 0 has a logarithm.
    Source: own; time-to-target as in Dahl et al. 2023, "Benchmarking neural network training
    algorithms", with a target that no arm can miss.
    """
    epochs, a, b = pair.curves("val_loss")
    if len(epochs) < 2 or len(a) == 0:
        return None
    targets = np.maximum(a.min(axis=1), b.min(axis=1))
    to_a = np.array([crossing(epochs, y, t) for y, t in zip(a, targets, strict=True)])
    to_b = np.array([crossing(epochs, y, t) for y, t in zip(b, targets, strict=True)])
    steps = float(pair.treatment.runs[0].provenance.get("steps_per_epoch") or math.nan)
    span = epochs[-1] - epochs[0]
    area = (np.trapezoid(a, epochs, axis=1) - np.trapezoid(b, epochs, axis=1)) / span
    mean_a, mean_b = (float(np.exp(np.log(t + 0.5).mean()) - 0.5) for t in (to_a, to_b))
    return Speed(
        target=float(targets.mean()),
        treatment=mean_a,
        control=mean_b,
        steps=(mean_a * steps, mean_b * steps),
        log_speedup=log_ratio(to_b + 0.5, to_a + 0.5),
        area=mean_interval(area),
    )


def epochs_to(arm: Arm, target: float) -> float:
    """Mean epochs of the arm's best point to a validation loss; inf if a seed misses it."""
    reached = [crossing(*run.curve("val_loss"), target) for run in arm.finished.values()]
    return float(np.mean(reached)) if reached else math.nan


def common_target(condition: Condition) -> float:
    """The validation loss that every seed of every arm's best point reaches."""
    runs = (run for arm in condition.arms for run in arm.finished.values())
    curves = (run.curve("val_loss")[1] for run in runs)
    return float(max((curve.min() for curve in curves if len(curve)), default=math.nan))


@dataclass(kw_only=True, eq=False)
class Gap:
    """val(control) − val(treatment) over the epochs: above 0 the treatment is ahead.

    Attributes:
        end: The gap at the last epoch.
        slope: Its change per epoch over the last half; below 0 the control catches up.
        late_from: First epoch of that half.
        catch_up: Epochs after the end until the gap would be 0 on that slope; inf if never.
    """

    band: Band
    end: Estimate
    slope: Estimate
    late_from: float
    catch_up: float


def gap(pair: Pair, metric: str = "val_loss") -> Gap | None:
    """The gap between two arms over time; None with fewer than 2 shared epochs."""
    epochs, a, b = pair.curves(metric)
    if len(epochs) < 2 or len(a) == 0:
        return None
    values = b - a
    # The last half, and at least two points.
    late = np.flatnonzero(epochs >= min((epochs[0] + epochs[-1]) / 2, epochs[-2]))
    slope = late_slope(values[:, late], epochs[late])
    end = mean_interval(values[:, -1])
    closing = slope.value < 0 < end.value
    return Gap(
        band=band(epochs, values),
        end=end,
        slope=slope,
        late_from=float(epochs[late[0]]),
        catch_up=-end.value / slope.value if closing else math.inf,
    )


@dataclass(kw_only=True, eq=False)
class Surface:
    """Mean validation objective over unfreeze epoch and learning rate, a value per point tried.

    Attributes:
        rate: The setting on the second axis: optim.lr or optim.encoder_lr_scale, which was tuned.
    """

    rate: str
    unfreeze: Array
    rates: Array
    values: Array


def surface(arm: Arm) -> Surface | None:
    """The response surface of an arm; None if neither axis varies."""
    rates = [k for k in ("optim.lr", "optim.encoder_lr_scale") if k in arm.tuned]
    if "freeze.unfreeze_epoch" not in arm.tuned and not rates:
        return None
    rate = rates[0] if rates else "optim.lr"
    points = [p for p in arm.points if p.finished]
    points = [p for p in points if p.settings.get("freeze.unfreeze_epoch") is not None]
    if len(points) < 2:
        return None
    return Surface(
        rate=rate,
        unfreeze=np.array([p.settings["freeze.unfreeze_epoch"] for p in points], float),
        rates=np.array([p.settings[rate] for p in points], float),
        values=np.array([p.objective for p in points]),
    )


def neighbours(arm: Arm, *, count: int = 4) -> list[Point]:
    """The best point of an arm and those nearest to it in what was tuned, nearest first.

    Distance is Euclidean in the ranks of the tuned numbers, each scaled to 0 … 1.
    """
    if arm.best is None:
        return []
    numeric = {
        key: values
        for key, values in arm.tuned.items()
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    }

    def place(point: Point) -> Array:
        return np.array([v.index(point.settings[k]) / (len(v) - 1) for k, v in numeric.items()])

    here = place(arm.best)
    others = [p for p in arm.points if p.finished and p is not arm.best]
    others.sort(key=lambda p: float(np.linalg.norm(place(p) - here)))
    return [arm.best, *others[:count]]


def regret(best: Arm, other: Arm | Point) -> Estimate:
    """Paired difference in val objective, other − best: what choosing the other costs.

    Signed so that above 0 is worse, whether the objective is minimised or maximised.
    """
    point = other.best if isinstance(other, Arm) else other
    if point is None:
        return mean_interval([])
    a, b = (
        {s: r.result.objective for s, r in of.items() if r.result}
        for of in (best.finished, point.finished)
    )
    sign = -1 if best.maximize else 1
    return mean_interval([sign * (b[seed] - a[seed]) for seed in sorted(a.keys() & b.keys())])


@dataclass(kw_only=True, eq=False)
class GradientMap:
    """Mean gradient norm of each component (rows) in each epoch (columns); 0 is frozen."""

    components: list[str]
    epochs: Array
    norms: Array


def gradient_map(arm: Arm) -> GradientMap | None:
    """Gradient norms of the arm's shown point, geometric mean over its runs; None if unknown."""
    runs = [r for r in (list(arm.shown.finished.values()) or arm.shown.runs) if r.evals]
    if not runs:
        return None
    first = runs[0].evals
    names = [k for k in first if k.startswith("grad_norm/") and not k.endswith("/total")]
    runs = [r for r in runs if len(r.evals["epoch"]) == len(first["epoch"])]
    if not names or len(first["epoch"]) < 2:
        return None
    with np.errstate(divide="ignore"):
        logs = np.stack([[np.log(r.evals[n][1:]) for n in names] for r in runs])
    return GradientMap(
        components=[n.removeprefix("grad_norm/") for n in names],
        epochs=first["epoch"][1:],
        norms=np.exp(logs.mean(axis=0)),
    )


@dataclass(kw_only=True, eq=False)
class Stability:
    """Instabilities in an arm's runs.

    Attributes:
        largest_norm: Largest gradient norm before clipping, over all steps and runs.
        jump: Largest ratio of a component's mean norm in the epoch after an unfreezing to the one
            before it; NaN without an unfreezing after the start.
        largest_ratio: Largest update ratio (‖step‖ / ‖weights‖) of the encoder's blocks.
    """

    largest_norm: float
    jump: float
    jump_component: str
    largest_ratio: float
    skipped: int
    nonfinite: int
    failed: int
    unfinished: int


def stability(arm: Arm) -> Stability:
    """Stability over all runs of an arm, the jump over its shown point."""
    runs = arm.runs
    norms = [r.evals["grad_norm_max/total"] for r in runs if "grad_norm_max/total" in r.evals]
    probes = [column for r in runs for column in r.probes.items()]
    ratios = [column for name, column in probes if name.startswith("update_ratio/block_")]
    jump, component = _largest_jump(arm)
    return Stability(
        largest_norm=_largest(norms),
        jump=jump,
        jump_component=component,
        largest_ratio=_largest(ratios),
        skipped=sum(r.result.skipped_steps for r in runs if r.result is not None),
        nonfinite=sum(r.nonfinite_steps for r in runs),
        failed=sum(r.state == "failed" for r in runs),
        unfinished=sum(r.is_open for r in runs),
    )


def _largest(columns: Sequence[Array]) -> float:
    """Largest value, ignoring NaN; NaN if there is none."""
    values = [value for column in columns for value in column if not math.isnan(value)]
    return float(max(values, default=math.nan))


def _largest_jump(arm: Arm) -> tuple[float, str]:
    """The largest jump of a component's gradient norm at an unfreezing, and the component."""
    jumps: dict[str, float] = {}
    grads = gradient_map(arm)
    if grads is None:
        return math.nan, ""
    for start in unfreezing(arm.shown):
        first = math.floor(start) + 1  # the epoch whose steps come after the unfreezing
        before, after = grads.epochs == first - 1, grads.epochs == first
        if before.any() and after.any():
            for name, row in zip(grads.components, grads.norms, strict=True):
                if row[before][0] > 0:
                    jumps[name] = max(jumps.get(name, 0.0), float(row[after][0] / row[before][0]))
    component = max(jumps, key=lambda name: jumps[name], default="")
    return jumps.get(component, math.nan), component


def scale_audit(arm: Arm) -> dict[str, float]:
    """RMS at step 0 of the encoder's input, each block and the output, mean over the runs."""
    audits = [r.provenance["scale_audit"] for r in arm.runs if "scale_audit" in r.provenance]
    if not audits:
        return {}
    return {
        key: float(np.mean([audit[key] for audit in audits]))
        for key, value in audits[0].items()
        if not key.startswith(("residual_ratio", "cosine")) and value is not None
    }


@dataclass(kw_only=True, eq=False)
class Transferred:
    """Effective data at one amount of training data.

    Attributes:
        windows: Training windows of the pretrained arm.
        equivalent: Windows with which the random arm would reach its loss; inf: more than measured.
        multiplier: Geometric mean over seeds of equivalent / windows, as a log estimate.
    """

    windows: float
    equivalent: float
    multiplier: Estimate


def effective_data_transferred(
    by_size: Sequence[tuple[float, Pair]], metric: str = "test_loss"
) -> list[Transferred]:
    """Effective data from a sweep over `data.fraction`.

    Per seed: the size at which the random arm's curve reaches the pretrained arm's loss.

    Args:
        by_size: (training windows, fair pair at that size), ascending in size.
        metric: The loss.

    Source: Hernandez et al. 2021, see `statistics.effective_data`.
    """
    seeds = sorted(set.intersection(*(set(pair.seeds) for _, pair in by_size)))
    if len(by_size) < 2 or not seeds:
        return []
    sizes_F = np.array([size for size, _ in by_size])
    treated_FS, scratch_FS = (
        np.array([[pair.arms[i].finished[s].metric(metric) for s in seeds] for _, pair in by_size])
        for i in (0, 1)
    )
    found = []
    for size, losses_S in zip(sizes_F, treated_FS, strict=True):
        equal_S = np.array(
            [effective_data(sizes_F, *both) for both in zip(scratch_FS.T, losses_S, strict=True)]
        )
        is_known = np.isfinite(equal_S).all()
        found.append(
            Transferred(
                windows=float(size),
                equivalent=float(np.median(np.where(np.isnan(equal_S), 0.0, equal_S))),
                multiplier=mean_interval(np.log(equal_S / size) if is_known else []),
            )
        )
    return found


def forecasts(condition: Condition) -> list[tuple[Arm, dict[str, Any]]]:
    """The forecast sample of each arm's best point at its lowest seed."""
    found = []
    for arm in condition.arms:
        run = next(iter(arm.finished.values()), None)
        sample = run.forecast_sample() if run else None
        if sample and sample.get("windows"):
            found.append((arm, sample))
    return found
