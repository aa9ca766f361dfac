"""How a CSV is written: its encoding, separator and decimal point, from its first lines."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection
from typing import BinaryIO

from t5ts.data.times import TIME_NAMES
from t5ts.errors import DataError

NULLS = """|NA|N/A|n/a|#N/A|#NA|<NA>|NaN|nan|NAN|-nan|-NaN|null|NULL|Null|None|none|NaT|?|-|--|.
|missing|#VALUE!|#DIV/0!|1.#QNAN|1.#IND|-1.#IND""".replace("\n", "").split("|")
THOUSANDS = r"[+-]?[1-9]\d{0,2}([.,]\d{3})+"
SEPARATORS = ",;\t|"


def find_encoding(head: bytes) -> str:
    """utf-8, utf-16 or else cp1252, from the first bytes of a file."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 4 and min(even, odd) < len(head) // 16:
        return "utf-16-be" if even > odd else "utf-16-le"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def find_separator(lines: list[str], *, usual: str) -> str:
    """The separator that gives rows of equal length, a time column, and most columns."""
    best, found = (0.0, False, 1), usual
    for mark in (usual, *SEPARATORS):
        header, *rows = [row for row in csv.reader(lines[:50], delimiter=mark) if row]
        same_length = sum(len(row) == len(header) for row in rows) / max(len(rows), 1)
        has_time = any(name.strip().lower() in TIME_NAMES for name in header)
        if len(header) > 1 and (same_length, has_time, len(header)) > best:
            best, found = (same_length, has_time, len(header)), mark
    return found


def find_decimal(lines: list[str], *, separator: str, nulls: Collection[str], where: str) -> str:
    """A comma if numbers have one; refuses numbers that may have thousands separators."""
    rows = [map(str.strip, row) for row in csv.reader(lines[1:], delimiter=separator)]
    commas: set[str] = set()
    dotted: set[str] = set()
    for column in zip(*rows, strict=False) if separator != "," else ():
        cells = set(column) - set(nulls)
        commas |= {c for c in cells if re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", c)}
        # Points may separate thousands where all other numbers are whole and below 1000.
        points = {c for c in cells if "," not in c and re.fullmatch(THOUSANDS, c)}
        small = {c for c in cells if re.fullmatch(r"[+-]?\d{1,3}", c)}
        if points | small == cells and len(points) > 2 and any(len(c) > 1 for c in small):
            dotted |= points
    doubtful = dotted or (commas if all(re.fullmatch(THOUSANDS, c) for c in commas) else ())
    if doubtful:
        raise DataError(
            f"{where}: {min(doubtful)!r} could have a decimal or a thousands separator. If it is "
            "decimal, set data.decimal='.' or ','; else remove the thousands separators."
        )
    return "," if commas else "."


def rest_of_row(file: BinaryIO, begun: bytes) -> bytes:
    """The lines up to one that ends outside quotes, after an even number of them."""
    lines = [file.readline()]
    num_quotes = begun.count(b'"') + lines[0].count(b'"')
    while num_quotes % 2 and (line := file.readline()):
        lines.append(line)
        num_quotes += line.count(b'"')
    return b"".join(lines)


def read_header(file: BinaryIO) -> bytes:
    """The first line that is not blank, with further lines if a quoted name spans them."""
    header = file.readline().removeprefix(codecs.BOM_UTF8)
    while not header.strip() and (line := file.readline()):
        header = line
    return header + (rest_of_row(file, header) if header.count(b'"') % 2 else b"")
