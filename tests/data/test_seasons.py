"""Real seasons are found; where there is none, none is reported."""

from __future__ import annotations

import numpy as np
import pytest

from t5ts.data.seasons import MAX_ROWS, candidate_seasons, choose_season
from t5ts.data.series import Step


def wave(num_rows, *periods, noise=0.5, trend=0.0, seed=0):
    t = np.arange(num_rows)[:, None]
    rng = np.random.default_rng(seed)
    values = sum(np.sin(2 * np.pi * t / period) for period in periods) + trend * t
    return (values + noise * rng.normal(size=(num_rows, 2))).astype(np.float32)


@pytest.mark.parametrize(
    ("step_s", "period", "num_rows"),
    [(3600, 24, 2000), (3600, 168, 2000), (86_400, 7, 365), (60, 1440, 20_000), (86_400, 365, 2000),
     (1, 60, 5000)],
)  # fmt: skip
@pytest.mark.parametrize("trend", [0.0, 0.01])
def test_the_calendar_period_of_a_noisy_wave_is_found(step_s, period, num_rows, trend):
    values_TC = wave(num_rows, period, trend=trend)
    season, note = choose_season(values_TC, step=Step(step_s), season=None)
    assert season == period
    assert str(season) in note


def test_day_wins_over_its_own_multiple_and_gaps_do_not_matter():
    values = wave(2000, 24)
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    assert choose_season(values, step=Step(3600), season=None)[0] == 24


@pytest.mark.parametrize("kind", ["noise", "walk", "constant", "empty"])
def test_no_season_is_said_where_there_is_none(kind):
    noise = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    values = {
        "noise": noise,
        "walk": noise.cumsum(axis=0),
        "constant": np.ones_like(noise),
        "empty": np.full_like(noise, np.nan),
    }[kind]
    season, note = choose_season(values, step=Step(3600), season=None)
    assert season == 1
    assert "24, 168" in note


def test_of_a_long_series_the_last_rows_decide(monkeypatch):
    monkeypatch.setattr("t5ts.data.seasons.MAX_ROWS", 2000)
    values_TC = np.vstack([wave(2000, 168), wave(2000, 24)])
    assert choose_season(values_TC, step=Step(3600), season=None)[0] == 24


def test_candidates_must_fit_step_and_rows():
    assert candidate_seasons(Step(3600), num_rows=10_000) == {24: "day", 168: "week"}
    assert candidate_seasons(Step(3600), num_rows=100) == {24: "day"}
    assert candidate_seasons(Step(7 * 3600), num_rows=1000) == {24: "week"}
    assert candidate_seasons(Step(7.3e9), num_rows=1000) == {}
    assert max(candidate_seasons(Step(1), num_rows=MAX_ROWS)) <= MAX_ROWS / 3
    assert choose_season(np.ones((20, 1), np.float32), step=Step(7.3e9), season=None)[0] == 1
