"""Times: parsed to microseconds, ordered, and laid on a regular grid."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
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


def parse_times(pieces: Iterable[pl.Series], *, where: str) -> np.ndarray:
    """Times as microseconds since 1970, UTC where an offset is given.

    Args:
        pieces: Strings, integers, dates or datetimes, in file order, in one piece or many; the
            first time of all says how the others are written. Integers of 8 digits that are all
            dates are YYYYMMDD; others are epoch times whose unit is told by their size.
        where: File and column, for messages.

    Returns:
        (T,) int64.

    Raises:
        DataError: if a time is absent, cannot be read, or time zones are mixed.
    """
    parsed: list[np.ndarray] = []
    spelling: _Spelling | None = None
    epoch = False
    first_row = 1
    for times in pieces:
        if times.is_empty():
            continue
        if times.null_count():
            row = first_row + int(times.is_null().arg_max() or 0)
            raise DataError(f"{where}: row {row} has no time. {WHAT_IS_READ}")
        dtype = times.dtype
        if dtype == pl.String:
            spelling = spelling or _spelling(times[0], where=where)
            micros = _parse_strings(times, spelling, first_row=first_row, where=where)
            epoch = spelling.form is None
        elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
            micros = times.cast(pl.Datetime("us")).to_physical()
        elif dtype.is_integer() or dtype.is_float():
            micros = times.cast(pl.Int64, strict=False)
            if micros.null_count():
                raise DataError(f"{where}: a time does not fit 64 bits. {WHAT_IS_READ}")
            if dtype.is_float() and not (times == times.round()).all():
                raise DataError(f"{where}: epoch times with fractions. {WHAT_IS_READ}")
            epoch = True
        else:
            raise DataError(f"{where}: a column of type {dtype} holds no times. {WHAT_IS_READ}")
        parsed.append(micros.to_numpy())
        first_row += len(times)
    if not parsed:
        raise DataError(f"{where}: the file has a header and no rows.")
    result = np.concatenate(parsed)
    if epoch:
        result = _epoch_micros(pl.Series(result)).to_numpy()
    for extreme in (result.min(), result.max()):
        iso(int(extreme), where=where)
    return result


def iso(micros: int, *, where: str = "time column") -> str:
    """ISO 8601 of microseconds since 1970, without an offset."""
    try:
        return (EPOCH + datetime.timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        raise DataError(f"{where}: a time lies outside the years 1 to 9999.") from None


def _epoch_micros(times: pl.Series) -> pl.Series:
    """Whole numbers as microseconds; all of them tell the unit."""
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


@dataclass(kw_only=True)
class _Spelling:
    """How the first time of a column is written.

    Attributes:
        first: The time itself.
        form: Its strptime form without the offset; None for whole numbers.
        offset: Minutes east of UTC; None where none is written.
    """

    first: str
    form: str | None
    offset: int | None = None


def _spelling(first: str, *, where: str) -> _Spelling:
    text, offset = first.strip(), None
    if re.fullmatch(r"[+-]?\d+", text):
        return _Spelling(first=first, form=None)
    if match := re.search(WITH_OFFSET, text):
        text, offset = match.group(1), _offset_minutes(match.group(2))
    for form in FORMATS:
        if not pl.Series([text]).str.to_datetime(form, strict=False, time_unit="us").null_count():
            return _Spelling(first=first, form=form, offset=offset)
    raise DataError(f"{where}: row 1 has {text!r}, which is no time. {WHAT_IS_READ}")


def _parse_strings(
    times: pl.Series, spelling: _Spelling, *, first_row: int, where: str
) -> pl.Series:
    """Microseconds, or whole numbers whose unit is not known yet."""
    form = spelling.form
    if form is None:
        parsed = times.str.strip_chars().cast(pl.Int64, strict=False)
    else:
        texts = times
        if spelling.offset is not None:
            offsets = times.str.strip_chars().str.extract(OFFSET)
            if {_offset_minutes(offset) for offset in offsets.unique()} != {spelling.offset}:
                raise _mixed_zones(where)
            texts = times.str.strip_chars().str.replace(" ?" + OFFSET, "")
        # polars reads times without fractions and blanks, which most are, six times as fast.
        plain = form.removesuffix("%.f")
        parsed = texts.str.to_datetime(plain, strict=False, time_unit="us", cache=False)
        if parsed.null_count():
            parsed = texts.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us")
        parsed = parsed.to_physical() - (spelling.offset or 0) * 60_000_000
    if parsed.null_count():
        row = int(parsed.is_null().arg_max() or 0)
        bad = str(times[row])
        if form is not None and spelling.offset is None and re.search(WITH_OFFSET, bad.strip()):
            raise _mixed_zones(where)
        raise DataError(
            f"{where}: row {first_row + row} has {bad!r}, which does not read like the first, "
            f"{spelling.first!r}. {WHAT_IS_READ}"
        )
    return parsed


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
    if missing == "error" and (steps != step).any():
        row = int(np.argmax(steps != step))
        raise DataError(
            f"{where}: irregular step: {int(steps[row]) / 1e6:g} s after "
            f"{iso(int(times_us[row]))} (row {row + 1}), {step / 1e6:g} s elsewhere; "
            f"{int(np.count_nonzero(steps != step))} such places. Resample the data, or choose "
            "data.missing=interpolate or mask, which treat skipped times as missing values."
        )
    del steps
    positions = times_us - start
    off_grid = positions % step != 0
    if off_grid.any():
        row = int(np.argmax(off_grid))
        raise DataError(
            f"{where}: irregular step: {iso(int(times_us[row]))} lies off the grid of "
            f"{step / 1e6:g} s steps from {iso(start)}. Resample the data to a regular step."
        )
    positions //= step
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
