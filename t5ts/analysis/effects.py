"""The numbers behind each section: curves with bands, speed, gaps, surfaces, gradients, shift."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5ts.analysis.arms import RANDOM, Arm, Condition, Setting, told_apart
from t5ts.analysis.judgement import WITHHELD, Comparison, Findings, Verdict, judge_family
from t5ts.analysis.pairs import Pair, shared_epochs
from t5ts.analysis.statistics import Array, Estimate, largest, log_ratio, mean_interval

#: Settings of a series that do not identify it.
_NOT_WHICH = ("name", "_target_", "fraction", "windows_per_epoch", "dir", "sha256")


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
    """The arm's best setting over its seeds, at the epochs that all its finished runs evaluated.

    While none is finished, the unfinished runs, up to the epoch that all have reached.
    """
    curves = [curve for run in arm.shown.known if len((curve := run.curve(metric))[0])]
    epochs, values = shared_epochs(curves)
    return band(epochs, values) if len(epochs) else None


def unfreezing(setting: Setting) -> list[float]:
    """Epochs at which something is unfrozen, ascending, from the schedule in a run's provenance."""
    starts = {line["start_epoch"] for line in setting.runs[0].provenance.get("plan", ())}
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
    return mean_interval(arm.values(metric))


def speed(pair: Pair) -> dict[str, Any] | None:
    """How fast two arms reach a loss that both reach at each seed; None without shared epochs.

    Returns:
        target: Mean over seeds of the loss to reach: at each seed the worse of both arms' best.
        epochs, steps: Time to the target, geometric means of treatment and control. Half an epoch
            is added to both before the logarithm, since a target may be met at epoch 0.
        log_speedup: Mean log of control's over treatment's epochs; above 0 the treatment is faster.
        area: Paired difference of the mean val_loss over all epochs (area under the curve).

    Source: own; time-to-target as in Dahl et al. 2023, "Benchmarking neural network training
        algorithms", with a target that no arm can miss.
    """
    epochs, a, b = pair.curves("val_loss")
    if len(epochs) < 2:
        return None
    targets = np.maximum(a.min(axis=1), b.min(axis=1))
    to_a, to_b = (
        np.array([crossing(epochs, y, t) for y, t in zip(curves, targets, strict=True)]) + 0.5
        for curves in (a, b)
    )
    steps = float(pair.treatment.runs[0].provenance.get("steps_per_epoch") or math.nan)
    means = [float(np.exp(np.log(to).mean()) - 0.5) for to in (to_a, to_b)]
    return {
        "target": float(targets.mean()),
        "epochs": means,
        "steps": [mean * steps for mean in means],
        "log_speedup": log_ratio(to_b, to_a),
        "area": mean_interval(np.trapezoid(a - b, epochs, axis=1) / (epochs[-1] - epochs[0])),
    }


def epochs_to(arm: Arm, target: float) -> float:
    """Mean epochs of the arm's best setting to a validation loss; inf if a seed misses it."""
    reached = [crossing(*run.curve("val_loss"), target) for run in arm.done]
    return float(np.mean(reached)) if reached else math.nan


def common_target(condition: Condition) -> float:
    """The validation loss that every seed of every arm's best setting reaches."""
    curves = (run.curve("val_loss")[1] for arm in condition.arms for run in arm.done)
    return float(max((curve.min() for curve in curves if len(curve)), default=math.nan))


class Gap(NamedTuple):
    """val(control) − val(treatment) over the epochs: above 0 the treatment is ahead.

    Attributes:
        end: The gap at the last epoch.
        slope: Its change per epoch from `late_from` on; below 0 the control catches up.
        catch_up: Epochs after the end until the gap would be 0 on that slope; inf if never.
    """

    band: Band
    end: Estimate
    slope: Estimate
    late_from: float
    catch_up: float


def gap(pair: Pair) -> Gap | None:
    """The gap in val_loss between two arms over time; None with fewer than 2 shared epochs.

    The slope is that of a least-squares line per seed, then Student's t over the seeds' slopes.

    Source: summary-measures analysis (Matthews et al. 1990).
    """
    epochs, a, b = pair.curves("val_loss")
    if len(epochs) < 2:
        return None
    values = b - a
    # The last half, and at least two points.
    late = epochs >= min((epochs[0] + epochs[-1]) / 2, epochs[-2])
    centred = epochs[late] - np.mean(epochs[late])
    slope = mean_interval(values[:, late] @ centred / (centred @ centred))
    end = mean_interval(values[:, -1])
    catch_up = -end.value / slope.value if slope.value < 0 < end.value else math.inf
    return Gap(band(epochs, values), end, slope, float(epochs[late][0]), catch_up)


def regret(best: Arm, setting: Setting) -> Estimate:
    """Paired difference in val objective to the best; above 0 is worse for any objective."""
    a, b, sign = best.finished, setting.finished, -1 if best.maximize else 1
    shared = sorted(a.keys() & b.keys())
    return mean_interval([sign * (b[seed].objective - a[seed].objective) for seed in shared])


def gradient_map(arm: Arm) -> tuple[list[str], Array, Array] | None:
    """C components, (E,) epochs and (C, E) gradient norms, 0 where frozen; None if unknown.

    Of the arm's shown setting, geometric mean over its runs.
    """
    evals = [run.evals for run in arm.shown.known if run.evals]
    if not evals or len(epochs := evals[0]["epoch"]) < 2:
        return None
    names = [k for k in evals[0] if k.startswith("grad_norm/") and k != "grad_norm/total"]
    complete = [rows for rows in evals if len(rows["epoch"]) == len(epochs)]
    with np.errstate(divide="ignore"):
        logs = np.log([[rows[name][1:] for name in names] for rows in complete])
    norms = np.exp(logs.mean(axis=0)) if names else np.empty((0, len(epochs) - 1))
    return [name.removeprefix("grad_norm/") for name in names], epochs[1:], norms


def stability(arm: Arm) -> dict[str, Any]:
    """Instabilities over all runs of an arm; the jump is over its shown setting.

    Returns:
        largest_norm: Largest gradient norm before clipping, over all steps and runs.
        jump, component: Largest ratio of a component's mean norm in the epoch after an unfreezing
            to the one before it, and whose it is; NaN without an unfreezing after the start.
        largest_ratio: Largest update ratio (‖step‖ / ‖weights‖) of the encoder's blocks.
    """

    jumps = []
    names, epochs, norms = gradient_map(arm) or ([], np.empty(0), np.empty((0, 0)))
    at = dict(zip(epochs, norms.T, strict=True))
    for start in unfreezing(arm.shown):
        first = math.floor(start) + 1  # the epoch whose steps come after the unfreezing
        if {first - 1, first} <= at.keys():
            both = zip(at[first - 1], at[first], names, strict=True)
            jumps += [(float(after / before), name) for before, after, name in both if before > 0]
    jump, component = max(jumps, default=(math.nan, ""))
    probes = (column for run in arm.runs for column in run.probes.items())
    ratios = (column for name, column in probes if name.startswith("update_ratio/block_"))
    return {
        "largest_norm": largest(run.evals.get("grad_norm_max/total", ()) for run in arm.runs),
        "jump": jump,
        "component": component,
        "largest_ratio": largest(ratios),
    }


def effective_data(sizes_F: Array, scratch_F: Array, loss: float) -> float:
    """Training examples with which a run from scratch would reach a loss.

    Piecewise linear in (log size, log loss), on the lower hull (more data never hurts), from (F,)
    losses at ascending sizes; inf if `loss` is below everything measured, NaN if it is above.

    Source: Hernandez et al. 2021, "Scaling Laws for Transfer", section 2.
    """
    log_loss = np.log(np.minimum.accumulate(scratch_F))
    target = math.log(loss)
    if not log_loss[-1] <= target <= log_loss[0]:
        return math.inf if target < log_loss[-1] else math.nan
    # Descending in size, so that the losses ascend, as np.interp requires.
    return float(math.exp(np.interp(target, log_loss[::-1], np.log(sizes_F)[::-1])))


def crossing(x: Array, y: Array, target: float) -> float:
    """Where a falling curve y (n,) over x (n,) first reaches a target, linearly; inf if never."""
    below = np.flatnonzero(np.asarray(y) <= target)
    if len(below) == 0 or below[0] == 0:
        return float(x[0]) if len(below) else math.inf
    i = int(below[0])
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def effective_data_transferred(pairs: Sequence[Pair]) -> list[tuple[float, Estimate]]:
    """Effective data from a sweep over `data.fraction`, of the fair pair at each size, ascending.

    Per seed: the size at which the random arm's curve reaches the pretrained arm's test loss. At
    each size: median of those windows (inf: more than measured), and the mean log of that over the
    size; empty if no seed was run at all sizes.

    Source: Hernandez et al. 2021, see `effective_data`.
    """
    seeds = sorted(set.intersection(*(set(pair.seeds) for pair in pairs)))
    if not seeds:
        return []
    sizes_F = np.array([pair.num_windows for pair in pairs], float)
    treated_FS, scratch_FS = (
        np.array([[arm.finished[seed].metric("test_loss") for seed in seeds] for arm in arms])
        for arms in zip(*(pair.arms for pair in pairs), strict=True)
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
    """The forecast sample of each arm's best setting at its lowest seed."""
    samples = ((arm, arm.done[0].forecast_sample()) for arm in condition.arms if arm.done)
    return [(arm, sample) for arm, sample in samples if sample and sample.get("windows")]


class ShiftComparison(NamedTuple):
    """Two arms on another series; `beyond` is how much more the treatment loses under the shift."""

    verdict: Verdict
    comparison: Comparison
    beyond: Estimate


def has(arm: Arm, metric: str) -> bool:
    """Whether a finished run of the arm's best setting has this metric."""
    return not np.isnan(arm.values(metric)).all()


def ratio_to_test(arm: Arm, metric: str) -> Estimate:
    """Mean log of a loss over the test loss, paired over the seeds of the arm's best setting."""
    return log_ratio(arm.values(metric), arm.values("test_loss"))


def beyond(pair: Pair, metric: str) -> Estimate:
    """Mean log of the treatment's ratio of this loss to its test loss over the control's.

    Above 0 the treatment loses more than the control does.
    """
    (a, b), (test_a, test_b) = pair.values(metric), pair.values("test_loss")
    return log_ratio(a / test_a, b / test_b)


def under_shift(findings: Findings) -> list[ShiftComparison]:
    """The other series' loss: t5 vs. random for each schedule, staged vs. none and all.

    Each question is one family for Holm, over all conditions; the verdict uses neither. A pair
    whose weights' comparison is withheld, or whose runs met different files, is withheld too.
    """
    found: dict[str, list[ShiftComparison]] = {"weights": [], "freezing": []}
    for v in findings.verdicts:
        measured = [arm for arm in v.condition.arms if has(arm, "ood_loss")]
        for a, b in itertools.permutations(measured, 2):
            if a.is_pretrained and b.init == RANDOM and b.is_control_of(a) and a.freeze == b.freeze:
                pair = Pair("weights", a, b)
            elif a.weights == b.weights and a.freeze == "staged" and b.freeze in ("none", "all"):
                pair = Pair("freezing", a, b)
            else:
                continue
            if pair.seeds:
                c, more = Comparison(pair, split="ood"), beyond(pair, "ood_loss")
                found[pair.kind].append(ShiftComparison(v, c, more))
    for family in found.values():
        judge_family([one.comparison for one in family], margin=findings.main.margin)
    every = [*found["weights"], *found["freezing"]]
    for v, c, _ in every:
        series = {(run.provenance.get("ood") or {}).get("sha256") for run in c.pair.runs}
        twins = (other for other in v.comparisons if other.pair.arms == c.pair.arms)
        if len(series) > 1 or any(other.kind == WITHHELD for other in twins):
            c.kind = WITHHELD
    return every


def series_names(condition: Condition) -> tuple[str, str]:
    """Names of the training series and the other one, with what distinguishes them."""
    ours, theirs = (
        {k.removeprefix(group): v for k, v in condition.config.items() if k.startswith(group)}
        for group in ("data.", "ood.")
    )
    first, second = told_apart([
        (str(series.get("name")), {k: v for k, v in series.items() if k not in _NOT_WHICH})
        for series in (ours, theirs)
    ])  # fmt: skip
    return first, second
