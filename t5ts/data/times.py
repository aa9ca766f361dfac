"""Times as people write them, parsed to microseconds."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from t5ts.errors import DataError

EPOCH = datetime.datetime(1970, 1, 1)
DAY_US = 86_400_000_000
TIME_NAMES = ("date", "time", "timestamp", "datetime", "date_time", "ds")
# strptime formats, and a suffix for the text: polars needs minutes after hours.
DATES = [(form, "") for form in (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y",
    "%d-%m-%Y", "%d-%b-%Y", "%d %B %Y", "%d/%b/%Y", "%B %d, %Y", "%B %d %Y", "%Y-%b-%d",
)]  # fmt: skip
CLOCKS = [("%H:%M:%S%.f", ""), ("%H:%M", ""), ("%I:%M:%S %p", ""), ("%I:%M %p", ""),
          ("%H%M%S", ""), ("%H:%M", ":00")]  # fmt: skip
MONTHS = [("%Y-%m", ""), ("%Y/%m", ""), ("%m/%Y", ""), ("%b-%Y", ""), ("%B %Y", ""),
          ("%G-W%V-%u", "-1")]  # fmt: skip
FORMATS = [
    *DATES,
    *(
        (day + between + clock, end)
        for (day, _), between, (clock, end) in itertools.product(DATES, (" ", "T", ", "), CLOCKS)
    ),
    *MONTHS,
]
# Integers that are dates, by their number of digits: their name and how they are parsed.
DIGITS = {
    4: ("%Y", ("%Y-%m", "-01")),
    6: ("%Y%m", ("%Y%m", "")),
    8: ("%Y%m%d", ("%Y%m%d", "")),
    10: ("%Y%m%d%H", ("%Y%m%d%H%M", "00")),
    12: ("%Y%m%d%H%M", ("%Y%m%d%H%M", "")),
    14: ("%Y%m%d%H%M%S", ("%Y%m%d%H%M%S", "")),
    17: ("%Y%m%d%H%M%S%3f", ("%Y%m%d%H%M%S%3f", "")),
}
# Years (months) of 4 (6) digits may be months (days) with two digits for the year.
SHORT_YEARS = {4: ("%y%m", ("%y%m%d", "01")), 6: ("%y%m%d", ("%y%m%d", ""))}
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
ALLOWED = (
    "Times may be ISO 8601 (2016-07-01 00:00:00, with or without a UTC offset), other dates with "
    "four digits for the year, months (2016-07, 2016Q3), whole numbers (20160701, 2016070100, "
    "Excel's days, epochs in s, ms, us or ns from 1971 to 2100). For anything else set "
    "data.time_format, as in data.time_format='%m/%d/%y %H:%M'."
)


def parse_times(
    pieces: Iterable[pl.Series], *, where: str, time_format: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Times as microseconds since 1970, UTC where an offset is given.

    The first row decides which formats are tried; those that fit every row remain. Text that
    fits two formats is refused; among numbers dates come first, and no other two ranges overlap.

    Args:
        pieces: Strings, numbers, dates or datetimes, in file order, in one piece or many.
        where: File and column, for messages.
        time_format: A strptime format, or s, ms, us, ns (epochs), or excel. None detects it.

    Returns:
        (T,) int64, and notes on how they were read.

    Raises:
        DataError: if a time is missing, cannot be parsed, or is ambiguous.
    """
    if time_format is not None and "%" not in time_format and time_format not in UNITS_US:
        raise DataError(
            f"data.time_format={time_format!r}; allowed: a strptime format such as '%d/%m/%Y "
            f"%H:%M', or {', '.join(UNITS_US)}."
        )
    first, num_rows, is_number = None, 0, False
    readings: list[_Reading] = []
    for piece in pieces:
        if piece.null_count():
            row = num_rows + 1 + int(piece.is_null().arg_max() or 0)
            raise DataError(f"{where}: row {row} has no time. {ALLOWED}")
        is_formatted = "%" in (time_format or "") and piece.dtype.is_numeric()
        if is_formatted or piece.dtype in (pl.Categorical, pl.Enum):
            piece = piece.cast(pl.String)
        written = piece = piece.str.strip_chars() if piece.dtype == pl.String else piece
        if first is None and len(piece):
            first = piece[0]
            is_text = piece.dtype == pl.String and (
                "%" in (time_format or "") or not NUMBER.fullmatch(first)
            )
            is_number = piece.dtype.is_numeric() or (piece.dtype == pl.String and not is_text)
            if is_text:
                readings = _text_readings(first, time_format, where)
            elif is_number:
                readings = _number_readings(float(first), time_format)
            elif piece.dtype.is_temporal() and piece.dtype not in (pl.Time, pl.Duration):
                readings = [_Reading(label="", read=_read_datetimes)]
            else:
                raise DataError(
                    f"{where}: a column of {piece.dtype} cannot contain times. {ALLOWED}"
                )
        for reading in readings:
            reading.add(_numbers(piece) if is_number else piece, written)
        num_rows += len(piece)
    if first is None:
        raise DataError(f"{where}: the file has a header but no rows.")
    chosen = _choose(readings, first, num_rows, is_number, time_format, where)
    times_us, notes = chosen.result()
    shown = f"({first} is {iso(int(times_us[0]), where=where)})"
    for extreme in (times_us.min(), times_us.max()):
        iso(int(extreme), where=where)
    return times_us, [f"{note} {shown}" for note in notes]


def iso(micros: int, *, where: str = "time column") -> str:
    """ISO 8601 of microseconds since 1970, without an offset."""
    try:
        return (EPOCH + datetime.timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        raise DataError(f"{where}: a time is outside the years 1 to 9999.") from None


@dataclass(kw_only=True)
class _Reading:
    """One way of parsing times, and what it has parsed so far.

    Attributes:
        label: Its name in notes and messages; "" if none is needed.
        read: Takes a column; returns its times as UTC datetimes, null where a row does not fit, and
            as local ones if the file has zones.
        is_date: Whether it parses digits as a date; most rows are never dates by chance.
        rival_of: Label of a format that is ambiguous if this one also fits; never chosen itself.
    """

    label: str
    read: Callable[[pl.Series], tuple[pl.Series, pl.Series | None]]
    is_date: bool = False
    rival_of: str = ""
    _pieces: list[np.ndarray] = field(default_factory=list)
    local: list[np.ndarray] = field(default_factory=list)
    num_rows: int = 0
    num_fit: int = 0
    misfit: tuple[int, object] | None = None

    def add(self, column: pl.Series, written: pl.Series) -> None:
        """Parse the next rows; after the first that does not fit, rows are only counted."""
        utc, local = self.read(column)
        if self.misfit is None and utc.null_count():
            row = int(utc.is_null().arg_max() or 0)
            self.misfit = (self.num_rows + row + 1, written[row])
        self.num_rows += len(utc)
        self.num_fit += len(utc) - utc.null_count()
        if self.misfit is None:
            self._pieces.append(utc.to_physical().to_numpy())
            self.local += [] if local is None else [local.to_physical().to_numpy()]

    @property
    def utc(self) -> np.ndarray:
        """(T,) int64 microseconds."""
        if len(self._pieces) > 1:
            self._pieces = [np.concatenate(self._pieces)]
        return self._pieces[0]

    def result(self) -> tuple[np.ndarray, list[str]]:
        """All times, and notes."""
        times_us = self.utc
        if self.label == EXCEL:  # days with few decimals: to the second, else to the millisecond
            seconds = np.rint(times_us / 1e6).astype(np.int64) * 10**6
            times_us = seconds if np.abs(times_us - seconds).max() <= 50_000 else times_us
        if self.local:
            # Local midnights are 23 or 25 hours apart when the clocks change: the regular grid
            # is then the calendar, not UTC.
            local_us = np.concatenate(self.local)
            if np.ptp(local_us - times_us) and not ((local_us - local_us[0]) % DAY_US).any():
                return local_us, ["times are local: one time of day, at changing UTC offsets"]
        return times_us, [f"times read as {self.label}"] if self.label else []


def _choose(
    readings: list[_Reading],
    first: object,
    num_rows: int,
    is_number: bool,
    time_format: str | None,
    where: str,
) -> _Reading:
    """The format that fits every row.

    Raises:
        DataError: if none does, or two of them differ.
    """
    fitting = [r for r in readings if r.misfit is None]
    takeable = [r for r in fitting if not r.rival_of]
    failed_dates = [r for r in readings if r.is_date and r.misfit and r.num_fit > num_rows / 2]
    if failed_dates or not takeable:
        misfits = [r.misfit for r in failed_dates or readings if r.misfit]
        row, text = max(misfits, key=lambda misfit: misfit[0], default=(1, first))
        how = f"is not written like the first, {first!r}" if row > 1 else "is not a plausible time"
        if time_format is not None:
            how = f"does not match data.time_format={time_format!r}"
        if failed_dates:
            how = (
                f"is not a date, though most are ({failed_dates[0].label}); hours run from 00 to 23"
            )
        elif not is_number and bool(re.match(ZONE, str(text))) != bool(re.match(ZONE, str(first))):
            how += " (mixed: write all times with a UTC offset, or all without)"
        raise DataError(f"{where}: row {row} has {text!r}, which {how}. {ALLOWED}")
    chosen = takeable[0]
    times_us = chosen.utc
    others = [] if is_number else takeable[1:]
    others += [r for r in fitting if r.rival_of == chosen.label and not _has_even_months(times_us)]
    for other in others:
        other_us = other.utc
        if not np.array_equal(times_us, other_us):
            raise DataError(
                f"{where}: every row is ambiguous: {first!r} is "
                f"{iso(int(times_us[0]))} by {chosen.label!r} and {iso(int(other_us[0]))} by "
                f"{other.label!r}. Set data.time_format=FORMAT."
            )
    return chosen


def _has_even_months(times_us: np.ndarray) -> bool:
    """Whether months follow one another at a constant step of less than a century."""
    steps = np.diff(times_us.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64))
    return not len(steps) or (np.ptp(steps) == 0 and abs(steps[0]) < 1200)


def _text_readings(first: str, given: str | None, where: str) -> list[_Reading]:
    """The given format, or those that parse the first row."""
    if given in UNITS_US:
        raise DataError(
            f"{where}: row 1 has {first!r}, not a number, but data.time_format={given} expects one."
        )
    if given is not None:
        form = _given_format(given)
        return [_Reading(label=given, read=lambda texts: (_strptime(texts, form), None))]
    start = _plain(pl.Series([first]))
    has_zone = re.match(ZONE, start[0]) is not None
    start = _split_zones(start)[0] if has_zone else start
    readings = []
    for form in FORMATS:
        if _strptime(start, form, since=1000)[0] is not None:
            is_iso = re.fullmatch("%Y[-/]%m[-/]%d([ T]%H:%M:%S%.f)?", form[0])
            label = "" if is_iso else form[0].replace("%.f", ".%f")
            label += (" and converted to UTC" if label else "UTC") if has_zone else ""
            read = partial(_read_texts, form=form, has_zone=has_zone, where=where)
            readings.append(_Reading(label=label, read=read))
    return readings


def _read_texts(
    texts: pl.Series, *, form: tuple[str, str], has_zone: bool, where: str
) -> tuple[pl.Series, pl.Series | None]:
    if not has_zone:
        return _strptime(_plain(texts), form), None
    texts, zones = _split_zones(_plain(texts))
    local = _strptime(texts, form)
    return _to_utc(local, zones, where), local


def _read_datetimes(column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    has_zone = isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone
    local = column.dt.replace_time_zone(None).cast(pl.Datetime("us")) if has_zone else None
    return column.cast(pl.Datetime("us")), local


def _split_zones(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    parts = texts.str.extract_groups(ZONE).struct
    return parts.field("1"), parts.field("2")


def _to_utc(times: pl.Series, zones: pl.Series, where: str) -> pl.Series:
    """Local times as UTC; null where the zone or the hour does not exist.

    Raises:
        DataError: for an unknown zone, or two different places.
    """
    minutes: dict[str, int] = {}
    for zone in zones.unique().drop_nulls():
        digits = re.sub(r"\D", "", zone)
        offset = int(digits[:2] or 0) * 60 + int(digits[2:] or 0)
        if not digits and zone not in ZONES and "/" not in zone:
            raise DataError(
                f"{where}: the time zone {zone!r} is unknown or ambiguous. Write the UTC "
                f"offset (+01:00) or the place (Europe/Paris); known: {', '.join(ZONES)}."
            )
        if offset > MAX_OFFSET:
            raise DataError(
                f"{where}: {zone!r} at the end of a time is not a UTC offset, which is at most 14 "
                f"hours. If it is an interval, keep its start. {ALLOWED}"
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
        times = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    offsets_us = zones.replace_strict(minutes, return_dtype=pl.Int64) * 60_000_000
    return times - offsets_us.cast(pl.Duration("us"))


def _given_format(form: str) -> tuple[str, str]:
    """A strptime format for polars: Python's fractions, and hours without minutes."""
    if "%f" in form.replace(".%f", ""):
        raise DataError(f"data.time_format={form!r}: %f must follow a point, as in %S.%f.")
    form = form.replace(".%f", "%.f")
    has_hour, has_minute = re.search("%[HI]", form), re.search("%[MTRcX]", form)
    return (form + ":%M", ":00") if has_hour and not has_minute else (form, "")


def _strptime(texts: pl.Series, form: tuple[str, str], *, since: int = 0) -> pl.Series:
    """Datetimes; null where the text does not match, or its year is before `since`."""
    pattern, end = form
    whole = texts + end if end else texts
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
        times = times.dt.replace_time_zone(None)
    has_early = since > 0 and times.null_count() < len(times)
    return times.set(times.dt.year() < since, None) if has_early else times


def _plain(texts: pl.Series) -> pl.Series:
    """Normalise AM and PM; replace quarters by their first months."""
    first = texts[0] or ""
    if re.search(r"(?i)[ap]\.?m\.?\b", first):
        texts = texts.str.replace(r"(?i) ?([ap])\.?m\.?( |$)", " ${1}M$2")
    if re.search(r"(?i)q[1-4]", first):
        texts = texts.str.replace(r"(?i)^(\d{4})[- ]?q([1-4])$", "${1}-q$2")
        texts = texts.str.replace(r"(?i)^q([1-4])[- /]?(\d{4})$", "${2}-q$1")
        for quarter, month in zip("1234", ("01", "04", "07", "10"), strict=True):
            texts = texts.str.replace(f"-q{quarter}$", f"-{month}")
    return texts.str.replace(r"\[[A-Za-z_/]+\]$", "") if first.endswith("]") else texts


def _numbers(column: pl.Series) -> pl.Series:
    """Int64 where all rows are whole numbers, else Float64, null where there is no number."""
    whole = column.cast(pl.Int64, strict=False)
    is_whole = column.dtype.is_integer() or column.dtype == pl.String
    if is_whole and not whole.null_count():
        return whole
    return column.cast(pl.Float64, strict=False)


def _number_readings(first: float, unit: str | None) -> list[_Reading]:
    """Dates with as many digits as the first, Excel's days, and epochs; or the given one."""
    readings = []
    digits = len(str(int(first))) if 0 < first < 1e17 else 0
    if unit is None and digits in DIGITS:
        label, form = DIGITS[digits]
        read = partial(_read_digits, form=form, digits=digits)
        readings.append(_Reading(label=label, read=read, is_date=True))
        if digits in SHORT_YEARS:
            rival, form = SHORT_YEARS[digits]
            read = partial(_read_digits, form=form, digits=digits)
            readings.append(_Reading(label=rival, read=read, rival_of=label))
    limits = PLAUSIBLE_US if unit is None else (-(2**62), 2**62)
    for name in UNITS_US if unit is None else [unit]:
        label = EXCEL if name == EXCEL else f"epoch times in {name}"
        readings.append(_Reading(label=label, read=partial(_read_epochs, unit=name, limits=limits)))
    return readings


def _read_digits(
    numbers: pl.Series, *, form: tuple[str, str], digits: int
) -> tuple[pl.Series, None]:
    texts = numbers.set(numbers != numbers.floor(), None).cast(pl.Int64, strict=False)
    texts = texts.cast(pl.String)
    texts = texts.set(texts.str.len_chars() != digits, None)
    times = _strptime(texts, form, since=1600)
    return times.set(times.dt.year() > 2100, None), None


def _read_epochs(
    numbers: pl.Series, *, unit: str, limits: tuple[int, int]
) -> tuple[pl.Series, None]:
    size_us, first_day = UNITS_US[unit], EXCEL_DAYS if unit == EXCEL else 0
    low, high = (limit / size_us + first_day for limit in limits)
    numbers = numbers.set(~numbers.is_between(low, high, closed="left"), None)
    if unit == EXCEL:
        micros = ((numbers - first_day) * 86_400e3).round() * 1000
    elif unit == "ns":
        micros = numbers // 1000
    else:
        micros = (numbers * size_us).round()
    return micros.cast(pl.Int64).cast(pl.Datetime("us")), None
