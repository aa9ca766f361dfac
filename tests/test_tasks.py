"""Windows are cut in the right place, hidden steps stay hidden, baselines are correct."""

import math

import numpy as np
import pytest
import torch
from forecasters import build_model, build_t5
from torch.nn.functional import mse_loss

from t5ts.draws import draw_masks
from t5ts.model.architecture import T5Architecture
from t5ts.model.encoders import NoEncoder
from t5ts.model.forecaster import Forecaster
from t5ts.tasks import Forecast, Reconstruct

FORECAST = Forecast(seq_len=6, horizon=5)
WINDOW = torch.arange(2 * 3 * 11, dtype=torch.float32).reshape(2, 3, 11)


def test_forecast_splits_a_window():
    batch = FORECAST.batch(WINDOW)
    assert torch.equal(torch.cat([batch.inputs_BCL, batch.target_BCH], -1), WINDOW)
    assert torch.equal(FORECAST.last_value(batch), WINDOW[..., 5:6].expand(2, 3, 5))
    assert int(batch.num_scored) == 2 * 3 * 5
    assert float(FORECAST.loss(batch.target_BCH + 2, batch)) == pytest.approx(4.0)


@pytest.mark.parametrize(("season", "used"), [(1, 1), (6, 6), (7, 1)])
def test_a_season_beyond_the_context_falls_back_to_the_last_value(season, used):
    assert FORECAST.baseline_season(season) == used
    assert bool(FORECAST.notes(season)) == (season != used)


@pytest.mark.parametrize("windows", [37, 61, 64])
def test_without_gaps_the_loss_is_torchs_own_bit_for_bit(windows):
    """61 · 3 · 5 is one of the counts whose reciprocal in float32 is off."""
    generator = torch.Generator().manual_seed(0)
    batch = FORECAST.batch(torch.randn(windows, 3, 11, generator=generator))
    prediction = torch.randn(windows, 3, 5, generator=generator, requires_grad=True)
    expected, got = mse_loss(prediction, batch.target_BCH), FORECAST.loss(prediction, batch)
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


def test_loss_and_gradient_are_of_observed_targets_alone():
    batch = FORECAST.batch(gappy())
    prediction = torch.randn(batch.target_BCH.shape, requires_grad=True)
    loss = FORECAST.loss(prediction, batch)
    p, y = prediction.detach().double().numpy(), batch.target_BCH.double().numpy()
    assert loss.item() == pytest.approx(np.nanmean((p - y) ** 2), rel=1e-6)
    loss.backward()
    expected = np.nan_to_num(2 * (p - y)) / np.isfinite(y).sum()
    np.testing.assert_allclose(prediction.grad, expected, rtol=1e-5, atol=1e-9)
    # A NaN prediction of an observed target is not hidden.
    assert math.isnan(FORECAST.loss(torch.where(batch.scored_BCH, math.nan, 0.0), batch))


def test_a_batch_without_a_target_costs_nothing():
    batch = FORECAST.batch(torch.full((4, 3, 11), math.nan))
    prediction = torch.randn(4, 3, 5, requires_grad=True)
    loss = FORECAST.loss(prediction, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros(4, 3, 5))


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("season", [1, 2, 3, 6])
def test_forecast_baselines_look_back_over_gaps(season, share):
    """Against a loop in numpy: the same place in earlier seasons, then the last value, then 0."""
    window = gappy(share=share)
    batch = FORECAST.batch(window)
    got = FORECAST.baselines(batch, season=season)
    for b, c in np.ndindex(window.shape[:2]):
        context = window[b, c, :6].numpy()
        seen = context[~np.isnan(context)]
        last = seen[-1] if len(seen) else 0.0
        for h in range(5):
            places = range(6 - season + h % season, -1, -season)
            earlier = [context[i] for i in places if not np.isnan(context[i])]
            assert got["seasonal_naive"][b, c, h] == (earlier[0] if earlier else last)
            assert got["last_value"][b, c, h] == last
    assert torch.equal(got["mean"], torch.zeros(len(window), 3, 5))


# --------------------------------------------------------------------------- reconstruction

L, C = 32, 3
SPANS = {"seq_len": L, "ratio": 0.3, "min_len": 2, "max_len": 6}
TASK = Reconstruct(mask="token", seed=5, **SPANS)
INDEX = torch.arange(10, 22)
ARCH = T5Architecture(d_model=16, d_ff=24, d_kv=4, num_layers=2, num_heads=2)


def windows(seed: int = 0, gaps: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    window = torch.randn(len(INDEX), C, L, generator=generator).cumsum(-1)
    window[torch.rand(window.shape, generator=generator) < gaps] = math.nan
    return window


def expected_mask(epoch: int | None, seed: int) -> np.ndarray:
    """(B, 1, L), as `draw_masks` draws it."""
    return draw_masks(INDEX.numpy(), seed=seed, epoch=epoch, **SPANS)[:, None]


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_batch_hides_the_masked_steps_and_asks_for_nothing_else(epoch):
    window = windows()
    batch = TASK.batch(window, INDEX, epoch)
    mask = np.broadcast_to(expected_mask(epoch, TASK.seed), window.shape)
    np.testing.assert_array_equal(batch.inputs_BCL, np.where(mask, np.nan, window))
    np.testing.assert_array_equal(batch.target_BCH, np.where(mask, window, np.nan))
    assert int(batch.num_scored) == mask.sum() == len(INDEX) * C * TASK.num_masked


def test_validation_masks_are_the_same_for_every_seed_and_change_in_training_alone():
    window = windows()
    other = Reconstruct(mask="value", seed=6, **SPANS)
    fixed = [task.batch(window, INDEX).inputs_BCL for task in (TASK, TASK, other)]
    assert all(torch.equal(fixed[0].isnan(), inputs.isnan()) for inputs in fixed)
    trained = [task.batch(window, INDEX, e).inputs_BCL for task in (TASK, other) for e in (0, 1)]
    assert len({str(inputs.isnan().tolist()) for inputs in [fixed[0], *trained]}) == 5


@pytest.mark.parametrize("gaps", [0.0, 0.5, 0.97])
def test_reconstruction_baselines_against_numpy(gaps):
    batch = TASK.batch(windows(gaps=gaps), INDEX)
    got = TASK.baselines(batch, season=24)
    assert next(iter(got)) == TASK.naive == "linear_interpolation"
    steps = np.arange(L)
    for b, c in np.ndindex(len(INDEX), C):
        x = batch.inputs_BCL[b, c].double().numpy()
        seen = np.flatnonzero(~np.isnan(x))
        line = np.interp(steps, seen, x[seen]) if len(seen) else np.zeros(L)
        last = [x[max(seen[seen <= t], default=min(seen, default=0))] for t in steps]
        np.testing.assert_allclose(got["linear_interpolation"][b, c], line, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got["last_value"][b, c], np.nan_to_num(last))
    assert torch.equal(got["mean"], torch.zeros_like(batch.target_BCH))
    assert TASK.baseline_season(24) == 1


def model(mask: str, *, encoder: bool = True, **changes) -> Forecaster:
    t5 = build_t5(ARCH, dropout=0.0)
    shape = {"seq_len": L, "output_len": L, "patch_len": 8, "norm": True, "hidden": mask}
    return build_model(t5 if encoder else NoEncoder(), **(shape | changes)).eval()


@pytest.mark.parametrize("normalize", ["instance", "none"])
@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("mask", ["token", "value", "value without encoder", "token per patch"])
def test_masked_values_cannot_reach_the_prediction(mask, stride, channels, normalize):
    """Whatever values the masked steps have, prediction, baselines and statistics stay the same."""
    word, encoder = mask.split()[0], "without" not in mask
    changes = {"stride": stride, "channels": channels, "normalize": normalize}
    if "per patch" in mask:
        changes |= {"per_patch": True, "stride": None, "patch_len": 8 if stride is None else 5}
    forecaster = model(word, encoder=encoder, **changes)
    window = windows()
    is_masked = torch.from_numpy(expected_mask(None, 0))
    batch = TASK.batch(window, INDEX)
    prediction = forecaster(batch.inputs_BCL)
    assert bool(prediction.isfinite().all())
    for wild in (1e6, math.nan, math.inf):
        changed = TASK.batch(torch.where(is_masked, wild, window), INDEX)
        assert torch.equal(forecaster(changed.inputs_BCL), prediction)
        for name, baseline in TASK.baselines(changed, season=1).items():
            assert torch.equal(baseline, TASK.baselines(batch, season=1)[name])
    # … and what is visible does reach it: the test can fail.
    moved = TASK.batch(torch.where(is_masked, window, window * 1.5 + 1), INDEX)
    assert not torch.allclose(forecaster(moved.inputs_BCL), prediction)


@pytest.mark.parametrize("mask", ["token", "value"])
def test_masked_values_cannot_reach_the_gradient_but_by_the_target(mask):
    """With the same errors the same gradient: inputs and statistics carry nothing."""
    forecaster = model(mask)
    gradients = []
    for scale in (1.0, 100.0):
        window = torch.where(torch.from_numpy(expected_mask(0, TASK.seed)), scale, windows())
        batch = TASK.batch(window, INDEX, epoch=0)
        forecaster.zero_grad()
        (forecaster(batch.inputs_BCL) * batch.scored_BCH).sum().backward()
        gradients.append([p.grad.clone() for p in forecaster.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_the_mask_token_learns_and_tells_what_is_hidden():
    forecaster = model("token")
    batch = TASK.batch(windows(), INDEX)
    TASK.loss(forecaster(batch.inputs_BCL), batch).backward()
    token = forecaster.patch.mask_token
    assert bool((token.grad != 0).any(dim=1).all())  # every place of a patch
    # A value at the visible mean is not taken for a hidden one; with `value` it is.
    flat = torch.zeros(1, 1, L).repeat(1, C, 1)
    flat[..., 0], flat[..., 1] = 1.0, -1.0
    hidden = flat.clone()
    hidden[..., 12:16] = math.nan
    for mask, differs in (("token", True), ("value", False)):
        patch = model(mask).patch
        assert torch.equal(patch(flat), patch(hidden)) != differs
