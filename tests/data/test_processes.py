"""The controls' processes: seeded, of unit variance, and learnable or not as they claim."""

import numpy as np
import pytest

from t5ts.data.processes import PROCESSES, generate
from t5ts.data.sources import load_process

LEARNABLE = sorted(PROCESSES.keys() - {"white_noise"})


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_draw_follows_from_its_seed_and_has_unit_variance(kind):
    draw = generate(kind, num_rows=20_000, noise_std=0.0, seed=1)
    assert np.array_equal(draw, generate(kind, num_rows=20_000, noise_std=0.0, seed=1))
    assert draw.std() == pytest.approx(1, abs=0.35)
    other = generate(kind, num_rows=20_000, noise_std=0.0, seed=2)
    assert abs(np.corrcoef(draw, other)[0, 1]) < 0.05  # a donor's draw gives nothing away
    noisy = generate(kind, num_rows=20_000, noise_std=0.5, seed=1)
    assert (noisy - draw).std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_last_rows_predict_the_next_unless_it_is_noise(kind):
    """Ordinary least squares on 32 rows as the judge."""
    draw = generate(kind, num_rows=20_000, noise_std=0.0, seed=3).astype(float)
    windows = np.lib.stride_tricks.sliding_window_view(draw, 33)
    past, following = windows[:, :32], windows[:, 32]
    train, test = slice(0, 15_000), slice(15_100, None)
    weights, *_ = np.linalg.lstsq(past[train], following[train], rcond=None)
    error = np.mean((past[test] @ weights - following[test]) ** 2) / following[test].var()
    assert (error < 0.3) == (kind in LEARNABLE)


def test_resonances_of_the_switching_autoregression_are_where_they_should_be():
    draw = generate("switching_ar", num_rows=60_000, noise_std=0.0, seed=0)
    power = np.abs(np.fft.rfft(draw)) ** 2
    periods = 1 / np.fft.rfftfreq(len(draw))[1:]
    inside = power[1:][(periods > 5) & (periods < 58)].sum() / power[1:].sum()
    assert inside > 0.8


def test_loader_gives_one_channel_and_the_wanted_splits():
    series = load_process(
        kind="chirps", num_rows=1000, noise_std=0.1, seed=0, splits=[0.5, 0.25, 0.25]
    )
    assert series.values_TC.shape == (1000, 1)
    assert series.borders == (500, 750, 1000)
    assert series.name == "chirps"
