"""How often the report's intervals cover the truth, and how often its tests are wrong.

    python -m benchmarks.coverage [--studies 4000] [--seed 0]

Simulated studies with a known difference between two arms, at 5 and 10 paired seeds, under laws
that a reviewer would ask for. Student's t beside the percentile bootstrap that it replaces; the
crossed interval and Diebold–Mariano on losses of overlapping windows.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter
from scipy.stats import t as student

from t5ts.analysis.statistics import crossed_interval, diebold_mariano, mean_interval

TRUTH = -0.03  # mean log-ratio: 3 % lower loss
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seeds that differ normally."""
    return rng.normal(0, 0.02, n)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    """Student's t with 4 degrees: now and then a bad seed, in either arm."""
    return 0.02 * rng.standard_t(4, n)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Difference of two arms whose losses are log-normal (spread 0.5), one twice as variable."""
    a, b = rng.lognormal(0, 0.5, n), rng.lognormal(0, 0.25, n)
    return 0.02 * (a - math.exp(0.125) - (b - math.exp(0.03125)))


LAWS: dict[str, Draw] = {"normal": normal, "heavy-tailed": heavy, "skewed": skewed}


def window_means(
    rng: np.random.Generator, *, rows: int, windows: int, horizon: int, autocorrelation: float
) -> np.ndarray:
    """(rows, windows) means over `horizon` steps of an AR(1): neighbours share all but one."""
    noise = rng.normal(size=(rows, windows + horizon + 199))
    steps = lfilter([1.0], [1.0, -autocorrelation], noise, axis=1)[:, 199:]  # less the run-in
    total = np.cumsum(steps, axis=1)
    return (total[:, horizon:] - total[:, :-horizon]) / horizon


def crossed_study(
    rng: np.random.Generator, *, seeds: int, windows: int, autocorrelation: float
) -> np.ndarray:
    """(S, W) loss differences with mean 0: of seeds, of times that seeds share, and the rest."""
    law = {"windows": windows, "horizon": 24, "autocorrelation": autocorrelation}
    shared, own = window_means(rng, rows=1, **law), window_means(rng, rows=seeds, **law)
    return rng.normal(0, 0.05, (seeds, 1)) + 0.5 * shared + 0.5 * own


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies per line")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    studies = options.studies
    error = 100 * math.sqrt(0.05 * 0.95 / studies)
    print(f"{studies} studies a line; standard error of a 95 % figure: {error:.1f} points\n")
    print("Mean over paired seeds: coverage of the 95 % interval, and rejections at 5 % when the")
    print("arms are equal\n")
    print("| seeds | law | t interval | percentile bootstrap | false positives of t |")
    print("| --- | --- | --- | --- | --- |")
    for seeds in (5, 10):
        for law, draw in LAWS.items():
            covered = boot = wrong = 0
            for _ in range(studies):
                x = TRUTH + draw(rng, seeds)
                estimate = mean_interval(x)
                covered += estimate.low <= TRUTH <= estimate.high
                wrong += mean_interval(x - TRUTH).p < 0.05
                means = x[rng.integers(0, seeds, (500, seeds))].mean(axis=1)
                low, high = np.quantile(means, [0.025, 0.975])
                boot += low <= TRUTH <= high
            print(
                f"| {seeds} | {law} | {100 * covered / studies:.1f} % |"
                f" {100 * boot / studies:.1f} % | {100 * wrong / studies:.1f} % |"
            )
    print("\nLosses of overlapping windows, horizon 24, for new seeds and new windows\n")
    print("| seeds | windows | autocorrelation of steps | crossed interval | t over seeds alone |")
    print("| --- | --- | --- | --- | --- |")
    fewer = max(500, studies // 4)
    for seeds in (5, 10):
        for windows, rho in ((500, 0.0), (2880, 0.0), (2880, 0.7)):
            covered = naive = 0
            for _ in range(fewer):
                d = crossed_study(rng, seeds=seeds, windows=windows, autocorrelation=rho)
                estimate = crossed_interval(d, horizon=24)
                covered += estimate.low <= 0 <= estimate.high
                alone = mean_interval(d.mean(axis=1))
                naive += alone.low <= 0 <= alone.high
            print(
                f"| {seeds} | {windows} | {rho} | {100 * covered / fewer:.1f} % |"
                f" {100 * naive / fewer:.1f} % |"
            )
    print("\nDiebold–Mariano between two equal forecasts: false positives at 5 %\n")
    print("| windows | autocorrelation of steps | HAC | windows taken as independent |")
    print("| --- | --- | --- | --- |")
    for windows, rho in ((500, 0.0), (2880, 0.0), (2880, 0.7)):
        wrong = naive = 0
        for _ in range(fewer):
            d = window_means(rng, rows=1, windows=windows, horizon=24, autocorrelation=rho)[0]
            wrong += diebold_mariano(d, np.zeros(windows), horizon=24).p < 0.05
            score = abs(d.mean()) / (d.std(ddof=1) / math.sqrt(windows))
            naive += 2 * student.sf(score, windows - 1) < 0.05
        print(f"| {windows} | {rho} | {100 * wrong / fewer:.1f} % | {100 * naive / fewer:.1f} % |")


if __name__ == "__main__":
    main()
