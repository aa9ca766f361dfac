"""Forecasts as tables: of which rows, in data units, beside what came and the naive baseline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from t5ts.data.series import Series, moment
from t5ts.errors import DataError
from t5ts.metrics import RegressionSums
from t5ts.tasks import Reconstruct

if TYPE_CHECKING:
    from t5ts.forecasting.trained import TrainedForecaster


def predict(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    *,
    start: str | int | None = None,
    end: str | int | None = None,
    every: int | None = None,
) -> pl.DataFrame:
    """Forecast with one model or with several: then their mean, and their spread.

    Args:
        forecasters: Of one task, horizon and set of channels: the seeds of an arm.
        series: As `TrainedForecaster.read` returns it; the rest as for `TrainedForecaster.predict`.

    Returns:
        As `TrainedForecaster.predict`; of several models `forecast` is the mean and `spread` the
        standard deviation (ddof 1) among them.

    Raises:
        DataError: as there, or if the models do not go together.
    """
    first = forecasters[0]
    for other in forecasters[1:]:
        ours, theirs = (
            (f.channels, f.step, f.config.task.name, f.config.seq_len, f.horizon)
            for f in (first, other)
        )
        if ours != theirs:
            raise DataError(
                f"{first.folder} and {other.folder} differ in channels, step, task, seq_len or"
                f" horizon ({ours} and {theirs}): predict with runs of one task and one data set at"
                " a time."
            )
    if isinstance(first.task, Reconstruct):
        return _filled(forecasters, series, start, end)
    starts, last = _forecast_starts(first, series, start, end, every)
    return _forecasts(forecasters, series, starts, last)


def row_of(series: Series, wanted: str | int, key: str, *, is_last: bool = False) -> int:
    """The row of a time or number; it may be after the data's end.

    Of a time between two rows the later one; with `is_last` the earlier one, and of a date without
    a time the last row of that day.

    Raises:
        DataError: if it is not a time, or the data have none.
    """
    if isinstance(wanted, int) or wanted.lstrip("-").isdigit():
        return int(wanted)
    if not series.start:
        raise DataError(f"{key} {wanted}: {series.name} has no times; give a row number.")
    later = timedelta(0)
    if is_last:
        is_date = len(wanted.strip()) == len("2024-01-31")
        later = timedelta(days=1) if is_date else timedelta(microseconds=1)
    try:
        return series.step.row(moment(series.start), moment(wanted) + later) - int(is_last)
    except ValueError:
        raise DataError(f"{key} {wanted} is not an ISO time such as {series.time_of(0)}.") from None


def _forecast_starts(
    forecaster: TrainedForecaster,
    series: Series,
    start: str | int | None,
    end: str | int | None,
    every: int | None,
) -> tuple[list[int], int]:
    """The first row of each forecast, and the last row that is wanted."""
    rows, horizon, seq_len = len(series.values_TC), forecaster.horizon, forecaster.config.seq_len
    if start is None and end is not None:
        raise DataError("An end without a start: give both (--from TIME --to TIME).")
    first = rows if start is None else row_of(series, start, "--from")
    if not seq_len <= first <= rows:
        raise DataError(
            f"--from {start}: a forecast can begin at {label(series, seq_len)} (after {seq_len}"
            f" rows of context) at the earliest, and at {label(series, rows)} at the latest."
        )
    step = horizon if every is None else every
    if step < 1:
        raise DataError(f"--every {every}: give at least 1 row.")
    starts = list(range(first, rows + 1, step))
    most = starts[-1] + horizon - 1
    last = most if start is None else max(first, rows - 1)
    if end is not None:
        last = row_of(series, end, "--to", is_last=True)
        if not first <= last <= most:
            raise DataError(
                f"--to {end} must lie between {label(series, first)} and {label(series, most)}: the"
                f" last forecast begins at {label(series, starts[-1])} and covers {horizon} rows."
            )
    return [row for row in starts if row <= last], last


def label(series: Series, row: int) -> str | int:
    """A row's time; its number where the data have no times."""
    return series.time_of(row) or row


def _forecasts(
    forecasters: Sequence[TrainedForecaster], series: Series, starts: Sequence[int], last: int
) -> pl.DataFrame:
    first, values_TC = forecasters[0], data_units(series)
    contexts = [start - first.config.seq_len for start in starts]
    by_model = [forecaster.predict_from(series, contexts) for forecaster in forecasters]
    naive_KCH = first.naive_from(series, contexts)
    row_KH = np.array(starts)[:, None] + np.arange(first.horizon)
    # Of each table row: the forecast, the channel, the step.
    k, c, h = np.nonzero(np.broadcast_to((row_KH <= last)[:, None], naive_KCH.shape))
    row = row_KH[k, h]
    to_come_HC = np.full((first.horizon, values_TC.shape[1]), np.nan)
    columns = {
        "forecast": np.mean(by_model, axis=0)[k, c, h],
        **({"spread": np.std(by_model, axis=0, ddof=1)[k, c, h]} if len(by_model) > 1 else {}),
        **(
            {"actual": np.vstack([values_TC, to_come_HC])[row, c]}
            if row.min() < len(values_TC)
            else {}
        ),
        first.task.naive: naive_KCH[k, c, h],
    }
    return pl.DataFrame(
        {
            "origin": times(series, np.array(starts)[k] - 1),
            "time": times(series, row),
            "channel": pl.Series(first.channels).gather(c),
            **{name: pl.Series(values).fill_nan(None) for name, values in columns.items()},
        }
    )


def data_units(series: Series) -> np.ndarray:
    """(T, C) float64: the values of a series as its source has them."""
    values_TC = series.values_TC.astype(np.float64)
    return values_TC if series.offset_C is None else values_TC + series.offset_C


def times(series: Series, rows_K: np.ndarray) -> pl.Series:
    """The times of some rows; their numbers where the data have no times."""
    if not series.start:
        return pl.Series(rows_K)
    unique, place_K = np.unique(rows_K, return_inverse=True)
    begun = datetime.fromisoformat(series.start)
    known = pl.Series(
        [series.step.time(begun, int(row)) for row in unique], dtype=pl.Datetime("us")
    )
    return known.gather(place_K)


def _filled(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    start: str | int | None,
    end: str | int | None,
) -> pl.DataFrame:
    """The series with its gaps filled; each by the window that has it nearest its middle."""
    first, rows = forecasters[0], len(series.values_TC)
    seq_len = first.config.seq_len
    begin = 0 if start is None else row_of(series, start, "--from")
    stop = rows - 1 if end is None else row_of(series, end, "--to", is_last=True)
    if not 0 <= begin <= stop < rows:
        raise DataError(
            f"--from {start} --to {end}: give a span between {label(series, 0)} and"
            f" {label(series, rows - 1)}."
        )
    values_TC = data_units(series)
    missing_TC = np.isnan(values_TC)
    gap_rows = begin + np.flatnonzero(missing_TC[begin : stop + 1].any(axis=1))
    spread_TC = np.full_like(values_TC, np.nan)
    if len(gap_rows):
        stride = max(1, seq_len // 4)
        firsts = np.clip((gap_rows - seq_len // 2) // stride * stride, 0, rows - seq_len)
        starts = np.unique(firsts)
        by_model = [forecaster.predict_from(series, starts.tolist()) for forecaster in forecasters]
        window = np.searchsorted(starts, firsts)
        filled_GC = np.stack([y[window, :, gap_rows - firsts] for y in by_model])
        missing_GC = missing_TC[gap_rows]
        values_TC[gap_rows] = np.where(missing_GC, filled_GC.mean(axis=0), values_TC[gap_rows])
        if len(by_model) > 1:
            spread_GC = filled_GC.std(axis=0, ddof=1)
            spread_TC[gap_rows] = np.where(missing_GC, spread_GC, np.nan)
    rows_S = np.arange(begin, stop + 1)
    columns = {
        "time": times(series, np.repeat(rows_S, len(first.channels))),
        "channel": first.channels * len(rows_S),
        "value": values_TC[rows_S].ravel(),
        "is_filled": missing_TC[rows_S].ravel(),
    }
    if len(forecasters) > 1:
        columns["spread"] = pl.Series(spread_TC[rows_S].ravel()).fill_nan(None)
    return pl.DataFrame(columns)


def past(series: Series, frame: pl.DataFrame, *, rows: int) -> pl.DataFrame:
    """The last rows before a forecast, for its picture: `time`, `channel`, `value`."""
    end = row_of(series, str(frame["time"][0]), "time")
    kept = np.arange(max(0, end - rows), end)
    return pl.DataFrame(
        {
            "time": times(series, np.repeat(kept, len(series.channels))),
            "channel": series.channels * len(kept),
            "value": data_units(series)[kept].ravel(),
        }
    )


def errors(forecaster: TrainedForecaster, frame: pl.DataFrame) -> pl.DataFrame:
    """How far forecasts and the naive baseline were from what came, over all rows with both.

    Args:
        forecaster: Whose scaler gives the units.
        frame: As `predict` returns it for a span.

    Returns:
        A row for the forecast and one for the baseline: `mse`, `mae` and `corr` as the run's own
        metrics, and each channel's mean absolute error in data units, `mae CHANNEL`.
    """

    def values_CN(name: str) -> np.ndarray:
        of_channel = (frame.filter(pl.col("channel") == c)[name] for c in forecaster.channels)
        return np.stack([values_N.to_numpy().astype(np.float64) for values_N in of_channel])

    actual_CN = values_CN("actual")
    rows = []
    for name in ("forecast", forecaster.task.naive):
        predicted_CN = values_CN(name)
        predicted_1CN, actual_1CN = (
            torch.from_numpy((x_CN - forecaster.mean_C[:, None]) / forecaster.std_C[:, None])[None]
            for x_CN in (predicted_CN, actual_CN)
        )
        sums = RegressionSums(len(forecaster.channels))
        sums.update(predicted_1CN, actual_1CN, torch.zeros_like(actual_1CN))
        metrics = sums.compute()
        error_C = np.nanmean(np.abs(predicted_CN - actual_CN), axis=1)
        rows.append(
            {"of": name, "mse": metrics["loss"], "mae": metrics["mae"], "corr": metrics["corr"]}
            | {f"mae {c}": e for c, e in zip(forecaster.channels, error_C.tolist(), strict=True)}
        )
    return pl.DataFrame(rows)
