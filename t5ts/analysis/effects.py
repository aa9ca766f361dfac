"""The numbers behind each section: curves with bands, speed, gaps, surfaces, gradients, scale."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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


class Band(NamedTuple):
    """A curve over seeds: mean and 95 % interval (NaN with one seed) at each x."""

    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


def band(x: Array, curves_SE: Array) -> Band:
    """Mean over seeds with Student's interval at each of (E,) epochs, of (S, E) curves."""
    points = [mean_interval(column) for column in curves_SE.T]
    mean, low, high = np.array([(p.value, p.low, p.high) for p in points]).T
    return Band(x, mean, low, high, len(curves_SE))


def learning_curve(arm: Arm, metric: str) -> Band | None:
    """The arm's best point over its seeds, at the epochs that all its finished runs evaluated.

    While none is finished, the unfinished runs are shown up to the epoch that all have reached.
    """
    curves = [curve for run in arm.shown.known if len((curve := run.curve(metric))[0])]
    epochs, values = shared_epochs(curves) if curves else (np.empty(0), np.empty(0))
    return band(epochs, values) if len(epochs) else None


def unfreezing(point: Point) -> list[float]:
    """Epochs at which something is unfrozen, ascending, from the schedule in a run's provenance."""
    starts = {line["start_epoch"] for line in point.runs[0].provenance.get("plan", ())}
    return sorted(start for start in starts if start)


def val_at(arm: Arm, metric: str, epoch: int) -> Estimate:
    """Mean over an arm's seeds of a validation metric after an epoch."""
    curves = [run.curve(metric) for run in arm.shown.known]
    return mean_interval([float(v) for epochs, curve in curves for v in curve[epochs == epoch]])


def initial(pair: Pair, metric: str, epoch: int) -> Estimate:
    """Paired difference of a validation metric at an early epoch."""
    epochs, a, b = pair.curves(metric)
    return mean_interval((a - b)[:, epochs == epoch].ravel())


def final(arm: Arm, metric: str) -> Estimate:
    """Mean over an arm's seeds of a final metric."""
    return mean_interval([run.metric(metric) for run in arm.done])


def speed(pair: Pair) -> dict[str, Any] | None:
    """How fast two arms reach a loss that both reach at each seed; None without shared epochs.

    Half an epoch is added to both, so that a target met at epoch 0 has a logarithm.

    Returns:
        target: Mean over seeds of the loss to reach: at each seed the worse of both arms' best.
        epochs, steps: Geometric means of treatment and control to it.
        log_speedup: Mean log of control's over treatment's epochs; above 0 the treatment is faster.
        area: Paired difference of the mean val_loss over all epochs (area under the curve).

    Source: own; time-to-target as in Dahl et al. 2023, "Benchmarking neural network training
        algorithms", with a target that no arm can miss.
    """
    epochs, a, b = pair.curves("val_loss")
    if len(epochs) < 2 or len(a) == 0:
        return None
    targets = np.maximum(a.min(axis=1), b.min(axis=1))
    to_a, to_b = (
        np.array([crossing(epochs, y, t) for y, t in zip(curves, targets, strict=True)]) + 0.5
        for curves in (a, b)
    )
    steps = float(pair.treatment.runs[0].provenance.get("steps_per_epoch") or math.nan)
    means = [float(np.exp(np.log(to).mean()) - 0.5) for to in (to_a, to_b)]
    area = np.trapezoid(a - b, epochs, axis=1) / (epochs[-1] - epochs[0])
    return {
        "target": float(targets.mean()),
        "epochs": means,
        "steps": [mean * steps for mean in means],
        "log_speedup": log_ratio(to_b, to_a),
        "area": mean_interval(area),
    }


def epochs_to(arm: Arm, target: float) -> float:
    """Mean epochs of the arm's best point to a validation loss; inf if a seed misses it."""
    reached = [crossing(*run.curve("val_loss"), target) for run in arm.done]
    return float(np.mean(reached)) if reached else math.nan


def common_target(condition: Condition) -> float:
    """The validation loss that every seed of every arm's best point reaches."""
    curves = (run.curve("val_loss")[1] for arm in condition.arms for run in arm.done)
    return float(max((curve.min() for curve in curves if len(curve)), default=math.nan))


class Gap(NamedTuple):
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


def gap(pair: Pair) -> Gap | None:
    """The gap in val_loss between two arms over time; None with fewer than 2 shared epochs."""
    epochs, a, b = pair.curves("val_loss")
    if len(epochs) < 2 or len(a) == 0:
        return None
    values = b - a
    # The last half, and at least two points.
    late = epochs >= min((epochs[0] + epochs[-1]) / 2, epochs[-2])
    slope, end = late_slope(values[:, late], epochs[late]), mean_interval(values[:, -1])
    catch_up = -end.value / slope.value if slope.value < 0 < end.value else math.inf
    return Gap(band(epochs, values), end, slope, float(epochs[late][0]), catch_up)


def regret(best: Arm, point: Point) -> Estimate:
    """Paired difference in val objective, point − the best: what choosing the point costs.

    Signed so that above 0 is worse, whether the objective is minimised or maximised.
    """
    a, b, sign = best.finished, point.finished, -1 if best.maximize else 1
    shared = sorted(a.keys() & b.keys())
    return mean_interval([sign * (b[seed].objective - a[seed].objective) for seed in shared])


def gradient_map(arm: Arm) -> tuple[list[str], Array, Array] | None:
    """Gradient norms of the arm's shown point, geometric mean over its runs; None if unknown.

    Returns:
        C components, (E,) epochs, and (C, E) norms, 0 where the component is frozen.
    """
    evals = [run.evals for run in arm.shown.known if run.evals]
    if not evals or len(epochs := evals[0]["epoch"]) < 2:
        return None
    names = [k for k in evals[0] if k.startswith("grad_norm/") and k != "grad_norm/total"]
    alike = [of for of in evals if len(of["epoch"]) == len(epochs)]
    with np.errstate(divide="ignore"):
        logs = np.log([[of[name][1:] for name in names] for of in alike])
    norms = np.exp(logs.mean(axis=0)) if names else np.empty((0, len(epochs) - 1))
    return [name.removeprefix("grad_norm/") for name in names], epochs[1:], norms


def stability(arm: Arm) -> dict[str, Any]:
    """Instabilities over all runs of an arm; the jump is over its shown point.

    Returns:
        largest_norm: Largest gradient norm before clipping, over all steps and runs.
        jump, component: Largest ratio of a component's mean norm in the epoch after an unfreezing
            to the one before it, and whose it is; NaN without an unfreezing after the start.
        largest_ratio: Largest update ratio (‖step‖ / ‖weights‖) of the encoder's blocks.
    """

    def largest(columns: Iterable[Array]) -> float:
        values = [value for column in columns for value in column if not math.isnan(value)]
        return float(max(values, default=math.nan))

    jumps = [(math.nan, "")]
    names, epochs, norms = gradient_map(arm) or ([], np.empty(0), np.empty((0, 0)))
    for start in unfreezing(arm.shown):
        first = math.floor(start) + 1  # the epoch whose steps come after the unfreezing
        before, after = (norms[:, epochs == epoch] for epoch in (first - 1, first))
        if before.size and after.size:
            both = zip(before[:, 0], after[:, 0], names, strict=True)
            jumps += [(float(y / x), name) for x, y, name in both if x > 0]
    jump, component = max(jumps[1:], default=jumps[0])
    probes = (column for run in arm.runs for column in run.probes.items())
    return {
        "largest_norm": largest(r.evals.get("grad_norm_max/total", np.empty(0)) for r in arm.runs),
        "jump": jump,
        "component": component,
        "largest_ratio": largest(x for name, x in probes if name.startswith("update_ratio/block_")),
    }


def scale_audit(arm: Arm) -> dict[str, float]:
    """RMS at step 0 of the encoder's input, each block and the output, mean over the runs."""
    audits = [r.provenance["scale_audit"] for r in arm.runs if "scale_audit" in r.provenance]
    return {
        key: float(np.mean([audit[key] for audit in audits]))
        for key, value in (audits[0] if audits else {}).items()
        if not key.startswith(("residual_ratio", "cosine")) and value is not None
    }


def effective_data_transferred(pairs: Sequence[Pair]) -> list[tuple[float, Estimate]]:
    """Effective data from a sweep over `data.fraction`.

    Per seed: the size at which the random arm's curve reaches the pretrained arm's test loss.

    Args:
        pairs: The fair pair at each size, ascending.

    Returns:
        At each size: windows with which the random arm would reach the pretrained arm's loss (inf:
        more than measured), and the mean log of that over the size; none without a seed at all.

    Source: Hernandez et al. 2021, see `statistics.effective_data`.
    """
    seeds = sorted(set.intersection(*(set(pair.seeds) for pair in pairs)))
    if not seeds:
        return []
    sizes_F = np.array([pair.num_windows for pair in pairs], float)
    treated_FS, scratch_FS = (
        np.array([[pair.arms[i].finished[s].metric("test_loss") for s in seeds] for pair in pairs])
        for i in (0, 1)
    )
    found = []
    for size, losses_S in zip(sizes_F, treated_FS, strict=True):
        equal_S = np.array(
            [effective_data(sizes_F, *both) for both in zip(scratch_FS.T, losses_S, strict=True)]
        )
        logs = np.log(equal_S / size) if np.isfinite(equal_S).all() else []
        found.append((float(np.median(np.nan_to_num(equal_S, posinf=np.inf))), mean_interval(logs)))
    return found


def forecasts(condition: Condition) -> list[tuple[Arm, dict[str, Any]]]:
    """The forecast sample of each arm's best point at its lowest seed."""
    samples = ((arm, arm.done[0].forecast_sample()) for arm in condition.arms if arm.done)
    return [(arm, sample) for arm, sample in samples if sample and sample.get("windows")]
