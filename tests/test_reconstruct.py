"""Reconstruction: what is hidden stays hidden, and masked points alone are scored."""

import math

import numpy as np
import pytest
import torch

from t5ts.model.architecture import T5Architecture
from t5ts.model.encoders import NoEncoder
from t5ts.model.forecaster import Forecaster, build_forecaster
from t5ts.model.t5_encoder import T5Encoder
from t5ts.reconstruct import Reconstruct
from t5ts.spans import draw_masks

L, C = 32, 3
TASK = Reconstruct(seq_len=L, ratio=0.3, min_len=2, max_len=6, mask="token", seed=5)
INDEX = torch.arange(10, 22)


def windows(seed: int = 0, gaps: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    window = torch.randn(len(INDEX), C, L, generator=generator).cumsum(-1)
    window[torch.rand(window.shape, generator=generator) < gaps] = math.nan
    return window


def expected_mask(epoch: int | None, seed: int) -> np.ndarray:
    """(B, 1, L), as the spans' own function draws it."""
    shape = {"seq_len": L, "ratio": 0.3, "min_len": 2, "max_len": 6}
    return draw_masks(INDEX.numpy(), seed=seed, epoch=epoch, **shape)[:, None]


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_batch_hides_the_masked_steps_and_asks_for_nothing_else(epoch: int) -> None:
    window = windows()
    batch = TASK.batch(window, INDEX, epoch)
    mask = np.broadcast_to(expected_mask(epoch, TASK.seed), window.shape)
    np.testing.assert_array_equal(batch.inputs_BCL, np.where(mask, np.nan, window))
    np.testing.assert_array_equal(batch.target_BCH, np.where(mask, window, np.nan))
    assert int(batch.num_scored) == mask.sum() == len(INDEX) * C * TASK.num_masked


def test_validation_masks_are_the_same_for_every_seed_and_change_in_training_alone() -> None:
    window = windows()
    other = Reconstruct(seq_len=L, ratio=0.3, min_len=2, max_len=6, mask="value", seed=6)
    fixed = [task.batch(window, INDEX).inputs_BCL for task in (TASK, TASK, other)]
    assert all(torch.equal(fixed[0].isnan(), inputs.isnan()) for inputs in fixed)
    trained = [task.batch(window, INDEX, e).inputs_BCL for task in (TASK, other) for e in (0, 1)]
    assert len({str(inputs.isnan().tolist()) for inputs in [fixed[0], *trained]}) == 5


@pytest.mark.parametrize("gaps", [0.0, 0.5, 0.97])
def test_baselines_against_numpy(gaps: float) -> None:
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


def test_loss_is_of_masked_and_observed_points_alone() -> None:
    window = windows(gaps=0.2)
    batch = TASK.batch(window, INDEX, epoch=1)
    prediction = torch.randn(window.shape)
    error = (prediction - window).double().numpy()
    is_scored = expected_mask(1, TASK.seed) & ~np.isnan(window.numpy())
    assert TASK.loss(prediction, batch).item() == pytest.approx(
        (error[is_scored] ** 2).mean(), rel=1e-6
    )


# ---------------------------------------------------------------------------------- no leak


def model(mask: str, *, encoder: bool = True, **changes) -> Forecaster:
    arch = T5Architecture(d_model=16, d_ff=24, d_kv=4, num_layers=2, num_heads=2)
    t5 = T5Encoder(arch, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in t5.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    arguments = {
        "num_channels": C,
        "seq_len": L,
        "output_len": L,
        "patch_len": 8,
        "stride": None,
        "channels": "independent",
        "norm": encoder,
        "scale": "none",
        "embedding_rms": None,
        "normalize": "instance",
        "patch_generator": generator,
        "head_generator": generator,
    }
    built = build_forecaster(
        encoder=t5 if encoder else NoEncoder(), hidden=mask, **(arguments | changes)
    )
    return built.eval()


@pytest.mark.parametrize("normalize", ["instance", "none"])
@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("mask", ["token", "value", "value without encoder", "token per patch"])
def test_masked_values_cannot_reach_the_prediction(mask, stride, channels, normalize) -> None:
    """Whatever stands at the masked steps: prediction, baselines and statistics stay the same."""
    word, encoder = mask.split()[0], "without" not in mask
    changes = {"stride": stride, "channels": channels, "normalize": normalize}
    if "per patch" in mask:
        changes |= {"head": "per_patch", "stride": None, "patch_len": 8 if stride is None else 5}
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
def test_masked_values_cannot_reach_the_gradient_but_by_the_target(mask: str) -> None:
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


def test_the_mask_token_learns_and_tells_what_is_hidden() -> None:
    forecaster = model("token")
    batch = TASK.batch(windows(), INDEX)
    TASK.loss(forecaster(batch.inputs_BCL), batch).backward()
    token = forecaster.patch.mask_token
    assert token is not None
    assert token.grad is not None
    assert bool((token.grad != 0).any(dim=1).all())  # every place of a patch
    # A value at the visible mean is not taken for a hidden one; with `value` it is.
    flat = torch.zeros(1, 1, L).repeat(1, C, 1)
    flat[..., 0], flat[..., 1] = 1.0, -1.0
    hidden = flat.clone()
    hidden[..., 12:16] = math.nan
    for mask, differs in (("token", True), ("value", False)):
        patch = model(mask).patch
        assert torch.equal(patch(flat), patch(hidden)) != differs
