"""CSV and Parquet files, wide or long, read into one (T, C) float32 array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from t5ts.data.gaps import check_policy
from t5ts.data.times import TIME_NAMES, Grid, parse_times, regular_grid
from t5ts.errors import DataError

PARQUET = (".parquet", ".pq")
NULLS = ["", "NA", "N/A", "NaN", "nan", "NAN", "null", "NULL", "None"]
# polars' Rust panics are BaseExceptions of their own; a damaged file must not show as one.
READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)


@dataclass(kw_only=True)
class Table:
    """What a file holds: values on a regular grid (NaN where missing) and where the grid lies."""

    values_TC: np.ndarray
    channels: list[str]
    grid: Grid
    notes: list[str]


def read_table(
    path: str | Path,
    *,
    time: str | None = None,
    channels: Sequence[str] | None = None,
    id: str | None = None,
    value: str | None = None,
    missing: str = "error",
) -> Table:
    """Reads a wide table (a column per channel) or a long one (a row per channel and time).

    A Parquet file is read column by column straight into the result, so that the peak is the
    result and one column.

    Args:
        path: `.parquet` or `.pq` is Parquet; anything else is CSV (`.tsv`: tab-separated) with a
            header line.
        time: Time column; None takes the one called date, time, timestamp, datetime or ds.
        channels: Wide: value columns in the order wanted; None takes all but the time column.
            Long: the ids wanted; None takes all, sorted.
        id: Long: the column that tells the channels apart. Given together with `value`.
        value: Long: the column of values.
        missing: Policy; see `t5ts.data.times.regular_grid` and `t5ts.data.gaps.repair`, which the
            caller applies. Infinite values are refused under `error`, else they are missing.

    Raises:
        DataError: for every way in which the file is not such a table.
    """
    check_policy(missing)
    if (id is None) != (value is None):
        raise DataError("data.id and data.value go together: a long table needs both, a wide none.")
    file = _File(path)
    time = _time_column(file, time)
    where = f"{file.path}, column {time!r}"
    if id is not None and value is not None:
        return _read_long(file, time, id, value, channels, missing)
    names = [name for name in file.names if name != time] if channels is None else list(channels)
    file.check_columns(names, "data.channels")
    if not names or len(set(names)) < len(names) or time in names:
        raise DataError(
            f"{file.path}: data.channels={names} must name value columns once each; allowed: "
            f"{', '.join(name for name in file.names if name != time) or 'none in this file'}."
        )
    file.open(times=[time], values=names)
    grid = regular_grid(parse_times(file.take(time), where=where), missing=missing, where=where)
    notes = list(grid.notes)
    make = np.empty if grid.rows is None else _nan_array
    values_TC = make((grid.num_rows, len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        column_T = _finite(file.take_values(name), name, missing, file, notes)
        if grid.rows is None:
            values_TC[:, column] = column_T
        else:
            values_TC[grid.rows, column] = column_T
    return Table(values_TC=values_TC, channels=names, grid=grid, notes=notes)


def _read_long(
    file: _File,
    time: str,
    id: str,
    value: str,
    channels: Sequence[str] | None,
    missing: str,
) -> Table:
    file.check_columns([id], "data.id")
    file.check_columns([value], "data.value")
    if len({time, id, value}) < 3:
        raise DataError(f"{file.path}: data.time, data.id and data.value must be three columns.")
    file.open(times=[time, id], values=[value])
    where = f"{file.path}, column {time!r}"
    times_us = parse_times(file.take(time), where=where)
    ids = file.take(id).cast(pl.String)
    if ids.null_count():
        raise DataError(f"{file.path}: row {(ids.is_null().arg_max() or 0) + 1} has no {id!r}.")
    notes: list[str] = []
    values = _finite(file.take_values(value), value, missing, file, notes)
    found = ids.unique().sort().to_list()
    names = found if channels is None else [str(name) for name in channels]
    if unknown := [name for name in names if name not in set(found)]:
        raise DataError(
            f"{file.path}: data.channels has {unknown[0]!r}, which column {id!r} does not hold; "
            f"allowed: {_listing(found)}."
        )
    members = [ids.eq(name).to_numpy() for name in names]
    for name, member in zip(names, members, strict=True):
        steps = np.diff(times_us[member])
        if (steps < 0).any() and missing == "error":
            raise DataError(
                f"{where}: the rows of {id}={name!r} are not sorted by time. Sort them, or choose "
                "data.missing=interpolate or mask, which sort them."
            )
        if len(np.unique(times_us[member])) < len(steps) + 1:
            raise DataError(
                f"{where}: {id}={name!r} has a time twice. Keep one row for each id and time."
            )
    used = np.logical_or.reduce(members)
    instants = np.unique(times_us[used])
    if len(instants) * len(names) > 20 * max(1, int(used.sum())):
        raise DataError(
            f"{file.path}: {int(used.sum())} rows cannot fill {len(instants)} times × {len(names)} "
            f"series of column {id!r}. Choose series that overlap (data.channels)."
        )
    grid = regular_grid(instants, missing=missing, where=where)
    values_TC = _nan_array((grid.num_rows, len(names)), dtype=np.float32)
    for column, member in enumerate(members):
        rows = (times_us[member] - grid.start_us) // grid.step_us
        values_TC[rows, column] = values[member]
    return Table(values_TC=values_TC, channels=names, grid=grid, notes=notes + grid.notes)


class _File:
    """A CSV or Parquet file: names and types first, columns when they are taken."""

    def __init__(self, path: str | Path | None) -> None:
        if not path:
            raise DataError("data.path is not set: name a CSV or Parquet file (data.path=FILE).")
        self.path = Path(path).expanduser()
        self.parquet = self.path.suffix.lower() in PARQUET
        self._separator = "\t" if self.path.suffix.lower() == ".tsv" else ","
        self._frame: pl.DataFrame | None = None
        try:
            if self.path.is_dir():
                raise DataError(f"{self.path} is a folder; data.path names a file.")
            if not self.path.exists():
                raise DataError(f"{self.path} does not exist (data.path, from {Path.cwd()}).")
            if self.path.stat().st_size == 0:
                raise DataError(f"{self.path} is empty (0 bytes).")
            self.types = dict(self._schema())
        except DataError:
            raise
        except READ_ERRORS as error:
            raise self._unreadable(error) from None
        self.names = list(self.types)
        for name in self.names:
            base, mark, number = name.rpartition("_duplicated_")
            if mark and number.isdigit() and base in self.types:
                raise DataError(f"{self.path}: two columns are called {base!r}. Rename one.")

    def _schema(self) -> pl.Schema | dict[str, pl.DataType]:
        if self.parquet:
            return pl.read_parquet_schema(self.path)
        head = pl.read_csv(self.path, n_rows=0, infer_schema=False, separator=self._separator)
        return head.schema

    def check_columns(self, names: list[str], key: str) -> None:
        for name in names:
            if name not in self.types:
                raise DataError(
                    f"{self.path}: {key} has {name!r}, which is not a column; allowed: "
                    f"{_listing(self.names)}."
                )

    def open(self, *, times: list[str], values: list[str]) -> None:
        """Reads a CSV's columns (a Parquet file is read as they are taken)."""
        if self.parquet:
            return
        types: dict[str, type[pl.DataType]] = dict.fromkeys(times, pl.String)
        types |= dict.fromkeys(values, pl.Float32)
        try:
            self._frame = self._read_csv(types)
        except READ_ERRORS as error:
            raise self._diagnosis(values) or self._unreadable(error) from None

    def _read_csv(self, types: dict[str, type[pl.DataType]]) -> pl.DataFrame:
        return pl.read_csv(
            self.path,
            columns=list(types),
            schema_overrides=types,
            null_values=NULLS,
            separator=self._separator,
        )

    def take(self, name: str) -> pl.Series:
        """A column; a CSV's is let go, so that it can be freed by the caller."""
        try:
            if self._frame is not None:
                column = self._frame.get_column(name)
                self._frame = self._frame.drop(name)
                return column
            return pl.read_parquet(self.path, columns=[name]).get_column(name)
        except READ_ERRORS as error:
            raise self._unreadable(error) from None

    def take_values(self, name: str) -> np.ndarray:
        """A value column as float32, NaN where null."""
        column = self.take(name)
        dtype = column.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"{self.path}: column {name!r} holds {dtype}, not numbers. Name the value columns "
                "in data.channels."
            )
        return column.cast(pl.Float32).to_numpy()

    def _diagnosis(self, values: list[str]) -> DataError | None:
        """Finds the text in a value column that made the numbers unreadable."""
        try:
            texts = self._read_csv(dict.fromkeys(values, pl.String))
        except READ_ERRORS:
            return None
        for name in values:
            column = texts.get_column(name)
            bad = column.str.strip_chars().cast(pl.Float32, strict=False).is_null()
            bad &= column.is_not_null()
            if bad.any():
                row = int(bad.arg_max() or 0)
                return DataError(
                    f"{self.path}: row {row + 1} of column {name!r} has {column[row]!r}, not a "
                    f"number. Mend it, or name the value columns in data.channels (columns: "
                    f"{_listing(self.names)}). Missing values may be empty, NA, NaN or null."
                )
        return None

    def _unreadable(self, error: BaseException) -> DataError:
        kind = "Parquet" if self.parquet else "CSV"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return DataError(f"{self.path} cannot be read as {kind}: {lines[0]}")


def _time_column(file: _File, time: str | None) -> str:
    if time is not None:
        file.check_columns([time], "data.time")
        return time
    for wanted in TIME_NAMES:
        for name in file.names:
            if name.strip().lower() == wanted:
                return name
    raise DataError(
        f"{file.path}: no time column: none is called {', '.join(TIME_NAMES)}. Name it "
        f"(data.time=COLUMN); columns: {_listing(file.names)}."
    )


def _finite(
    column_T: np.ndarray, name: str, missing: str, file: _File, notes: list[str]
) -> np.ndarray:
    """Refuses infinities (and NaN) under `error`; else turns infinities into NaN, with a note."""
    finite_T = np.isfinite(column_T)
    if finite_T.all():
        return column_T
    row = int(np.argmin(finite_T))
    if missing == "error":
        if not finite_T.any():
            raise DataError(
                f"{file.path}: column {name!r} has no value at all. Leave it out: name the others "
                "in data.channels."
            )
        what = "is missing" if np.isnan(column_T[row]) else "is infinite (or beyond float32)"
        raise DataError(
            f"{file.path}: row {row + 1} of column {name!r} {what}; "
            f"{int(np.count_nonzero(~finite_T))} such values. Mend them, or choose data.missing="
            "interpolate (straight lines over the gaps) or mask (gaps are left out of the loss)."
        )
    infinite_T = np.isinf(column_T)
    if infinite_T.any():
        notes.append(f"{int(infinite_T.sum())} infinite values of {name} treated as missing")
        column_T = np.where(infinite_T, np.float32(np.nan), column_T)
    return column_T


def _nan_array(shape: tuple[int, int], dtype: type[np.float32]) -> np.ndarray:
    return np.full(shape, np.nan, dtype=dtype)


def _listing(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
