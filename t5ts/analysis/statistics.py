"""Estimates and tests for few paired seeds and many overlapping windows.

Everything is two-sided and, unless it says otherwise, at 95 %. `benchmarks/coverage.py` measures on
simulated studies how often the intervals cover the truth and how often the tests are wrong.

Why Student's t and no percentile bootstrap: resampling 5 seeds can only return their own spread,
which is too small by √(4/5), and has no allowance for not knowing it; the t interval has both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
#: More seeds than this are reported as "more than": nobody would train them.
MOST_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: The mean; NaN of nothing.
        low, high: Borders of the 95 % interval; NaN where there is only one observation.
        p: Two-sided p-value of the hypothesis that the true mean is 0; NaN like the interval.
        sd: Standard deviation of the observations.
        count: Observations (paired seeds, mostly).
    """

    value: float
    low: float
    high: float
    p: float
    sd: float
    count: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies inside ±margin: a difference too small to matter."""
        return self.is_known and -margin < self.low and self.high < margin

    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.is_known and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float] | Array) -> Estimate:
    """Student's t interval and test of a mean, for instance of paired differences over seeds.

    mean ± t(0.975, n−1) · sd / √n, where sd has n−1 in its denominator. Identical values give an
    interval of no width: seeds that differ in nothing say nothing about other seeds, so look twice.

    Skew: if the weights change nothing, the two arms' losses at a seed may be exchanged, (a, b) is
    distributed as (b, a), so a − b as b − a: symmetric about 0 however skewed the losses
    themselves are, and the test keeps its 5 %. Not so where arms of equal mean differ in spread or
    shape (random weights are drawn anew at each seed, a checkpoint is not): an asymmetric
    difference of mean 0 is rejected more often than 5 % of the time, up to 12 % at 5 seeds where
    it is exponential. `benchmarks/coverage.py` has both; `permutation_p` assumes exchangeability
    alone.

    Args:
        values: (n,) finite observations; NaN are left out.

    Source: Student 1908; the paired form as in Demšar 2006, section 3.1.1; exchangeability: Fisher
        1935; skew: Bartlett 1935.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    nan = math.nan
    if n < 2:
        return Estimate(value=float(x[0]) if n else nan, low=nan, high=nan, p=nan, sd=nan, count=n)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    return _t_estimate(mean, sd / math.sqrt(n), degrees=n - 1, sd=sd, count=n)


def _t_estimate(
    mean: float, standard_error: float, *, degrees: float, sd: float, count: int
) -> Estimate:
    from scipy.stats import t

    half = float(t.ppf(1 - ALPHA / 2, degrees)) * standard_error
    if standard_error > 0:
        p = 2 * float(t.sf(abs(mean) / standard_error, degrees))
    else:
        p = 1.0 if mean == 0 else 0.0
    return Estimate(value=mean, low=mean - half, high=mean + half, p=p, sd=sd, count=count)


def log_ratio(numerator: Sequence[float] | Array, denominator: Sequence[float] | Array) -> Estimate:
    """Mean of log(numerator / denominator) over pairs: the log of the geometric-mean ratio.

    Args:
        numerator, denominator: (n,) positive and paired, for instance two arms' losses by seed, or
            a model's and seasonal naive's losses by data set.

    Source: Fleming & Wallace 1986 (only geometric means of ratios do not depend on the reference).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean_interval(np.log(np.asarray(numerator) / np.asarray(denominator)))


def permutation_p(differences: Sequence[float] | Array) -> float:
    """Sign-flip permutation test of paired differences: p of |mean| if the arms were exchangeable.

    Exact up to 13 pairs. With n pairs p is at least 2/2ⁿ: 5 pairs can never go below 0.0625.

    Source: Fisher 1935; scipy.stats.permutation_test.
    """
    from scipy.stats import permutation_test

    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return math.nan
    done = permutation_test(
        (d, np.zeros_like(d)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),  # the same report from the same runs
    )
    return float(done.pvalue)


def wilcoxon_p(differences: Sequence[float] | Array) -> float:
    """Wilcoxon's signed-rank test of paired differences, exact for small samples without ties.

    Source: Wilcoxon 1945; across data sets: Demšar 2006, section 3.1.3.
    """
    from scipy.stats import wilcoxon

    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2 or not np.any(d):
        return math.nan
    return float(wilcoxon(d).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family; NaN stay NaN and do not count.

    Source: Holm 1979; statsmodels' multipletests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.isfinite(p)
    adjusted = np.full(len(p), math.nan)
    if known.any():
        from statsmodels.stats.multitest import multipletests

        adjusted[known] = multipletests(p[known], method="holm")[1]
    return [float(value) for value in adjusted]


def variance_over_time(series: Sequence[float] | Array, *, horizon: int) -> tuple[float, int]:
    """Variance of the mean of losses of windows that start at every step, and what it knows.

    The long-run variance is the mean square of the first ν coefficients of the orthonormal cosine
    transform, the constant left out: slow waves of the series, on which dependence over less than
    n/ν windows acts as on the mean itself. So nothing has to be assumed of how it dies out, and the
    estimate has ν degrees of freedom. ν = n / 3h, at most 8 and at least 3: a few, since losses may
    depend on each other far beyond the overlap (weather, load), and fewer where the overlap of
    h − 1 windows would reach into the waves. Divided by Harvey, Leybourne & Newbold's
    (n + 1 − 2h + h(h−1)/n) / n for what the estimated mean takes away.

    Where it ends: if loss differences stay correlated over a fortieth of the windows, a test at 5 %
    rejects 6 % of true hypotheses; over a twentieth 10 %, a tenth 12 % (benchmarks/coverage.py).

    Args:
        series: (n,) in time order; at least 2.
        horizon: h, the steps that a forecast reaches: neighbouring windows share h − 1 of them.

    Returns:
        The variance of the mean, and its degrees of freedom.

    Source: Müller 2004 and 2007; Lazarus, Lewis, Stock & Watson 2018 ("EWC"), who compare it with
        Newey & West's; Harvey, Leybourne & Newbold 1997, eq. 9. The bounds of ν: own, measured.
    """
    from scipy.fft import dct

    x = np.asarray(series, dtype=np.float64)
    n = len(x)
    waves = min(n - 1, max(3, min(8, n // (3 * horizon))))
    long_run = float(np.mean(dct(x, norm="ortho")[1 : waves + 1] ** 2))
    h = min(horizon, n // 2)
    return long_run / (n + 1 - 2 * h + h * (h - 1) / n), waves


def diebold_mariano(
    losses_a: Sequence[float] | Array, losses_b: Sequence[float] | Array, *, horizon: int
) -> Estimate:
    """Diebold–Mariano: do two forecasts differ over time, given that windows overlap?

    The mean of the loss difference a − b over the root of its `variance_over_time`, against
    Student's t with that variance's degrees.

    Args:
        losses_a, losses_b: (n,) per window, in time order (a window starts at each step).
        horizon: Steps that a forecast reaches.

    Source: Diebold & Mariano 1995; with this variance Coroneo & Iacone 2020.
    """
    d = np.asarray(losses_a, dtype=np.float64) - np.asarray(losses_b, dtype=np.float64)
    variance, degrees = variance_over_time(d, horizon=horizon)
    return _t_estimate(
        float(d.mean()),
        math.sqrt(variance),
        degrees=degrees,
        sd=float(d.std(ddof=1)),
        count=len(d),
    )


def crossed_interval(differences_SW: Array, *, horizon: int) -> Estimate:
    """Interval of a mean difference for new seeds AND new windows of the same series.

    Seeds and windows are crossed (each seed forecasts the same windows), so both are sources of
    error: variance = s²(seed means)/S + `variance_over_time` of the seeds' mean difference, with
    Satterthwaite's degrees of freedom. The seeds' interval alone (`mean_interval`) holds for
    these very windows only.

    Args:
        differences_SW: (S, W) loss differences of S paired seeds on W windows in time order.
        horizon: Steps that a forecast reaches.

    Source: own, from the crossed random-effects variance (Owen 2007, "The pigeonhole bootstrap":
        resampling both ways estimates this sum, slightly from above); Satterthwaite 1946; checked
        in benchmarks/coverage.py.
    """
    d = np.asarray(differences_SW, dtype=np.float64)
    num_seeds, num_windows = d.shape
    if num_seeds < 2 or num_windows < 2:
        return mean_interval(d.mean(axis=1))
    seed_means = d.mean(axis=1)
    by_seed = float(seed_means.var(ddof=1)) / num_seeds
    by_window, waves = variance_over_time(d.mean(axis=0), horizon=horizon)
    total = by_seed + by_window
    if total == 0:
        degrees = num_seeds - 1.0
    else:
        degrees = total**2 / (by_seed**2 / (num_seeds - 1) + by_window**2 / waves)
    return _t_estimate(
        float(d.mean()),
        math.sqrt(total),
        degrees=degrees,
        sd=float(seed_means.std(ddof=1)),
        count=num_seeds,
    )


def seeds_needed(*, sd: float, effect: float, tests: int = 1, power: float = POWER) -> int | None:
    """Paired seeds that would show a true effect of this size, with a paired t-test.

    Args:
        sd: Standard deviation of the paired differences. From 5 seeds it is known within a factor
            of about 0.6 to 2.9 only, and the number of seeds with its square.
        effect: True mean difference to be seen, in the same units.
        tests: Tests of its family: one that is to stand beside the others is held to 5 % / tests.
        power: How often the test should see it.

    Returns:
        At least 2; None if more than 10,000 would be needed, or nothing is known.

    Source: noncentral t; statsmodels' TTestPower; Bonferroni's bound, which Holm's never exceeds.
    """
    if not (math.isfinite(sd) and math.isfinite(effect)) or effect == 0:
        return None
    if sd == 0:
        return 2
    from statsmodels.stats.power import TTestPower

    size = abs(effect) / sd

    def reaches(count: int) -> bool:
        return (
            float(TTestPower().power(size, count, ALPHA / tests, alternative="two-sided")) >= power
        )

    if not reaches(MOST_SEEDS):
        return None
    few, enough = 1, 2
    while not reaches(enough):
        few, enough = enough, min(2 * enough, MOST_SEEDS)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if reaches(middle) else (middle, enough)
    return enough


def late_slope(gap_SE: Array, epochs_E: Array) -> Estimate:
    """Slope of a gap over the last epochs, estimated per seed: below 0 the gap is closing.

    A least-squares line per seed, then Student's t over the seeds' slopes, so that the dependence
    of one run's epochs on each other does not count as information.

    Args:
        gap_SE: (S, E) gap of S paired seeds at E epochs.
        epochs_E: (E,) the epochs; at least two.

    Returns:
        Change of the gap per epoch.

    Source: summary-measures analysis (Matthews et al. 1990).
    """
    centred = np.asarray(epochs_E, dtype=np.float64)
    centred = centred - centred.mean()
    slopes = np.asarray(gap_SE, dtype=np.float64) @ centred / (centred @ centred)
    return mean_interval(slopes)


def effective_data(sizes_F: Array, scratch_F: Array, loss: float) -> float:
    """Training examples with which a run from scratch would reach a loss.

    Piecewise linear in (log size, log loss), on the lower hull (more data never hurts): a loss
    curve is a power law in the amount of data, straight there.

    Args:
        sizes_F: (F,) training windows, ascending.
        scratch_F: (F,) losses from scratch at these sizes.
        loss: The loss to reach.

    Returns:
        Windows; inf if the loss is below all that was measured, NaN if it is above it.

    Source: Hernandez et al. 2021, "Scaling Laws for Transfer", section 2: the effective data
        transferred is this less the data that the pretrained model was fine-tuned on.
    """
    log_size = np.log(np.asarray(sizes_F, dtype=np.float64))
    log_loss = np.log(np.minimum.accumulate(np.asarray(scratch_F, dtype=np.float64)))
    target = math.log(loss)
    if target < log_loss[-1]:
        return math.inf
    if target > log_loss[0]:
        return math.nan
    # Descending in size, so that the losses ascend, as np.interp wants them.
    return float(math.exp(np.interp(target, log_loss[::-1], log_size[::-1])))


def crossing(x: Array, y: Array, target: float) -> float:
    """Where a falling curve first reaches a target, linear between the points.

    Args:
        x: (n,) ascending (epochs or steps).
        y: (n,) the curve (a loss).
        target: The height to reach.

    Returns:
        In the units of x; inf if it is never reached.
    """
    below = np.flatnonzero(np.asarray(y) <= target)
    if len(below) == 0:
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(x[0])
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))
