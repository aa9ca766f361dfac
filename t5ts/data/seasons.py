"""The season of a series, inferred from its autocorrelation."""

from __future__ import annotations

import numpy as np

from t5ts.data.series import Step

# Calendar periods in seconds; of months and business days: a year, and a week's five days.
PERIODS_S = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "year": 31_557_600}
# At most this many rows (the last) and channels (the first) are used.
MAX_ROWS = 200_000
MAX_CHANNELS = 32


def choose_season(train_TC: np.ndarray, *, step: Step, season: int | None) -> tuple[int, str]:
    """The season to use, 1 if there is none, and a note on where it comes from.

    Args:
        train_TC: Train rows in any units; NaN allowed.
        step: From one row to the next.
        season: Rows in one season if the user set it; None infers it.
    """
    if season is not None:
        return season, f"season {season}: given"
    candidates = candidate_seasons(step, num_rows=min(len(train_TC), MAX_ROWS))
    if not candidates:
        return 1, f"season 1: no calendar period fits a step of {step} and the train rows"
    sample_TC = train_TC[-MAX_ROWS:, :MAX_CHANNELS]
    scores = {lag: _prominence(sample_TC, lag) for lag in candidates}
    enough = {lag: _chance(len(sample_TC) / lag) for lag in candidates}
    peaks = {lag: score for lag, (score, _) in scores.items() if score > enough[lag]}
    if not peaks:
        tried = ", ".join(str(lag) for lag in candidates)
        return 1, f"season 1: no autocorrelation peak at {tried} rows"
    # The day's multiple, the week, scores like the day itself: prefer the shortest that does.
    chosen = min(lag for lag, score in peaks.items() if score >= 0.9 * max(peaks.values()))
    return chosen, (
        f"season {chosen}: inferred ({candidates[chosen]}; autocorrelation "
        f"{scores[chosen][1]:.2f} there, without trend); set data.season to override it"
    )


def candidate_seasons(step: Step, *, num_rows: int) -> dict[int, str]:
    """Calendar periods of whole numbers of rows, three at least: their names, shortest first."""
    candidates: dict[int, str] = {}
    for name, period_s in PERIODS_S.items():
        rows = round(period_s / step.seconds)
        whole = abs(rows * step.seconds - period_s) <= 0.01 * period_s
        if rows >= 2 and whole and 3 * rows <= num_rows:
            candidates.setdefault(rows, name)
    return candidates


def _chance(num_periods: float) -> float:
    """Prominence that a series without a season hardly ever exceeds.

    Random walks and near-unit-root autoregressions scored 0.13 on average here, with a spread that
    falls as 1/√periods; this bound was at or above the largest of 60 draws in each of 40 settings.
    """
    return 0.15 + 1.5 / num_periods**0.5


def _prominence(rows_TC: np.ndarray, lag: int) -> tuple[float, float]:
    """Autocorrelation at `lag` above its mean half a period to either side, and its own value.

    Both are means over channels. A moving mean over one period is subtracted first, which removes
    trend and drift but not a season of that period.
    """
    half = max(1, lag // 2)
    values = []
    for channel_T in rows_TC.T:
        x = channel_T.astype(np.float64)
        known = np.flatnonzero(~np.isnan(x))
        if not known.size:
            continue
        if known.size < x.size:
            x = np.interp(np.arange(x.size), known, x[known])
        x = x - x[0]  # so that the running sum below stays precise
        running = np.concatenate([[0.0], np.cumsum(x)])
        x = x[half : half + x.size - lag + 1] - (running[lag:] - running[:-lag]) / lag
        power = float(x @ x)
        if power <= 1e-12:
            continue
        at, below, above = (
            float(x[:-k] @ x[k:]) / power * x.size / (x.size - k)
            for k in (lag, lag - half, lag + half)
        )
        values.append((at - (below + above) / 2, min(at, 1.0)))
    prominence, at = np.mean(values, axis=0) if values else (0.0, 0.0)
    return float(prominence), float(at)
