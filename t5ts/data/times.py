"""Times as people write them, parsed to microseconds."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl

from t5ts.errors import DataError

EPOCH = datetime.datetime(1970, 1, 1)
DAY_US = 86_400_000_000
TIME_NAMES = ("date", "time", "timestamp", "datetime", "date_time", "ds")
DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y",
    "%d-%m-%Y", "%d-%b-%Y", "%d %B %Y", "%d/%b/%Y", "%B %d, %Y", "%B %d %Y", "%Y-%b-%d",
)  # fmt: skip
CLOCKS = ("%H:%M:%S.%f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%H%M%S", "%H")
MONTHS = ("%Y-%m", "%Y/%m", "%m/%Y", "%b-%Y", "%B %Y", "%G-W%V")
FORMATS = [*DATES, *map("".join, itertools.product(DATES, (" ", "T", ", "), CLOCKS)), *MONTHS]
UNNOTED = r"%Y[-/]%m[-/]%d([ T]%H:%M:%S\.%f)?"
# Whole numbers that are dates, by their number of digits. Those with short years are rivals of the
# ones before them: never used, but if both fit, the column is ambiguous.
DIGITS = {
    4: ("%Y", "%y%m"), 6: ("%Y%m", "%y%m%d"), 8: ("%Y%m%d",), 10: ("%Y%m%d%H",),
    12: ("%Y%m%d%H%M",), 14: ("%Y%m%d%H%M%S",), 17: ("%Y%m%d%H%M%S%3f",),
}  # fmt: skip
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
EXCEL, JULIAN = "excel", "mjd"
# Microseconds in a unit, and the day numbers of 1970-01-01.
UNITS_US = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3, EXCEL: DAY_US, JULIAN: DAY_US}
DAYS_1970 = {EXCEL: 25_569, JULIAN: 40_587}
PLAUSIBLE_US = (31_536_000 * 10**6, 4_102_444_800 * 10**6)  # 1971 and 2100
# Time zone names with one unambiguous offset (CST, IST and BST have none), in minutes.
ZONES = {"Z": 0, "UTC": 0, "GMT": 0, "UT": 0, "WET": 0, "WEST": 60, "CET": 60, "CEST": 120,
         "EET": 120, "EEST": 180, "MSK": 180, "JST": 540, "KST": 540, "EST": -300, "EDT": -240,
         "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420}  # fmt: skip
MAX_OFFSET = 14 * 60  # minutes from UTC, in Kiribati
ZONE = (
    r"^(.*[T ]\d{1,2}(?::?\d\d)?.*?) ?"
    r"(Z|[A-Z]{3,5}|(?:UTC|GMT)?[+-]\d\d(?::?\d\d)?|[A-Z][A-Za-z]+/[A-Za-z_/]+)$"
)
# AM and PM, quarters as their first months, and Java's zone after an offset.
UNUSUAL = r"(?i)[ap]\.?m\.?\b|q[1-4]|\]$"
PLAIN = {
    r"(?i) ?([ap])\.?m\.?( |$)": " ${1}M$2",
    r"(?i)^(\d{4})[- ]?q([1-4])$": "${1}-q$2",
    r"(?i)^q([1-4])[- /]?(\d{4})$": "${2}-q$1",
    "-q1$": "-01", "-q2$": "-04", "-q3$": "-07", "-q4$": "-10",
    r"\[[A-Za-z_/]+\]$": "",
}  # fmt: skip
ALLOWED = (
    "Times may be ISO 8601 (2016-07-01 00:00:00), other dates with four digits for the year, "
    "months (2016-07, 2016Q3), whole numbers (20160701, 2016070100, Excel's days, epochs in s, ms, "
    "us or ns from 1971 to 2100); hours run from 00 to 23; all rows or none have a UTC offset "
    f"(+01:00, {', '.join(ZONES)}) or one place (Europe/Paris) where no hour is skipped or "
    "repeated; of an interval keep the start. For anything else set "
    "data.time_format='%m/%d/%y %H:%M' or the like, =mjd for modified Julian days, or =s for a "
    "counter of rows or seconds."
)


@dataclass(eq=False)
class _Reading:
    """One way of parsing times, and what it has parsed so far.

    `read` takes texts or numbers and returns UTC datetimes, null where one does not fit, and local
    ones if the file has zones. A "date" is whole numbers read as dates; for "rival" see DIGITS.
    """

    label: str
    read: Callable[[pl.Series], tuple[pl.Series, ...]]
    kind: str = ""
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # none after a misfit
    num_fit: int = 0
    misfit: tuple[int, Any] | None = None  # first row that does not fit, from 1, and its content

    def add(self, column: pl.Series, first_row: int) -> None:
        """Parse the next rows."""
        both = self.read(column)
        is_misfit = both[0].is_null()
        self.num_fit += len(column) - int(is_misfit.sum())
        if self.misfit is None and is_misfit.any():
            row = int(is_misfit.arg_max() or 0)
            self.misfit, self.parts = (first_row + row + 1, column[row]), []
        if self.misfit is None:
            micros = (times.cast(pl.Datetime("us")).to_physical().to_numpy() for times in both)
            self.parts.append(tuple(micros))


def parse_times(
    pieces: Iterable[pl.Series], *, where: str, time_format: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Times as microseconds since 1970, UTC where an offset is given.

    The first row decides which formats are tried; those that fit every row remain. Text that
    fits two formats is refused; among numbers dates come first, and no other two ranges overlap.

    Args:
        pieces: Strings (without blanks around them), numbers, dates or datetimes, in file order.
        where: File and column, for messages.
        time_format: A strptime format, s, ms, us, ns (epochs), excel or mjd (days), None detects.

    Returns:
        (T,) int64, and notes on how they were read.

    Raises:
        DataError: if a time is missing, cannot be parsed, or is ambiguous.
    """
    is_strptime = "%" in (time_format or "")
    if not is_strptime and time_format not in (None, *UNITS_US):
        raise DataError(
            f"data.time_format={time_format!r}; allowed: a strptime format such as '%d/%m/%Y "
            f"%H:%M', or {', '.join(UNITS_US)}."
        )
    readings: list[_Reading] = []
    first, num_rows = None, 0
    for column in pieces:
        if column.null_count():
            row = num_rows + int(column.is_null().arg_max() or 0) + 1
            raise DataError(f"{where}: row {row} has no time. {ALLOWED}")
        if column.dtype in (pl.Categorical, pl.Enum) or (is_strptime and column.dtype.is_numeric()):
            column = column.cast(pl.String)
        if first is None and len(column):
            first = column[0]
            readings = _readings(first, column.dtype, time_format, where)
        for reading in readings:
            reading.add(column, num_rows)
        num_rows += len(column)
    if first is None:
        raise DataError(f"{where}: the file has a header but no rows.")
    # Most rows are not dates by chance: one that is not is a mistake, and they are not epochs.
    dated = [r for r in readings if r.kind == "date" and 2 * r.num_fit > num_rows]
    fitting = [r for r in dated or readings if r.misfit is None and r.kind != "rival"]
    if not fitting:
        misfits = [r.misfit for r in dated or readings if r.misfit]
        row, written = max(misfits, key=lambda misfit: misfit[0], default=(1, first))
        known = f"data.time_format={time_format!r}" if time_format else f"the format of {first!r}"
        raise DataError(
            f"{where}: row {row} has {written!r}, which does not match "
            f"{known if time_format or row > 1 else 'any known format'}. {ALLOWED}"
        )
    chosen = fitting[0]
    times_us, *local_us = map(np.concatenate, zip(*chosen.parts, strict=True))
    chosen.parts = []
    for other in readings:
        if other is chosen or other.misfit or "%" not in other.label:
            continue
        other_us = np.concatenate([part[0] for part in other.parts])
        is_other = times_us != other_us
        if is_other.any() and not (other.kind == "rival" and _has_even_months(times_us)):
            row = int(np.argmax(is_other))
            raise DataError(
                f"{where}: every row is ambiguous, the first being {first!r}: row {row + 1} is "
                f"{iso(times_us[row])} by {chosen.label!r} and {iso(other_us[row])} by "
                f"{other.label!r}. Set data.time_format=FORMAT."
            )
    notes = [f"times read as {chosen.label}"] if chosen.label else []
    if chosen.label == EXCEL and time_format is None:
        notes[0] += "'s days; if they are modified Julian days, set data.time_format=mjd"
    if chosen.label in DAYS_1970:  # days with few decimals: to the second, else to the millisecond
        seconds_us = np.rint(times_us / 1e6).astype(np.int64) * 10**6
        times_us = seconds_us if np.abs(times_us - seconds_us).max() <= 50_000 else times_us
    # Local midnights are 23 or 25 hours apart when the clocks change: the regular grid is then
    # the calendar, not UTC.
    for local in local_us:
        if np.ptp(local - times_us) and not ((local - local[0]) % DAY_US).any():
            notes = ["times are local: one time of day, at changing UTC offsets"]
            times_us = local
    for extreme in (times_us.min(), times_us.max()):
        iso(extreme, where=where)
    return times_us, [f"{note} ({first} is {iso(times_us[0])})" for note in notes]


def iso(micros: int | np.int64, *, where: str = "time column") -> str:
    """ISO 8601 of microseconds since 1970, without an offset."""
    try:
        return (EPOCH + datetime.timedelta(microseconds=int(micros))).isoformat()
    except OverflowError:
        raise DataError(f"{where}: a time is outside the years 1 to 9999.") from None


def _has_even_months(times_us: np.ndarray) -> bool:
    """Whether months follow one another at a constant step of less than a century."""
    steps = np.diff(times_us.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64))
    return not len(steps) or (np.ptp(steps) == 0 and abs(steps[0]) < 1200)


def _readings(
    first: Any, dtype: pl.DataType, time_format: str | None, where: str
) -> list[_Reading]:
    """The ways to parse a column that begins with this value."""
    is_text = dtype == pl.String
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return [_Reading("", lambda column: (column, column.dt.replace_time_zone(None)))]
    if dtype in (pl.Datetime, pl.Date):
        return [_Reading("", lambda column: (column,))]
    if is_text and time_format and "%" in time_format:
        return [_Reading(time_format, lambda texts: (_strptime(texts, time_format),))]
    if dtype.is_numeric() or time_format or (is_text and NUMBER.fullmatch(first)):
        return _number_readings(first, time_format)
    if not is_text:
        raise DataError(f"{where}: a column of {dtype} cannot contain times. {ALLOWED}")
    plain = _plain(pl.Series([first]))
    has_zone = re.match(ZONE, plain[0])
    start = plain.str.extract(ZONE, 1) if has_zone else plain
    readings = []
    for form in _forms(start[0]):
        label = "" if re.fullmatch(UNNOTED, form) else form
        if has_zone:
            label += " and converted to UTC" if label else "UTC"
            readings.append(_Reading(label, partial(_read_zoned, form=form)))
        else:
            readings.append(_Reading(label, partial(_read_texts, form=form)))
    return readings


@lru_cache
def _forms(start: str | None) -> list[str]:
    """Of all formats those of this text; trying them takes longer than reading a small table."""
    texts = pl.Series([start], dtype=pl.String)
    return [form for form in FORMATS if 1000 <= (_strptime(texts, form).dt.year()[0] or 0) <= 9999]


def _number_readings(first: Any, unit: str | None) -> list[_Reading]:
    """Dates with as many digits as the first, Excel's days, and epochs; or the given one."""
    readings, limits = [], (-(2**62), 2**62)
    if unit is None:
        limits = PLAUSIBLE_US
        digits = len(str(int(float(first)))) if 0 < float(first) < 1e17 else 0
        for form, kind in zip(DIGITS.get(digits, ()), ("date", "rival"), strict=False):
            readings.append(_Reading(form, partial(_read_digits, form=form, digits=digits), kind))
    # Modified Julian days look like Excel's of other years.
    for name in [n for n in UNITS_US if n != JULIAN] if unit is None else [unit]:
        label = name if name in DAYS_1970 else f"epoch times in {name}"
        readings.append(_Reading(label, partial(_read_epochs, unit=name, limits=limits)))
    return readings


def _strptime(texts: pl.Series, form: str) -> pl.Series:
    """Datetimes by one of Python's formats; null where the text does not match."""
    pattern = form.replace(".%f", "%.f").replace("%f", "%6f")
    # polars wants minutes after hours, and a day of the week.
    if re.search("%[HI]", form) and not re.search("%[MTRcX]", form):
        pattern, texts = pattern + ":%M", texts + ":00"
    if "%V" in form and not re.search("%[uwaA]", form):
        pattern, texts = pattern + "-%u", texts + "-1"
    # It parses times without fractions, the usual case, six times as fast.
    for each in dict.fromkeys([pattern.replace("%.f", ""), pattern]):
        try:
            times = texts.str.to_datetime(each, strict=False, time_unit="us", cache=False)
        except pl.exceptions.PolarsError as error:
            problem = str(error).splitlines()[0]
            raise DataError(f"data.time_format={form!r}: {problem}") from None
        if not times.null_count():
            break
    return times.dt.replace_time_zone(None)  # UTC, after %z


def _plain(texts: pl.Series) -> pl.Series:
    if len(texts) and re.search(UNUSUAL, texts[0]):
        for pattern, plain in PLAIN.items():
            texts = texts.str.replace(pattern, plain)
    return texts


def _read_texts(texts: pl.Series, *, form: str) -> tuple[pl.Series]:
    return (_strptime(_plain(texts), form),)


def _read_zoned(texts: pl.Series, *, form: str) -> tuple[pl.Series, pl.Series]:
    """Times with zones, in UTC and as written; null where zone or hour does not exist."""
    texts, zones = (_plain(texts).str.extract(ZONE, group) for group in (1, 2))
    local = _strptime(texts, form)
    minutes = dict(ZONES)
    for zone in zones.unique().drop_nulls():
        if offset := re.fullmatch(r"(?:UTC|GMT)?([+-])(\d\d):?(\d\d)?", zone):
            size = int(offset[2]) * 60 + int(offset[3] or 0)
            minutes |= {zone: int(offset[1] + str(size))} if size <= MAX_OFFSET else {}
    offsets = zones.replace_strict(minutes, default=None, return_dtype=pl.Int64) * 60_000_000
    times = local - offsets.cast(pl.Duration("us"))
    for place in zones.filter(zones.str.contains("/")).head(1):
        with contextlib.suppress(pl.exceptions.PolarsError):  # an unknown place
            there = local.dt.replace_time_zone(place, ambiguous="null", non_existent="null")
            there = there.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            times = there.set(zones != place, None)
    return times, local


def _numbers(column: pl.Series) -> pl.Series:
    """Int64 where all rows are whole numbers, else Float64, null where there is no number."""
    if column.dtype.is_integer() or column.dtype == pl.String:
        whole = column.cast(pl.Int64, strict=False)
        if not whole.null_count():
            return whole
    return column.cast(pl.Float64, strict=False)


def _read_digits(column: pl.Series, *, form: str, digits: int) -> tuple[pl.Series]:
    numbers = _numbers(column)
    texts = numbers.set(numbers != numbers.floor(), None).cast(pl.Int64, strict=False)
    texts = texts.cast(pl.String)
    times = _strptime(texts.set(texts.str.len_chars() != digits, None), form)
    return (times.set(~times.dt.year().is_between(1600, 2100), None),)


def _read_epochs(column: pl.Series, *, unit: str, limits: tuple[int, int]) -> tuple[pl.Series]:
    numbers = _numbers(column)
    size_us, first_day = UNITS_US[unit], DAYS_1970.get(unit, 0)
    low, high = (limit / size_us + first_day for limit in limits)
    numbers = numbers.set(~numbers.is_between(low, high, closed="left"), None)
    if first_day:
        micros = ((numbers - first_day) * 86_400e3).round() * 1000
    elif unit == "ns":
        micros = numbers // 1000
    else:
        micros = (numbers * size_us).round()
    return (micros.cast(pl.Int64).cast(pl.Datetime("us")),)
