"""How often the report's intervals cover the truth, and how often its tests and verdicts are wrong.

    python -m benchmarks.coverage [--studies 20000] [--seed 0] [--tables seeds windows …]

Simulated studies with a known difference between two arms; each table names its random seed.

seeds: the mean over paired seeds, by Student's t and by the percentile bootstrap that it replaces.
Its null is that of the question "do the weights matter": if they do not, the arms may be exchanged,
so both arms' losses are drawn from one law, and their difference is symmetric however skewed that
law is. The lines below it are a stress test: arms of equal mean and unequal shape, which the
t-test does not promise to bear.
windows, crossed, log-ratios: losses of overlapping windows: Diebold–Mariano between two equal
forecasts, and the intervals for new seeds and new windows. The rule was chosen on a grid (300 to
8,000 windows, horizons 1 to 192, AR up to 0.98) of which `CHOSEN_ON` in `laws` are four points;
`FRESH` was simulated after that: other numbers of windows, horizons and strengths, of kindred laws.
families: intervals at Holm's level.
needed, resolvable: whether the announced numbers of seeds and effects are met by later studies.
failures: an arm that fails at a few seeds. curse: the best of many settings, tested at the seeds
that chose it. headline: both arms choose schedule and setting on validation, then are compared.
data-sets: one of several data sets, and all of them, as the headline.
In these, lines called "chosen on" were looked at when the rule was made, "fresh" ones only after.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, ttest_1samp
from scipy.stats import t as student

from benchmarks.laws import (
    CHOSEN_ON,
    FRESH,
    LAWS,
    LIMITS,
    NULLS,
    STRESS,
    TRUTH,
    crossed_losses,
    crossed_study,
    losses,
)
from t5ts.analysis.statistics import (
    FAILURE_RATE,
    FAILURE_SPREADS,
    crossed_interval,
    crossed_log_ratio,
    diebold_mariano,
    mean_interval,
    outlying,
    resolvable_effect,
    robust_p,
    seeds_needed,
    simultaneous,
)

Rows = Iterator[Sequence[object] | str]
#: By name: the share of the studies that it takes for a line, its title and header, and its rows.
TABLES: dict[str, tuple[float, str, str, Callable[[np.random.Generator, int], Rows]]] = {}


def table(name: str, share: float, title: str, header: str) -> Callable[[Any], Any]:
    """Register a function that yields a table's rows, in the order of definition."""

    def register(rows: Any) -> Any:
        TABLES[name] = share, title, header, rows
        return rows

    return register


def _t(x: np.ndarray, *, tests: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Means of the rows and the half widths of their intervals."""
    n = x.shape[-1]
    half = student.ppf(1 - 0.025 / tests, n - 1) * x.std(axis=-1, ddof=1) / math.sqrt(n)
    return x.mean(axis=-1), half


#: Group, law, what brings it to a spread of 1, share of seeds that fail, by how many spreads.
FAILURES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray], float, float]] = [
    ("chosen on", "normal", np.asarray, 0.1, 10),
    ("fresh", "normal", np.asarray, 0.15, 6),
    ("fresh", "normal", np.asarray, 0.05, 20),
    ("fresh", "normal", np.asarray, 0.2, 5),
    ("fresh", "heavy-tailed", lambda x: x / math.sqrt(2), 0.08, 12),
    ("fresh", "bounded", lambda x: math.sqrt(12) * (x - 0.5), 0.12, 8),
    ("beyond", "normal", np.asarray, 0.15, 15),
]
#: Name, and true log effects by plan, of the pretrained arm and of random weights.
STUDIES: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
    ("no effect", (0.0, 0.0), (0.0, 0.0)),
    ("no effect, plans differ", (0.0, 0.02, 0.05), (0.0, 0.02, 0.05)),
    ("small effect", (-0.015, -0.015), (0.0, 0.0)),
    ("effect", (-0.05, -0.03, -0.04), (0.0, 0.0, 0.01)),
    ("same plan only, chosen on", (-0.06, -0.03), (0.0, -0.10)),
    ("same plan only, fresh", (-0.05, -0.01, 0.02), (0.03, 0.0, -0.05)),
    ("hurts", (0.06, 0.05), (0.0, 0.02)),
]


def headline(
    rng: np.random.Generator, studies: int, arms: Sequence[Sequence[float]], *, seeds: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """Log-ratios of two arms' losses, by the rule of comparison: mean, half width, and truth.

    Each arm tries every schedule at 6 settings, some of them worse, and validates the mean over
    its seeds. A pretrained arm differs less between seeds than one with random weights.

    Args:
        rng: Draws the studies.
        studies: How many.
        arms: True log effects by plan, of the pretrained and of the random arm.
        seeds: Paired seeds.

    Returns:
        own: each arm's best plan and setting; final: those, at fresh seeds; same plan: the
        pretrained arm's best plan for both, each at its best setting. The truth is that of the
        plans and settings that were compared.
    """
    worse, spreads, study = np.linspace(0, 0.02, 6), (0.005, 0.017), np.arange(studies)
    truth = [np.add.outer(np.array(arm), worse) for arm in arms]
    val, test, later = [], [], []
    for true, spread in zip(truth, spreads, strict=True):
        luck = true[..., None] + spread * rng.normal(size=(studies, *true.shape, seeds))
        val.append((luck + 0.003 * rng.normal(size=luck.shape)).mean(axis=-1))
        test.append(luck + 0.003 * rng.normal(size=luck.shape))
        later.append(math.hypot(spread, 0.003) * rng.normal(size=(studies, seeds)))
    setting = [v.argmin(axis=2) for v in val]
    plan = [v.min(axis=2).argmin(axis=1) for v in val]

    def compare(plan_b: np.ndarray, *, final: bool = False) -> tuple[np.ndarray, ...]:
        sides = []
        for i, p in enumerate((plan[0], plan_b)):
            chosen = p, setting[i][study, p]
            true = truth[i][chosen]
            sides.append((true[:, None] + later[i] if final else test[i][(study, *chosen)], true))
        (a, true_a), (b, true_b) = sides
        return *_t(a - b), true_a - true_b

    return {
        "same plan": compare(plan[0]),
        "own": compare(plan[1]),
        "final": compare(plan[1], final=True),
    }


@table(
    "seeds", 1,
    "Mean over paired seeds; false positives of a test at 5 %",
    "seeds | arms | log losses | t interval covers | bootstrap covers | false positives",
)  # fmt: skip
def _paired_seeds(rng: np.random.Generator, studies: int) -> Rows:
    for arms, laws in (("exchangeable", NULLS), ("stress: unequal", STRESS)):
        for seeds in (5, 10):
            for name, draw in laws.items():
                x = draw(rng, (studies, seeds))
                test = ttest_1samp(x, 0, axis=1)  # what `mean_interval` gives, for all at once
                assert math.isclose(test.pvalue[0], mean_interval(x[0]).p)
                low, high = test.confidence_interval(0.95)
                few = x[:2000]
                drawn = rng.integers(0, seeds, (500, *few.shape))
                means = few[np.arange(len(few))[:, None], drawn].mean(axis=-1)
                b_low, b_high = np.quantile(means, [0.025, 0.975], axis=0)
                found = ((low <= 0) & (high >= 0), (b_low <= 0) & (b_high >= 0), test.pvalue < 0.05)
                yield seeds, arms, name, *found


@table(
    "windows", 1 / 5,
    "Diebold–Mariano between two equal forecasts: rejected at 5 %",
    "settings | windows | horizon | loss differences of steps | rejected | independent",
)  # fmt: skip
def _over_time(rng: np.random.Generator, studies: int) -> Rows:
    for group, settings in (("chosen on", CHOSEN_ON), ("fresh", FRESH), ("limits", LIMITS)):
        for setting in settings:
            windows, horizon, name, _ = setting
            wrong, naive = [], []
            for _ in range(-(-studies // 100)):
                for d in losses(rng, 100, setting):
                    test = diebold_mariano(d, np.zeros(windows), horizon=horizon)
                    wrong.append(test.p < 0.05)
                    score = abs(test.value) / (test.sd / math.sqrt(windows))
                    naive.append(2 * student.sf(score, windows - 1) < 0.05)
            yield group, windows, horizon, name, wrong, naive


@table(
    "crossed", 1 / 20,
    "Losses of overlapping windows, for new seeds and new windows",
    "seeds | windows | horizon | autocorrelation | crossed interval | t of seeds alone",
)  # fmt: skip
def _crossed(rng: np.random.Generator, studies: int) -> Rows:
    for seeds in (5, 10):
        for windows, horizon, rho in ((500, 24, 0.0), (2880, 24, 0.7), (1400, 48, 0.9)):
            covered, alone = [], []
            for _ in range(studies):
                d = crossed_study(
                    rng, seeds=seeds, windows=windows, autocorrelation=rho, horizon=horizon
                )
                both, narrow = crossed_interval(d, horizon=horizon), mean_interval(d.mean(axis=1))
                covered.append(both.low <= 0 <= both.high)
                alone.append(narrow.low <= 0 <= narrow.high)
            yield seeds, windows, horizon, rho, covered, alone


@table(
    "log-ratios", 1 / 20,
    "Log-ratio of stormy losses, for new seeds and new windows",
    "seeds | windows | horizon | autocorrelation | log-ratio covers | difference over a mean",
)  # fmt: skip
def _log_ratios(rng: np.random.Generator, studies: int) -> Rows:
    for seeds, windows, horizon, rho in (
        (3, 1700, 24, 0.8),
        (5, 900, 12, 0.9),
        (10, 2600, 48, 0.5),
    ):
        covered, shares = [], []
        for _ in range(studies):
            a, b = crossed_losses(rng, seeds=seeds, windows=windows, rho=rho, horizon=horizon)
            ratio = crossed_log_ratio(a, b, horizon=horizon)
            covered.append(ratio.low <= TRUTH <= ratio.high)
            share = crossed_interval((a - b) / b.mean(), horizon=horizon)
            shares.append(share.low <= math.expm1(TRUTH) <= share.high)
        yield seeds, windows, horizon, rho, covered, shares


@table(
    "families", 1 / 10,
    "Families with one control: intervals at Holm's level",
    "seeds | true log effects, % | a true 0 excluded | each covers | all cover |"
    " unadjusted intervals contradict a p",
)  # fmt: skip
def _families(rng: np.random.Generator, studies: int) -> Rows:
    for seeds, truths in (
        (5, (0.0, 0.0)),
        (5, (0.0, -0.02, -0.05)),
        (10, (0.0, 0.0, 0.0, 0.0, -0.015, -0.04)),
        (3, (-0.2, -0.3, -0.4)),
    ):
        truth = np.array(truths)
        wrong, each, together, apart = [], [], [], []
        for _ in range(studies):
            control = 0.015 * rng.normal(size=seeds)  # one control, so the family hangs together
            treated = truth[:, None] + 0.006 * rng.normal(size=(len(truth), seeds))
            alone = [mean_interval(row) for row in treated - control]
            found = simultaneous(alone)
            unadjusted = np.array([e.excludes_zero() for e in alone])
            excluded = np.array([e.excludes_zero() for e in found])
            assert all(excluded == [e.p < 0.05 for e in found])
            covers = [e.low <= true <= e.high for e, true in zip(found, truth, strict=True)]
            each += covers
            wrong.append(excluded[truth == 0].any())
            together.append(all(covers))
            apart.append((unadjusted & ~excluded).any())
        shown = ", ".join(f"{100 * x:g}" for x in truths)
        yield seeds, shown, wrong, each, together, apart


@table(
    "needed", 1 / 20,
    "Studies that could not tell (lines with 100 of them), and as many later ones of the size"
    " that each announces: decided",
    "settings | log losses | sd, margin | pilot seeds | true effect | studies | median N |"
    " seeds_needed | planned for the effect seen",
)  # fmt: skip
def _needed(rng: np.random.Generator, studies: int) -> Rows:
    for group, name, spread, margin in (
        ("chosen on", "normal", 0.01, 0.01),
        ("fresh", "normal", 0.022, 0.008),
        ("fresh", "heavy-tailed", 0.02, 0.015),
        ("fresh", "two basins", 0.035, 0.02),
    ):
        law = NULLS[name]
        unit = spread / law(np.random.default_rng(0), (100_000,)).std()
        for pilot in (3, 5, 10):
            # `seeds_needed` at 60 spreads, and between them on a line of logarithms.
            grid = np.geomspace(spread / 100, 10 * spread, 60)
            known = [seeds_needed(sd=sd, count=pilot, margin=margin) or 10_000 for sd in grid]
            for truth in (0.0, margin / 2, margin, 2 * margin):
                pilots = truth + unit * law(rng, (studies, pilot))
                mean, half = _t(pilots)
                mute = (np.abs(mean) <= half) & (np.abs(mean) + half >= margin)
                if mute.sum() < 100:
                    continue
                mean, sd = mean[mute], pilots[mute].std(axis=1, ddof=1)
                line = np.interp(np.log(sd), np.log(grid), np.log(known))
                seen = (2.8 * sd / np.maximum(np.abs(mean), margin)) ** 2 + 2
                decided = []
                for announced in (np.exp(line), seen):
                    sizes = map(math.ceil, announced)
                    later = [_t(truth + unit * law(rng, (size,))) for size in sizes]
                    decided.append([abs(m) > h or abs(m) + h < margin for m, h in later])
                setting = (group, name, f"{spread:g}, {margin:g}", pilot, f"{truth:g}", len(mean))
                middle = math.ceil(np.median(np.exp(line)))
                yield *setting, middle, *decided


@table(
    "resolvable", 1,
    "The effect that a study says it resolves, shown by a later one of its size",
    "log losses | seeds | tests | resolvable_effect | the spread taken for the true one",
)  # fmt: skip
def _resolvable(rng: np.random.Generator, studies: int) -> Rows:
    for name in ("normal", "heavy-tailed", "skewed"):
        for count in (3, 5, 10):
            for tests in (1, 4):
                law, shape = LAWS[name], (studies, count)
                pilots, later = (law(rng, shape) - law(rng, shape) for _ in "ab")
                spreads = pilots.std(axis=1, ddof=1)
                shown = []
                for pilot in (count, 100_000):
                    unit = resolvable_effect(sd=1.0, count=count, pilot=pilot, tests=tests)
                    mean, half = _t(later, tests=tests)
                    shown.append(mean + unit * spreads > half)
                yield name, count, tests, *shown


@table(
    "failures", 1,
    "An arm that leads and fails at some seeds, equal on average",
    "settings | log losses | failures, spreads | seeds | none seen |"
    " t decides, failed seeds left out | t decides | and robust_p < 5 % |"
    " failures seen are flagged",
)  # fmt: skip
def _failures(rng: np.random.Generator, studies: int) -> Rows:
    def judge(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = x.shape[1]
        mean, half = _t(x)
        score = np.abs(mean) / x.std(axis=1, ddof=1) * math.sqrt(n)
        shift = FAILURE_RATE * FAILURE_SPREADS * math.sqrt(n)

        def excess(c: float) -> float:
            return float(nct.sf(c, n - 1, shift) + nct.sf(c, n - 1, -shift) - 0.05)

        stands = score > brentq(excess, 0.1, 50)
        # That is `robust_p`, for all at once.
        assert all((robust_p(x[i]) < 0.05) == stands[i] for i in range(20))
        return np.abs(mean) > half, stands

    for group, name, scaled, rate, size in FAILURES:
        for seeds in (3, 5, 10, 20):
            fails = rng.random((studies, seeds)) < rate
            x = scaled(LAWS[name](rng, fails.shape)) + size * (fails - rate)
            verdict, stands = judge(x)
            flagged = [bool(outlying(row)) for row in x[:1000]]
            some = fails[:1000].any(axis=1)
            left = [row[~bad] for row, bad in zip(x[:2000], fails[:2000], strict=True)]
            lost = [abs(m) > h for m, h in (_t(row) for row in left if len(row) > 1)]
            setting = group, name, f"{100 * rate:g} % by {size:g}", seeds
            none = ~fails.any(axis=1)
            yield *setting, none, lost, verdict, verdict & stands, np.array(flagged)[some]
    yield "\nNo failures: a lead in spreads\n"
    yield "| true lead | seeds | t decides | robust_p < 5 % | outliers flagged |"
    yield "| --- | --- | --- | --- | --- |"
    for lead in (0.0, 1.0, 2.0, 3.0, 4.0, 6.0):
        for seeds in (5, 10):
            x = lead + LAWS["normal"](rng, (studies, seeds))
            flagged = [bool(outlying(row)) for row in x[:1000]]
            yield f"{lead:g}", seeds, *judge(x), flagged


@table(
    "curse", 1 / 5,
    "The best of many equal settings, no true effect: at the seeds that"
    " chose it, and in a final run at fresh seeds",
    "settings | tried | spreads | test follows validation | seeds | first arm wins |"
    " it loses | covers | final: it wins | it loses | covers",
)  # fmt: skip
def _curse(rng: np.random.Generator, studies: int) -> Rows:
    for group, tried, spreads, shared, seeds in (
        ("chosen on", (30, 30), (0.02, 0.004), 1.0, 5),
        ("fresh", (30, 30), (0.02, 0.004), 0.7, 5),
        ("fresh", (12, 12), (0.017, 0.006), 0.8, 3),
        ("fresh", (12, 12), (0.017, 0.006), 0.8, 10),
        ("fresh", (60, 60), (0.01, 0.01), 0.8, 5),
        ("fresh", (100, 100), (0.03, 0.003), 0.5, 5),
        ("unequal budgets", (40, 8), (0.01, 0.01), 0.9, 5),
    ):
        same, fresh = [], []
        for settings, spread in zip(tried, spreads, strict=True):
            # What a run's luck does to validation, it does in part to the test.
            luck = rng.normal(size=(studies, settings, seeds))
            best = luck.mean(axis=2).argmin(axis=1)
            chosen = luck[np.arange(studies), best]
            noise, later = rng.normal(size=(2, studies, seeds))
            same.append(spread * (shared * chosen + math.sqrt(1 - shared**2) * noise))
            fresh.append(spread * later)
        found = []
        for noisy, steady in (same, fresh):
            mean, half = _t(noisy - steady)
            found += [mean < -half, mean > half, np.abs(mean) <= half]
        setting = (group, *(", ".join(map(str, x)) for x in (tried, spreads)), shared, seeds)
        yield *setting, *found


@table(
    "headline", 1 / 5,
    "The headline: two arms choose plan and setting by validation",
    "study | truth, % | seeds | compared at | helps | hurts | no difference that matters |"
    " covers the truth of what was chosen | of the best",
)  # fmt: skip
def _headline(rng: np.random.Generator, studies: int) -> Rows:
    margin = 0.01
    for name, pretrained, drawn in STUDIES:
        truth = min(pretrained) - min(drawn)
        for seeds in (3, 5, 10):
            found = headline(rng, studies, (pretrained, drawn), seeds=seeds)
            for rule, (mean, half, of_chosen) in found.items():
                helps, hurts = mean + half < 0, mean - half > 0
                alike = np.abs(mean) + half < margin
                covers = [np.abs(mean - true) <= half for true in (of_chosen, truth)]
                said = (helps & ~alike, hurts & ~alike, alike, *covers)
                yield name, f"{100 * truth:+.1f}", seeds, rule, *said


@table(
    "data-sets", 1,
    "Several data sets: effects differ between them",
    "data sets | effects, % | seeds | the first is decided | all together are |"
    " the first is decided against their mean | interval over data sets covers",
)  # fmt: skip
def _data_sets(rng: np.random.Generator, studies: int) -> Rows:
    for sets, mean, between, seeds in (
        (3, 0.0, 0.03, 5),
        (5, 0.0, 0.02, 10),
        (10, 0.0, 0.04, 3),
        (5, -0.03, 0.02, 5),
        (10, -0.03, 0.04, 3),
    ):
        truth = rng.normal(mean, between, (studies, sets))
        x = truth[..., None] + 0.012 * rng.normal(size=(studies, sets, seeds))
        first = _t(x[:, 0])
        over = _t(x.mean(axis=2))
        decided = [np.abs(m) > half for m, half in (first, over)]
        against = (decided[0]) & (np.sign(first[0]) != np.sign(truth.mean(axis=1)))
        covers = np.abs(over[0] - mean) <= over[1]
        setting = (sets, f"{100 * mean:g} ± {100 * between:g}", seeds)
        yield *setting, *decided, against, covers


def _cell(value: object) -> str:
    """A value, or the share of studies in which something held."""
    is_share = isinstance(value, list | np.ndarray)
    return f"{100 * np.mean(value):.1f} %" if is_share else str(value)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20000, help="simulated studies per line")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args()
    for number, (name, (share, title, header, rows)) in enumerate(TABLES.items()):
        if name not in options.tables:
            continue
        studies = max(400, round(options.studies * share))
        error = 100 * math.sqrt(0.05 * 0.95 / studies)
        print(f"## {name}: seed [{options.seed}, {number}], standard error of 5 %: {error:.2f}\n")
        print(f"{title} ({studies} studies a line)\n\n| {header} |")
        print("| " + " | ".join("---" for _ in header.split("|")) + " |")
        for row in rows(np.random.default_rng([options.seed, number]), studies):
            print(row if isinstance(row, str) else f"| {' | '.join(map(_cell, row))} |")
        print(flush=True)


if __name__ == "__main__":
    main()
