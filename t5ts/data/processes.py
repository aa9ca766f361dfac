"""Seeded random processes for the standing controls: what is learnt from one draw helps on another.

A donor is trained on a long draw of a process and put to the test on a short one with another
seed: pretraining must help there, or the instrument cannot see it. White noise is the process in
which nothing can be learnt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def generate(kind: str, *, num_rows: int, noise_std: float, seed: int) -> np.ndarray:
    """One draw of a process, (T,) float32, of standard deviation near 1, plus white noise.

    Args:
        kind: A key of `PROCESSES`.
        num_rows: T.
        noise_std: Standard deviation of the observation noise.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    signal_T = PROCESSES[kind](num_rows, rng)
    return (signal_T + noise_std * rng.standard_normal(num_rows)).astype(np.float32)


def _drifting_sine(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """A sine whose period wanders between 8 and 64 rows, as a reflected random walk of its log."""
    low, high = np.log(8.0), np.log(64.0)
    walk_T = rng.uniform(low, high) + np.cumsum(0.03 * rng.standard_normal(num_rows))
    folded_T = np.abs((walk_T - low) % (2 * (high - low)) - (high - low))  # reflected at both ends
    phase_T = 2 * np.pi * np.cumsum(np.exp(-(low + folded_T)))
    return np.sqrt(2) * np.sin(phase_T)


def _chirps(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Sweeps of 200 to 600 rows, each from one random period (8 to 64 rows) to another."""
    phases = []
    phase, done = 0.0, 0
    while done < num_rows:
        length = int(rng.integers(200, 601))
        first, last = np.exp(-rng.uniform(np.log(8.0), np.log(64.0), size=2))
        phases.append(phase + 2 * np.pi * np.cumsum(np.linspace(first, last, length)))
        phase, done = phases[-1][-1], done + length
    return np.sqrt(2) * np.sin(np.concatenate(phases)[:num_rows])


def _switching_ar(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """AR(2) with one of six resonances (periods 6 to 48 rows), 150 rows each on average."""
    radius, periods = 0.985, np.geomspace(6.0, 48.0, 6)
    switches_T = rng.random(num_rows) < 1 / 150
    regimes_T = rng.integers(0, len(periods), num_rows)
    noise_T = rng.standard_normal(num_rows)
    values_T = np.zeros(num_rows)
    regime = regimes_T[0]
    for t in range(2, num_rows):
        regime = regimes_T[t] if switches_T[t] else regime
        angle = 2 * np.pi / periods[regime]
        drive = noise_T[t] * np.sqrt(_innovation_variance(radius, angle))
        values_T[t] = 2 * radius * np.cos(angle) * values_T[t - 1]
        values_T[t] += -(radius**2) * values_T[t - 2] + drive
    return values_T


def _innovation_variance(radius: float, angle: float) -> float:
    """Of the innovations of an AR(2) with this pole and variance 1 (Box & Jenkins, eq. 3.2.28)."""
    a1, a2 = 2 * radius * np.cos(angle), -(radius**2)
    return float((1 + a2) * ((1 - a2) ** 2 - a1**2) / (1 - a2))


def _white_noise(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """White noise: nothing to learn."""
    return rng.standard_normal(num_rows)


PROCESSES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "drifting_sine": _drifting_sine,
    "chirps": _chirps,
    "switching_ar": _switching_ar,
    "white_noise": _white_noise,
}
