"""Tables (CSV, Parquet, Arrow), wide or long, read into one (T, C) float32 array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from t5ts.data.files import TableFile, find_offsets
from t5ts.data.grid import check_order, regular_grid
from t5ts.data.series import Step
from t5ts.data.times import TIME_NAMES, parse_times
from t5ts.errors import DataError

# Row labels written by pandas, and names of time columns: not used as channels.
INDEX = re.compile(r"(_duplicated_\d+|Unnamed: [\d.]+|__index_level_\d+__)?")
CLOCKS = {*TIME_NAMES, "epoch", "unix", "unixtime", "unix_time", "unix_timestamp", "epoch_time"}


@dataclass
class Table:
    """The contents of a file: fields of `t5ts.data.series.Series`, on a regular grid."""

    values_TC: np.ndarray
    offset_C: np.ndarray
    channels: list[str]
    start: str
    step: Step
    notes: list[str]


def read_table(
    path: str | Path | None,
    *,
    time: str | None = None,
    channels: Sequence[str] | None = None,
    id: str | None = None,
    value: str | None = None,
    missing: str = "error",
    **spelling: Any,
) -> Table:
    """Reads a wide table (a column per channel) or a long one (a row per channel and time).

    The times are read first, then the values straight into the result: column by column from a
    Parquet or Arrow file, block by block from a CSV. A wide table's peak is the result plus one
    column or block, and 8 bytes per row if rows are reordered.

    Args:
        path: Parquet or Arrow (Feather 2) by its content or name; anything else is CSV with a
            header line, optionally compressed by gzip, bzip2, xz, zlib or zstd.
        time: Time column, or "A+B" to join two with a space. None takes Date and Time, or one of
            TIME_NAMES, or an index of dates that pandas left without a name.
        channels: Wide: value columns in the desired order; None takes all but row labels, columns
            without a name, and clocks. Long: the desired ids; None takes all, sorted.
        id: Long: the column that identifies the channel; requires `value`, the column of values.
        missing: Policy; see `t5ts.data.grid.regular_grid`. Missing and infinite values
            are refused under `error`; else infinite ones are missing.
        spelling: Other fields of `TableFile`, from separator to block_bytes.

    Raises:
        DataError: if the file is not such a table.
    """
    file = TableFile(path=Path(path or ""), missing=missing, **spelling)
    clocks = _time_columns(file, time)
    where = f"{file.path}, column {'+'.join(clocks)!r}"
    long = [name for name in (id, value) if name is not None]
    if long and len({*clocks, *long}) < len(clocks) + 2:
        raise DataError(
            f"{file.path}: data.id and data.value go together: a long table needs both, apart from "
            "each other and from data.time; a wide one has neither."
        )
    names = long or [name for name in file.names if name not in clocks]
    left_out = [n for n in names if INDEX.fullmatch(n) or n.strip().lower() in CLOCKS]
    if channels is not None and not long:
        names = list(channels)
    elif left_out and not long:
        names = [name for name in names if name not in left_out]
        file.notes.append(f"columns {left_out} left out: row labels or time columns")
    key = "data.id, data.value" if long else "data.channels"
    check_names(names, [n for n in file.names if n not in clocks], f"{file.path}: {key}")
    times_us, read = parse_times(file.texts(clocks), where=where, time_format=file.time_format)
    file.notes += read
    if long:
        return _read_long(file, times_us, long[0], long[1], channels, where)
    grid = regular_grid(times_us, missing=missing, where=where, columns=listing(names))
    del times_us
    values_TC, offset_C = file.values(names, grid.num_rows, grid.rows)
    notes = [*file.notes, *grid.notes]
    return Table(values_TC, offset_C, names, grid.start, grid.step, notes)


def _read_long(
    file: TableFile,
    times_us: np.ndarray,
    id: str,
    value: str,
    channels: Sequence[str] | None,
    where: str,
) -> Table:
    ids = pl.concat([piece.cast(pl.String) for piece in file.texts([id])])
    if ids.null_count():
        raise DataError(f"{file.path}: row {int(ids.is_null().arg_max() or 0) + 1} has no {id!r}.")
    found = ids.unique().sort().to_list()
    names = found if channels is None else [str(name) for name in channels]
    check_names(names, found, f"{file.path}: data.channels (ids of column {id!r})")
    values, _ = file.values([value], len(times_us), dtype=np.float64)
    number = ids.replace_strict(dict(zip(names, range(len(names)), strict=True)), default=None)
    rows = pl.DataFrame({"id": number, "time": times_us, "value": values[:, 0]})
    rows = rows.with_row_index("row").drop_nulls("id")
    for of_one in rows.filter(pl.col("time").diff().over("id") < 0)["id"].head(1):
        times, own = rows.filter(pl.col("id") == of_one).select("time", "row").to_numpy().T
        check_order(times, own, file.missing, f"{where}, {id}={names[of_one]!r}")
    for of_one in rows.filter(pl.struct("id", "time").is_duplicated())["id"].head(1):
        raise DataError(
            f"{where}: {id}={names[of_one]!r} has a time twice. Keep one row for each id and time."
        )
    first_rows = rows.group_by("time").agg(pl.col("row").min()).sort("time")
    if len(first_rows) * len(names) > 20 * len(rows):
        raise DataError(
            f"{file.path}: {len(rows)} rows cannot fill {len(first_rows)} times × {len(names)} "
            f"series of column {id!r}. Choose series that overlap (data.channels)."
        )
    instants, file_rows = first_rows.cast(pl.Int64).to_numpy().T
    grid = regular_grid(instants, missing=file.missing, where=where, file_rows=file_rows)
    wide = rows.pivot("id", index="time", values="value").sort("time")
    wide_TC = wide.select(map(str, range(len(names)))).to_numpy()
    offset_C = find_offsets(np.fmin.reduce(wide_TC), np.fmax.reduce(wide_TC))
    values_TC = np.full((grid.num_rows, len(names)), np.nan, np.float32)
    values_TC[slice(None) if grid.rows is None else grid.rows] = wide_TC - offset_C
    notes = [*file.notes, *grid.notes]
    return Table(values_TC, offset_C, names, grid.start, grid.step, notes)


def _time_columns(file: TableFile, time: str | None) -> list[str]:
    """The time column, or the columns that make up the time."""
    if time is not None:
        parts = [time] if time in file.names else [part.strip() for part in time.split("+")]
        check_names(parts, file.names, f"{file.path}: data.time")
        return parts
    lower = {name.strip().lower(): name for name in reversed(file.names)}
    if "date" in lower and "time" in lower:
        day, clock = str(file.first(lower["date"])), str(file.first(lower["time"]))
        if ":" not in day and re.match(r"\s*\d\d?:\d\d", clock):
            return [lower["date"], lower["time"]]
    for wanted in TIME_NAMES:
        if wanted in lower:
            return [lower[wanted]]
    date = r"\s*(\d{4}-\d\d|\d\d?[/.]\d\d?[/.]\d{4})"
    for name in file.names:
        if INDEX.fullmatch(name) and re.match(date, str(file.first(name))):
            return [name]
    raise DataError(
        f"{file.path}: no time column: no column is called {', '.join(TIME_NAMES)}. Set it "
        f"(data.time=COLUMN, or data.time=YEAR+MONTH+DAY with data.time_format='%Y %m %d'), set "
        "data.separator if the columns are not these, or add a line of column names if the first "
        f"is data; columns: {listing(file.names)}."
    )


def check_names(names: Sequence[str], allowed: Sequence[str], key: str) -> None:
    """Refuse names that are not some of those allowed, each once."""
    if not names or len(set(names)) < len(names) or set(names) - set(allowed):
        raise DataError(
            f"{key}={list(names)} must be some of these, once each: {listing(allowed) or 'none'}."
        )


def listing(names: Sequence[str], most: int = 12) -> str:
    """The names, or the first of many and how many there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
