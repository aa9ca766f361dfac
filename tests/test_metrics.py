"""Metrics against numpy and scipy, and their invariances."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from t5ts.metrics import RegressionSums


def sample(seed: int = 0, windows: int = 37, channels: int = 3, horizon: int = 5):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(windows, channels, horizon, generator=generator)
    prediction = 0.4 * truth + torch.randn(windows, channels, horizon, generator=generator)
    last = torch.randn(windows, channels, 1, generator=generator).expand_as(truth)
    return prediction, truth, last


def computed(prediction, truth, last, size=1000, **given_):
    sums = RegressionSums(truth.shape[1])
    for part in torch.arange(len(truth)).split(size):
        sums.update(prediction[part], truth[part], last[part])
    return sums.compute(**given_)


def gappy_sample():
    prediction, truth, last = sample()
    holes = torch.rand(truth.shape, generator=torch.Generator().manual_seed(9)) < 0.3
    truth[holes] = math.nan
    truth[[3, 8]] = math.nan  # windows without any target
    truth[5, 1] = math.nan  # and one without a target in one channel
    return prediction, truth, last


@pytest.mark.parametrize("make", [sample, gappy_sample])
def test_against_numpy_and_scipy(make):
    prediction, truth, last = make()
    denominator = torch.tensor([0.5, 2.0, 1.0])
    got = computed(prediction, truth, last, mase_denominator_C=denominator, naive_mse=3.0)
    p, y, x = prediction.double().numpy(), truth.double().numpy(), last.double().numpy()
    mse = np.nanmean((p - y) ** 2)
    assert got["loss"] == pytest.approx(mse, rel=1e-12)
    assert got["skill"] == pytest.approx(1 - mse / 3.0, rel=1e-12)
    assert got["mae"] == pytest.approx(np.nanmean(np.abs(p - y)), rel=1e-12)
    mae_c = np.nanmean(np.abs(p - y), axis=(0, 2))
    assert got["mase"] == pytest.approx((mae_c / denominator.numpy()).mean(), rel=1e-12)
    for name, shift in (("corr", 0 * x), ("corr_delta", x)):
        seen = [~np.isnan(y[:, c]) for c in range(3)]
        r = [pearsonr((p - shift)[:, c][seen[c]], (y - shift)[:, c][seen[c]])[0] for c in range(3)]
        assert got[name] == pytest.approx(np.mean(r), rel=1e-10)
    assert got["windows_without_target"] == np.isnan(y).all(axis=2).sum()


@pytest.mark.parametrize("make", [sample, gappy_sample])
@pytest.mark.parametrize("size", [1, 7, 36])
def test_batch_size_does_not_matter(size, make):
    data = make()
    assert computed(*data, size=size) == pytest.approx(computed(*data), rel=1e-10)


def test_constant_channels_are_left_out_and_counted():
    prediction, truth, last = sample()
    truth[:, 1] = 0.11  # in batches of 7 rounding leaves it a variance of 4e-16
    got = computed(prediction, truth, last, size=7)
    p, y = prediction.numpy(), truth.numpy()
    r = np.mean([pearsonr(p[:, c].ravel(), y[:, c].ravel())[0] for c in (0, 2)])
    assert got["corr"] == pytest.approx(r, rel=1e-5)
    assert (got["corr_constant_channels"], got["corr_delta_constant_channels"]) == (1, 0)
    got = computed(torch.full_like(truth, 0.3), truth, last)
    assert math.isnan(got["corr"])
    assert got["corr_constant_channels"] == 3


def test_a_nan_prediction_is_not_hidden():
    prediction, truth, last = sample()
    prediction[3, 1, 2] = math.nan
    assert math.isnan(computed(prediction, truth, last)["loss"])


def test_channels_without_a_mase_denominator_are_left_out():
    prediction, truth, last = sample()
    got = computed(prediction, truth, last, mase_denominator_C=torch.tensor([0.0, 2.0, math.nan]))
    mae = (prediction - truth)[:, 1].double().abs().mean()
    assert got["mase"] == pytest.approx(float(mae) / 2)


def test_a_channel_without_any_target_is_left_out():
    prediction, truth, last = sample()
    truth[:, 1] = math.nan
    got = computed(prediction, truth, last, mase_denominator_C=torch.ones(3))
    keep = [0, 2]
    expected = computed(
        prediction[:, keep], truth[:, keep], last[:, keep], mase_denominator_C=torch.ones(2)
    )
    for name in ("loss", "mae", "mase", "corr", "corr_delta"):
        assert got[name] == pytest.approx(expected[name], rel=1e-12)
    assert got["corr_constant_channels"] == 1
    assert got["windows_without_target"] == len(truth)


def test_nothing_to_score_is_nan_and_no_error():
    prediction, truth, last = sample()
    got = computed(prediction, torch.full_like(truth, math.nan), last, naive_mse=1.0)
    assert math.isnan(got["loss"])
    assert math.isnan(got["corr"])
    assert math.isnan(got["skill"])
    assert math.isnan(computed(prediction, truth, last, naive_mse=0.0)["skill"])


def test_mps_has_no_float64_and_sums_on_the_cpu():
    prediction, truth, last = gappy_sample()
    sums = RegressionSums(truth.shape[1], device="mps")
    sums.update(prediction, truth, last)
    assert sums.compute() == computed(prediction, truth, last)


def test_small_errors_are_exact():
    """e² as a difference of p², py and y² would be off by 1e-4 here."""
    _, truth, last = sample()
    prediction = (1000 + truth.double()) + 1e-7
    got = computed(prediction, 1000 + truth.double(), last)
    assert got["loss"] == pytest.approx(1e-14, rel=1e-5)


def test_small_operations_of_evaluation_have_one_thread(monkeypatch):
    """Next to a busy process two threads made an update of 2 ms one of 210 ms."""
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    sums = RegressionSums(3)
    sums.update(*sample())
    with pytest.raises(RuntimeError):
        sums.update(*sample(channels=5))
    assert threads == [1, 2, 1, 2]
