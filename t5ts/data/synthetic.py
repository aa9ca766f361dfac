"""Synthetic series whose best achievable loss is known.

Each channel is `trend·t + season_amplitude·sin(2π(t/season + phase)) + u_t + w_t` with u an
autoregression driven by N(0, noise_std²) and w a random walk with steps N(0, walk_std²). Trend and
season are predictable; what no forecaster can predict are the innovations of u and w.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t5ts.errors import DataError


def generate(
    *,
    num_rows: int = 10_000,
    num_channels: int = 1,
    season: int = 24,
    season_amplitude: float = 1.0,
    trend: float = 0.0,
    ar: Sequence[float] = (0.7,),
    noise_std: float = 0.3,
    walk_std: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Draw the series, (T, C) float32; its channels differ in phase and innovations.

    Args:
        num_rows: T.
        num_channels: C.
        season: Rows in one season.
        season_amplitude: Of the sine, data units, like all that follow.
        trend: Rise per row.
        ar: Coefficients of the autoregression, the nearest lag first; [] is white noise.
        noise_std: Standard deviation of its innovations.
        walk_std: Standard deviation of the random walk's steps.
        seed: Of the draw.

    Raises:
        DataError: if the autoregression is not stationary.
    """
    radius = float(np.abs(np.roots([1.0, *(-float(a) for a in ar)])).max(initial=0.0))
    if radius >= 1:
        raise DataError(
            f"data.ar={list(ar)} is not stationary: its largest root has modulus {radius:.3f}, "
            "allowed below 1. Use data.walk_std for a random walk."
        )
    rng = np.random.default_rng(seed)
    # The autoregression forgets its zero start: radius^burn < 1e-6, bounded for roots near 1.
    burn = int(min(20_000, np.ceil(np.log(1e-6) / np.log(max(radius, 1e-6)))))
    order = len(ar)
    phase_C = rng.uniform(size=num_channels)
    u_TC = rng.normal(scale=noise_std, size=(burn + num_rows, num_channels))
    coefficients = np.asarray(ar[::-1], dtype=np.float64)
    for t in range(order, len(u_TC)) if order else ():
        u_TC[t] += coefficients @ u_TC[t - order : t]
    t_T1 = np.arange(num_rows, dtype=np.float64)[:, None]
    values_TC = trend * t_T1 + u_TC[burn:]
    values_TC += season_amplitude * np.sin(2 * np.pi * (t_T1 / season + phase_C))
    values_TC += rng.normal(scale=walk_std, size=values_TC.shape).cumsum(axis=0)
    return np.ascontiguousarray(values_TC, dtype=np.float32)


def best_forecast_mse(
    *, ar: Sequence[float] = (0.7,), noise_std: float = 0.3, walk_std: float = 0.0, horizon: int
) -> float:
    """Least mean squared error, in data units, of any forecast from the whole past.

    Only the sum u + w is observed; the least error is that of the steady-state
    Kalman predictor, P = F(P − P h hᵀ P / hᵀ P h)Fᵀ + Q, whose error j steps ahead is hᵀ P_j h with
    P_1 = P and P_{j+1} = F P_j Fᵀ + Q. Without a walk that is noise_std² Σ_{i<j} ψ_i² (the ψ
    weights of the autoregression), without noise j · walk_std². A forecaster with a finite context
    can approach it but not go below it. The arguments are those of `generate`, and `horizon`: H;
    the error is averaged over steps 1 … H.

    Source: Hamilton 1994, chapter 13 (Kalman filter and its Riccati equation).
    """
    order = max(1, len(ar))
    F = np.zeros((order + 1, order + 1))
    F[0, : len(ar)] = ar
    F[np.arange(1, order), np.arange(order - 1)] = 1.0
    F[order, order] = 1.0
    Q = np.zeros_like(F)
    Q[0, 0], Q[order, order] = noise_std**2, walk_std**2
    h = np.zeros(order + 1)
    h[[0, order]] = 1.0
    P = Q.copy()
    for _ in range(100_000):
        gain = P @ h
        innovation = float(h @ gain)
        filtered = P - np.outer(gain, gain) / innovation if innovation > 0 else P
        following = F @ filtered @ F.T + Q
        done = np.abs(following - P).max() <= 1e-12 * max(np.abs(Q).max(), 1e-300)
        P = following
        if done:
            break
    errors = []
    for _ in range(horizon):
        errors.append(float(h @ P @ h))
        P = F @ P @ F.T + Q
    return float(np.mean(errors))
