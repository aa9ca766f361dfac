"""Statistics against scipy, statsmodels, closed forms and simulated truth."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import FRESH, NULLS, STRESS, TRUTH, crossed_study, losses
from t5ts.analysis import statistics as s


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mean_interval_is_scipys_t_test() -> None:
    x = rng().normal(0.3, 1, 7)
    ours, theirs = s.mean_interval(x), stats.ttest_1samp(x, 0)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.value, ours.low, ours.high) == pytest.approx((x.mean(), low, high))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.count == 7


def test_too_few_values_have_no_interval() -> None:
    one, none = s.mean_interval([0.4]), s.mean_interval([math.nan])
    assert one.value == 0.4
    assert not one.is_known
    assert not one.excludes_zero()
    assert math.isnan(none.value)
    assert none.count == 0


@pytest.mark.parametrize("law", NULLS)
@pytest.mark.parametrize("seeds", [5, 10])
def test_interval_covers_and_test_is_honest(seeds: int, law: str) -> None:
    """The issue's figures: 93–97 % coverage, at most 6 % false positives, if arms are exchangeable.

    Where most seeds agree to a hair an interval covers more than it says; it never covers less.
    """
    studies = NULLS[law](rng(seeds), (1500, seeds))
    estimates = [s.mean_interval(TRUTH + x) for x in studies]
    covered = np.mean([e.low <= TRUTH <= e.high for e in estimates])
    wrong = np.mean([s.mean_interval(x).p < 0.05 for x in studies])
    assert 0.93 <= covered <= (0.97 if law in ("normal", "bounded") else 1.0)
    assert wrong <= 0.06


def test_exchangeable_arms_differ_symmetrically_and_the_stress_test_does_not() -> None:
    skew = {
        name: abs(stats.skew(draw(rng(9), (100_000,)))) for name, draw in (NULLS | STRESS).items()
    }
    assert all(skew[name] < 0.1 for name in NULLS)
    assert all(skew[name] > 0.5 for name in STRESS)


def test_log_ratio_is_the_geometric_mean() -> None:
    a, b = np.array([1.0, 4.0, 2.0]), np.array([2.0, 2.0, 2.0])
    assert math.exp(s.log_ratio(a, b).value) == pytest.approx(stats.gmean(a / b))
    assert s.log_ratio(b, a).value == pytest.approx(-s.log_ratio(a, b).value)


def test_permutation_is_exact_and_cannot_decide_at_five_pairs() -> None:
    assert s.permutation_p([-1.0, -1.1, -0.9, -1.2, -1.3]) == pytest.approx(2 / 2**5)
    d = rng(1).normal(0.5, 1, 8)
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    means = np.abs((flips * d[:, None]).mean(axis=0))
    assert s.permutation_p(d) == pytest.approx(np.mean(means >= abs(d.mean()) - 1e-12))


def test_wilcoxon_is_scipys() -> None:
    d = rng(2).normal(0.5, 1, 9)
    assert s.wilcoxon_p(d) == stats.wilcoxon(d).pvalue


def test_holm_by_hand_and_without_unknown_values() -> None:
    assert s.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx(
        [0.03, math.nan, 0.06, 0.06], nan_ok=True
    )
    assert all(math.isnan(p) for p in s.holm([math.nan]))


def test_variance_over_time_is_that_of_cosine_weights() -> None:
    """Against the definition, written out; and against the truth of white noise."""
    x = rng(3).normal(2.0, 1.0, 300)
    variance, waves = s.variance_over_time(x, horizon=10)
    assert waves == 8
    t = (np.arange(300) + 0.5) / 300
    weights = [x @ (math.sqrt(2 / 300) * np.cos(math.pi * j * t)) for j in range(1, 9)]
    assert variance == pytest.approx(np.mean(np.square(weights)) / (300 + 1 - 20 + 10 * 9 / 300))
    drawn = [s.variance_over_time(rng(k).normal(size=400), horizon=1)[0] for k in range(400)]
    assert np.mean(drawn) == pytest.approx(1 / 400, rel=0.1)


def test_variance_over_time_asks_less_of_short_series() -> None:
    assert s.variance_over_time(rng().normal(size=300), horizon=24)[1] == 4
    assert s.variance_over_time(rng().normal(size=300), horizon=96)[1] == 3
    assert s.variance_over_time([0.1, 0.3], horizon=24)[1] == 1


@pytest.mark.parametrize("setting", FRESH, ids=lambda x: f"{x[0]}-{x[1]}-{x[2]}")
def test_diebold_mariano_allows_for_dependence(setting: Any) -> None:
    """Equal forecasts: 5 % are rejected, within three standard errors and the bound of 6.5 %."""
    windows, horizon, _, _ = setting
    rejected = [
        s.diebold_mariano(d, np.zeros(windows), horizon=horizon).p < 0.05
        for d in losses(rng(4), 500, setting)
    ]
    assert np.mean(rejected) < 0.065 + 3 * math.sqrt(0.065 * 0.935 / 500)


def test_crossed_interval_covers_where_seeds_alone_do_not() -> None:
    generator, covered, alone = rng(5), [], []
    for _ in range(400):
        d = crossed_study(generator, seeds=10, windows=1000, autocorrelation=0.7)
        wide, narrow = s.crossed_interval(d, horizon=24), s.mean_interval(d.mean(axis=1))
        covered.append(wide.low <= 0 <= wide.high)
        alone.append(narrow.low <= 0 <= narrow.high)
    assert np.mean(covered) > 0.92
    assert np.mean(alone) < 0.75


def test_crossed_interval_without_window_noise_is_the_seeds_interval() -> None:
    means = np.array([0.1, 0.2, 0.15, 0.3])
    wide = s.crossed_interval(np.repeat(means[:, None], 100, axis=1), horizon=5)
    narrow = s.mean_interval(means)
    assert (wide.low, wide.high) == pytest.approx((narrow.low, narrow.high))


@pytest.mark.parametrize(("sd", "effect"), [(0.02, 0.01), (0.05, 0.03), (0.01, 0.05)])
def test_seeds_needed_reach_the_power_and_one_less_does_not(sd: float, effect: float) -> None:
    n = s.seeds_needed(sd=sd, effect=effect)
    assert n is not None

    def power(count: int) -> float:
        shift, critical = effect / sd * math.sqrt(count), stats.t.ppf(0.975, count - 1)
        law = stats.nct(count - 1, shift)
        return law.sf(critical) + law.cdf(-critical)

    assert power(n) >= 0.8
    assert n == 2 or power(n - 1) < 0.8


def test_a_test_among_others_needs_more_seeds() -> None:
    alone, among = (s.seeds_needed(sd=0.02, effect=0.02, tests=tests) for tests in (1, 8))
    assert alone is not None
    assert among is not None
    assert among > alone
    shift, critical = math.sqrt(among), stats.t.ppf(1 - 0.05 / 8 / 2, among - 1)
    assert stats.nct(among - 1, shift).sf(critical) >= 0.8


def test_seeds_needed_of_nothing() -> None:
    assert s.seeds_needed(sd=1.0, effect=0.0) is None
    assert s.seeds_needed(sd=1.0, effect=1e-6) is None
    assert s.seeds_needed(sd=0.0, effect=0.1) == 2


def test_late_slope_is_the_mean_of_the_seeds_slopes() -> None:
    epochs = np.array([5.0, 6.0, 8.0])
    slopes = np.array([-0.1, -0.2, -0.15])
    gaps = 1.0 + slopes[:, None] * epochs
    found = s.late_slope(gaps, epochs)
    assert found.value == pytest.approx(slopes.mean())
    assert found.low == pytest.approx(s.mean_interval(slopes).low)


def test_effective_data_of_a_power_law() -> None:
    sizes = np.array([100.0, 200.0, 400.0, 800.0])
    scratch = 5.0 * sizes**-0.3
    assert s.effective_data(sizes, scratch, 5.0 * 300.0**-0.3) == pytest.approx(300)
    assert s.effective_data(sizes, scratch, 0.1) == math.inf
    assert math.isnan(s.effective_data(sizes, scratch, 9.0))


def test_crossing_is_linear_between_evaluations() -> None:
    epochs, loss = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.8, 0.4])
    assert s.crossing(epochs, loss, 0.6) == pytest.approx(1.5)
    assert s.crossing(epochs, loss, 1.0) == 0.0
    assert s.crossing(epochs, loss, 0.3) == math.inf
