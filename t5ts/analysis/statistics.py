"""Estimates and tests for few paired seeds and many overlapping windows.

Everything is two-sided and, unless stated otherwise, at 95 %. `benchmarks/coverage.py` measures on
simulated studies how often the intervals cover the truth and how often the tests are wrong.

Why Student's t and not a percentile bootstrap: resampling 5 seeds can only return their own spread,
which is too small by √(4/5), and has no allowance for not knowing it; the t interval has both.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Values = Sequence[float] | Array
ALPHA = 1 - 0.95
POWER = 0.8
#: More seeds than this are reported as "more than": nobody would train them.
MOST_SEEDS = 10_000
#: The failures that `robust_p` allows for: the share of seeds, and how many standard deviations.
FAILURE_RATE, FAILURE_SPREADS = 0.1, 10.0


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; all but value and count are NaN below two observations.

    Attributes:
        low, high: Borders of the interval, at 95 % or the level that `simultaneous` sets.
        p: Two-sided p-value of the hypothesis that the true mean is 0, below 5 % if and only if
            the interval excludes 0: adjusted where the interval is.
        sd: Standard deviation of the observations.
        count: Observations (paired seeds, mostly).
        degrees: Degrees of freedom of its Student's t.
    """

    value: float
    low: float
    high: float
    p: float
    sd: float
    count: int
    degrees: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def within(self, margin: float) -> bool:
        """Whether the whole interval is inside ±margin: a difference too small to matter."""
        return self.is_known and -margin < self.low and self.high < margin

    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.is_known and (self.low > 0 or self.high < 0)


def mean_interval(values: Values) -> Estimate:
    """Student's t interval and test of the mean of (n,) observations; NaN are left out.

    mean ± t(0.975, n−1) · sd / √n. If the arms' losses at a seed are exchangeable, their difference
    is symmetric and the test keeps its 5 %; where arms of equal mean differ in spread or shape it
    rejects more, up to 12 % at 5 seeds (`benchmarks/coverage.py` has both).

    Source: Student 1908; the paired form as in Demšar 2006, section 3.1.1; Fisher 1935.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n < 2:
        nan = math.nan
        return Estimate(float(x[0]) if n else nan, nan, nan, nan, nan, n)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    return _t_estimate(mean, sd / math.sqrt(n), n - 1, sd, n)


def _t_estimate(mean: float, error: float, degrees: float, sd: float, count: int) -> Estimate:
    """The estimate for a mean, from its standard error and the observations' deviation."""
    from scipy.stats import t

    half = float(t.ppf(1 - ALPHA / 2, degrees)) * error
    # Where all observations are the same there is no error.
    p = 2 * float(t.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, p, sd, count, degrees)


def largest(columns: Iterable[Values]) -> float:
    """The largest of all values, NaN left out; NaN if there is none."""
    return float(np.fmax.reduce([math.nan, *chain(*columns)]))


def log_ratio(numerator: Values, denominator: Values) -> Estimate:
    """Mean log(numerator / denominator) over n pairs of positive values: geometric-mean ratio.

    Source: Fleming & Wallace 1986 (only geometric means of ratios do not depend on the reference).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean_interval(np.log(np.asarray(numerator) / np.asarray(denominator)))


def permutation_p(differences: Values) -> float:
    """Sign-flip permutation test of paired differences: p of |mean| if the arms were exchangeable.

    Exact up to 13 pairs; at least 2/2ⁿ. Source: Fisher 1935; scipy.stats.permutation_test.
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


def wilcoxon_p(differences: Values) -> float:
    """Wilcoxon's signed-rank test of paired differences, exact for small samples without ties.

    Source: Wilcoxon 1945; across data sets: Demšar 2006, section 3.1.3.
    """
    from scipy.stats import wilcoxon

    d = np.asarray(differences, dtype=np.float64)
    return float(wilcoxon(d).pvalue) if len(d) > 1 and np.any(d) else math.nan


def simultaneous(family: Sequence[Estimate]) -> list[Estimate]:
    """A family's estimates with Holm's p-values, each with the interval that agrees with it.

    Each interval is at the level at which Holm tested its hypothesis (5 % / m for the smallest of
    m p-values, then 5 % / (m − 1), …), those behind the first that failed at its level. So it
    excludes 0 if and only if the adjusted p is below 5 %. Estimates without a p stay as they are.

    Source: Holm 1979; regions for step-down tests: Guilbaud 2008, Strassburger & Bretz 2008.
    """
    from scipy.stats import t

    found, tests, p = list(family), 1, 0.0
    known = [i for i, estimate in enumerate(family) if math.isfinite(estimate.p)]
    known.sort(key=lambda i: family[i].p)
    for left, i in zip(range(len(known), 0, -1), known, strict=True):
        if p < ALPHA:  # all before it were rejected
            tests = left
        e = family[i]
        p = min(1.0, max(p, left * e.p))
        wider = float(t.ppf(1 - ALPHA / tests / 2, e.degrees) / t.ppf(1 - ALPHA / 2, e.degrees))
        low, high = (e.value + wider * (border - e.value) for border in (e.low, e.high))
        found[i] = replace(e, low=low, high=high, p=p)
    return found


def robust_p(differences: Values) -> float:
    """p of the mean of (n,) differences against failures that these seeds happened not to show.

    If one seed in ten fails by ten standard deviations of the others, a lead of one in the others
    is no gain on average; 59 % of studies of five seeds show no such failure. The hypothesis is
    that the mean of seeds that did not fail is at most FAILURE_RATE · FAILURE_SPREADS standard
    deviations from 0. Below 5 % the direction holds even so. NaN for fewer than 2 seeds.

    Source: minimum-effect test with the noncentral t (Murphy & Myors 1999); the hypothesis from
        Huber's (1964) contaminated laws; own combination, measured in benchmarks/coverage.py.
    """
    from scipy.stats import nct

    found = mean_interval(differences)
    if not found.is_known:
        return math.nan
    if found.sd == 0:
        return float(found.value == 0)
    n = found.count
    score = abs(found.value) / found.sd * math.sqrt(n)
    shift = FAILURE_RATE * FAILURE_SPREADS * math.sqrt(n)
    # The other tail as an upper one too: scipy's lower tail is NaN for 20 seeds far from 0.
    return float(nct.sf(score, n - 1, shift) + nct.sf(score, n - 1, -shift))


def outlying(values: Values) -> list[int]:
    """Outliers among (n,) finite values, if the others are normal; the farthest first.

    Up to a quarter of them, one at least: the farthest is compared with Student's t to those that
    remain, and removed before the next. None for fewer than 4 values. Wrong in 5 to 8 % of sets.

    Source: Grubbs 1950; generalised extreme studentised deviate, Rosner 1983.
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    left = np.arange(len(x))
    taken: list[int] = []
    last = 0
    for _ in range(max(1, len(x) // 4)):
        n = len(left)
        if n < 4 or np.ptp(x[left]) == 0:
            break
        farthest = int(left[np.argmax(np.abs(x[left] - x[left].mean()))])
        left = left[left != farthest]
        taken.append(farthest)
        gap = abs(x[farthest] - x[left].mean()) / math.sqrt(1 + 1 / len(left))
        if n * 2 * t.sf(gap / max(x[left].std(ddof=1), 1e-300), n - 2) < ALPHA:
            last = len(taken)
    return taken[:last]


def variance_over_time(series: Values, *, horizon: int) -> tuple[float, int]:
    """Variance of the mean of losses of windows that start at every step; its degrees of freedom.

    The long-run variance is the mean square of the first ν coefficients of the orthonormal cosine
    transform, the constant left out: slow waves, on which dependence over less than n/ν windows
    acts as on the mean itself. ν = n / 3h, at most 8 and at least 3, are its degrees of freedom.
    If loss differences stay correlated over a fortieth of the windows, a test at 5 % rejects 6 % of
    true hypotheses; over a twentieth 10 %, a tenth 12 % (benchmarks/coverage.py).

    Args:
        series: (n,) in time order; at least 2.
        horizon: h, the steps that a forecast reaches: neighbouring windows share h − 1 of them.

    Source: Müller 2004 and 2007; Lazarus, Lewis, Stock & Watson 2018 ("EWC"); the divisor from
        Harvey, Leybourne & Newbold 1997, eq. 9. The bounds of ν: own, measured.
    """
    from scipy.fft import dct

    x = np.asarray(series, dtype=np.float64)
    n = len(x)
    waves = min(n - 1, max(3, min(8, n // (3 * horizon))))
    long_run = float(np.mean(dct(x, norm="ortho")[1 : waves + 1] ** 2))
    h = min(horizon, n // 2)
    return long_run / (n + 1 - 2 * h + h * (h - 1) / n), waves


def diebold_mariano(losses_a: Values, losses_b: Values, *, horizon: int) -> Estimate:
    """Do two forecasts differ over time, given that windows overlap?

    Takes (n,) losses per window, in time order; the horizon is in steps.

    Source: Diebold & Mariano 1995; with this variance Coroneo & Iacone 2020.
    """
    d = np.asarray(losses_a, dtype=np.float64) - np.asarray(losses_b, dtype=np.float64)
    variance, degrees = variance_over_time(d, horizon=horizon)
    return _t_estimate(float(d.mean()), math.sqrt(variance), degrees, float(d.std(ddof=1)), len(d))


def crossed_interval(differences_SW: Array, *, horizon: int) -> Estimate:
    """Interval of a mean difference for new seeds AND new windows of the same series.

    Variance = s²(seed means)/S + `variance_over_time` of the seeds' mean difference, with
    Satterthwaite's (1946) degrees of freedom, of (S, W) loss differences of S paired seeds on W
    windows in time order; the horizon is in steps.

    Source: own, from the crossed random-effects variance (Owen 2007, "The pigeonhole bootstrap");
        checked in benchmarks/coverage.py.
    """
    d = np.asarray(differences_SW, dtype=np.float64)
    num_seeds, num_windows = d.shape
    seed_means = d.mean(axis=1)
    if num_seeds < 2 or num_windows < 2:
        return mean_interval(seed_means)
    by_seed = float(seed_means.var(ddof=1)) / num_seeds
    by_window, waves = variance_over_time(d.mean(axis=0), horizon=horizon)
    total, degrees = by_seed + by_window, num_seeds - 1.0
    if total > 0:
        degrees = total**2 / (by_seed**2 / (num_seeds - 1) + by_window**2 / waves)
    sd = float(seed_means.std(ddof=1))
    return _t_estimate(float(d.mean()), math.sqrt(total), degrees, sd, num_seeds)


def crossed_log_ratio(numerator_SW: Array, denominator_SW: Array, *, horizon: int) -> Estimate:
    """Mean log-ratio of two arms' losses (S, W), with the interval for new seeds and new windows.

    The value is `log_ratio`'s of the losses by seed (means over windows); its error over windows is
    that of log-ratios linearised at each seed's means.

    Source: `crossed_interval` of log(ā/b̄) + a/ā − b/b̄; ratios: Cochran 1977, section 6.4.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (numerator_SW, denominator_SW))
    a_S, b_S = a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True)
    return crossed_interval(np.log(a_S / b_S) + a / a_S - b / b_S, horizon=horizon)


def _spreads(pilot: int, count: int) -> tuple[Array, Array]:
    """Equally likely sample spreads over the true one: a pilot's (100, 1), a later study's (100,).

    The root of chi-square over its degrees, at midpoints of 100 cells.
    """
    from scipy.stats import chi2

    cells = (np.arange(100) + 0.5) / 100
    first, later = (np.sqrt(chi2.ppf(cells, n - 1) / (n - 1)) for n in (pilot, count))
    return first[:, None], later


def resolvable_effect(*, sd: float, count: int, pilot: int, tests: int = 1) -> float:
    """The smallest true effect that `count` paired seeds show, at Holm's most stringent level.

    "Show": the interval excludes 0 on the right side, in 80 % of studies, averaged over what a
    pilot of few seeds may have missed of the spread. In the units of sd; NaN if that is unknown.

    Args:
        sd: Standard deviation of paired differences, from `pilot` seeds.
        tests: Size of its family: held to 5 % / tests, which Holm's level never goes below.

    Source: "assurance" (O'Hagan, Stevens & Campbell 2005) with a pilot's spread as in Browne 1995.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import t

    if not math.isfinite(sd) or min(count, pilot) < 2:
        return math.nan
    first, later = _spreads(pilot, count)
    half = float(t.ppf(1 - ALPHA / tests / 2, count - 1)) * later

    def lacks(log_effect: float) -> float:  # in pilot sd, as standard errors of the later study
        return float(np.mean(ndtr(math.exp(log_effect) * first - half))) - POWER

    return sd * math.exp(brentq(lacks, -5.0, 20.0)) / math.sqrt(count)


def seeds_needed(*, sd: float, count: int, margin: float, tests: int = 1) -> int | None:
    """Paired seeds needed to settle whether there is a difference that matters.

    A study settles it if its interval excludes 0 or is within ±margin, in 80 % of studies. The
    hardest truth to settle is half the margin. The observed effect is not used: with few seeds a
    small one is mostly noise. At least 2; None if more than 10,000, or the spread is unknown.

    Args:
        sd: Standard deviation of `count` paired differences.
        margin: Largest difference that does not matter, in the same units.
        tests: Size of its family: held to 5 % / tests, which Holm's level never goes below.

    Source: own, from Schuirmann's (1987) equivalence and the t-test, with a pilot's spread as in
        `resolvable_effect`; checked in benchmarks/coverage.py.
    """
    from scipy.special import ndtr
    from scipy.stats import t

    if not math.isfinite(sd) or count < 2 or margin <= 0:
        return None
    if sd == 0:
        return 2

    def reaches(seeds: int) -> bool:
        first, later = _spreads(count, seeds)
        length = margin / sd * math.sqrt(seeds) * first  # margin, in later standard errors
        half = float(t.ppf(1 - ALPHA / tests / 2, seeds - 1)) * later
        # The estimate is `length` / 2 + N(0, 1) from 0; undecided between `inner` and `half`.
        inner = np.minimum(np.maximum(length - half, 0), half)
        below, above = (
            ndtr(border - length / 2) - ndtr(-border - length / 2) for border in (inner, half)
        )
        return float(np.mean(1 - (above - below))) >= POWER

    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, True, key=reaches)
    return counts[place] if place < len(counts) else None
