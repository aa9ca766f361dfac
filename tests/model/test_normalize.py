"""Instance normalisation: inverse, invariance, the floor, and NaN."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.model.normalize import MIN_STD, InstanceNorm, VisibleInstanceNorm


def test_statistics_are_each_windows_and_channels_own():
    x = torch.randn(4, 3, 20, dtype=torch.float64) * 5 + 2
    normed, mean, divisor = InstanceNorm()(x)
    torch.testing.assert_close(mean, x.mean(-1, keepdim=True))
    torch.testing.assert_close(divisor, x.std(-1, keepdim=True, correction=0))
    torch.testing.assert_close(normed, (x - mean) / divisor)
    wave = torch.tensor([1.0, -1.0] * 8)[None, None]  # std 1
    for std in (0.5 * MIN_STD, 2.0 * MIN_STD):  # at the floor and above it
        assert InstanceNorm()(wave * std)[2].item() == pytest.approx(max(std, MIN_STD), rel=1e-5)


@settings(max_examples=20)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_inverse_returns_any_context(values, level):
    x = torch.tensor(values, dtype=torch.float64)[None, None] + level
    norm = InstanceNorm()
    normed, mean, divisor = norm(x)
    assert normed.isfinite().all()
    torch.testing.assert_close(norm.invert(normed, mean, divisor), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", [0.0, 0.1, -1e6, 123456.789])
def test_constant_window_becomes_zeros_and_returns_to_its_level(level):
    x = torch.full((1, 1, 96), level)  # float32, where a naive mean would be off by its rounding
    norm = InstanceNorm()
    normed, mean, divisor = norm(x)
    assert torch.equal(normed, torch.zeros_like(x))
    assert divisor.item() == pytest.approx(MIN_STD)
    forecast = norm.invert(torch.full((1, 1, 4), 1.0), mean, divisor)
    torch.testing.assert_close(forecast, torch.full((1, 1, 4), level), rtol=1e-6, atol=2 * MIN_STD)


def test_nan_spreads_to_its_own_window_and_channel_only():
    x = torch.randn(2, 2, 8)
    x[0, 1, 3] = math.nan
    norm = InstanceNorm()
    normed, mean, divisor = norm(x)
    forecast = norm.invert(torch.zeros(2, 2, 3), mean, divisor)
    for result in (normed, forecast):
        expected = torch.zeros(result.shape, dtype=torch.bool)
        expected[0, 1] = True
        assert torch.equal(result.isnan(), expected)


def test_half_precision_context_is_normalised_in_float32():
    normed, mean, divisor = InstanceNorm()(torch.randn(1, 1, 8).half() + 1000)
    assert {normed.dtype, mean.dtype, divisor.dtype} == {torch.float32}
    assert InstanceNorm().invert(torch.zeros(1, 1, 2).half(), mean, divisor).dtype == torch.float32


# ------------------------------------------------------------------------- hidden steps (NaN)


def hidden_windows() -> torch.Tensor:
    x = torch.randn(6, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * 5 + 2
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = math.nan
    x[0, 1] = math.nan  # nothing visible
    x[1, 2, 1:] = math.nan  # one step visible
    return x


def test_visible_statistics_against_numpy():
    x = hidden_windows()
    normed, mean, divisor = VisibleInstanceNorm()(x)
    for b, c in np.ndindex(6, 3):
        seen = x[b, c][~x[b, c].isnan()].numpy()
        expected = (seen.mean(), max(seen.std(), MIN_STD)) if len(seen) else (0.0, 1.0)
        assert (mean[b, c].item(), divisor[b, c].item()) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(normed, (x - mean) / divisor, equal_nan=True)
    assert torch.equal(normed.isnan(), x.isnan())


def test_a_window_that_is_constant_where_visible_becomes_zeros():
    x = torch.full((1, 1, 20), 123456.789)
    x[..., 15:] = math.nan
    normed, _, divisor = VisibleInstanceNorm()(x)
    assert torch.equal(normed[..., :15], torch.zeros(1, 1, 15))
    assert divisor.item() == pytest.approx(MIN_STD)
