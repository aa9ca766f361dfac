"""Statistics against scipy, statsmodels, closed forms and simulated truth."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.laws import FRESH, NULLS, TRUTH, crossed_study, losses
from t5ts.analysis import effects
from t5ts.analysis import statistics as s


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mean_interval_is_scipys_t_test():
    x = rng().normal(0.3, 1, 7)
    ours, theirs = s.mean_interval([*x, math.nan]), stats.ttest_1samp(x, 0)
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval(0.95))
    assert (ours.value, ours.p, ours.count) == pytest.approx((x.mean(), theirs.pvalue, 7))
    one, none = s.mean_interval([0.4]), s.mean_interval([math.nan])
    assert (one.value, one.is_known, one.excludes_zero()) == (0.4, False, False)
    assert (math.isnan(none.value), none.count) == (True, 0)


@pytest.mark.parametrize("law", NULLS)
@pytest.mark.parametrize("seeds", [5, 10])
def test_interval_covers_and_test_is_honest(seeds, law):
    """The issue's figures: 93–97 % coverage, at most 6 % false positives, if arms are exchangeable.

    Where most seeds agree to a hair an interval covers more than it says; it never covers less.
    """
    studies = NULLS[law](rng(seeds), (1000, seeds))
    estimates = [s.mean_interval(TRUTH + x) for x in studies]
    covered = np.mean([e.low <= TRUTH <= e.high for e in estimates])
    assert 0.93 <= covered <= (0.975 if law in ("normal", "bounded") else 1.0)
    assert np.mean([s.mean_interval(x).p < 0.05 for x in studies[:500]]) <= 0.07


def test_log_ratio_is_the_geometric_mean():
    a, b = np.array([1.0, 4.0, 2.0]), np.array([2.0, 2.0, 2.0])
    assert math.exp(s.log_ratio(a, b).value) == pytest.approx(stats.gmean(a / b))
    assert s.log_ratio(b, a).value == pytest.approx(-s.log_ratio(a, b).value)


def test_permutation_is_exact_and_cannot_decide_at_five_pairs():
    assert s.permutation_p([-1.0, -1.1, -0.9, -1.2, -1.3]) == pytest.approx(2 / 2**5)
    d = rng(1).normal(0.5, 1, 8)
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    means = np.abs((flips * d[:, None]).mean(axis=0))
    assert s.permutation_p(d) == pytest.approx(np.mean(means >= abs(d.mean()) - 1e-12))


def test_variance_over_time_is_that_of_cosine_weights():
    """Against the definition, written out; and against the truth of white noise."""
    x = rng(3).normal(2.0, 1.0, 300)
    variance, waves = s.variance_over_time(x, horizon=10)
    assert waves == 8
    t = (np.arange(300) + 0.5) / 300
    weights = [x @ (math.sqrt(2 / 300) * np.cos(math.pi * j * t)) for j in range(1, 9)]
    assert variance == pytest.approx(np.mean(np.square(weights)) / (300 + 1 - 20 + 10 * 9 / 300))
    drawn = [s.variance_over_time(rng(k).normal(size=400), horizon=1)[0] for k in range(400)]
    assert np.mean(drawn) == pytest.approx(1 / 400, rel=0.1)
    # Of short series less is asked.
    assert s.variance_over_time(x, horizon=24)[1] == 4
    assert s.variance_over_time(x, horizon=96)[1] == 3
    assert s.variance_over_time([0.1, 0.3], horizon=24)[1] == 1


@pytest.mark.parametrize("setting", FRESH, ids=lambda x: f"{x[0]}-{x[1]}-{x[2]}")
def test_diebold_mariano_allows_for_dependence(setting):
    """Equal forecasts: 5 % are rejected, within three standard errors and the bound of 6.5 %."""
    windows, horizon, _, _ = setting
    rejected = [
        s.diebold_mariano(d, np.zeros(windows), horizon=horizon).p < 0.05
        for d in losses(rng(4), 500, setting)
    ]
    assert np.mean(rejected) < 0.065 + 3 * math.sqrt(0.065 * 0.935 / 500)


def test_crossed_interval_covers_where_seeds_alone_do_not():
    generator, covered, alone = rng(5), [], []
    for _ in range(400):
        d = crossed_study(generator, seeds=10, windows=1000, autocorrelation=0.7)
        wide, narrow = s.crossed_interval(d, horizon=24), s.mean_interval(d.mean(axis=1))
        covered.append(wide.low <= 0 <= wide.high)
        alone.append(narrow.low <= 0 <= narrow.high)
    assert np.mean(covered) > 0.92
    assert np.mean(alone) < 0.75


def decides(means: Any, spreads: Any, *, count: int, margin: float, tests: int = 1) -> Any:
    """Whether the intervals of later studies exclude 0 or lie within the margin."""
    half = stats.t.ppf(1 - 0.05 / tests / 2, count - 1) * spreads / math.sqrt(count)
    return (abs(means) > half) | (abs(means) + half < margin)


@pytest.mark.parametrize("pilot", [3, 10])
def test_seeds_needed_decide_whatever_the_truth(pilot):
    """Over pilot studies and fresh studies of the size that each announces: at least 80 %."""
    draw, margin, sd, pilots = rng(17 + pilot), 0.012, 0.015, 60
    spreads = sd * np.sqrt(draw.chisquare(pilot - 1, pilots) / (pilot - 1))
    announced = [s.seeds_needed(sd=spread, count=pilot, margin=margin) for spread in spreads]
    for truth in (0.0, 0.006, 0.012, 0.03):
        decided = []
        for count in announced:
            later = draw.normal(truth, sd, (50, count))
            deviations = later.std(axis=1, ddof=1)
            decided += [*decides(later.mean(axis=1), deviations, count=count, margin=margin)]
        assert np.mean(decided) > 0.8 - 3 * math.sqrt(0.2 * 0.8 / pilots)


@pytest.mark.parametrize(
    ("sd", "count", "margin", "expected"),
    [(1, 5, 1e-6, None), (math.nan, 1, 0.01, None), (1, 5, 0, None), (0, 5, 0.01, 2),
     (1e-6, 5, 0.01, 2)],
)  # fmt: skip
def test_seeds_needed_at_the_ends(sd, count, margin, expected):
    assert s.seeds_needed(sd=sd, count=count, margin=margin) == expected


@pytest.mark.parametrize(("count", "pilot", "tests"), [(5, 5, 1), (12, 4, 1), (7, 7, 3), (3, 3, 2)])
def test_resolvable_effects_are_resolved(count, pilot, tests):
    """Over pilots, the effect that each announces is shown by 80 % of later studies."""
    draw, studies = rng(count), 40_000
    sd = 0.7 * np.sqrt(draw.chisquare(pilot - 1, studies) / (pilot - 1))
    unit = s.resolvable_effect(sd=1.0, count=count, pilot=pilot, tests=tests)
    assert math.isnan(s.resolvable_effect(sd=math.nan, count=1, pilot=1))
    later = draw.normal(unit * sd, 0.7, (count, studies))
    half = stats.t.ppf(1 - 0.05 / tests / 2, count - 1) / math.sqrt(count)
    shown = later.mean(axis=0) > half * later.std(axis=0, ddof=1)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.01)
    assert s.resolvable_effect(sd=0.02, count=count, pilot=pilot, tests=tests) == pytest.approx(
        0.02 * unit
    )


@pytest.mark.parametrize(
    ("scores", "tests"),
    [
        ((3.5, 4.0, 6.0), (1, 2, 3)),  # p .025, .016, .004: each below 5 % by its place
        ((2.2, 3.5, 6.0), (1, 2, 3)),  # the last fails where nothing else is left
        ((2.5, 3.1, 6.0), (2, 2, 3)),  # p .067, .036, .004: Holm stops at the second
        ((2.8, 2.9, 2.85), (3, 3, 3)),  # each alone below 5 %, together none
        ((9.0, 7.0, 8.0), (3, 1, 2)),
        ((math.nan, 9.0, 1.0), (1, 2, 1)),  # what has no p is not counted
    ],
)
def test_holm_intervals_by_hand(scores, tests):
    family = [s.mean_interval([0.1]) if math.isnan(score) else scored(score) for score in scores]
    for before, after, k in zip(family, s.simultaneous(family), tests, strict=True):
        if before.is_known:
            half = stats.t.ppf(1 - 0.05 / k / 2, 4) * before.sd / math.sqrt(5)
            assert (after.low, after.high) == pytest.approx(
                (before.value - half, before.value + half)
            )


def scored(score: float) -> s.Estimate:
    """Five values with this t."""
    x = np.array([-1.0, 1.0, 0.5, -0.5, 0.0])
    return s.mean_interval(x + score * x.std(ddof=1) / math.sqrt(5))


def test_an_interval_and_its_p_never_disagree():
    draw, wrong, studies = rng(31), 0, 300
    for _ in range(studies):
        truths = np.array([0.0, 0.0, *draw.choice([0.0, 1.0, 3.0], draw.integers(0, 4))])
        counts = draw.integers(2, 9, len(truths))
        family = [
            s.mean_interval(draw.normal(t, 1, n)) for t, n in zip(truths, counts, strict=True)
        ]
        found = s.simultaneous(family)
        adjusted = multipletests([e.p for e in family], method="holm")[1]
        assert [e.p for e in found] == pytest.approx(adjusted)
        assert all(e.excludes_zero() == (e.p < 0.05) for e in found)
        assert all(a.low <= b.low and b.high <= a.high for a, b in zip(found, family, strict=True))
        wrong += any(e.excludes_zero() for e in np.array(found, dtype=object)[truths == 0])
    assert wrong / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_crossed_interval_of_equal_windows_is_that_of_the_seeds():
    seeds = rng(9).normal(size=4)
    found, alone = s.crossed_interval(np.tile(seeds, (50, 1)).T, horizon=1), s.mean_interval(seeds)
    assert (found.low, found.high, found.p) == pytest.approx((alone.low, alone.high, alone.p))


def test_crossed_log_ratio_is_the_log_ratio_with_errors_of_windows():
    draw = rng(8)
    b = draw.lognormal(0, 1, (5, 400))
    a = 0.3 * b * np.exp(draw.normal(0, 0.02, (5, 400)))
    found, by_seed = s.crossed_log_ratio(a, b, horizon=1), s.log_ratio(a.mean(1), b.mean(1))
    assert found.value == pytest.approx(by_seed.value)
    assert found.high - found.low > by_seed.high - by_seed.low
    swapped = s.crossed_log_ratio(b, a, horizon=1)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_crossed_log_ratio_never_falls_below_all_of_the_loss():
    """A stretch of storms, which one arm forecasts well: a difference over a mean says −105 %."""
    draw = rng(2)
    b = draw.lognormal(0, 0.3, (5, 300))
    b[:, 140:160] *= 40
    a = 0.5 * draw.lognormal(0, 0.3, (5, 300))
    share = s.crossed_interval((a - b) / b.mean(), horizon=24)
    assert share.low < -1
    assert -1 < math.expm1(s.crossed_log_ratio(a, b, horizon=24).low) < -0.5


def test_robust_p_holds_its_level_where_unseen_failures_undo_the_lead():
    """One seed in ten fails by 10 spreads, the means are equal: Student's t calls every fourth."""
    draw = rng(23)
    failed = draw.random((2000, 5)) < 0.1
    x = draw.normal(0, 0.3, failed.shape) + np.where(failed, 2.7, -0.3)
    leads = [d for d in x if s.mean_interval(d).high < 0]
    assert 0.2 < len(leads) / len(x) < 0.28
    assert sum(s.robust_p(d) < 0.05 for d in leads) / len(x) < 0.05


def test_robust_p_by_hand():
    d = np.array([-0.06, -0.055, -0.065, -0.058, -0.061])
    score = math.sqrt(5) * abs(d.mean()) / d.std(ddof=1)
    law = stats.nct(4, math.sqrt(5) * 0.1 * 10)
    assert s.robust_p(d) == pytest.approx(law.sf(score) + law.cdf(-score))
    assert s.robust_p(d) == s.robust_p(-d) < 0.01
    assert math.isnan(s.robust_p([0.1]))
    assert (s.robust_p([0.1, 0.1]), s.robust_p([0.0, 0.0])) == (0.0, 1.0)


@pytest.mark.parametrize("failed", [1, 2, 3])
@pytest.mark.parametrize("seeds", [4, 5, 6, 10, 30])
def test_a_few_failed_seeds_carry_no_verdict(seeds, failed):
    x = 1e-6 * rng().normal(size=seeds)
    x[:failed] += 1
    assert not s.mean_interval(x).excludes_zero()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, -0.2, 0.0, 3.0, 0.2], [3]),
        ([0.1, -0.2, 0.0, 0.3, 0.2], []),
        ([0.1, -0.2, 0.0, 1.1, 0.2], []),  # beyond 5 %, had the others' mean no error
        # The one does not hide the other.
        ([0.1, -0.1, 0.0, 9.0, 0.2, 0.05, -0.2, 8.0, 0.1], [3, 7]),
        ([0.1, 0.1, 0.1, 0.1, 0.2], [4]),
        ([0.1, 0.1, 0.1, 0.1], []),
        ([0.1, 0.1, 9.0], []),  # of three it cannot be told
        ([0.1, -0.1, 0.2, -0.2, 0.0, 9.0, 8.9, 9.1], []),  # three of eight are no outliers
    ],
)
def test_outlying_values(values, expected):
    assert s.outlying(values) == expected


def test_a_gaps_slope_is_the_mean_of_the_seeds_slopes_over_the_last_half():
    epochs, slopes = np.array([0.0, 5.0, 6.0, 8.0]), np.array([-0.1, -0.2, -0.15])
    gaps = np.where(epochs < 4, 9, 1 + slopes[:, None] * epochs)
    pair: Any = SimpleNamespace(curves=lambda _: (epochs, 0 * gaps, gaps))
    found, expected = effects.gap(pair), s.mean_interval(slopes)
    assert found.late_from == 5
    assert (found.slope.low, found.slope.high) == pytest.approx((expected.low, expected.high))


def test_effective_data_of_a_power_law():
    sizes = np.array([100.0, 200.0, 400.0, 800.0])
    scratch = 5.0 * sizes**-0.3
    assert effects.effective_data(sizes, scratch, 5.0 * 300.0**-0.3) == pytest.approx(300)
    assert effects.effective_data(sizes, scratch, 0.1) == math.inf
    assert math.isnan(effects.effective_data(sizes, scratch, 9.0))


def test_crossing_is_linear_between_evaluations():
    epochs, loss = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.8, 0.4])
    assert effects.crossing(epochs, loss, 0.6) == pytest.approx(1.5)
    assert effects.crossing(epochs, loss, 1.0) == 0.0
    assert effects.crossing(epochs, loss, 0.3) == math.inf


def test_seeds_needed_are_the_fewest_where_the_spread_is_known():
    """Against the closed form at the hardest truth, half the margin; and among other tests more."""
    margin, sd = 0.01, 0.02
    for tests in (1, 6):
        n = s.seeds_needed(sd=sd, count=100_000, margin=margin, tests=tests)
        for count, enough in ((n, True), (n - 1, False)):
            draw = rng(3).standard_normal(400_000)
            spread = sd * np.sqrt(rng(4).chisquare(count - 1, 400_000) / (count - 1))
            means = margin / 2 + sd / math.sqrt(count) * draw
            power = np.mean(decides(means, spread, count=count, margin=margin, tests=tests))
            assert (power > 0.8) == enough or power == pytest.approx(0.8, abs=0.003)
