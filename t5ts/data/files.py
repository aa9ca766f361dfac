"""A table on disk (CSV, Parquet, Arrow): its names at once, its columns on demand."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from t5ts.data.dialect import (
    NULLS,
    find_decimal,
    find_encoding,
    find_separator,
    read_header,
    rest_of_row,
)
from t5ts.data.grid import POLICIES
from t5ts.errors import DataError

# Bytes of CSV parsed at once: more is no faster, and costs ten times its size in memory.
BLOCK_BYTES = 2**20
# Rows of a Parquet or Arrow column that are converted at once.
SLICE_ROWS = 2**20
KINDS = {".parquet": "Parquet", ".pq": "Parquet", ".feather": "Arrow", ".arrow": "Arrow",
         ".ipc": "Arrow", b"PAR1": "Parquet", b"ARROW1": "Arrow"}  # fmt: skip
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# The first bytes of zlib and zstd, which polars unpacks.
PACKED = (b"x\x01", b"x\x9c", b"x\xda", b"\x28\xb5\x2f\xfd")
# The first bytes of files that are often taken for tables.
FOREIGN = re.compile(
    rb"PK\x03\x04|\xd0\xcf\x11\xe0|\x89HDF|SQLite format 3|\x93NUMPY|\x80[\x02-\x05]|FEA1"
    rb"|\s*(\{|\[\s*[\[{])|(?i:\s*<(!doctype|html|\?xml))"
)
FLOAT32_MAX = float(np.finfo(np.float32).max)
# A channel gets an offset if its values are this many times further from 0 than from each other.
FAR = 16
# polars' Rust panics are BaseExceptions; a corrupt file must not surface as one.
READ_ERRORS = (
    pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, EOFError,
    zlib.error, lzma.LZMAError, csv.Error,
)  # fmt: skip


@dataclass(kw_only=True)
class TableFile:
    """A table on disk.

    Attributes:
        path: The file (data.path).
        missing: Policy for missing values; see `t5ts.data.grid.regular_grid`.
        separator: Of a CSV's columns; None takes the one of , ; tab | that fits the first lines.
        decimal: "." or ","; None takes what the first lines show, and refuses 1,234 alone.
        time_format: See `t5ts.data.times.parse_times`.
        nulls: More spellings of a missing value, in addition to NULLS; also numbers (-9999).
        encoding: Of a CSV; None takes UTF-8, UTF-16 or else Windows-1252.
        block_bytes: Bytes of CSV parsed at once; affects memory, speed, and which of several
            errors is reported, never the result.
        names: The columns.
        notes: What was detected and treated as missing.
    """

    path: Path
    missing: str = "error"
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
        self._point = self.decimal or "."
        self._nulls = [*NULLS, *map(str, self.nulls or ())]
        numbers = pl.Series(self._nulls).cast(pl.Float64, strict=False)
        self._null_numbers = numbers.drop_nulls().drop_nans().to_list()
        self._sep = {"tab": "\t", r"\t": "\t"}.get(self.separator or "", self.separator or "")
        for key, is_right, allowed in (
            ("missing", self.missing in POLICIES, ", ".join(POLICIES)),
            ("separator", self.separator is None or len(self._sep.encode()) == 1, "one character"),
            ("decimal", self.decimal in (None, ".", ","), "'.' and ','"),
        ):
            if not is_right:
                raise DataError(f"data.{key}={getattr(self, key)!r}; allowed: {allowed}.")
        try:
            is_empty = not self.path.is_file() or not self.path.stat().st_size
        except OSError:  # too long a name
            is_empty = True
        if is_empty:
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
        with self._unpacked() as file:
            self._encoding = self.encoding or find_encoding(file.read(2**18))
        try:  # codecs also knows hex, zip and the like
            "".encode(self._encoding)
        except (LookupError, ValueError):
            raise DataError(
                f"data.encoding={self._encoding!r} is unknown; allowed: utf-8, utf-16, latin-1, "
                "cp1252 and Python's others."
            ) from None
        with self._stream() as stream:
            header = read_header(stream)
            sample = (header + stream.read(2**16)).decode("utf-8", "replace")
            is_cut = bool(stream.read(1))
        lines = sample.splitlines()[: -1 if is_cut else None][:1000] or [sample]
        has_binary = re.search(r"[\x00-\x08\x0e-\x19\ufffd]", "".join(lines[:5]))
        if not header.strip() or has_binary or re.search(rb"\r(?!\n)", header):
            raise DataError(
                f"{self.path} (data.path) does not begin with a line of column names in "
                f"{self._encoding}. It may be blank, binary, in another encoding (data.encoding), "
                "or end its lines with CR alone; save the table as CSV in UTF-8."
            )
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","
        self._sep = self._sep or find_separator(lines, usual=usual)
        self._point = self.decimal or find_decimal(
            lines, separator=self._sep, nulls=self._nulls, where=str(self.path)
        )
        for key, given, found, common in (
            ("encoding", self.encoding, self._encoding, "utf-8"),
            ("separator", self.separator, self._sep, usual),
            ("decimal", self.decimal, self._point, "."),
        ):
            if given is None and found != common:
                self.notes.append(f"data.{key}={found!r} detected")
        return pl.read_csv(header, n_rows=0, infer_schema=False, separator=self._sep).columns

    def texts(self, names: list[str]) -> Iterator[pl.Series]:
        """A column of times or ids, null where missing; several are joined with a space."""
        for _, frame in self._pieces(names):
            column = frame.to_series()
            if len(names) > 1:
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
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns of values.

        Args:
            names: The columns.
            num_rows: Rows of the result.
            rows: Where each row of the file goes; None if the result has the file's rows.
            dtype: Of the result. Where float32 needs offsets, the file is read a second time.

        Returns:
            (num_rows, C) values minus the offsets, NaN where the file has none, and (C,) float64
            offsets.
        """
        values_TC: np.ndarray = np.empty((num_rows, len(names)), dtype)
        if rows is not None:
            values_TC.fill(np.nan)
        offset_C = find_offsets(*self._fill(values_TC, names, rows, np.zeros(len(names))))
        if offset_C.any():
            self._fill(values_TC, names, rows, offset_C)
        for name, count in self._infinite.items():
            self.notes.append(f"{count} infinite values of {name} treated as missing")
        return values_TC, offset_C

    def _fill(
        self, values_TC: np.ndarray, names: list[str], rows: np.ndarray | None, offset_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fill the array; returns the ends of the channels that may need offsets."""
        low_C, high_C = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        self._infinite: Counter[str] = Counter()
        num_read = len(values_TC) if rows is None else len(rows)
        end = 0
        for first, piece in self._pieces(names, as_values=True):
            end = first + piece.height
            if end > num_read:
                break
            into = slice(first, end) if rows is None else rows[first:end]
            for name in piece.columns:
                c = names.index(name)
                numbers = self._numbers(piece.get_column(name), first)
                if offset_C[c]:
                    numbers = numbers - offset_C[c]
                elif values_TC.dtype == np.float32 != numbers.dtype:
                    low_C[c] = min(low_C[c], np.fmin.reduce(numbers, initial=np.inf))
                    high_C[c] = max(high_C[c], np.fmax.reduce(numbers, initial=-np.inf))
                values_TC[into, c] = numbers
            del piece, numbers  # free them before reading the next
        if end != num_read:
            raise DataError(f"{self.path} changed while it was being read: it had {num_read} rows.")
        return low_C, high_C

    def _pieces(
        self, names: list[str], *, as_values: bool = False
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """Columns in pieces, and the row that each piece begins at.

        Values come column by column from a Parquet or Arrow file, and from a CSV with all columns
        parsed: only then does polars report a row that is too long.
        """
        if self._kind == "CSV":
            first, columns = 0, None if as_values else names
            for block in self._blocks():
                try:
                    rows = pl.read_csv(
                        block, infer_schema=False, separator=self._sep, columns=columns
                    )
                except READ_ERRORS as error:
                    raise self._diagnosis(block, first, error) from None
                yield first, rows.select(names)
                first += rows.height
            return
        read = pl.read_parquet if self._kind == "Parquet" else pl.read_ipc
        for group in [[name] for name in names] if as_values else [names]:
            try:
                frame = read(self.path, columns=group).select(group)
            except READ_ERRORS as error:
                raise self._unreadable(error) from None
            for first in range(0, max(frame.height, 1), SLICE_ROWS):
                yield first, frame.slice(first, SLICE_ROWS)
            del frame

    def _diagnosis(self, block: bytes, first: int, error: BaseException) -> DataError:
        """Name the row of a block that polars could not split."""
        for row, line in enumerate(block.decode("utf-8", "replace").splitlines()):
            bare = re.sub('"[^"]*"', "", line)
            if bare.count(self._sep) >= len(self.names) or '"' in bare or "\ufffd" in line:
                return DataError(
                    f"{self.path}: row {first + row} cannot be split: {line!r:.80}. It has more "
                    f"fields than the header ({len(self.names)}; quote text with a {self._sep!r}, "
                    "write numbers with a decimal point, or set data.separator), unbalanced "
                    f"quotes, or bytes that are not {self._encoding} (set data.encoding)."
                )
        return self._unreadable(error)

    def _numbers(self, column: pl.Series, first: int) -> np.ndarray:
        """A value column as float64 (float32 if it is so in the file), NaN where missing.

        Raises:
            DataError: for the first row that is not a number, not exact, or refused as missing.
        """
        dtype = column.dtype
        if self._kind == "CSV":
            numbers = self._parsed(column)
        elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
            numbers = column.cast(pl.Float32 if dtype == pl.Float32 else pl.Float64)
        else:
            raise DataError(
                f"{self.path}: column {column.name!r} contains {dtype}, not numbers. List the "
                "value columns in data.channels."
            )
        known = numbers
        for null in self._null_numbers:
            known = known.set(known == null, None)
        values = known.to_numpy()
        is_finite, is_lost = np.isfinite(values), pl.Series(np.abs(values) >= 2**53)
        if is_finite.all() and not is_lost.any():
            return values
        is_gap = pl.Series(~is_finite & (self.missing == "error"))
        is_text = numbers.is_null() & column.is_not_null()
        if is_text.any():
            is_text &= ~column.str.strip_chars().is_in(self._nulls)
        if is_lost.any():
            whole = column.cast(pl.Int128, strict=False)  # of text: null unless digits alone
            is_rounded = whole.is_not_null() & known.cast(pl.Int128, strict=False).ne_missing(whole)
            is_lost &= is_rounded | known.is_finite() & (known.abs() > FLOAT32_MAX)
        for is_wrong, why in (
            (is_text, f"not a number: numbers are read with a decimal {self._point!r} "
             "(data.decimal) and without thousands separators, missing values may be empty, NA, "
             "NaN or null"),
            (is_lost, f"more than float32 ({FLOAT32_MAX:.1e}; whole numbers: float64, 2⁵³) can "
             "hold: use a larger unit or subtract a constant"),
            (is_gap, "missing or infinite; data.missing=interpolate or mask leave gaps out of the "
             "loss"),
        ):  # fmt: skip
            if is_wrong.any():
                row = int(is_wrong.arg_max() or 0)
                found = "an empty cell" if column[row] is None else repr(column[row])
                raise DataError(
                    f"{self.path}: row {first + row + 1} of column {column.name!r} has "
                    f"{found}, {why}. Correct it, leave the column out (data.channels), or "
                    "add the value to data.nulls if it means a missing one."
                )
        if np.isinf(values).any():
            self._infinite[column.name] += int(np.isinf(values).sum())
        return np.where(is_finite, values, np.nan)

    def _parsed(self, column: pl.Series) -> pl.Series:
        """A CSV's text as numbers, null where it is none."""
        if self._point == ".":
            numbers = column.cast(pl.Float64, strict=False)
            if numbers.null_count() == column.null_count():
                return numbers
        texts = column.str.strip_chars()
        if self._point == ",":
            texts = texts.str.replace(".", "x", literal=True).str.replace(",", ".", literal=True)
        return texts.cast(pl.Float64, strict=False)

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
                header = read_header(file)
                while block := file.read(self.block_bytes):
                    text = header + block + rest_of_row(file, block)
                    chars = np.frombuffer(text, np.uint8)
                    if np.isin(chars[1:][chars[:-1] == ord("\n")], signs).any():
                        text = blank.sub(b"", text)
                    yield text
        except READ_ERRORS as error:
            raise self._unreadable(error) from None


def find_offsets(low_C: np.ndarray, high_C: np.ndarray) -> np.ndarray:
    """What to subtract before the cast to float32: 0, or the channel's value nearest to 0.

    float32 keeps 24 bits, so 1.6e9 ± 3 would be one value. With an offset taken from the values
    they are exact to 2⁻²⁴ of their range.
    """
    nearest_C = np.where(low_C > 0, low_C, np.minimum(high_C, 0.0))
    far_C = np.isfinite(nearest_C) & (np.abs(nearest_C) > FAR * (high_C - low_C))
    return np.where(far_C, nearest_C, 0.0)
