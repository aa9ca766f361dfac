"""The hash is SplitMix64, and its stream is uniform."""

import numpy as np

from t5ts.draws import mix, uniform, words


def test_the_stream_is_splitmix64s() -> None:
    """First outputs from the seed 1234567, as in other implementations."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    assert [int(mix(words(1234567 + i * golden))[0]) for i in range(3)] == expected
    bits = np.array(expected, dtype=np.uint64) >> np.uint64(11)
    assert (uniform(words(1234567), 3)[0] == bits * 2.0**-53).all()


def test_windows_have_streams_of_their_own() -> None:
    draws = uniform(mix(np.arange(2000, dtype=np.uint64)), 50)
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(np.unique(draws)) == draws.size
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / draws.size)
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
