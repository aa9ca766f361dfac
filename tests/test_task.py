"""A window is cut where it should be, and the baselines are what their names say."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from t5ts.task import Forecast

TASK = Forecast(seq_len=6, horizon=5)
WINDOW = torch.arange(2 * 3 * 11, dtype=torch.float32).reshape(2, 3, 11)


def test_batch_splits_a_window() -> None:
    batch = TASK.batch(WINDOW)
    assert torch.equal(torch.cat([batch.inputs_BCL, batch.target_BCH], -1), WINDOW)
    assert torch.equal(TASK.last_value(batch), WINDOW[..., 5:6].expand(2, 3, 5))
    assert int(batch.num_scored) == 2 * 3 * 5


def test_baselines() -> None:
    batch = TASK.batch(WINDOW)
    got = TASK.baselines(batch, season=2)
    # Steps 6, 7, 8 … repeat steps 4, 5, 4 …
    assert torch.equal(got["seasonal_naive"], WINDOW[..., [4, 5, 4, 5, 4]])
    assert torch.equal(got["last_value"], WINDOW[..., 5:6].expand(2, 3, 5))
    assert torch.equal(got["mean"], torch.zeros(2, 3, 5))


def test_seasonal_naive_of_season_one_is_the_last_value() -> None:
    got = TASK.baselines(TASK.batch(WINDOW), season=1)
    assert torch.equal(got["seasonal_naive"], got["last_value"])


@pytest.mark.parametrize(("season", "used"), [(1, 1), (6, 6), (7, 1)])
def test_a_season_beyond_the_context_falls_back_to_the_last_value(season, used) -> None:
    assert TASK.baseline_season(season) == used


def test_loss_is_the_mean_square_per_element() -> None:
    batch = TASK.batch(WINDOW)
    assert float(TASK.loss(batch.target_BCH + 2, batch)) == pytest.approx(4.0)


@pytest.mark.parametrize("windows", [37, 61, 64])
def test_without_gaps_the_loss_is_torchs_own_bit_for_bit(windows: int) -> None:
    """61 · 3 · 5 is one of the counts whose reciprocal in float32 is off."""
    generator = torch.Generator().manual_seed(0)
    batch = TASK.batch(torch.randn(windows, 3, 11, generator=generator))
    prediction = torch.randn(windows, 3, 5, generator=generator, requires_grad=True)
    expected, got = mse_loss(prediction, batch.target_BCH), TASK.loss(prediction, batch)
    assert torch.equal(expected, got)
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (expected, got)]
    assert torch.equal(*gradients)


# ---------------------------------------------------------------- gaps (data.missing=mask)


def gappy(seed: int = 0, windows: int = 40, share: float = 0.4) -> torch.Tensor:
    """Windows with gaps, among them one that is empty and one whose context is."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.randn(windows, 3, 11, generator=generator)
    window[torch.rand(window.shape, generator=generator) < share] = math.nan
    window[0] = math.nan
    window[1, :, :6] = math.nan
    return window


def test_loss_and_gradient_are_of_observed_targets_alone() -> None:
    batch = TASK.batch(gappy())
    prediction = torch.randn(batch.target_BCH.shape, requires_grad=True)
    loss = TASK.loss(prediction, batch)
    p, y = prediction.detach().double().numpy(), batch.target_BCH.double().numpy()
    assert loss.item() == pytest.approx(np.nanmean((p - y) ** 2), rel=1e-6)
    loss.backward()
    expected = np.nan_to_num(2 * (p - y)) / np.isfinite(y).sum()
    np.testing.assert_allclose(prediction.grad, expected, rtol=1e-5, atol=1e-9)


def test_a_batch_without_a_target_costs_nothing() -> None:
    batch = TASK.batch(torch.full((4, 3, 11), math.nan))
    prediction = torch.randn(4, 3, 5, requires_grad=True)
    loss = TASK.loss(prediction, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros(4, 3, 5))


def test_a_nan_prediction_of_an_observed_target_is_not_hidden() -> None:
    batch = TASK.batch(gappy())
    prediction = torch.where(batch.scored_BCH, math.nan, torch.zeros(()))
    assert math.isnan(TASK.loss(prediction, batch))


@pytest.mark.parametrize("season", [1, 2, 3, 6])
def test_baselines_look_back_over_gaps(season: int) -> None:
    """Against a loop in numpy: the same place in earlier seasons, then the last value, then 0."""
    window = gappy()
    batch = TASK.batch(window)
    got = TASK.baselines(batch, season=season)
    for b, c in np.ndindex(window.shape[:2]):
        context = window[b, c, :6].numpy()
        seen = context[~np.isnan(context)]
        last = seen[-1] if len(seen) else 0.0
        for h in range(5):
            places = range(6 - season + h % season, -1, -season)
            earlier = [context[i] for i in places if not np.isnan(context[i])]
            assert got["seasonal_naive"][b, c, h] == (earlier[0] if earlier else last)
            assert got["last_value"][b, c, h] == last
    assert all(bool(baseline.isfinite().all()) for baseline in got.values())
