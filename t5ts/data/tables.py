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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

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
# How the files begin that people take for tables.
FOREIGN = re.compile(
    rb"PK\x03\x04|\xd0\xcf\x11\xe0|\x89HDF|SQLite format 3|\x93NUMPY|\x80[\x02-\x05]|FEA1"
    rb"|\s*(\{|\[\s*[\[{])|(?i:\s*<(!doctype|html|\?xml))"
)
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
        time: Time column; None takes the one called date, time, timestamp, datetime or ds, or an
            index of dates that pandas left without a name. "A+B" joins columns with a space;
            Date and Time are joined automatically.
        channels: Wide: value columns in the desired order; None takes all but the time column, row
            labels of pandas, columns without a name, and other clocks.
            Long: the desired ids; None takes all, sorted.
        id: Long: the column that identifies the channel. Requires `value`.
        value: Long: the column of values.
        missing: Policy; see `t5ts.data.grid.regular_grid`. Missing and infinite values
            are refused under `error`; else infinite ones are missing.
        spelling: Other fields of `TableFile`, from separator to block_bytes.

    Raises:
        DataError: if the file is not such a table.
    """
    check_policy(missing)
    file = TableFile(path=Path(path or ""), missing=missing, **spelling)
    clocks = _time_columns(file, time)
    where = f"{file.path}, column {'+'.join(clocks)!r}"
    if (id is None) != (value is None) or (id and len({*clocks, id, value}) < len(clocks) + 2):
        raise DataError(
            f"{file.path}: data.id and data.value go together: a long table needs both, apart from "
            "each other and from data.time; a wide one has neither."
        )
    if id is not None and value is not None:
        file.check_columns([id], "data.id")
        file.check_columns([value], "data.value")
    else:
        names = [name for name in file.names if name not in clocks]
        left_out = [n for n in names if INDEX.fullmatch(n) or n.strip().lower() in CLOCKS]
        if channels is not None:
            names = list(channels)
        elif left_out:
            names = [name for name in names if name not in left_out]
            file.notes.append(f"columns {left_out} left out: row labels or time columns")
        file.check_columns(names, "data.channels", apart_from=clocks)
    times_us, read = parse_times(file.texts(clocks), where=where, time_format=file.time_format)
    file.notes += read
    if id is not None and value is not None:
        return _read_long(file, times_us, id, value, channels, where)
    grid = regular_grid(times_us, missing=missing, where=where, columns=_listing(names))
    del times_us
    values_TC, offset_C = file.values(names, grid.num_rows, grid.rows)
    notes = [*file.notes, *grid.notes, *file.infinite_notes()]
    return Table(values_TC=values_TC, offset_C=offset_C, channels=names, grid=grid, notes=notes)


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
    _check_names(names, found, f"{file.path}: data.channels (ids of column {id!r})")
    values, _ = file.values([value], len(times_us), dtype=np.float64)
    column_of = {name: column for column, name in enumerate(names)}
    of_ids = ids.replace_strict(column_of, default=None, return_dtype=pl.Int32)
    rows = pl.DataFrame({"column": of_ids, "time": times_us, "value": values[:, 0]})
    rows = rows.with_row_index("row").drop_nulls("column")
    backward = rows.filter(pl.col("time").diff().over("column") < 0)["column"]
    if len(backward):
        of_one = rows.filter(pl.col("column") == backward[0])
        one = f"{where}, {id}={names[backward[0]]!r}"
        check_order(of_one["time"].to_numpy(), of_one["row"].to_numpy(), file.missing, one)
    first_rows = rows.group_by("time").agg(pl.col("row").min()).sort("time")
    instants = first_rows["time"].to_numpy()
    if len(instants) * len(names) > 20 * len(rows):
        raise DataError(
            f"{file.path}: {len(rows)} rows cannot fill {len(instants)} times × {len(names)} "
            f"series of column {id!r}. Choose series that overlap (data.channels)."
        )
    file_rows = first_rows["row"].to_numpy()
    grid = regular_grid(instants, missing=file.missing, where=where, file_rows=file_rows)
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
    notes = [*file.notes, *file.infinite_notes(), *grid.notes]
    return Table(values_TC=values_TC, offset_C=offset_C, channels=names, grid=grid, notes=notes)


@dataclass(kw_only=True)
class TableFile:
    """A table on disk: column names are read immediately, columns on demand.

    Attributes:
        path: The file (data.path).
        missing: Policy for missing values.
        separator: Of a CSV's columns; None takes the one of , ; tab | that fits the first lines.
        decimal: "." or ","; None takes what the first lines show, and refuses 1,234 alone.
        time_format: See `t5ts.data.times.parse_times`.
        nulls: More spellings of a missing value, in addition to NULLS; also numbers (-9999).
        encoding: Of a CSV; None takes UTF-8, UTF-16 or else Windows-1252.
        block_bytes: Bytes of CSV parsed at once. Affects memory, speed, and which of
            several errors is reported; never the result.
        names: The columns.
        notes: What was detected.
    """

    path: Path
    missing: str
    separator: str | None = None
    decimal: str | None = None
    time_format: str | None = None
    nulls: Sequence[str] | None = None
    encoding: str | None = None
    block_bytes: int = BLOCK_BYTES
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.path.expanduser()
        self._nulls = [*NULLS, *map(str, self.nulls or ())]
        self._null_numbers = []
        for text in self.nulls or ():
            with contextlib.suppress(ValueError):
                self._null_numbers.append(float(text))
        self._sep = {"tab": "\t", r"\t": "\t"}.get(self.separator or "", self.separator) or ""
        self._point, self._encoding = self.decimal or "", self.encoding or ""
        if self.separator is not None and len(self._sep.encode()) != 1:
            raise DataError(f"data.separator={self.separator!r}; allowed: one character, or tab.")
        if self._point not in ("", ".", ","):
            raise DataError(f"data.decimal={self.decimal!r}; allowed: '.' and ','.")
        if not self.path.is_file() or not self.path.stat().st_size:
            raise DataError(
                f"{self.path} (data.path, relative to {Path.cwd()}) is not a file with anything in "
                "it: give a CSV, Parquet or Arrow file (data.path=FILE)."
            )
        try:
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
        if not kinds and FOREIGN.match(self._head):
            raise DataError(
                f"{self.path} is not CSV, Parquet or Arrow (data.path), but begins like an Excel "
                "workbook, zip archive, HDF5, SQLite, NumPy, pickle or old Feather file, JSON or a "
                "web page. Save the table itself as CSV or Parquet."
            )
        if self._kind != "CSV":
            schema = pl.read_parquet_schema if self._kind == "Parquet" else pl.read_ipc_schema
            return list(schema(self.path))
        self._encoding = self._encoding or self._find_encoding()
        try:  # codecs has hex, zip and the like too
            "".encode(self._encoding)
        except (LookupError, ValueError):
            raise DataError(
                f"data.encoding={self._encoding!r} is unknown; allowed: utf-8, utf-16, latin-1, "
                "cp1252 and Python's others."
            ) from None
        with self._stream() as stream:
            header = _header(stream)
            sample = header + stream.read(2**16)
        if not header.strip():
            raise DataError(f"{self.path} (data.path) is blank: it has no line of column names.")
        lines = sample.decode("utf-8", "replace").splitlines()
        lines = lines[:1000] if len(sample) < 2**16 else lines[:1000][:-1] or lines
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

    def _find_encoding(self) -> str:
        with self._unpacked() as file:
            head = file.read(2**18)
        even, odd = head[::2].count(0), head[1::2].count(0)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found = "utf-16"
        elif max(even, odd) > len(head) // 4 and min(even, odd) < len(head) // 16:
            found = "utf-16-be" if even > odd else "utf-16-le"
        else:
            try:
                codecs.getincrementaldecoder("utf-8")().decode(head)
                return "utf-8"
            except UnicodeDecodeError:
                found = "cp1252"
        self.notes.append(f"encoding {found} detected (data.encoding)")
        return found

    def _find_separator(self, lines: list[str]) -> str:
        """The separator that gives rows of equal length, a time column, and most columns."""
        best, usual = (0.0, False, 1), "\t" if self.path.suffix.lower() == ".tsv" else ","
        found = usual
        for mark in (usual, *SEPARATORS) if lines else ():
            header, *rows = [row for row in csv.reader(lines[:50], delimiter=mark) if row]
            alike = sum(len(row) == len(header) for row in rows) / max(len(rows), 1)
            has_time = any(name.strip().lower() in TIME_NAMES for name in header)
            score = (alike, has_time, len(header))
            if len(header) > 1 and score > best:
                best, found = score, mark
        if found != usual:
            self.notes.append(f"columns separated by {SEPARATORS[found]} (data.separator)")
        return found

    def _find_decimal(self, lines: list[str]) -> str:
        """A comma if numbers have one; refuses numbers that may have thousands separators."""
        if self._sep == ",":
            return "."
        rows = [map(str.strip, row) for row in csv.reader(lines[1:], delimiter=self._sep)]
        columns = [set(column) - set(self._nulls) for column in zip(*rows, strict=False)]
        with_comma = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
        commas = {cell for column in columns for cell in column if with_comma.fullmatch(cell)}
        doubtful = commas if all(re.fullmatch(THOUSANDS, cell) for cell in commas) else set()
        for column in columns:  # points that may separate thousands, beside numbers below 1000
            dotted = {c for c in column if re.fullmatch(THOUSANDS, c) and "," not in c}
            small = column - dotted
            is_whole = all(re.fullmatch(r"[+-]?\d{1,3}", c) for c in small)
            if is_whole and len(dotted) > 2 and any(len(c) > 1 for c in small):
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

    def check_columns(self, names: list[str], key: str, *, apart_from: Sequence[str] = ()) -> None:
        """Refuses names that are not different columns of the file."""
        _check_names(names, [n for n in self.names if n not in apart_from], f"{self.path}: {key}")

    def texts(self, names: list[str]) -> Iterator[pl.Series]:
        """A column of times or ids, null where missing; several are joined with a space."""
        frames = (piece for _, piece in self._pieces(names))
        if len(names) > 1 and self._kind != "CSV":
            frames = (pl.DataFrame([self._read_column(name) for name in names]) for _ in "1")
        for frame in frames:
            column, *others = frame.get_columns()
            if others:
                joined = pl.concat_str(pl.all().cast(pl.String).str.strip_chars(), separator=" ")
                column = frame.select(joined).to_series()
            if column.dtype == pl.String:
                column = column.str.strip_chars()
                column = column.set(column.is_in(self._nulls), None)
            yield column

    def first(self, name: str) -> object:
        """A column's first value."""
        return next((piece[name][0] for _, piece in self._pieces([name]) if piece.height), None)

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
        self._num_infinite = dict.fromkeys(names, 0)
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
                    low_C[c] = min(low_C[c], np.fmin.reduce(numbers, initial=np.inf))
                    high_C[c] = max(high_C[c], np.fmax.reduce(numbers, initial=-np.inf))
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

    def infinite_notes(self) -> list[str]:
        """What the last `values` turned into NaN."""
        counts = self._num_infinite.items()
        return [f"{n} infinite values of {name} treated as missing" for name, n in counts if n]

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
        columns, separator = None if as_values else names, self._sep
        for block in self._blocks():
            try:
                rows = pl.read_csv(block, infer_schema=False, separator=separator, columns=columns)
            except READ_ERRORS as error:
                raise self._diagnosis(block, first, error) from None
            yield first, rows.select(names)
            first += rows.height

    def _read_column(self, name: str) -> pl.Series:
        read = pl.read_parquet if self._kind == "Parquet" else pl.read_ipc
        try:
            return read(self.path, columns=[name]).to_series()
        except READ_ERRORS as error:
            raise self._unreadable(error) from None

    def _diagnosis(self, block: bytes, first: int, error: BaseException) -> DataError:
        """Why polars could not split a block: a row too long, wrong bytes, or an open quote."""
        try:
            lines = block.decode().splitlines()
        except UnicodeDecodeError as wrong:
            return DataError(
                f"{self.path}: after row {first} some text is not {self._encoding} "
                f"({wrong.reason}). Set the file's encoding, for example data.encoding=latin-1."
            )
        odd = [line for line in lines if line.count('"') % 2]
        if len(odd) % 2:
            return DataError(
                f"{self.path}: unbalanced quotes; the line {odd[0][:80]} has an odd number of "
                "them. Close the quote, or double a quote inside text."
            )
        rows = csv.reader(io.StringIO(block.decode()), delimiter=self._sep)
        for row, cells in enumerate(rows):
            if row and len(cells) > len(self.names):
                return DataError(
                    f"{self.path}: row {first + row} has {len(cells)} fields but the header "
                    f"{len(self.names)}: {cells!r:.80}. Quote text with a {self._sep!r}, "
                    "write numbers with a decimal point, or set data.separator."
                )
        return self._unreadable(error)

    def _numbers(self, column: pl.Series, first: int) -> np.ndarray:
        """A value column as float64 (float32 if it is so in the file), NaN where missing.

        Raises:
            DataError: for the first row that is not a number, not exact, or refused as missing.
        """

        def refuse(wrong: pl.Series, why: str) -> None:
            if wrong.any():
                row = int(wrong.arg_max() or 0)
                raise DataError(
                    f"{self.path}: row {first + row + 1} of column {column.name!r} has "
                    f"{column[row]!r}, {why}, leave the column out (data.channels), or add the "
                    "value to data.nulls if it means a missing one."
                )

        dtype = column.dtype
        if self._kind == "CSV":
            numbers, is_wrong = self._parsed(column)
            refuse(
                is_wrong,
                f"not a number: numbers are read with a decimal {self._point!r} (data.decimal) "
                "and without thousands separators, missing values may be empty, NA, NaN or null. "
                "Correct it",
            )
        elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
            numbers = column.cast(pl.Float32 if dtype == pl.Float32 else pl.Float64)
        else:
            raise DataError(
                f"{self.path}: column {column.name!r} contains {dtype}, not numbers. List the "
                "value columns in data.channels."
            )
        for null in self._null_numbers:
            numbers = numbers.set(numbers == null, None)
        values = numbers.to_numpy()
        if dtype != pl.Float32 and np.nanmax(np.abs(values), initial=0) > 2**53:
            is_wrong = numbers.is_finite() & (numbers.abs() > FLOAT32_MAX)
            whole = column.cast(pl.Int128, strict=False)  # of text: null unless digits alone
            held = numbers.cast(pl.Int128, strict=False)
            is_wrong |= numbers.is_not_null() & whole.is_not_null() & held.ne_missing(whole)
            refuse(
                is_wrong,
                f"more than float32 ({FLOAT32_MAX:.1e}; whole numbers: float64, 2⁵³) can hold. "
                "Write it in a larger unit, subtract a constant",
            )
        is_finite = np.isfinite(values)
        if not is_finite.all():
            if self.missing == "error":
                refuse(
                    pl.Series(~is_finite),
                    "missing or infinite. Correct it, set data.missing=interpolate or mask, which "
                    "leave gaps out of the loss",
                )
            self._num_infinite[column.name] += int(np.isinf(values).sum())
            values = np.where(is_finite, values, np.nan)
        return values

    def _parsed(self, column: pl.Series) -> tuple[pl.Series, pl.Series]:
        """A CSV's text as numbers, null where missing; and where it is neither."""
        if self._point == ".":
            numbers = column.cast(pl.Float64, strict=False)
            if numbers.null_count() == column.null_count():
                return numbers, pl.Series([False])
        texts = column.str.strip_chars()
        if self._point == ",":
            texts = texts.str.replace(".", "x", literal=True).str.replace(",", ".", literal=True)
        numbers = texts.cast(pl.Float64, strict=False)
        return numbers, numbers.is_null() & texts.is_not_null() & ~texts.is_in(self._nulls)

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
                while block := file.read(self.block_bytes):
                    text = header + block + _rest_of_row(file, block)
                    chars = np.frombuffer(text, np.uint8)
                    if np.isin(chars[1:][chars[:-1] == ord("\n")], signs).any():
                        text = blank.sub(b"", text)
                    yield text
        except READ_ERRORS as error:
            raise self._unreadable(error) from None


def _rest_of_row(file: BinaryIO, begun: bytes) -> bytes:
    """The lines up to one that ends outside quotes, after an even number of them."""
    lines = [file.readline()]
    num_quotes = begun.count(b'"') + lines[0].count(b'"')
    while num_quotes % 2 and (line := file.readline()):
        lines.append(line)
        num_quotes += line.count(b'"')
    return b"".join(lines)


def _header(file: BinaryIO) -> bytes:
    """The first line that is not blank, with further lines if a quoted name spans them."""
    header = file.readline().removeprefix(codecs.BOM_UTF8)
    while not header.strip() and (line := file.readline()):
        header = line
    return header + (_rest_of_row(file, header) if header.count(b'"') % 2 else b"")


def _offsets(low_C: np.ndarray, high_C: np.ndarray) -> np.ndarray:
    """What to subtract before the cast to float32: 0, or the channel's value nearest to 0.

    float32 keeps 24 bits, so 1.6e9 ± 3 would be one value. With an offset taken from the values
    they are exact to 2⁻²⁴ of their range.
    """
    nearest_C = np.where(low_C > 0, low_C, np.minimum(high_C, 0.0))
    far_C = np.isfinite(nearest_C) & (np.abs(nearest_C) > FAR * (high_C - low_C))
    return np.where(far_C, nearest_C, 0.0)


def _time_columns(file: TableFile, time: str | None) -> list[str]:
    """The time column, or the columns that make up the time."""
    if time is not None:
        parts = [time] if time in file.names else [part.strip() for part in time.split("+")]
        file.check_columns(parts, "data.time")
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
        f"is data; columns: {_listing(file.names)}."
    )


def _check_names(names: Sequence[str], allowed: Sequence[str], key: str) -> None:
    if not names or len(set(names)) < len(names) or set(names) - set(allowed):
        raise DataError(
            f"{key}={list(names)} must be some of these, once each: {_listing(allowed) or 'none'}."
        )


def _listing(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
