"""Times as people write them, parsed to microseconds."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from t5ts.errors import DataError

EPOCH = datetime.datetime(1970, 1, 1)
DAY_US = 86_400_000_000
TIME_NAMES = ("date", "time", "timestamp", "datetime", "date_time", "ds")
# strptime formats. After tabs: what polars needs (minutes after hours), and what each text gets.
DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y",
    "%d-%m-%Y", "%d-%b-%Y", "%d %B %Y", "%d/%b/%Y", "%B %d, %Y", "%B %d %Y", "%Y-%b-%d",
)  # fmt: skip
CLOCKS = ("%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%H%M%S", "%H\t:%M\t:00")
MONTHS = ("%Y-%m", "%Y/%m", "%m/%Y", "%b-%Y", "%B %Y", "%G-W%V\t-%u\t-1")
FORMATS = [*DATES, *map("".join, itertools.product(DATES, (" ", "T", ", "), CLOCKS)), *MONTHS]
UNNOTED = "%Y[-/]%m[-/]%d([ T]%H:%M:%S%.f)?"
# Whole numbers that are dates, by their number of digits; those with short years are rivals of the
# ones before them: not used, but if both fit it is ambiguous.
DIGITS = {
    4: ["%Y\t-%m\t-01", "%y%m\t%d\t01"], 6: ["%Y%m", "%y%m%d"], 8: ["%Y%m%d"],
    10: ["%Y%m%d%H\t%M\t00"], 12: ["%Y%m%d%H%M"], 14: ["%Y%m%d%H%M%S"], 17: ["%Y%m%d%H%M%S%3f"],
}  # fmt: skip
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
EXCEL = "excel"
# Microseconds in a unit, and the days of Excel's day 0 before 1970.
UNITS_US = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3, EXCEL: DAY_US}
EXCEL_DAYS = 25_569
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
    "us or ns from 1971 to 2100); hours run from 00 to 23, and all rows or none have a UTC offset; "
    "with a place instead (Europe/Paris) no hour may be one that the clocks skip or repeat. "
    "For anything else set data.time_format, as in data.time_format='%m/%d/%y %H:%M', or =s for a "
    "counter of rows or seconds."
)


@dataclass(eq=False)
class _Reading:
    """One way of parsing times, and what it has parsed so far.

    Attributes:
        label: Its name in notes and messages; "" if none is needed.
        read: Takes texts or numbers, returns UTC datetimes, null where one does not fit.
        local: Returns the local times, if the file has zones.
        is_date: Whether it parses digits as a date; most rows are never dates by chance.
        is_rival: Whether it is never used, but makes the one before it ambiguous.
        parts: UTC times in microseconds, and local ones; none after a row that does not fit.
        num_fit: Rows that fit.
        misfit: The first row that does not, from 1, and what is written there.
    """

    label: str
    read: Callable[[pl.Series], pl.Series]
    local: Callable[[pl.Series], pl.Series] | None = None
    is_date: bool = False
    is_rival: bool = False
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    num_fit: int = 0
    misfit: tuple[int, Any] | None = None

    def add(self, column: pl.Series, first_row: int) -> None:
        """Parse the next rows."""
        times = self.read(column)
        self.num_fit += len(times) - times.null_count()
        if self.misfit is None and times.null_count():
            row = int(times.is_null().arg_max() or 0)
            self.misfit, self.parts = (first_row + row + 1, column[row]), []
        if self.misfit is None:
            both = [times] if self.local is None else [times, self.local(column)]
            self.parts.append(
                tuple(t.cast(pl.Datetime("us")).to_physical().to_numpy() for t in both)
            )


def parse_times(
    pieces: Iterable[pl.Series], *, where: str, time_format: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Times as microseconds since 1970, UTC where an offset is given.

    The first row decides which formats are tried; those that fit every row remain. Text that
    fits two formats is refused; among numbers dates come first, and no other two ranges overlap.

    Args:
        pieces: Strings (without blanks around them), numbers, dates or datetimes, in file order.
        where: File and column, for messages.
        time_format: A strptime format, or s, ms, us, ns (epochs), or excel. None detects it.

    Returns:
        (T,) int64, and notes on how they were read.

    Raises:
        DataError: if a time is missing, cannot be parsed, or is ambiguous.
    """
    is_given = "%" in (time_format or "")
    if not is_given and time_format not in (None, *UNITS_US):
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
        if column.dtype in (pl.Categorical, pl.Enum) or (is_given and column.dtype.is_numeric()):
            column = column.cast(pl.String)
        if first is None and len(column):
            first = column[0]
            readings = _readings(first, column.dtype, time_format, where)
        for reading in readings:
            reading.add(column, num_rows)
        num_rows += len(column)
    if first is None:
        raise DataError(f"{where}: the file has a header but no rows.")
    misfits = [(2 * r.num_fit > num_rows and r.is_date, *r.misfit) for r in readings if r.misfit]
    is_mostly_dates, row, written = max(misfits, key=lambda m: m[:2], default=(False, 1, first))
    fitting = [r for r in readings if r.misfit is None]
    usable = [r for r in fitting if not r.is_rival]
    if is_mostly_dates or not usable:
        known = f"data.time_format={time_format!r}" if time_format else f"the format of {first!r}"
        raise DataError(
            f"{where}: row {row} has {written!r}, which does not match "
            f"{known if time_format or row > 1 else 'any known format'}. {ALLOWED}"
        )
    chosen = usable[0]
    times_us, *local_us = map(np.concatenate, zip(*chosen.parts, strict=True))
    chosen.parts = []
    for other in fitting:
        if other is chosen or (other.is_rival and _has_even_months(times_us)):
            continue
        other_us = np.concatenate([part[0] for part in other.parts])
        if (other.is_rival or "%" in other.label) and not np.array_equal(times_us, other_us):
            row = int(np.argmax(times_us != other_us))
            raise DataError(
                f"{where}: every row is ambiguous, the first being {first!r}: row {row + 1} is "
                f"{iso(times_us[row])} by {chosen.label!r} and {iso(other_us[row])} by "
                f"{other.label!r}. Set data.time_format=FORMAT."
            )
    notes = [f"times read as {chosen.label}"] if chosen.label else []
    if chosen.label == EXCEL:  # days with few decimals: to the second, else to the millisecond
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


def _without_zone(column: pl.Series) -> pl.Series:
    return column.dt.replace_time_zone(None)


def _readings(
    first: Any, dtype: pl.DataType, time_format: str | None, where: str
) -> list[_Reading]:
    """The ways to parse a column that begins with this value."""
    if dtype.is_numeric():
        return _number_readings(float(first), time_format)
    if dtype.is_temporal() and dtype not in (pl.Time, pl.Duration):
        local = _without_zone if getattr(dtype, "time_zone", None) else None
        return [_Reading("", lambda column: column, local)]
    if not isinstance(first, str):
        raise DataError(f"{where}: a column of {dtype} cannot contain times. {ALLOWED}")
    if NUMBER.fullmatch(first) and "%" not in (time_format or ""):
        return _number_readings(float(first), time_format)
    return _text_readings(first, time_format, where)


def _text_readings(first: str, given: str | None, where: str) -> list[_Reading]:
    """The given format, or those that parse the first row."""
    if given in UNITS_US:
        raise DataError(
            f"{where}: row 1 has {first!r}, not a number, but data.time_format={given} expects one."
        )
    if given is not None:
        if "%f" in given.replace(".%f", "") or "\t" in given:
            raise DataError(
                f"data.time_format={given!r}: %f must follow a point, as in %S.%f; no tabs."
            )
        form = given.replace(".%f", "%.f")
        if re.search("%[HI]", form) and not re.search("%[MTRcX]", form):
            form += "\t:%M\t:00"
        return [_Reading(given, partial(_strptime, form=form))]
    start = _plain(pl.Series([first]))
    has_zone = re.match(ZONE, start[0]) is not None
    start = _split_zones(start)[0] if has_zone else start
    read = (
        partial(_to_utc, where=where)
        if has_zone
        else lambda texts, form: _strptime(_plain(texts), form)
    )
    readings = []
    for form in FORMATS:
        if _strptime(start, form, since=1000)[0] is not None:
            label = "" if re.fullmatch(UNNOTED, form) else _label(form)
            if has_zone:
                label += " and converted to UTC" if label else "UTC"
            local = partial(_local_times, form=form) if has_zone else None
            readings.append(_Reading(label, partial(read, form=form), local))
    return readings


def _label(form: str) -> str:
    return form.partition("\t")[0].replace("%.f", ".%f")


def _number_readings(first: float, unit: str | None) -> list[_Reading]:
    """Dates with as many digits as the first, Excel's days, and epochs; or the given one."""
    readings = []
    if unit is None:
        digits = len(str(int(first))) if 0 < first < 1e17 else 0
        for rank, form in enumerate(DIGITS.get(digits, ())):
            read = partial(_read_digits, form=form, digits=digits)
            readings.append(_Reading(_label(form), read, None, not rank, bool(rank)))
    limits = PLAUSIBLE_US if unit is None else (-(2**62), 2**62)
    for name in UNITS_US if unit is None else [unit]:
        label = EXCEL if name == EXCEL else f"epoch times in {name}"
        readings.append(_Reading(label, partial(_read_epochs, unit=name, limits=limits)))
    return readings


def _strptime(texts: pl.Series, form: str, *, since: int = 0, until: int = 9999) -> pl.Series:
    """Datetimes; null where the text does not match, or its year is not in the range."""
    named, added, end = form.split("\t") if "\t" in form else (form, "", "")
    pattern, whole = named + added, texts + end if end else texts
    # polars parses times without fractions, the usual case, six times as fast.
    for each in dict.fromkeys([pattern.replace("%.f", ""), pattern]):
        try:
            times = whole.str.to_datetime(each, strict=False, time_unit="us", cache=False)
        except pl.exceptions.PolarsError as error:
            problem = str(error).splitlines()[0]
            raise DataError(f"data.time_format={pattern!r}: {problem}") from None
        if times.null_count() == texts.null_count():
            break
    if getattr(times.dtype, "time_zone", None):  # by %z
        times = _without_zone(times)
    if since and times.null_count() < len(times):
        times = times.set(~times.dt.year().is_between(since, until), None)
    return times


def _plain(texts: pl.Series) -> pl.Series:
    if re.search(UNUSUAL, texts[0]):
        for pattern, plain in PLAIN.items():
            texts = texts.str.replace(pattern, plain)
    return texts


def _split_zones(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    parts = texts.str.extract_groups(ZONE).struct
    return parts.field("1"), parts.field("2")


def _local_times(texts: pl.Series, *, form: str) -> pl.Series:
    return _strptime(_split_zones(_plain(texts))[0], form)


def _to_utc(texts: pl.Series, *, form: str, where: str) -> pl.Series:
    """Times with zones as UTC; null where the zone or the hour does not exist.

    Raises:
        DataError: for an unknown zone, or two different places.
    """
    texts, zones = _split_zones(_plain(texts))
    times = _strptime(texts, form)
    minutes: dict[str, int] = {}
    for zone in zones.unique().drop_nulls():
        digits = re.sub(r"\D", "", zone)
        offset = int(digits[:2] or 0) * 60 + int(digits[2:] or 0)
        if offset > MAX_OFFSET or not (digits or zone in ZONES or "/" in zone):
            raise DataError(
                f"{where}: {zone!r} at the end of a time is not an unambiguous time zone. Write "
                "the UTC offset (+01:00, at most 14 hours) or the place (Europe/Paris); known: "
                f"{', '.join(ZONES)}. Of an interval keep the start."
            )
        minutes[zone] = ZONES.get(zone, -offset if "-" in zone else offset)
    places = [zone for zone in minutes if "/" in zone]
    if len(places) > 1:
        raise DataError(f"{where}: several time zones ({', '.join(sorted(places))}). Use UTC.")
    if places:
        try:
            times = times.dt.replace_time_zone(places[0], ambiguous="null", non_existent="null")
        except pl.exceptions.PolarsError:
            raise DataError(f"{where}: unknown time zone {places[0]!r}. Use UTC.") from None
        times = _without_zone(times.dt.convert_time_zone("UTC"))
    offsets_us = zones.replace_strict(minutes, return_dtype=pl.Int64) * 60_000_000
    return times - offsets_us.cast(pl.Duration("us"))


def _numbers(column: pl.Series) -> pl.Series:
    """Int64 where all rows are whole numbers, else Float64, null where there is no number."""
    whole = column.cast(pl.Int64, strict=False)
    is_whole = column.dtype.is_integer() or column.dtype == pl.String
    if is_whole and not whole.null_count():
        return whole
    return column.cast(pl.Float64, strict=False)


def _read_digits(column: pl.Series, *, form: str, digits: int) -> pl.Series:
    numbers = _numbers(column)
    texts = numbers.set(numbers != numbers.floor(), None).cast(pl.Int64, strict=False)
    texts = texts.cast(pl.String)
    texts = texts.set(texts.str.len_chars() != digits, None)
    return _strptime(texts, form, since=1600, until=2100)


def _read_epochs(column: pl.Series, *, unit: str, limits: tuple[int, int]) -> pl.Series:
    numbers = _numbers(column)
    size_us, first_day = UNITS_US[unit], EXCEL_DAYS if unit == EXCEL else 0
    low, high = (limit / size_us + first_day for limit in limits)
    numbers = numbers.set(~numbers.is_between(low, high, closed="left"), None)
    if unit == EXCEL:
        micros = ((numbers - first_day) * 86_400e3).round() * 1000
    elif unit == "ns":
        micros = numbers // 1000
    else:
        micros = (numbers * size_us).round()
    return micros.cast(pl.Int64).cast(pl.Datetime("us"))
