"""Laws of simulated losses whose truth is known, for `benchmarks.coverage` and the tests."""

import math
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter

TRUTH = -0.03  # mean log-ratio: 3 % lower loss
#: Draws an array of a shape.
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


#: Laws of an arm's log losses.
LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(4, shape),  # now and then a bad seed
    "skewed": lambda rng, shape: rng.exponential(1, shape),  # few seeds are bad, but by far
    # One seed in ten ends in another basin.
    "two basins": lambda rng, shape: (rng.random(shape) < 0.1) + rng.normal(0, 0.1, shape),
    "bounded": lambda rng, shape: rng.random(shape),  # the lightest tails that are plausible
}


def difference(law: Draw) -> Draw:
    """Of two arms whose losses have one law: exchangeable, so symmetric about 0."""
    return lambda rng, shape: 0.02 * (law(rng, shape) - law(rng, shape))


def unequal_spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two log-normal arms of equal mean, one twice as variable."""
    a, b = rng.lognormal(0, 0.5, shape), rng.lognormal(0, 0.25, shape)
    return 0.02 * (a - math.exp(0.125) - (b - math.exp(0.03125)))


#: Differences of exchangeable arms, by the law of an arm's log losses.
NULLS: dict[str, Draw] = {name: difference(law) for name, law in LAWS.items()}
#: Differences of mean 0 that are not symmetric; the last is as skewed as it gets.
STRESS: dict[str, Draw] = {
    "one arm twice as variable": unequal_spread,
    "one arm log-normal, the other constant": lambda rng, shape: (
        0.02 * (rng.lognormal(0, 0.5, shape) - math.exp(0.125))
    ),
    "one arm exponential, the other constant": lambda rng, shape: (
        0.02 * (rng.exponential(1, shape) - 1)
    ),
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
    """Means of this many shocks."""
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


def crossed_losses(
    rng: np.random.Generator, *, seeds: int, windows: int, rho: float, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """(S, W) losses of two arms whose log-ratio is `TRUTH`, with storms: log-normal.

    They differ by seed, by times that an arm's seeds share, and by the rest.
    """
    law = _law(autoregressive, rho=rho)
    drawn = [losses(rng, rows, (windows, horizon, "", law)) for rows in (1, 1, 1, seeds, seeds)]
    storm, by_a, by_b, rest_a, rest_b = (x / x.std() for x in drawn)
    a, b = (
        rng.normal(0, 0.02, (seeds, 1)) + 0.8 * storm + 0.2 * time + 0.2 * rest
        for time, rest in ((by_a, rest_a), (by_b, rest_b))
    )
    return np.exp(TRUTH + a), np.exp(b)
