"""How often the report's intervals cover the truth, and how often its tests are wrong.

    python -m benchmarks.coverage [--studies 20000] [--seed 0]

Simulated studies with a known difference between two arms. First the mean over paired seeds, by
Student's t beside the percentile bootstrap that it replaces. Its null is that of the question
"do the weights matter": if they do not, the arms may be exchanged, so both arms' losses are drawn
from one law, and their difference is symmetric however skewed that law is. The lines below it are
a stress test: arms of equal mean and unequal shape, which the t-test does not promise to bear.

Then losses of overlapping windows: the interval for new seeds and new windows, and Diebold–Mariano
between two equal forecasts. Its rule was chosen on a grid of which `CHOSEN_ON` are four points (300
to 8,000 windows, horizons 1 to 192, AR up to 0.98); `FRESH` was simulated after that: other numbers
of windows, horizons and strengths, of kindred laws.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from t5ts.analysis.statistics import crossed_interval, diebold_mariano, mean_interval

TRUTH = -0.03  # mean log-ratio: 3 % lower loss
#: Draws an array of a shape.
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Log losses that differ normally."""
    return rng.normal(0, 1, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 4 degrees: now and then a bad seed."""
    return rng.standard_t(4, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential: most seeds are good, and a few are bad by far."""
    return rng.exponential(1, shape)


def two_basins(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One seed in ten ends in another basin."""
    return (rng.random(shape) < 0.1) + rng.normal(0, 0.1, shape)


def bounded(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform: the lightest tails that are plausible."""
    return rng.random(shape)


def difference(law: Draw) -> Draw:
    """Of two arms whose losses have one law: exchangeable, so symmetric about 0."""
    return lambda rng, shape: 0.02 * (law(rng, shape) - law(rng, shape))


def unequal_spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two log-normal arms of equal mean, one twice as variable."""
    a, b = rng.lognormal(0, 0.5, shape), rng.lognormal(0, 0.25, shape)
    return 0.02 * (a - math.exp(0.125) - (b - math.exp(0.03125)))


def one_arm_log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One arm log-normal, the other the same at every seed."""
    return 0.02 * (rng.lognormal(0, 0.5, shape) - math.exp(0.125))


def one_arm_exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One arm exponential, the other the same at every seed: as skewed as it gets."""
    return 0.02 * (rng.exponential(1, shape) - 1)


#: Differences of exchangeable arms, by the law of an arm's log losses.
NULLS: dict[str, Draw] = {
    "normal": difference(normal),
    "heavy-tailed": difference(heavy),
    "skewed": difference(skewed),
    "two basins": difference(two_basins),
    "bounded": difference(bounded),
}
#: Differences of mean 0 that are not symmetric.
STRESS: dict[str, Draw] = {
    "one arm twice as variable": unequal_spread,
    "one arm log-normal, the other constant": one_arm_log_normal,
    "one arm exponential, the other constant": one_arm_exponential,
}


def over_windows(steps: np.ndarray, horizon: int) -> np.ndarray:
    """Means over `horizon` steps, a window at each step: neighbours share all but one."""
    total = np.cumsum(steps, axis=1)
    total = np.concatenate([np.zeros((len(steps), 1)), total], axis=1)
    return (total[:, horizon:] - total[:, :-horizon]) / horizon


def autoregressive(rng: np.random.Generator, rows: int, steps: int, *, rho: float) -> np.ndarray:
    """AR(1) of variance 1 from its stationary law, (rows, steps)."""
    noise = rng.normal(size=(rows, steps))
    noise[:, 1:] *= math.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1)


def moving_average(rng: np.random.Generator, rows: int, steps: int, *, order: int) -> np.ndarray:
    """Means of so many shocks."""
    return over_windows(rng.normal(size=(rows, steps + order - 1)), order)


def squared_errors(rng: np.random.Generator, rows: int, steps: int, *, rho: float) -> np.ndarray:
    """Difference of the squared errors of two forecasts that miss what both must, and their own."""
    both, a, b = (autoregressive(rng, rows, steps, rho=rho) for _ in range(3))
    return (both + 0.5 * a) ** 2 - (both + 0.5 * b) ** 2


def calm_and_storm(rng: np.random.Generator, rows: int, steps: int, *, rho: float) -> np.ndarray:
    """White noise whose spread itself changes slowly."""
    spread = np.exp(0.7 * autoregressive(rng, rows, steps, rho=rho))
    return spread * rng.normal(size=(rows, steps))


Steps = Callable[[np.random.Generator, int, int], np.ndarray]


def _law(draw: Callable[..., np.ndarray], **parameters: float) -> Steps:
    return lambda rng, rows, steps: draw(rng, rows, steps, **parameters)


#: Windows, horizon, what the loss differences of the steps are, and how.
Setting = tuple[int, int, str, Steps]
CHOSEN_ON: list[Setting] = [
    (1700, 24, "AR 0.9", _law(autoregressive, rho=0.9)),
    (1700, 96, "AR 0.95", _law(autoregressive, rho=0.95)),
    (1000, 192, "squared errors, AR 0.9", _law(squared_errors, rho=0.9)),
    (2800, 96, "MA of 50", _law(moving_average, order=50)),
]
FRESH: list[Setting] = [
    (500, 12, "AR 0.6", _law(autoregressive, rho=0.6)),
    (500, 12, "MA of 8", _law(moving_average, order=8)),
    (500, 48, "squared errors, AR 0.7", _law(squared_errors, rho=0.7)),
    (700, 48, "AR 0.92", _law(autoregressive, rho=0.92)),
    (1400, 24, "AR −0.4", _law(autoregressive, rho=-0.4)),
    (1400, 336, "AR 0.8", _law(autoregressive, rho=0.8)),
    (2200, 48, "AR 0.97", _law(autoregressive, rho=0.97)),
    (2200, 48, "squared errors, AR 0.95", _law(squared_errors, rho=0.95)),
    (2200, 12, "calm and storm, 0.98", _law(calm_and_storm, rho=0.98)),
    (5000, 336, "AR 0.85", _law(autoregressive, rho=0.85)),
    (5000, 1, "MA of 24", _law(moving_average, order=24)),
]
#: Losses that stay correlated over a large share of the windows: 1 / 40, 1 / 20 and 1 / 10.
LIMITS: list[Setting] = [
    (2000, 24, "AR 0.98", _law(autoregressive, rho=0.98)),
    (1000, 24, "AR 0.98", _law(autoregressive, rho=0.98)),
    (500, 24, "AR 0.98", _law(autoregressive, rho=0.98)),
]


def losses(rng: np.random.Generator, rows: int, setting: Setting) -> np.ndarray:
    """(rows, windows) loss differences of equal forecasts."""
    windows, horizon, _, steps = setting
    return over_windows(steps(rng, rows, windows + horizon - 1), horizon)


def crossed_study(
    rng: np.random.Generator, *, seeds: int, windows: int, autocorrelation: float, horizon: int = 24
) -> np.ndarray:
    """(S, W) loss differences with mean 0: of seeds, of times that seeds share, and the rest."""
    law = _law(autoregressive, rho=autocorrelation)
    shared, own = (losses(rng, rows, (windows, horizon, "", law)) for rows in (1, seeds))
    unit = math.sqrt((1 + autocorrelation) / (1 - autocorrelation))
    return rng.normal(0, 0.05, (seeds, 1)) + unit * (0.5 * shared + 0.5 * own)


def _paired_seeds(rng: np.random.Generator, studies: int) -> None:
    print(f"Mean over paired seeds, {studies} studies a line; false positives of a test at 5 %\n")
    print("| seeds | arms | log losses | t interval covers | bootstrap covers | false positives |")
    print("| --- | --- | --- | --- | --- | --- |")
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
                covers = _share((low <= 0) & (high >= 0))
                boot = _share((b_low <= 0) & (b_high >= 0))
                wrong = _share(test.pvalue < 0.05)
                print(f"| {seeds} | {arms} | {name} | {covers} | {boot} | {wrong} |", flush=True)


def _share(hits: np.ndarray) -> str:
    return f"{100 * np.mean(hits):.1f} %"


def _crossed(rng: np.random.Generator, studies: int) -> None:
    print(f"\nLosses of overlapping windows, for new seeds and new windows ({studies} studies)\n")
    print("| seeds | windows | horizon | autocorrelation | crossed interval | t of seeds alone |")
    print("| --- | --- | --- | --- | --- | --- |")
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
            print(
                f"| {seeds} | {windows} | {horizon} | {rho} | {_share(np.array(covered))} |"
                f" {_share(np.array(alone))} |",
                flush=True,
            )


def _over_time(rng: np.random.Generator, studies: int) -> None:
    print(f"\nDiebold–Mariano between two equal forecasts: rejected at 5 % ({studies} studies)\n")
    print("| settings | windows | horizon | loss differences of steps | rejected | independent |")
    print("| --- | --- | --- | --- | --- | --- |")
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
            print(
                f"| {group} | {windows} | {horizon} | {name} | {_share(np.array(wrong))} |"
                f" {_share(np.array(naive))} |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20000, help="simulated studies per line")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    fewer = max(500, options.studies // 5)
    errors = [100 * math.sqrt(0.05 * 0.95 / n) for n in (options.studies, fewer)]
    print(f"Standard error of a 5 % figure: {errors[0]:.2f} and, over windows, {errors[1]:.2f}\n")
    _paired_seeds(rng, options.studies)
    _over_time(rng, fewer)
    _crossed(rng, max(500, options.studies // 20))


if __name__ == "__main__":
    main()
