"""Tables (CSV, Parquet, Arrow), wide or long, read into one (T, C) float32 array."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from t5ts.data.grid import Grid, check_order, check_policy, regular_grid
from t5ts.data.times import TIME_NAMES, parse_times
from t5ts.errors import DataError

NULLS = """|NA|N/A|n/a|#N/A|#NA|<NA>|NaN|nan|NAN|-nan|-NaN|null|NULL|Null|None|none|NaT|?|-|--|.
|missing|#VALUE!|#DIV/0!|1.#QNAN|1.#IND|-1.#IND""".replace("\n", "").split("|")
# Bytes of CSV parsed at once: more is no faster, and costs ten times its size in memory.
BLOCK_BYTES = 2**20
# Rows of a Parquet or Arrow column that are converted at once.
SLICE_ROWS = 2**20
KINDS = {".parquet": "Parquet", ".pq": "Parquet", ".feather": "Arrow", ".arrow": "Arrow",
         ".ipc": "Arrow", b"PAR1": "Parquet", b"ARROW1": "Arrow"}  # fmt: skip
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# How zlib and zstd begin; polars unpacks them.
PACKED = (b"x\x01", b"x\x9c", b"x\xda", b"\x28\xb5\x2f\xfd")
# Files that are not tables: how they begin, what they are, and what to do.
FOREIGN = [
    (rb"PK\x03\x04(?s:.*)(xl/|\[Content_Types\])", "an Excel workbook", "Save it as CSV."),
    (rb"PK\x03\x04", "a zip archive", "Unpack it."),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook", "Save it as CSV."),
    (rb"\x89HDF", "an HDF5 file", "Save the table as CSV or Parquet."),
    (rb"SQLite format 3", "an SQLite database", "Save the table as CSV."),
    (rb"\x93NUMPY|\x80[\x02-\x05]", "NumPy or pickle", "Save the table as CSV or Parquet."),
    (rb"FEA1", "an old Feather file (version 1)", "Save it again, as version 2 or Parquet."),
    (rb"\s*(\{|\[\s*[\[{])", "JSON", "Save the table as CSV or Parquet."),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page or XML", "Download the table itself."),
]
THOUSANDS = r"[+-]?[1-9]\d{0,2}([.,]\d{3})+"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Row labels written by pandas, and names of time columns: not used as channels.
INDEX = re.compile(r"(_duplicated_\d+|Unnamed: \d+|__index_level_\d+__)?")
CLOCKS = {*TIME_NAMES, "epoch", "unix", "unixtime", "unix_time", "unix_timestamp", "epoch_time"}
FLOAT32_MAX = float(np.finfo(np.float32).max)
# A channel gets an offset if its values are this many times further from 0 than from each other.
FAR = 16
# polars' Rust panics are BaseExceptions; a corrupt file must not surface as one.
READ_ERRORS = (
    pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, EOFError,
    zlib.error, lzma.LZMAError, csv.Error,
)  # fmt: skip


@dataclass(kw_only=True)
class Table:
    """The contents of a file: values on a regular grid (NaN where missing) and the grid.

    Attributes:
        values_TC: float32, minus `offset_C`.
        offset_C: float64; not 0 where float32 would round the differences between values.
    """

    values_TC: np.ndarray
    offset_C: np.ndarray
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
    separator: str | None = None,
    decimal: str | None = None,
    time_format: str | None = None,
    nulls: Sequence[str] | None = None,
    encoding: str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Table:
    """Reads a wide table (a column per channel) or a long one (a row per channel and time).

    The times are read first, then the values straight into the result: column by column from a
    Parquet or Arrow file, block by block from a CSV. A wide table's peak is the result plus one
    column or block, and 8 bytes per row if rows are reordered.

    Args:
        path: Parquet or Arrow (Feather 2) by its content or name; anything else is CSV with a
            header line, optionally compressed by gzip, bzip2, xz, zlib or zstd.
        time: Time column; None takes the one called date, time, timestamp, datetime or ds, or an
            index of dates that pandas left without a name. "A+B" joins columns with a space;
            Date and Time are joined automatically.
        channels: Wide: value columns in the desired order; None takes all but the time column, row
            labels of pandas, columns without a name, and other clocks.
            Long: the desired ids; None takes all, sorted.
        id: Long: the column that identifies the channel. Requires `value`.
        value: Long: the column of values.
        missing: Policy; see `t5ts.data.grid.regular_grid`. Infinite values
            are refused under `error`, otherwise treated as missing.
        separator: Of a CSV's columns; None takes the one of , ; tab | that fits the first lines.
        decimal: "." or ","; None takes what the first lines show, and refuses 1,234 alone.
        time_format: See `t5ts.data.times.parse_times`.
        nulls: More spellings of a missing value, in addition to NULLS; also numbers (-9999).
        encoding: Of a CSV; None takes UTF-8, UTF-16 or else Windows-1252.
        block_bytes: Bytes of CSV parsed at once. Affects memory, speed, and which of
            several errors is reported; never the result.

    Raises:
        DataError: if the file is not such a table.
    """
    check_policy(missing)
    if (id is None) != (value is None):
        raise DataError(
            "data.id and data.value go together: a long table needs both, a wide one neither."
        )
    file = _File(path, separator, decimal, nulls or (), encoding, block_bytes)
    clocks = _time_columns(file, time)
    where = f"{file.path}, column {'+'.join(clocks)!r}"
    names = list(channels or ())
    if id is not None and value is not None:
        file.check_columns([id], "data.id")
        file.check_columns([value], "data.value")
        if len({*clocks, id, value}) < len(clocks) + 2:
            raise DataError(
                f"{file.path}: data.time, data.id and data.value must be 3 different columns."
            )
    else:
        if channels is None:
            names = [name for name in file.names if name not in clocks]
            left_out = [n for n in names if INDEX.fullmatch(n) or n.strip().lower() in CLOCKS]
            names = [name for name in names if name not in left_out]
            if left_out:
                file.notes.append(f"columns {left_out} left out: row labels or time columns")
        file.check_columns(names, "data.channels")
        if not names or len(set(names)) < len(names) or set(names) & set(clocks):
            raise DataError(
                f"{file.path}: data.channels={names} must name value columns once each; allowed: "
                f"{_listing([n for n in file.names if n not in clocks]) or 'none in this file'}."
            )
    times_us, read = parse_times(file.texts(clocks), where=where, time_format=time_format)
    file.notes += read
    if id is not None and value is not None:
        return _read_long(file, times_us, id, value, channels, missing, where)
    grid = regular_grid(
        times_us, missing=missing, where=where, keys=lambda: _long_keys(file, names)
    )
    del times_us
    file.notes += grid.notes
    values_TC, offset_C = file.values(names, grid.num_rows, grid.rows)
    for column, name in enumerate(names):
        _check_finite(values_TC[:, column], name, missing, file)
    return Table(
        values_TC=values_TC, offset_C=offset_C, channels=names, grid=grid, notes=file.notes
    )


def _read_long(
    file: _File,
    times_us: np.ndarray,
    id: str,
    value: str,
    channels: Sequence[str] | None,
    missing: str,
    where: str,
) -> Table:
    ids = pl.concat([piece.cast(pl.String).str.strip_chars() for piece in file.texts([id])])
    if ids.null_count():
        raise DataError(f"{file.path}: row {int(ids.is_null().arg_max() or 0) + 1} has no {id!r}.")
    found = ids.unique().sort().to_list()
    names = found if channels is None else [str(name) for name in channels]
    if not names or len(set(names)) < len(names) or set(names) - set(found):
        raise DataError(
            f"{file.path}: data.channels={names} must name ids of column {id!r} once each; "
            f"allowed: {_listing(found)}."
        )
    values = file.values([value], len(times_us), dtype=np.float64)[0][:, 0]
    _check_finite(values, value, missing, file)
    column_of = {name: column for column, name in enumerate(names)}
    of_ids = ids.replace_strict(column_of, default=None, return_dtype=pl.Int32)
    rows = pl.DataFrame({"column": of_ids, "time": times_us, "value": values})
    rows = rows.with_row_index("row").drop_nulls("column")
    backward = rows.filter(pl.col("time").diff().over("column") < 0)["column"]
    if len(backward):
        of_one = rows.filter(pl.col("column") == backward[0])
        one = f"{where}, {id}={names[backward[0]]!r}"
        check_order(of_one["time"].to_numpy(), of_one["row"].to_numpy(), missing, one)
    first_rows = rows.group_by("time").agg(pl.col("row").min()).sort("time")
    instants = first_rows["time"].to_numpy()
    if len(instants) * len(names) > 20 * len(rows):
        raise DataError(
            f"{file.path}: {len(rows)} rows cannot fill {len(instants)} times × {len(names)} "
            f"series of column {id!r}. Choose series that overlap (data.channels)."
        )
    file_rows = first_rows["row"].to_numpy()
    grid = regular_grid(instants, missing=missing, where=where, file_rows=file_rows)
    place = np.searchsorted(instants, rows["time"].to_numpy())
    place = place if grid.rows is None else grid.rows[place]
    columns = rows["column"].to_numpy()
    twice = np.bincount(place * len(names) + columns) > 1
    if twice.any():
        name = names[int(np.argmax(twice)) % len(names)]
        raise DataError(
            f"{where}: {id}={name!r} has a time twice. Keep one row for each id and time."
        )
    known = pl.col("value").fill_nan(None)
    ends = rows.group_by("column").agg(low=known.min(), high=known.max()).sort("column")
    offset_C = _offsets(*ends.select("low", "high").fill_null(np.nan).to_numpy().T)
    values_TC = np.full((grid.num_rows, len(names)), np.nan, np.float32)
    values_TC[place, columns] = rows["value"].to_numpy() - offset_C[columns]
    notes = file.notes + grid.notes
    return Table(values_TC=values_TC, offset_C=offset_C, channels=names, grid=grid, notes=notes)


class _File:
    """A table on disk: column names are read immediately, columns on demand."""

    def __init__(
        self,
        path: str | Path | None,
        separator: str | None,
        decimal: str | None,
        nulls: Sequence[str],
        encoding: str | None,
        block_bytes: int,
    ) -> None:
        if not path:
            raise DataError("data.path is not set: give a CSV or Parquet file (data.path=FILE).")
        self.path = Path(path).expanduser()
        self.notes: list[str] = []
        self._nulls = [*NULLS, *map(str, nulls)]
        self._null_numbers = []
        for text in nulls:
            with contextlib.suppress(ValueError):
                self._null_numbers.append(float(text))
        self._sep = {"tab": "\t", r"\t": "\t"}.get(separator or "", separator) or ""
        if separator is not None and len(self._sep.encode()) != 1:
            raise DataError(f"data.separator={separator!r}; allowed: one character, or tab.")
        if decimal not in (None, ".", ","):
            raise DataError(f"data.decimal={decimal!r}; allowed: '.' and ','.")
        self._point = decimal or ""
        self._encoding = encoding or ""
        self._block_bytes = block_bytes
        try:
            if self.path.is_dir():
                raise DataError(f"{self.path} is a folder; data.path must be a file.")
            if not self.path.exists():
                raise DataError(
                    f"{self.path} does not exist (data.path, relative to {Path.cwd()})."
                )
            if self.path.stat().st_size == 0:
                raise DataError(f"{self.path} is empty (0 bytes).")
            self.names = self._find_names()
        except READ_ERRORS as error:
            raise self._unreadable(error) from None
        for name in self.names:
            base, mark, number = name.rpartition("_duplicated_")
            if mark and base and number.isdigit() and base in self.names:
                raise DataError(f"{self.path}: two columns are called {base!r}. Rename one.")

    def _find_names(self) -> list[str]:
        with self.path.open("rb") as file:
            self._head = file.read(2**16)
        kinds = [kind for mark, kind in KINDS.items() if mark in (self._head[:4], self._head[:6])]
        self._kind = (kinds or [KINDS.get(self.path.suffix.lower(), "CSV")])[0]
        for pattern, what, remedy in FOREIGN:
            if not kinds and re.match(pattern, self._head):
                raise DataError(
                    f"{self.path} is {what}, not CSV, Parquet or Arrow (data.path). {remedy}"
                )
        if self._kind != "CSV":
            schema = pl.read_parquet_schema if self._kind == "Parquet" else pl.read_ipc_schema
            return list(schema(self.path))
        self._find_encoding()
        with self._stream() as stream:
            header = _header(stream)
            sample = header + stream.read(2**16)
        lines = sample.decode("utf-8", "replace").splitlines()
        lines = lines[:1000] if len(sample) < 2**16 else lines[:1000][:-1] or lines
        if lines and (given := re.fullmatch(r"sep=(.)", lines[0])):  # Excel's own line
            raise DataError(
                f"{self.path}: the first line is {lines[0]!r}. Delete it, and set data.separator="
                f"{given[1]!r}."
            )
        start = sample[:4096].decode("utf-8", "replace")
        if re.search(r"[\x00-\x08\x0e-\x19\ufffd]", start[:-3]) or re.search(rb"\r(?!\n)", header):
            raise DataError(
                f"{self.path}: it does not begin with text in {self._encoding}. It may be a binary "
                "file, in another encoding (data.encoding), or end its lines with CR alone; save "
                "the table as CSV in UTF-8."
            )
        self._sep = self._sep or self._find_separator(lines)
        self._point = self._point or self._find_decimal(lines)
        return pl.read_csv(header, n_rows=0, infer_schema=False, separator=self._sep).columns

    def _find_encoding(self) -> None:
        if self._encoding:
            try:  # codecs has hex, zip and the like too
                "".encode(self._encoding)
            except (LookupError, ValueError):
                raise DataError(
                    f"data.encoding={self._encoding!r} is unknown; allowed: utf-8, utf-16, "
                    "latin-1, cp1252 and Python's others."
                ) from None
            return
        with self._unpacked() as file:
            head = file.read(2**18)
        even, odd = head[::2].count(0), head[1::2].count(0)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self._encoding = "utf-16"
        elif max(even, odd) > len(head) // 4 and min(even, odd) < len(head) // 16:
            self._encoding = "utf-16-be" if even > odd else "utf-16-le"
        else:
            try:
                codecs.getincrementaldecoder("utf-8")().decode(head)
                self._encoding = "utf-8"
            except UnicodeDecodeError:
                self._encoding = "cp1252"
        if self._encoding != "utf-8":
            self.notes.append(f"encoding {self._encoding} detected (data.encoding)")

    def _find_separator(self, lines: list[str]) -> str:
        """The separator that gives rows of equal length, a time column, and most columns."""
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","
        fits: dict[str, tuple[float, bool, int]] = {}
        for mark in SEPARATORS if lines else ():
            header, *rows = [row for row in csv.reader(lines[:50], delimiter=mark) if row]
            if len(header) > 1:
                alike = sum(len(row) == len(header) for row in rows) / max(len(rows), 1)
                has_time = any(name.strip().lower() in TIME_NAMES for name in header)
                fits[mark] = (alike, has_time, len(header))
        if not fits or fits.get(usual) == max(fits.values()):
            return usual
        best = max(fits, key=lambda mark: fits[mark])
        self.notes.append(f"columns separated by {SEPARATORS[best]} (data.separator)")
        return best

    def _find_decimal(self, lines: list[str]) -> str:
        """A comma if numbers have one; refuses numbers that may have thousands separators."""
        if self._sep == ",":
            return "."
        rows = [map(str.strip, row) for row in csv.reader(lines[1:], delimiter=self._sep)]
        columns = [set(column) - set(self._nulls) for column in zip(*rows, strict=False)]
        commas = {
            cell
            for column in columns
            for cell in column
            if re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", cell)
        }
        doubtful = commas if all(re.fullmatch(THOUSANDS, cell) for cell in commas) else set()
        for column in columns:
            dotted = {cell for cell in column if "." in cell}
            whole = column - dotted
            if (
                len(dotted) > 2
                and any(len(cell) > 1 for cell in whole)
                and all(re.fullmatch(THOUSANDS, cell) and "," not in cell for cell in dotted)
                and all(re.fullmatch(r"[+-]?\d{1,3}", cell) for cell in whole)
            ):
                doubtful = dotted
        if doubtful:
            mark = "," if doubtful == commas else "."
            raise DataError(
                f"{self.path}: {min(doubtful)!r} could have a decimal or a thousands separator. "
                f"Set data.decimal={mark!r} if it is decimal; else remove the thousands separators."
            )
        if commas:
            self.notes.append("decimal commas detected (data.decimal)")
        return "," if commas else "."

    def check_columns(self, names: list[str], key: str) -> None:
        for name in names:
            if name not in self.names:
                raise DataError(
                    f"{self.path}: {key} has {name!r}, which is not a column; allowed: "
                    f"{_listing(self.names)}."
                )

    def texts(self, names: list[str]) -> Iterator[pl.Series]:
        """A column of times or ids, in pieces; several are joined with a space."""
        if self._kind == "CSV" or len(names) == 1:
            frames: Iterator[pl.DataFrame] = (piece for _, piece in self._pieces(names))
        else:
            frames = iter([pl.DataFrame([self._read_column(name) for name in names])])
        for frame in frames:
            columns = frame.get_columns()
            if len(names) > 1:
                texts = [pl.col(name).cast(pl.String).str.strip_chars() for name in names]
                columns = frame.select(pl.concat_str(texts, separator=" ")).get_columns()
            if columns[0].dtype == pl.String:
                is_null = columns[0].str.strip_chars().is_in(self._nulls)
                columns = [columns[0].set(is_null, None)]
            yield columns[0]

    def first(self, name: str) -> object:
        """A column's first value."""
        return next((piece[0] for piece in self.texts([name]) if len(piece)), None)

    def values(
        self,
        names: list[str],
        num_rows: int,
        rows: np.ndarray | None = None,
        *,
        dtype: type = np.float32,
        offset_C: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns of values.

        Args:
            names: The columns.
            num_rows: Rows of the result.
            rows: Where each row of the file goes; None if the result has the file's rows.
            dtype: Of the result.
            offset_C: Subtracted before the cast; None finds what float32 needs, which takes a
                second read if it is not 0.

        Returns:
            (num_rows, C) values minus the offsets, NaN where the file has none, and (C,) float64
            offsets.
        """
        values_TC: np.ndarray = np.empty((num_rows, len(names)), dtype)
        if rows is not None:
            values_TC.fill(np.nan)
        low_C, high_C = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        held = num_rows if rows is None else len(rows)
        end = 0
        for first, piece in self._pieces(names, as_values=True):
            end = first + piece.height
            if end > held:
                break
            into = slice(first, end) if rows is None else rows[first:end]
            for name in piece.columns:
                c = names.index(name)
                numbers = self._numbers(piece.get_column(name), first)
                if offset_C is not None:
                    numbers = numbers - offset_C[c]
                elif numbers.dtype != dtype:
                    finite = np.isfinite(numbers)
                    low_C[c] = min(low_C[c], np.min(numbers, where=finite, initial=np.inf))
                    high_C[c] = max(high_C[c], np.max(numbers, where=finite, initial=-np.inf))
                values_TC[into, c] = numbers
            del piece, numbers  # free them before reading the next
        if end != held:
            raise DataError(f"{self.path} changed while it was being read: it had {held} rows.")
        if offset_C is None:
            offset_C = _offsets(low_C, high_C)
            if offset_C.any():
                del values_TC
                return self.values(names, num_rows, rows, dtype=dtype, offset_C=offset_C)
        return values_TC, offset_C

    def _pieces(
        self, names: list[str], *, as_values: bool = False
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """Columns and the row they begin at: each whole (Parquet), or all in blocks (CSV)."""
        if self._kind != "CSV":
            for name in names:
                column = self._read_column(name).to_frame()
                for first in range(0, max(column.height, 1), SLICE_ROWS):
                    yield first, column.slice(first, SLICE_ROWS)
            return
        first = 0
        # Values are read with all columns: only then does polars report a row that is too long.
        columns = None if as_values else names
        for block in self._blocks():
            try:
                rows = pl.read_csv(block, infer_schema=False, separator=self._sep, columns=columns)
            except READ_ERRORS as error:
                raise self._diagnosis(block, first) or self._unreadable(error) from None
            yield first, rows.select(names)
            first += rows.height

    def _read_column(self, name: str) -> pl.Series:
        read = pl.read_parquet if self._kind == "Parquet" else pl.read_ipc
        try:
            return read(self.path, columns=[name]).to_series()
        except READ_ERRORS as error:
            raise self._unreadable(error) from None

    def _diagnosis(self, block: bytes, first: int) -> DataError | None:
        """Why polars could not split a block: a row too long, wrong bytes, or an open quote."""
        try:
            text = block.decode()
        except UnicodeDecodeError as error:
            return DataError(
                f"{self.path}: after row {first} some text is not {self._encoding} "
                f"({error.reason}). Set the file's encoding, for example data.encoding=latin-1."
            )
        if block.count(b'"') % 2:
            line = next(line for line in text.splitlines() if line.count('"') % 2)
            return DataError(
                f"{self.path}: unbalanced quotes; the line {line[:80]}"
                " has an odd number of them. Close the quote, or double a quote inside text."
            )
        for row, cells in enumerate(csv.reader(io.StringIO(text), delimiter=self._sep)):
            if row and len(cells) > len(self.names):
                return DataError(
                    f"{self.path}: row {first + row} has {len(cells)} fields but the header "
                    f"{len(self.names)}: {self._sep.join(cells)[:80]!r}. Quote text with a "
                    f"{self._sep!r}, write numbers with a decimal point, or set data.separator."
                )
        return None

    def _numbers(self, column: pl.Series, first: int) -> np.ndarray:
        """A value column as float64 (float32 if it is so in the file), NaN where null."""
        written = column
        if self._kind == "CSV":
            column = self._parsed(column, first)
        dtype = column.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"{self.path}: column {column.name!r} contains {dtype}, not numbers. List the "
                "value columns in data.channels."
            )
        numbers = column.cast(pl.Float32 if dtype == pl.Float32 else pl.Float64)
        for null in self._null_numbers:
            numbers = numbers.set(numbers == null, None)
        values = numbers.to_numpy()
        if dtype == pl.Float32 or np.nanmax(np.abs(values), initial=0) <= 2**53:
            return values
        if dtype.is_integer():
            wrong = numbers.is_not_null() & numbers.cast(dtype, strict=False).ne_missing(column)
            why = "which float64 would round. Subtract a constant from all rows"
        else:
            wrong = numbers.is_finite() & (numbers.abs() > FLOAT32_MAX)
            why = f"beyond float32's {FLOAT32_MAX:.1e}. Write it in a larger unit"
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise DataError(
                f"{self.path}: row {first + row + 1} of column {column.name!r} has "
                f"{written[row]}, {why}, or add it to data.nulls if it means a missing value."
            )
        return values

    def _parsed(self, column: pl.Series, first: int) -> pl.Series:
        """A CSV's text as numbers, null where it means a missing value."""
        if self._point == ".":
            numbers = column.cast(pl.Float64, strict=False)
            if numbers.null_count() == column.null_count():
                return numbers
        texts = column.str.strip_chars()
        if self._point == ",":
            texts = texts.str.replace(".", "x", literal=True).str.replace(",", ".", literal=True)
        numbers = texts.cast(pl.Float64, strict=False)
        bad = numbers.is_null() & texts.is_not_null() & ~texts.is_in(self._nulls)
        if not bad.any():
            return numbers
        row = int(bad.arg_max() or 0)
        remedy = (
            "Correct it, or list the value columns in data.channels (columns: "
            f"{_listing(self.names)}). Missing values may be empty, NA, NaN or null, or listed "
            "in data.nulls."
        )
        if re.search(r"\d[.,]\d", column[row]):
            remedy += (
                f" Numbers are read with a decimal {self._point!r} (data.decimal) and without "
                "thousands separators."
            )
        raise DataError(
            f"{self.path}: row {first + row + 1} of column {column.name!r} has {column[row]!r}, "
            f"not a number. {remedy}"
        )

    def _unreadable(self, error: BaseException) -> DataError:
        if isinstance(error, DataError):
            return error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return DataError(f"{self.path} cannot be read as {self._kind}: {lines[0]}")

    def _unpacked(self) -> BinaryIO:
        for mark, opener in OPENERS.items():
            if self._head.startswith(mark):
                return opener(self.path)  # type: ignore[operator]
        if self._head.startswith(PACKED):
            lines = pl.read_csv(
                self.path, has_header=False, separator="\x01", quote_char=None, infer_schema=False
            )
            return io.BytesIO("\n".join(lines.to_series().fill_null("")).encode())
        return self.path.open("rb")

    def _stream(self) -> BinaryIO:
        """The file's text in UTF-8."""
        file = self._unpacked()
        if codecs.lookup(self._encoding).name == "utf-8":
            return file
        return codecs.EncodedFile(file, "utf-8", self._encoding, "replace")

    def _blocks(self) -> Iterator[bytes]:
        """A CSV's rows in blocks of at least this many bytes, each under the file's header.

        polars memory-maps a file given by name, so all of its text would count as memory
        of this process. A block ends at the end of a line that is outside quotes (after an even
        number of them). Blank lines, and lines of separators only, are dropped.
        """
        blank = re.compile(rb"(?m)^[ %b]*\r?(\n|\Z)" % re.escape(self._sep.encode()))
        signs = [ord(sign) for sign in ("\n", "\r", " ", self._sep)]
        try:
            with self._stream() as file:
                header = _header(file)
                while block := file.read(self._block_bytes):
                    lines = [block, file.readline()]
                    quotes = sum(text.count(b'"') for text in lines)
                    while quotes % 2 and (line := file.readline()):
                        lines.append(line)
                        quotes += line.count(b'"')
                    text = header + b"".join(lines)
                    chars = np.frombuffer(text, np.uint8)
                    if np.isin(chars[1:][chars[:-1] == ord("\n")], signs).any():
                        text = blank.sub(b"", text)
                    yield text
        except READ_ERRORS as error:
            raise self._unreadable(error) from None


def _header(file: BinaryIO) -> bytes:
    """The first line that is not blank, with further lines if a quoted name spans them."""
    header = file.readline().removeprefix(codecs.BOM_UTF8)
    while not header.strip() and (line := file.readline()):
        header = line
    while header.count(b'"') % 2 and (line := file.readline()):
        header += line
    return header


def _offsets(low_C: np.ndarray, high_C: np.ndarray) -> np.ndarray:
    """What to subtract before the cast to float32: 0, or the channel's value nearest to 0.

    float32 keeps 24 bits, so 1.6e9 ± 3 would be one value. With an offset taken from the values
    they are exact to 2⁻²⁴ of their range.
    """
    nearest_C = np.where(low_C > 0, low_C, np.minimum(high_C, 0.0))
    far_C = np.isfinite(nearest_C) & (np.abs(nearest_C) > FAR * (high_C - low_C))
    return np.where(far_C, nearest_C, 0.0)


def _time_columns(file: _File, time: str | None) -> list[str]:
    """The time column, or the columns that make up the time."""
    if time is not None:
        parts = [time] if time in file.names else [part.strip() for part in time.split("+")]
        file.check_columns(parts if len(parts) > 1 else [time], "data.time")
        return parts
    lower = {name.strip().lower(): name for name in reversed(file.names)}
    if "date" in lower and "time" in lower:
        day, clock = str(file.first(lower["date"])), str(file.first(lower["time"]))
        if ":" not in day and re.match(r"\s*\d\d?:\d\d", clock):
            return [lower["date"], lower["time"]]
    for wanted in TIME_NAMES:
        if wanted in lower:
            return [lower[wanted]]
    for name in file.names:
        if INDEX.fullmatch(name):
            first = file.first(name)
            if re.match(r"\d{4}-\d\d|\d\d?[/.]\d\d?[/.]\d{4}", str(first)):
                return [name]
    hint = ""
    if len(file.names) == 1:
        hint = " It has one column: set the column separator (data.separator)."
    elif any(re.match(r"\s*[+-]?\d", name) for name in file.names):
        hint = " Its first line seems to be data: add a line of column names above it."
    raise DataError(
        f"{file.path}: no time column: no column is called {', '.join(TIME_NAMES)}. Set it "
        f"(data.time=COLUMN, or data.time=YEAR+MONTH+DAY with data.time_format='%Y %m %d'); "
        f"columns: {_listing(file.names)}.{hint}"
    )


def _long_keys(file: _File, names: list[str]) -> str:
    """The keys that would read the file as a long table."""
    if len(names) < 2:
        return "data.id=COLUMN data.value=COLUMN"
    texts = []
    for name in names:
        first = file.first(name)
        if isinstance(first, str) and not re.fullmatch(r"\s*[+-]?[\d.,]+([eE].*)?", first):
            texts.append(name)
    id = (texts or [n for n in names if re.fullmatch(r"(?i).*(id|name|code)", n)] or names)[0]
    value = [name for name in names if name != id][-1]
    return f"data.id={id} data.value={value}"


def _check_finite(column_T: np.ndarray, name: str, missing: str, file: _File) -> None:
    """Refuses infinities (and NaN) under `error`; else turns infinities into NaN, with a note."""
    finite_T = np.isfinite(column_T)
    if finite_T.all():
        return
    row = int(np.argmin(finite_T))
    if missing == "error":
        if np.isnan(column_T).all():
            raise DataError(
                f"{file.path}: column {name!r} has no values. Leave it out: list the others in "
                "data.channels."
            )
        what = "is missing" if np.isnan(column_T[row]) else "is infinite"
        raise DataError(
            f"{file.path}: row {row + 1} of column {name!r} {what}; "
            f"{int(np.count_nonzero(~finite_T))} such values. Correct them, or set data.missing="
            "interpolate or mask, which leave gaps out of the loss."
        )
    infinite_T = np.isinf(column_T)
    if infinite_T.any():
        file.notes.append(f"{int(infinite_T.sum())} infinite values of {name} treated as missing")
        column_T[infinite_T] = np.nan


def _listing(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
