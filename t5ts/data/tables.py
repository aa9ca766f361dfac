"""CSV and Parquet files, wide or long, read into one (T, C) float32 array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from t5ts.data.gaps import check_policy
from t5ts.data.times import TIME_NAMES, Grid, parse_times, regular_grid
from t5ts.errors import DataError

PARQUET = (".parquet", ".pq")
NULLS = ["", "NA", "N/A", "NaN", "nan", "NAN", "null", "NULL", "None"]
# Text of a CSV that is parsed at once: more is no faster, and costs ten times its size in memory.
BLOCK_BYTES = 2 * 2**20
# How gzip, zlib and zstd files begin; polars unpacks them.
COMPRESSED = (b"\x1f\x8b", b"x\x01", b"x\x9c", b"x\xda", b"\x28\xb5\x2f\xfd")
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
    block_bytes: int = BLOCK_BYTES,
) -> Table:
    """Reads a wide table (a column per channel) or a long one (a row per channel and time).

    The times are read first, then the values straight into the result: column by column from a
    Parquet file, block by block from a CSV. A wide table's peak is thus the result and one column
    or block, and 8 bytes for each row where rows are moved.

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
        block_bytes: Text of a CSV that is parsed at once. Changes memory and speed, and which of
            several faults is named; never the result.

    Raises:
        DataError: for every way in which the file is not such a table.
    """
    check_policy(missing)
    if (id is None) != (value is None):
        raise DataError("data.id and data.value go together: a long table needs both, a wide none.")
    file = _File(path, block_bytes)
    time = _time_column(file, time)
    where = f"{file.path}, column {time!r}"
    if id is not None and value is not None:
        return _read_long(file, time, id, value, channels, missing)
    names = [name for name in file.names if name != time] if channels is None else list(channels)
    file.check_columns(names, "data.channels")
    if channels is None and "" in names:
        raise DataError(
            f"{file.path}: column {file.names.index('') + 1} has no name; pandas writes its row "
            "numbers so (index=False leaves them out). Name the column, or name the value columns "
            "in data.channels."
        )
    if not names or len(set(names)) < len(names) or time in names:
        raise DataError(
            f"{file.path}: data.channels={names} must name value columns once each; allowed: "
            f"{', '.join(name for name in file.names if name != time) or 'none in this file'}."
        )
    file.open(texts=[time], values=names)
    grid = regular_grid(parse_times(file.texts(time), where=where), missing=missing, where=where)
    notes = list(grid.notes)
    values_TC = file.values(grid.num_rows, grid.rows)
    for column, name in enumerate(names):
        _check_finite(values_TC[:, column], name, missing, file, notes)
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
    file.open(texts=[time, id], values=[value])
    where = f"{file.path}, column {time!r}"
    times_us = parse_times(file.texts(time), where=where)
    found, ids = _read_ids(file, id)
    notes: list[str] = []
    values = file.values(len(times_us))[:, 0]
    _check_finite(values, value, missing, file, notes)
    names = found if channels is None else [str(name) for name in channels]
    if unknown := [name for name in names if name not in set(found)]:
        raise DataError(
            f"{file.path}: data.channels has {unknown[0]!r}, which column {id!r} does not hold; "
            f"allowed: {_listing(found)}."
        )
    if not names or len(set(names)) < len(names):
        raise DataError(f"{file.path}: data.channels={names} must name ids once each.")
    column_of_id = np.full(len(found), -1, dtype=np.int32)
    column_of_id[[found.index(name) for name in names]] = np.arange(len(names))
    columns = column_of_id[ids]
    if len(names) < len(found):
        used = columns >= 0
        times_us, columns, values = times_us[used], columns[used], values[used]
    order = np.lexsort((times_us, columns))
    backward = order[1:] < order[:-1]
    times_us, columns, values = times_us[order], columns[order], values[order]
    del order
    same_id = columns[1:] == columns[:-1]
    backward &= same_id
    if backward.any() and missing == "error":
        name = names[columns[np.argmax(backward)]]
        raise DataError(
            f"{where}: the rows of {id}={name!r} are not sorted by time. Sort them, or choose "
            "data.missing=interpolate or mask, which sort them."
        )
    twice = same_id & (times_us[1:] == times_us[:-1])
    if twice.any():
        name = names[columns[np.argmax(twice)]]
        raise DataError(
            f"{where}: {id}={name!r} has a time twice. Keep one row for each id and time."
        )
    instants = np.sort(times_us)  # np.unique would take thrice the memory and time
    instants = instants[np.append(True, instants[1:] != instants[:-1])]
    if len(instants) * len(names) > 20 * len(times_us):
        raise DataError(
            f"{file.path}: {len(times_us)} rows cannot fill {len(instants)} times × {len(names)} "
            f"series of column {id!r}. Choose series that overlap (data.channels)."
        )
    grid = regular_grid(instants, missing=missing, where=where)
    times_us -= grid.start_us
    times_us //= grid.step_us
    values_TC = _nan_array((grid.num_rows, len(names)))
    values_TC[times_us, columns] = values
    return Table(values_TC=values_TC, channels=names, grid=grid, notes=notes + grid.notes)


def _read_ids(file: _File, id: str) -> tuple[list[str], np.ndarray]:
    """The ids of a long table, sorted, and for each row the place of its id among them (int32)."""
    codes: dict[str, int] = {}
    coded: list[np.ndarray] = []
    first_row = 1
    for piece in file.texts(id):
        ids = piece.cast(pl.String)
        if ids.null_count():
            row = first_row + int(ids.is_null().arg_max() or 0)
            raise DataError(f"{file.path}: row {row} has no {id!r}.")
        for name in ids.unique():
            codes.setdefault(name, len(codes))
        coded.append(ids.replace_strict(codes, return_dtype=pl.Int32).to_numpy())
        first_row += len(ids)
    found = sorted(codes)
    place = np.empty(len(found), dtype=np.int32)
    place[[codes[name] for name in found]] = np.arange(len(found))
    return found, place[np.concatenate(coded)]


class _File:
    """A CSV or Parquet file: names and types first, columns when they are asked for."""

    def __init__(self, path: str | Path | None, block_bytes: int) -> None:
        if not path:
            raise DataError("data.path is not set: name a CSV or Parquet file (data.path=FILE).")
        self.path = Path(path).expanduser()
        self.parquet = self.path.suffix.lower() in PARQUET
        self._separator = "\t" if self.path.suffix.lower() == ".tsv" else ","
        self._block_bytes = block_bytes
        self._texts: list[str] = []
        self._values: list[str] = []
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

    def open(self, *, texts: list[str], values: list[str]) -> None:
        """Says which columns will be read: as text (unless the file has their type), as numbers."""
        self._texts, self._values = texts, values

    def texts(self, name: str) -> Iterator[pl.Series]:
        """A column of times or ids, in pieces."""
        for _, piece in self._pieces([name]):
            yield piece.get_column(name)

    def values(self, num_rows: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The value columns.

        Args:
            num_rows: Rows of the result.
            rows: Where each row of the file goes; None if the result has the file's rows.

        Returns:
            (num_rows, C) float32, NaN where the file has nothing.
        """
        shape = (num_rows, len(self._values))
        values_TC = np.empty(shape, np.float32) if rows is None else _nan_array(shape)
        held = num_rows if rows is None else len(rows)
        end = 0
        for first, piece in self._pieces(self._values):
            end = first + piece.height
            if end > held:
                break
            into = slice(first, end) if rows is None else rows[first:end]
            for name in piece.columns:
                numbers = self._numbers(piece.get_column(name))
                values_TC[into, self._values.index(name)] = numbers
            del piece, numbers  # not kept while the next is read
        if end != held:
            raise DataError(f"{self.path} changed while it was read: it had {held} rows.")
        return values_TC

    def _pieces(self, names: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Columns and the row that they begin at: each whole (Parquet), or all in blocks (CSV)."""
        if self.parquet:
            for name in names:
                yield 0, self._read_parquet(name)
            return
        types: dict[str, type[pl.DataType]] = dict.fromkeys(names, pl.String)
        if names == self._values:
            # The texts come along: only a row that is read whole is found to be too long.
            types = dict.fromkeys(self._texts, pl.String) | dict.fromkeys(names, pl.Float32)
        first = 0
        for block in _csv_blocks(self.path, self._block_bytes):
            try:
                rows = self._read_csv(block, types)
            except READ_ERRORS as error:
                raise self._diagnosis(block, first) or self._unreadable(error) from None
            yield first, rows.select(names)
            first += rows.height

    def _read_parquet(self, name: str) -> pl.DataFrame:
        try:
            return pl.read_parquet(self.path, columns=[name])
        except READ_ERRORS as error:
            raise self._unreadable(error) from None

    def _read_csv(self, block: bytes | Path, types: dict[str, type[pl.DataType]]) -> pl.DataFrame:
        return pl.read_csv(
            block,
            columns=list(types),
            schema_overrides=types,
            null_values=NULLS,
            separator=self._separator,
        )

    def _numbers(self, column: pl.Series) -> np.ndarray:
        """A value column as float32, NaN where null."""
        dtype = column.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"{self.path}: column {column.name!r} holds {dtype}, not numbers. Name the value "
                "columns in data.channels."
            )
        return column.cast(pl.Float32).to_numpy()

    def _diagnosis(self, block: bytes | Path, first: int) -> DataError | None:
        """Finds what made a block unreadable: a text in a value column, or a quote not closed."""
        wrong: list[tuple[int, str, str]] = []
        with contextlib.suppress(*READ_ERRORS):
            texts = self._read_csv(block, dict.fromkeys(self._values, pl.String))
            for column in texts.iter_columns():
                bad = column.str.strip_chars_start().cast(pl.Float32, strict=False).is_null()
                bad &= column.is_not_null()
                if bad.any():
                    row = int(bad.arg_max() or 0)
                    wrong.append((row, column.name, column[row]))
        if wrong:
            row, name, text = min(wrong, key=lambda found: found[0])
            return DataError(
                f"{self.path}: row {first + row + 1} of column {name!r} has {text!r}, not a "
                f"number. Mend it, or name the value columns in data.channels (columns: "
                f"{_listing(self.names)}). Missing values may be empty, NA, NaN or null."
            )
        if isinstance(block, bytes) and block.count(b'"') % 2:
            line = next(line for line in block.splitlines() if line.count(b'"') % 2)
            return DataError(
                f"{self.path}: quotes do not pair up; the line {line[:80].decode(errors='replace')}"
                " has an odd number of them. Close it, or write a quote inside a text as two."
            )
        return None

    def _unreadable(self, error: BaseException) -> DataError:
        kind = "Parquet" if self.parquet else "CSV"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return DataError(f"{self.path} cannot be read as {kind}: {lines[0]}")


def _csv_blocks(path: Path, size: int) -> Iterator[bytes | Path]:
    """A CSV's rows in blocks of `size` bytes and more, each under the file's header.

    polars maps a file that it is given by name, so that all of its text would count as memory of
    this process. A block ends where a line does, outside of quotes: after an even number of them.
    What cannot be cut (a compressed file, a header with an odd quote) is the path itself.
    """
    with path.open("rb") as file:
        header = file.readline()
        while not header.strip(b"\xef\xbb\xbf\r\n") and (line := file.readline()):
            header += line
        if header.startswith(COMPRESSED) or header.count(b'"') % 2:
            yield path
            return
        while block := file.read(size):
            lines = [header, block, file.readline()]
            quotes = sum(text.count(b'"') for text in lines)
            while quotes % 2 and (line := file.readline()):
                lines.append(line)
                quotes += line.count(b'"')
            yield b"".join(lines)


def _time_column(file: _File, time: str | None) -> str:
    if time is not None:
        file.check_columns([time], "data.time")
        return time
    for wanted in TIME_NAMES:
        for name in file.names:
            if name.strip().lower() == wanted:
                return name
    if len(file.names) == 1 and (found := [mark for mark in ";\t|" if mark in file.names[0]]):
        raise DataError(
            f"{file.path}: its columns seem to be separated by {found[0]!r} ({file.names[0]!r}). "
            "Separate them by commas and write numbers with a point, or name the file .tsv if it "
            "has tabs."
        )
    raise DataError(
        f"{file.path}: no time column: none is called {', '.join(TIME_NAMES)}. Name it "
        f"(data.time=COLUMN); columns: {_listing(file.names)}."
    )


def _check_finite(
    column_T: np.ndarray, name: str, missing: str, file: _File, notes: list[str]
) -> None:
    """Refuses infinities (and NaN) under `error`; else makes infinities NaN, with a note."""
    finite_T = np.isfinite(column_T)
    if finite_T.all():
        return
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
        column_T[infinite_T] = np.nan


def _nan_array(shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, np.nan, dtype=np.float32)


def _listing(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
