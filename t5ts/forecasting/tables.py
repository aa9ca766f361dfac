"""Forecasts as tables in data units, with the actual values and the naive baseline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl
import torch

from t5ts.data.series import Series, moment
from t5ts.errors import DataError
from t5ts.metrics import RegressionSums

if TYPE_CHECKING:
    from t5ts.forecasting.trained import TrainedForecaster

#: A row: its time (ISO 8601 as text, or a datetime or date) or its number.
Place: TypeAlias = str | int | date


def predict(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    *,
    start: Place | None = None,
    end: Place | None = None,
    every: int | None = None,
) -> pl.DataFrame:
    """Forecast with one model, or with the mean of several and its spread.

    Args:
        forecasters: Of one task, horizon and set of channels: the seeds of an arm.
        series: As `TrainedForecaster.read` returns it; the rest as for `TrainedForecaster.predict`.

    Returns:
        As `TrainedForecaster.predict`; `forecast` is the models' mean, and `spread` their standard
        deviation (ddof 1).

    Raises:
        DataError: as there, or if the models do not match each other.
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
    if not first.fills_gaps:
        return _forecasts(forecasters, series, start, end, every)
    if every is not None:
        raise DataError(
            f"--every {every}: {first.folder} is a reconstruction run, which fills gaps and"
            " forecasts nothing: leave --every out."
        )
    return _filled(forecasters, series, start, end)


def row_of(series: Series, wanted: Place, key: str, *, is_last: bool = False) -> int:
    """The row of a time or number; it may be after the data's end.

    For a time between two rows the later one; with `is_last` the earlier one, and for a date
    without a time the last row of that day.

    Raises:
        DataError: if it is not a time, or the data have none.
    """
    text = str(wanted).strip()
    if text.lstrip("-").isdigit():
        return int(text)
    if not series.start:
        raise DataError(f"{key} {wanted}: {series.name} has no times; give a row number.")
    later = timedelta(0)
    if is_last:
        is_date = len(text) == len("2024-01-31")
        later = timedelta(days=1) if is_date else timedelta(microseconds=1)
    try:
        return series.step.row(moment(series.start), moment(text) + later) - int(is_last)
    except ValueError:
        raise DataError(f"{key} {wanted} is not an ISO time such as {series.time_of(0)}.") from None


def _label(series: Series, row: int) -> str | int:
    """A row's time; its number where the data have no times."""
    return series.time_of(row) or row


def _forecasts(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    start: Place | None,
    end: Place | None,
    every: int | None,
) -> pl.DataFrame:
    first, values_TC = forecasters[0], data_units(series)
    rows, horizon, seq_len = len(values_TC), first.horizon, first.config.seq_len
    step = horizon if every is None else every
    if step < 1 or step % 1:
        raise DataError(f"--every {every}: give a whole number of rows, at least 1.")
    begin = rows if start is None else row_of(series, start, "--from")
    starts = np.arange(begin, max(begin, rows) + 1, int(step))  # the first row of each forecast
    most = int(starts[-1]) + horizon - 1
    stop = most if start is None else max(begin, rows - 1)
    if end is not None:
        stop = row_of(series, end, "--to", is_last=True)
    if not (seq_len <= begin <= rows and begin <= stop <= most):
        raise DataError(
            f"--from {start} --to {end}: a forecast begins between {_label(series, seq_len)} (after"
            f" {seq_len} rows of context) and {_label(series, rows)}, and covers {horizon} rows;"
            " --to must not be before --from."
        )
    starts = starts[starts <= stop]
    contexts = (starts - seq_len).tolist()
    by_model = [forecaster.predict_from(series, contexts) for forecaster in forecasters]
    naive_KCH = first.naive_from(series, contexts)
    row_KH = starts[:, None] + np.arange(horizon)
    # For each table row: the forecast, the channel, the step.
    k, c, h = np.nonzero(np.broadcast_to((row_KH <= stop)[:, None], naive_KCH.shape))
    row = row_KH[k, h]
    columns = {"forecast": np.mean(by_model, axis=0)[k, c, h]}
    if len(by_model) > 1:
        columns["spread"] = np.std(by_model, axis=0, ddof=1)[k, c, h]
    if row.min() < rows:
        to_come_HC = np.full((horizon, values_TC.shape[1]), np.nan)
        columns["actual"] = np.vstack([values_TC, to_come_HC])[row, c]
    columns[first.task.naive] = naive_KCH[k, c, h]
    return pl.DataFrame(
        {
            "origin": _times(series, starts[k] - 1),
            "time": _times(series, row),
            "channel": pl.Series(first.channels).gather(c),
            **{name: pl.Series(values).fill_nan(None) for name, values in columns.items()},
        }
    )


def data_units(series: Series) -> np.ndarray:
    """(T, C) float64: the values of a series as its source has them."""
    values_TC = series.values_TC.astype(np.float64)
    return values_TC if series.offset_C is None else values_TC + series.offset_C


def _times(series: Series, rows_K: np.ndarray) -> pl.Series:
    """The times of some rows; their numbers where the data have no times."""
    if not series.start:
        return pl.Series(rows_K)
    unique, place_K = np.unique(rows_K, return_inverse=True)
    begun = datetime.fromisoformat(series.start)
    known = [series.step.time(begun, int(row)) for row in unique]
    return pl.Series(known, dtype=pl.Datetime("us")).gather(place_K)


def _long(series: Series, rows_S: np.ndarray, **columns_TC: np.ndarray) -> pl.DataFrame:
    """A table row for each of these rows and each channel."""
    places = {
        "time": _times(series, np.repeat(rows_S, len(series.channels))),
        "channel": pl.Series(series.channels * len(rows_S), dtype=pl.String),  # also of no rows
    }
    return pl.DataFrame(places | {name: x[rows_S].ravel() for name, x in columns_TC.items()})


def _filled(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    start: Place | None,
    end: Place | None,
) -> pl.DataFrame:
    """The series with its gaps filled; each from the window with the gap nearest its middle."""
    rows, seq_len = len(series.values_TC), forecasters[0].config.seq_len
    begin = 0 if start is None else row_of(series, start, "--from")
    stop = rows - 1 if end is None else row_of(series, end, "--to", is_last=True)
    if not 0 <= begin <= stop < rows:
        raise DataError(
            f"--from {start} --to {end}: give a span between {_label(series, 0)} and"
            f" {_label(series, rows - 1)}."
        )
    values_TC = data_units(series)
    missing_TC = np.isnan(values_TC)
    gap_rows = begin + np.flatnonzero(missing_TC[begin : stop + 1].any(axis=1))
    spread_TC = np.full_like(values_TC, np.nan)
    if len(gap_rows):
        stride = max(1, seq_len // 4)
        firsts = np.clip((gap_rows - seq_len // 2) // stride * stride, 0, rows - seq_len)
        starts, window = np.unique(firsts, return_inverse=True)
        by_model = [forecaster.predict_from(series, starts.tolist()) for forecaster in forecasters]
        filled_GC = np.stack([y[window, :, gap_rows - firsts] for y in by_model])
        missing_GC = missing_TC[gap_rows]
        values_TC[gap_rows] = np.where(missing_GC, filled_GC.mean(axis=0), values_TC[gap_rows])
        if len(by_model) > 1:
            spread_TC[gap_rows] = np.where(missing_GC, filled_GC.std(axis=0, ddof=1), np.nan)
    rows_S = np.arange(begin, stop + 1)
    table = _long(series, rows_S, value=values_TC, is_filled=missing_TC, spread=spread_TC)
    if len(forecasters) == 1:
        return table.drop("spread")
    return table.with_columns(pl.col("spread").fill_nan(None))


def past(series: Series, frame: pl.DataFrame, *, rows: int) -> pl.DataFrame:
    """The last rows before a forecast, for its picture: `time`, `channel`, `value`."""
    end = row_of(series, frame["time"][0], "time")
    return _long(series, np.arange(max(0, end - rows), end), value=data_units(series))


def errors(forecaster: TrainedForecaster, frame: pl.DataFrame) -> pl.DataFrame:
    """Errors of the forecasts and the naive baseline, over all rows with an actual value.

    Args:
        forecaster: Whose scaler gives the units.
        frame: As `predict` returns it for a span.

    Returns:
        A row for the forecast and one for the baseline: `mse`, `mae` and `corr` as the run's own
        metrics, and each channel's mean absolute error in data units, `mae CHANNEL`.
    """
    rows, names = [], ("forecast", forecaster.task.naive)
    by_channel = [frame.filter(pl.col("channel") == c) for c in forecaster.channels]
    values = {
        name: np.stack([part[name].to_numpy().astype(np.float64) for part in by_channel])
        for name in ("actual", *names)
    }
    for name in names:
        predicted_1CN, actual_1CN = (
            torch.from_numpy((x_CN - forecaster.mean_C[:, None]) / forecaster.std_C[:, None])[None]
            for x_CN in (values[name], values["actual"])
        )
        sums = RegressionSums(len(forecaster.channels))
        sums.update(predicted_1CN, actual_1CN, torch.zeros_like(actual_1CN))
        metrics = sums.compute()
        error_C = np.nanmean(np.abs(values[name] - values["actual"]), axis=1)
        rows.append(
            {"of": name, "mse": metrics["loss"], "mae": metrics["mae"], "corr": metrics["corr"]}
            | {f"mae {c}": e for c, e in zip(forecaster.channels, error_C.tolist(), strict=True)}
        )
    return pl.DataFrame(rows)
