"""The best achievable loss is what an oracle reaches, and nobody passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t5ts.data.sources import load_synthetic
from t5ts.data.synthetic import best_forecast_mse, generate
from t5ts.data.windows import build_windows
from t5ts.errors import DataError


def test_white_noise_autoregression_and_walk_have_closed_forms():
    white = best_forecast_mse(ar=[], noise_std=0.5, walk_std=0.0, horizon=8)
    assert white == pytest.approx(0.25)
    ar1 = best_forecast_mse(ar=[0.8], noise_std=0.5, walk_std=0.0, horizon=3)
    assert ar1 == pytest.approx(0.25 * np.mean([1, 1 + 0.64, 1 + 0.64 + 0.4096]))
    walk = best_forecast_mse(ar=[0.8], noise_std=0.0, walk_std=2.0, horizon=3)
    assert walk == pytest.approx(4 * 2)
    assert best_forecast_mse(ar=[0.8], noise_std=0.0, walk_std=0.0, horizon=3) == 0


def test_ar2_uses_the_psi_weights():
    psi = [1.0, 0.6]
    for _ in range(6):
        psi.append(0.6 * psi[-1] - 0.3 * psi[-2])
    expected = np.mean([sum(w**2 for w in psi[:h]) for h in range(1, 9)])
    found = best_forecast_mse(ar=[0.6, -0.3], noise_std=1.0, walk_std=0.0, horizon=8)
    assert found == pytest.approx(expected)


def test_local_level_model_has_its_closed_form():
    """White noise on a random walk: Muth 1960's steady state."""
    q, r = 0.3**2, 0.7**2
    p = (q + np.sqrt(q**2 + 4 * q * r)) / 2  # variance of the predicted level
    found = best_forecast_mse(ar=[], noise_std=0.7, walk_std=0.3, horizon=4)
    assert found == pytest.approx(p + r + q * np.mean([0, 1, 2, 3]))


def oracle_mse(values_T, ar, noise_std, walk_std, horizon, skip=500):
    """Runs the time-varying Kalman filter of u + w over a series and scores every forecast."""
    order = max(1, len(ar))
    F = np.zeros((order + 1, order + 1))
    F[0, : len(ar)] = ar
    F[np.arange(1, order), np.arange(order - 1)] = 1
    F[-1, -1] = 1
    Q = np.diag([noise_std**2, *[0.0] * (order - 1), walk_std**2])
    h = np.array([1.0, *[0.0] * (order - 1), 1.0])
    ahead = np.stack([h @ np.linalg.matrix_power(F, j) for j in range(1, horizon + 1)])
    x, P, errors = np.zeros(order + 1), 100 * np.eye(order + 1), []
    for t, y in enumerate(values_T[:-horizon]):
        K = P @ h / (h @ P @ h)
        x, P = x + K * (y - h @ x), P - np.outer(K, h @ P)
        if t >= skip:
            errors.append((values_T[t + 1 : t + 1 + horizon] - ahead @ x) ** 2)
        x, P = F @ x, F @ P @ F.T + Q
    return float(np.mean(errors))


@pytest.mark.parametrize(("ar", "noise_std", "walk_std"), [([0.5, 0.3], 0.4, 0.1), ([], 0.5, 0.2)])
def test_the_oracle_reaches_it_on_simulated_series(ar, noise_std, walk_std):
    horizon = 8
    process = {"ar": ar, "noise_std": noise_std, "walk_std": walk_std}
    sizes = {"num_rows": 8_000, "num_channels": 1, "seed": 3}
    flat = {"season": 24, "season_amplitude": 0.0, "trend": 0.0}
    values_TC = generate(**sizes, **flat, **process).astype(np.float64)
    found = np.mean([oracle_mse(column, horizon=horizon, **process) for column in values_TC.T])
    assert found == pytest.approx(best_forecast_mse(horizon=horizon, **process), rel=0.04)


def test_best_mse_is_in_train_standardised_units_with_season_and_trend():
    """An oracle that knows season, trend and the AR(1) scores best_mse on the scaled windows."""
    horizon, phi = 6, 0.7
    series = load_synthetic(
        num_rows=30_000, num_channels=1, season=24, season_amplitude=2.0, trend=1e-4, ar=[phi],
        noise_std=0.5, walk_std=0.0, seed=1, horizon=horizon, splits=[0.5, 0.1, 0.4],
    )  # fmt: skip
    raw = series.values_TC[:, 0].astype(np.float64)
    t = np.arange(len(raw))
    basis = np.stack([np.sin(2 * np.pi * t / 24), np.cos(2 * np.pi * t / 24), t, t**0], 1)
    known = basis @ np.linalg.lstsq(basis, raw, rcond=None)[0]
    splits = build_windows(series, context_len=1, target_len=horizon)
    windows = splits.test.gather(torch.arange(len(splits.test)))[:, 0].numpy()
    mean, std = splits.mean_C.item(), splits.std_C.item()
    rows = splits.test.first_row + np.arange(len(windows))[:, None] + np.arange(1 + horizon)
    residual = windows * std + mean - known[rows]
    forecast = residual[:, :1] * phi ** np.arange(1, horizon + 1)
    mse = np.mean((residual[:, 1:] - forecast) ** 2) / std**2
    assert mse == pytest.approx(series.best_mse, rel=0.05)
    assert 0 < series.best_mse < 1


def test_seeded_and_channels_differ():
    one, two, other = (load_synthetic(num_rows=300, num_channels=2, seed=s) for s in (0, 0, 1))
    assert one.sha256 == two.sha256 != other.sha256
    assert not np.allclose(one.values_TC[:, 0], one.values_TC[:, 1])


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"ar": [1.0]}, r"data\.ar"),
        ({"ar": [0.5, 0.6]}, r"data\.ar"),
        ({"num_rows": 2}, r"data\.splits"),
    ],
)
def test_impossible_values_are_named(keys, named):
    with pytest.raises(DataError, match=named):
        load_synthetic(**keys)
