"""Times: parsed to microseconds, ordered, and laid on a regular grid."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from t5ts.errors import DataError

EPOCH = datetime.datetime(1970, 1, 1)
TIME_NAMES = ("date", "time", "timestamp", "datetime", "date_time", "ds")
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d")
CLOCKS = ("%H:%M:%S%.f", "%H:%M", "%H%M%S")
FORMATS = [f"{d}{sep}{c}" for d in DATES for sep in (" ", "T") for c in CLOCKS] + list(DATES)
OFFSET = r"(Z|UTC|[+-]\d\d:?\d\d)$"
WITH_OFFSET = r"^(.*[T ]\d\d:?\d\d.*?) ?" + OFFSET
# A grid with more rows than this for each row of the file is a wrong time, not a gap.
MAX_GRID = 20
WHAT_IS_READ = (
    "Times may be ISO 8601 (2016-07-01 00:00:00, with or without a UTC offset), dates, or epoch "
    "integers in s, ms, µs or ns."
)


def parse_times(times: pl.Series, *, where: str) -> np.ndarray:
    """Times as microseconds since 1970, UTC where an offset is given.

    Args:
        times: Strings, integers, dates or datetimes, in file order. Integers of 8 digits that are
            all dates are YYYYMMDD; others are epoch times whose unit is told by their size.
        where: File and column, for messages.

    Returns:
        (T,) int64.

    Raises:
        DataError: if a time is absent, cannot be read, or time zones are mixed.
    """
    dtype = times.dtype
    if times.is_empty():
        raise DataError(f"{where}: the file has a header and no rows.")
    if times.null_count():
        row = int(times.is_null().arg_max() or 0) + 1
        raise DataError(f"{where}: row {row} has no time. {WHAT_IS_READ}")
    if dtype == pl.String:
        micros = _parse_strings(times, where=where)
    elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
        micros = times.cast(pl.Datetime("us")).to_physical()
    elif dtype.is_integer():
        micros = _parse_epoch(times.cast(pl.Int64, strict=False), where=where)
    elif dtype.is_float():
        micros = _parse_epoch(times.cast(pl.Int64, strict=False), where=where)
        if not (times == times.round()).all():
            raise DataError(f"{where}: epoch times with fractions. {WHAT_IS_READ}")
    else:
        raise DataError(f"{where}: a column of type {dtype} holds no times. {WHAT_IS_READ}")
    result = micros.to_numpy().astype(np.int64, copy=False)
    for extreme in (result.min(), result.max()):
        iso(int(extreme), where=where)
    return result


def iso(micros: int, *, where: str = "time column") -> str:
    """ISO 8601 of microseconds since 1970, without an offset."""
    try:
        return (EPOCH + datetime.timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        raise DataError(f"{where}: a time lies outside the years 1 to 9999.") from None


def _parse_epoch(times: pl.Series, *, where: str) -> pl.Series:
    if times.null_count():
        raise DataError(f"{where}: a time does not fit 64 bits. {WHAT_IS_READ}")
    if times.is_between(19000101, 21001231).all():
        dates = times.cast(pl.String).str.to_datetime("%Y%m%d", strict=False, time_unit="us")
        if not dates.null_count():
            return dates.to_physical()
    largest = max(abs(int(times.max() or 0)), abs(int(times.min() or 0)))  # type: ignore[arg-type]
    if largest < 10**11:
        return times * 1_000_000
    if largest < 10**14:
        return times * 1_000
    return times if largest < 10**17 else times // 1_000


def _parse_strings(times: pl.Series, *, where: str) -> pl.Series:
    first = str(times[0]).strip()
    if re.fullmatch(r"[+-]?\d+", first):
        whole = times.str.strip_chars().cast(pl.Int64, strict=False)
        _refuse_nulls(whole, times, where)
        return _parse_epoch(whole, where=where)
    shift: int = 0
    texts = times
    if match := re.search(WITH_OFFSET, first):
        offsets = times.str.strip_chars().str.extract(OFFSET)
        minutes = {_offset_minutes(offset) for offset in offsets.unique()}
        if len(minutes) > 1:
            raise _mixed_zones(where)
        shift = minutes.pop() or 0
        texts = times.str.strip_chars().str.replace(" ?" + OFFSET, "")
        first = match.group(1)
    for form in FORMATS:
        parsed = pl.Series([first]).str.to_datetime(form, strict=False, time_unit="us")
        if not parsed.null_count():
            break
    else:
        raise DataError(f"{where}: row 1 has {first!r}, which is no time. {WHAT_IS_READ}")
    parsed = texts.str.to_datetime(form, strict=False, time_unit="us")
    if parsed.null_count():
        parsed = texts.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us")
    if parsed.null_count():
        bad = str(times[int(parsed.is_null().arg_max() or 0)])
        if re.search(WITH_OFFSET, bad.strip()) and not shift:
            raise _mixed_zones(where)
    _refuse_nulls(parsed, times, where)
    return parsed.to_physical() - shift * 60_000_000


def _refuse_nulls(parsed: pl.Series, times: pl.Series, where: str) -> None:
    if parsed.null_count():
        row = int(parsed.is_null().arg_max() or 0)
        raise DataError(
            f"{where}: row {row + 1} has {times[row]!r}, which does not read like the first, "
            f"{times[0]!r}. {WHAT_IS_READ}"
        )


def _offset_minutes(offset: str | None) -> int | None:
    """Minutes east of UTC; None for a time without an offset."""
    if offset is None:
        return None
    if offset in ("Z", "UTC"):
        return 0
    digits = offset[1:].replace(":", "")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return -minutes if offset[0] == "-" else minutes


def _mixed_zones(where: str) -> DataError:
    return DataError(
        f"{where}: mixed time zones (some rows have another UTC offset than the first, or none). "
        "Write all times in UTC, or all without an offset."
    )


@dataclass(kw_only=True)
class Grid:
    """Where the rows of a file lie on a regular time grid.

    Attributes:
        start_us: Time of grid row 0, microseconds since 1970.
        step_us: Microseconds between grid rows.
        num_rows: Rows on the grid.
        rows: (rows of the file,) grid row of each; None if file row i is grid row i.
        notes: What was reordered or filled in.
    """

    start_us: int
    step_us: int
    num_rows: int
    rows: np.ndarray | None
    notes: list[str]

    @property
    def start(self) -> str:
        """ISO time of grid row 0."""
        return iso(self.start_us)

    @property
    def step_s(self) -> float:
        """Seconds between grid rows."""
        return self.step_us / 1e6


def regular_grid(times_us: np.ndarray, *, missing: str, where: str) -> Grid:
    """Finds the regular grid that the times lie on.

    Under `missing="error"` the file must itself be that grid: sorted, with equal steps. Under the
    other policies rows are sorted, and times that are skipped become missing values; both are
    noted. The step is the median difference. A time that occurs twice is an error always, since
    nothing says which of its rows holds.

    Args:
        times_us: (rows,) int64, microseconds, file order.
        missing: The policy for missing values.
        where: File and column, for messages.

    Raises:
        DataError: for fewer than 3 rows, duplicate times, and what the policy refuses.
    """
    if len(times_us) < 3:
        raise DataError(
            f"{where}: {len(times_us)} rows; a series needs more (3 splits of windows)."
        )
    steps = np.diff(times_us)
    notes: list[str] = []
    order = None
    backward = int(np.count_nonzero(steps < 0))
    if backward:
        row = int(np.argmax(steps < 0)) + 2
        if missing == "error":
            raise DataError(
                f"{where}: not sorted: row {row} ({iso(int(times_us[row - 1]))}) is earlier than "
                "the row before it. Sort the file by time, or choose data.missing=interpolate or "
                "mask, which sort it and say so."
            )
        order = np.argsort(times_us, kind="stable")
        times_us = times_us[order]
        steps = np.diff(times_us)
        notes.append(f"rows were sorted by time (row {row} was the first out of order)")
    if (steps == 0).any():
        twice = iso(int(times_us[int(np.argmax(steps == 0))]))
        raise DataError(
            f"{where}: {int(np.count_nonzero(steps == 0))} duplicate times, the first {twice}. "
            "Keep one row for each time; if rows belong to several series, name the column that "
            "tells them apart (data.id and data.value); local times repeat an hour in autumn, so "
            "write UTC."
        )
    start, step = int(times_us[0]), int(np.partition(steps, len(steps) // 2)[len(steps) // 2])
    if (steps == step).all() and order is None:
        return Grid(start_us=start, step_us=step, num_rows=len(times_us), rows=None, notes=notes)
    positions, remainder = np.divmod(times_us - start, step)
    if missing == "error" and (steps != step).any():
        row = int(np.argmax(steps != step))
        raise DataError(
            f"{where}: irregular step: {int(steps[row]) / 1e6:g} s after "
            f"{iso(int(times_us[row]))} (row {row + 1}), {step / 1e6:g} s elsewhere; "
            f"{int(np.count_nonzero(steps != step))} such places. Resample the data, or choose "
            "data.missing=interpolate or mask, which treat skipped times as missing values."
        )
    if remainder.any():
        row = int(np.argmax(remainder != 0))
        raise DataError(
            f"{where}: irregular step: {iso(int(times_us[row]))} lies off the grid of "
            f"{step / 1e6:g} s steps from {iso(start)}. Resample the data to a regular step."
        )
    num_rows = int(positions[-1]) + 1
    if num_rows > MAX_GRID * len(times_us):
        raise DataError(
            f"{where}: {len(times_us)} rows span {num_rows} steps of {step / 1e6:g} s, from "
            f"{iso(start)} to {iso(int(times_us[-1]))}; more than {MAX_GRID} times the rows looks "
            "like a wrong time. Mend it or resample the data."
        )
    if num_rows > len(times_us):
        notes.append(
            f"{num_rows - len(times_us)} skipped times of {num_rows} filled in as missing values"
        )
    rows = positions
    if order is not None:
        rows = np.empty_like(positions)
        rows[order] = positions
    return Grid(start_us=start, step_us=step, num_rows=num_rows, rows=rows, notes=notes)
