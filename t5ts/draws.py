"""Random numbers as a pure function of numbers: a hash, so that no generator is read or moved.

What is drawn so is the same in every arm, batch, process and resumed run.

Source: SplitMix64 (Steele et al. 2014).
"""

import numpy as np


def words(value: int) -> np.ndarray:
    """(1,) the number as 64 bits; an array, since numpy warns of a scalar that wraps around."""
    return np.array([value % 2**64], dtype=np.uint64)


def mix(key: np.ndarray) -> np.ndarray:
    """SplitMix64's step: the state moved on, and its bits stirred."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(key_B: np.ndarray, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1): SplitMix64's stream from each key."""
    offset = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(key_B[:, None] + offset) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
