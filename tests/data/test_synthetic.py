"""The best achievable loss is what an oracle reaches, and nobody passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t5ts.data.sources import load_synthetic
from t5ts.data.synthetic import best_forecast_mse, generate
from t5ts.data.windows import build_windows
from t5ts.errors import DataError

PSI = [1.0, 0.6, 0.06]  # psi weights of AR(0.6, -0.3)
LEVEL = (0.3**2 + np.sqrt(0.3**4 + 4 * 0.3**2 * 0.7**2)) / 2  # Muth 1960: of a local level model


@pytest.mark.parametrize(
    ("ar", "noise_std", "walk_std", "expected"),
    [
        ([], 0.5, 0.0, 0.25),
        ([0.8], 0.5, 0.0, 0.25 * np.mean([1, 1 + 0.64, 1 + 0.64 + 0.4096])),
        ([0.6, -0.3], 1.0, 0.0, np.mean(np.cumsum(np.square(PSI)))),
        ([0.8], 0.0, 2.0, 4 * 2),
        ([0.8], 0.0, 0.0, 0),
        ([], 0.7, 0.3, LEVEL + 0.7**2 + 0.3**2 * np.mean([0, 1, 2])),
    ],
)
def test_closed_forms(ar, noise_std, walk_std, expected):
    found = best_forecast_mse(ar=ar, noise_std=noise_std, walk_std=walk_std, horizon=3)
    assert found == pytest.approx(expected)


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
