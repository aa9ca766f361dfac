"""How often two arms that are the same are told apart, on real runs: the A/A test of the report.

python -m benchmarks.same_arms DIR [--seeds 5] [--studies 2000]

DIR holds runs of one arm with many seeds. Seeds drawn from them are dealt to two arms and paired at
random, so no difference between the arms exists, while the losses are those of real training runs.
The studies share runs: their mean is the rate, and its error is larger than of so many independent
studies.
"""

import argparse
from pathlib import Path

import numpy as np

import t5ts
from t5ts.analysis.statistics import log_ratio


def main() -> None:
    """Deal the seeds again and again, and print how often an interval excludes 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="pairs in a study")
    parser.add_argument("--studies", type=int, default=2000)
    options = parser.parse_args()
    runs = t5ts.results([options.directory])
    (arm,) = runs["arm"].unique()
    losses = runs["test_loss"].to_numpy()
    if len(losses) < 2 * options.seeds:
        parser.error(f"{len(losses)} runs; {2 * options.seeds} are needed for a study")
    rng = np.random.default_rng(0)
    signs, halves = [], []
    for _ in range(options.studies):
        dealt = rng.permutation(losses)[: 2 * options.seeds].reshape(2, -1)
        estimate = log_ratio(*dealt)
        signs.append(estimate.excludes_zero())
        halves.append((estimate.high - estimate.low) / 2)
    spread = np.log(losses).std(ddof=1)
    print(
        f"{arm}: {len(losses)} runs, log test loss sd {spread:.4f}; {options.seeds} pairs a study"
    )
    print(
        f"interval excludes 0 in {np.mean(signs):.1%} of {options.studies} studies (5 % intended)"
    )
    print(f"half-width of the interval, median: {np.median(halves):.2%}")


if __name__ == "__main__":
    main()
