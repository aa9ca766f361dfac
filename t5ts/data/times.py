"""Times: parsed to microseconds, ordered, and laid on a regular grid."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from t5ts.data.series import Step, duration
from t5ts.errors import DataError

EPOCH = datetime.datetime(1970, 1, 1)
DAY_US = 86_400_000_000
TIME_NAMES = ("date", "time", "timestamp", "datetime", "date_time", "ds")
# How texts are written, and what is added to them: polars asks for minutes beside hours.
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
# Integers by their number of digits.
DIGITS = {
    4: ("%Y-%m", "-01"),
    6: ("%Y%m", ""),
    8: ("%Y%m%d", ""),
    10: ("%Y%m%d%H%M", "00"),
    12: ("%Y%m%d%H%M", ""),
    14: ("%Y%m%d%H%M%S", ""),
    17: ("%Y%m%d%H%M%S%3f", ""),
}
EPOCH_UNITS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3}
EPOCH_YEARS = ("1971", "2100")
EXCEL_EPOCH = -25_569  # 1899-12-30, in days since 1970
# Zone names that mean one offset wherever they are used (CST, IST and BST do not).
ZONES = {"Z": 0, "UTC": 0, "GMT": 0, "UT": 0, "WET": 0, "WEST": 60, "CET": 60, "CEST": 120,
         "EET": 120, "EEST": 180, "MSK": 180, "JST": 540, "KST": 540, "EST": -300, "EDT": -240,
         "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420}  # fmt: skip
MAX_OFFSET = 14 * 60  # minutes from UTC, in Kiribati
ZONE = (
    r"^(.*[T ]\d{1,2}(?::?\d\d)?.*?) ?"
    r"(Z|[A-Z]{3,5}|(?:UTC|GMT)?[+-]\d\d(?::?\d\d)?|[A-Z][A-Za-z]+/[A-Za-z_/]+)$"
)
# A grid with more rows than this for each row of the file is a wrong time, not a gap.
MAX_GRID = 20
ALLOWED = (
    "Times may be ISO 8601 (2016-07-01 00:00:00, with or without a UTC offset), other dates with "
    "four digits for the year, months (2016-07, 2016Q3), whole numbers (20160701, 2016070100, "
    "Excel's days, epochs in s, ms, us or ns). Anything else: data.time_format, as in "
    "data.time_format='%m/%d/%y %H:%M'."
)


def parse_times(
    pieces: Iterable[pl.Series], *, where: str, time_format: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Times as microseconds since 1970, UTC where an offset is given.

    Args:
        pieces: Strings, numbers, dates or datetimes, in file order, in one piece or many.
        where: File and column, for messages.
        time_format: How they are written: a strptime format, or s, ms, us, ns (epochs), excel.
            None: what all rows agree with, and nothing else they could agree with.

    Returns:
        (T,) int64, and notes on how they were read.

    Raises:
        DataError: if a time is absent, cannot be read, or can be read in two ways.
    """
    number_units = (*EPOCH_UNITS, "excel")
    if time_format is not None and "%" not in time_format and time_format not in number_units:
        raise DataError(
            f"data.time_format={time_format!r}; allowed: a strptime format such as '%d/%m/%Y "
            f"%H:%M', or {', '.join(number_units)}."
        )
    has_format = time_format is not None and "%" in time_format
    parsed: list[np.ndarray] = []
    texts: _Texts | None = None
    walls = _Walls()
    first_row = 1
    for piece in pieces:
        if piece.is_empty():
            continue
        if piece.null_count():
            row = first_row + int(piece.is_null().arg_max() or 0)
            raise DataError(f"{where}: row {row} has no time. {ALLOWED}")
        if piece.dtype in (pl.Categorical, pl.Enum):
            piece = piece.cast(pl.String)
        if piece.dtype == pl.String:
            piece = piece.str.strip_chars()
            if texts is None and (has_format or not _is_number(piece[0])):
                if time_format in number_units:
                    raise DataError(
                        f"{where}: row {first_row} has {piece[0]!r}, no number, and "
                        f"data.time_format={time_format} says numbers. {ALLOWED}"
                    )
                texts = _Texts(piece[0], where, time_format if has_format else None)
            if texts is None:
                piece = _numbers(piece, first_row, where)
        elif has_format and piece.dtype.is_integer():
            piece = piece.cast(pl.String)
            texts = texts or _Texts(piece[0], where, time_format)
        if texts is not None and piece.dtype == pl.String:
            texts.add(piece, first_row)
        elif piece.dtype == pl.Date or isinstance(piece.dtype, pl.Datetime):
            utc = piece.cast(pl.Datetime("us")).to_physical().to_numpy()
            if isinstance(piece.dtype, pl.Datetime) and piece.dtype.time_zone:
                local = piece.dt.replace_time_zone(None).cast(pl.Datetime("us")).to_physical()
                walls.add(utc, local.to_numpy() - utc)
            parsed.append(utc)
        elif piece.dtype.is_numeric():
            if isinstance(piece.dtype, pl.Decimal):
                piece = piece.cast(pl.Float64)
            parsed.append(piece.to_numpy())
        else:
            raise DataError(f"{where}: a column of type {piece.dtype} holds no times. {ALLOWED}")
        is_number = piece.dtype.is_numeric()
        first_row += len(piece)
    if first_row == 1:
        raise DataError(f"{where}: the file has a header and no rows.")
    if texts is not None:
        result, notes = texts.result()
    else:
        result, notes = np.concatenate(parsed), []
        del parsed
        if is_number:
            result, notes = _from_numbers(result, where, time_format)
        result = walls.instead_of(result, notes)
    for extreme in (result.min(), result.max()):
        iso(int(extreme), where=where)
    return result, notes


def iso(micros: int, *, where: str = "time column") -> str:
    """ISO 8601 of microseconds since 1970, without an offset."""
    try:
        return (EPOCH + datetime.timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        raise DataError(f"{where}: a time lies outside the years 1 to 9999.") from None


class _Walls:
    """Local clock times, kept while they are all of one time of the day.

    Days that begin at local midnight are 23 or 25 hours apart where the clocks change: a calendar
    is then the regular grid, and UTC is none.
    """

    def __init__(self) -> None:
        self._local: list[np.ndarray] | None = []

    def add(self, utc_us: np.ndarray, shift_us: np.ndarray) -> None:
        """The next rows: UTC, and how far the local clock is ahead of it."""
        if self._local is not None:
            local = utc_us + shift_us
            alike = ((local - (self._local or [local])[0][0]) % DAY_US == 0).all()
            self._local = [*self._local, local] if alike else None

    def instead_of(self, utc_us: np.ndarray, notes: list[str]) -> np.ndarray:
        """The local times, with a note, if they are such days and not always as far from UTC."""
        if self._local:
            local = np.concatenate(self._local)
            if len(local) == len(utc_us) and np.ptp(local - utc_us):
                notes.append("times are local: all of one time of the day, at changing UTC offsets")
                return local
        return utc_us


class _Texts:
    """Times written as texts: every format that reads all of them so far."""

    def __init__(self, first: str, where: str, given: str | None) -> None:
        self.first, self._where = first, where
        self._named: set[str] = set()
        self._walls = _Walls()
        match = re.match(ZONE, _plain(pl.Series([first]))[0])
        self._has_zone = match is not None and given is None
        formats = FORMATS if given is None else [_given_format(given)]
        start = pl.Series([first])
        if given is None:
            start = _plain(pl.Series([match.group(1)]) if match else start)
        self._parsed: dict[tuple[str, str], list[np.ndarray]] = {}
        for form in formats:
            try:
                year = _strptime(start, form).dt.year()[0]
            except pl.exceptions.PolarsError as error:
                raise DataError(
                    f"data.time_format={given!r}: {str(error).splitlines()[0]}"
                ) from None
            if year is not None and (year >= 1000 or given):
                self._parsed[form] = []
        self._given = given
        if not self._parsed:
            how = "which is no time" if given is None else f"which is not written as {given!r}"
            raise DataError(f"{where}: row 1 has {first!r}, {how}. {ALLOWED}")

    def add(self, texts: pl.Series, first_row: int) -> None:
        """Reads the next rows.

        Raises:
            DataError: if no format that read the rows before reads all of these.
        """
        plain, shift_us = texts, pl.Series([0])
        if self._given is None:
            plain = _plain(texts)
            if self._has_zone:
                parts = plain.str.extract_groups(ZONE).struct
                plain, zones = parts.field("1"), parts.field("2")
                if zones.null_count():
                    raise _mixed(self._where, first_row + int(zones.is_null().arg_max() or 0))
                offsets = {zone: self._minutes(zone) for zone in zones.unique()}
                self._named |= {zone for zone, minutes in offsets.items() if minutes is None}
                minutes = zones.replace_strict(offsets, return_dtype=pl.Int64)
                shift_us = minutes.fill_null(0) * 60_000_000
        good_rows = 0
        for form in list(self._parsed):
            times = _strptime(plain, form)
            if self._named:
                times = self._from_place(times)
            bad = times.is_null() | (times.dt.year() < 1000)
            if bad.any():
                good_rows = max(good_rows, int(bad.arg_max() or 0))
                del self._parsed[form]
            else:
                self._parsed[form].append((times.to_physical() - shift_us).to_numpy())
        if self._parsed and self._has_zone and not self._named:
            self._walls.add(next(iter(self._parsed.values()))[-1], shift_us.to_numpy())
        if not self._parsed:
            row, text = first_row + good_rows, texts[good_rows]
            if not self._has_zone and self._given is None and re.match(ZONE, text):
                raise _mixed(self._where, row)
            raise DataError(
                f"{self._where}: row {row} has {text!r}, which does not read like the first, "
                f"{self.first!r}. {ALLOWED}"
            )

    def _minutes(self, zone: str) -> int | None:
        """Minutes east of UTC; None for a place such as Europe/Berlin."""
        if zone in ZONES or "/" in zone:
            return ZONES.get(zone)
        digits = re.sub(r"\D", "", zone)
        if not digits:
            raise DataError(
                f"{self._where}: the zone {zone!r} is not known, or means several. Write the UTC "
                f"offset (+01:00) or the place (Europe/Paris); known: {', '.join(ZONES)}."
            )
        minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
        if minutes > MAX_OFFSET:
            raise DataError(
                f"{self._where}: {self.first!r} ends in no UTC offset like {zone!r}; they are at "
                f"most 14 hours. If it is an interval, keep its start. {ALLOWED}"
            )
        return -minutes if "-" in zone else minutes

    def _from_place(self, times: pl.Series) -> pl.Series:
        if len(self._named) > 1:
            raise DataError(
                f"{self._where}: several places ({', '.join(sorted(self._named))}). Write UTC."
            )
        place = next(iter(self._named))
        try:
            local = times.dt.replace_time_zone(place, ambiguous="null", non_existent="null")
        except pl.exceptions.PolarsError:
            raise DataError(f"{self._where}: no zone is called {place!r}. Write UTC.") from None
        return local.dt.convert_time_zone("UTC").dt.replace_time_zone(None)

    def result(self) -> tuple[np.ndarray, list[str]]:
        """All times, UTC where zones are given.

        Raises:
            DataError: if two formats read every row, and not alike.
        """
        readings = [(form, np.concatenate(times)) for form, times in self._parsed.items()]
        (form, found), *others = readings
        for other, times in others:
            if not np.array_equal(found, times):
                raise DataError(
                    f"{self._where}: every row can be read in two ways: {self.first!r} is "
                    f"{iso(int(found[0]))} by {form[0]!r} and {iso(int(times[0]))} by {other[0]!r}."
                    " Say which (data.time_format=FORMAT)."
                )
        notes, shown = [], f"({self.first} is {iso(int(found[0]))})"
        if not re.fullmatch("%Y[-/]%m[-/]%d([ T]%H:%M:%S%.f)?", form[0]):
            notes = [f"times read as {form[0].replace('%.f', '.%f')} {shown}"]
        if self._has_zone:
            notes.append(f"times taken to UTC {shown}")
            found = self._walls.instead_of(found, notes)
        return found, notes


def _given_format(form: str) -> tuple[str, str]:
    """A strptime format in polars' words: Python's fractions, and hours without minutes."""
    if "%f" in form.replace(".%f", ""):
        raise DataError(f"data.time_format={form!r}: %f must follow a point, as in %S.%f.")
    form = form.replace(".%f", "%.f")
    has_hour, has_minute = re.search("%[HI]", form), re.search("%[MTRcX]", form)
    return (form + ":%M", ":00") if has_hour and not has_minute else (form, "")


def _strptime(texts: pl.Series, form: tuple[str, str]) -> pl.Series:
    """Datetimes; null where a text is written otherwise."""
    pattern, end = form
    # polars reads times without fractions, which most are, six times as fast.
    for each in dict.fromkeys([pattern.replace("%.f", ""), pattern]):
        whole = texts + end if end else texts
        times = whole.str.to_datetime(each, strict=False, time_unit="us", cache=False)
        if not times.null_count():
            break
    dtype = times.dtype
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        times = times.dt.replace_time_zone(None)
    return times


def _plain(texts: pl.Series) -> pl.Series:
    """One spelling for AM and PM, and quarters as their first months."""
    first = texts[0] or ""
    if re.search(r"(?i)[ap]\.?m\.?\b", first):
        texts = texts.str.replace(r"(?i) ?([ap])\.?m\.?( |$)", " ${1}M$2")
    if re.search(r"(?i)q[1-4]", first):
        texts = texts.str.replace(r"(?i)^(\d{4})[- ]?q([1-4])$", "${1}-q$2")
        texts = texts.str.replace(r"(?i)^q([1-4])[- /]?(\d{4})$", "${2}-q$1")
        for quarter, month in zip("1234", ("01", "04", "07", "10"), strict=True):
            texts = texts.str.replace(f"-q{quarter}$", f"-{month}")
    return texts.str.replace(r"\[[A-Za-z_/]+\]$", "") if first.endswith("]") else texts


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text) is not None


def _numbers(texts: pl.Series, first_row: int, where: str) -> pl.Series:
    for dtype in (pl.Int64, pl.Float64):
        numbers = texts.cast(dtype, strict=False)
        if not numbers.null_count():
            return numbers
    row = int(numbers.is_null().arg_max() or 0)
    raise DataError(
        f"{where}: row {first_row + row} has {texts[row]!r}, which does not read like the first, "
        f"a number. {ALLOWED}"
    )


def _from_numbers(
    numbers: np.ndarray, where: str, unit: str | None
) -> tuple[np.ndarray, list[str]]:
    """Microseconds from numbers, which must be plausible in one way.

    The ranges of the epochs in s, ms, us and ns do not overlap, and they hold no Excel day. Ten and
    twelve digits can be a date and an epoch of 2030 or 1976: they are dates if all rows are.
    """
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers))) + 1
        raise DataError(f"{where}: row {row} has no time. {ALLOWED}")
    low, high = numbers.min().item(), numbers.max().item()
    is_whole = numbers.dtype.kind in "iu" or bool((numbers == np.floor(numbers)).all())
    limit_us = 86_400e6 if unit == "excel" else EPOCH_UNITS.get(unit or "", 0)
    if max(abs(low), abs(high)) * limit_us > 2**62:
        raise DataError(
            f"{where}: data.time_format={unit} puts {high} beyond year 9999; allowed:"
            f" {', '.join(EPOCH_UNITS)}, excel or a format."
        )
    found: tuple[np.ndarray, str] | None = None
    if unit is None and is_whole and low > 0 and high < 10**17:
        form = DIGITS.get(len(str(int(low))))
        if form is not None and len(str(int(low))) == len(str(int(high))):
            texts = pl.Series(numbers.astype(np.int64)).cast(pl.String)
            times = _strptime(texts, form)
            is_date = times.dt.year().is_between(1600, 2100).fill_null(False)
            if len(texts) > is_date.sum() > len(texts) / 2:  # by chance it is one in a hundred
                row = int((~is_date).arg_max() or 0)
                raise DataError(
                    f"{where}: row {row + 1} has {texts[row]}, which is no date, where others are "
                    f"dates like {texts[int(is_date.arg_max() or 0)]}. Hours run from 00 to 23. "
                    "Correct it, or say what the numbers are (data.time_format)."
                )
            if is_date.all():
                _check_century(texts, times, where)
                written = form[0] if form[1] == "" else "%Y" if len(texts[0]) == 4 else "%Y%m%d%H"
                found = times.to_physical().to_numpy(), f"{written} dates"
    if found is None and (unit == "excel" or (unit is None and 25_569 <= low <= high < 73_050)):
        seconds = (numbers.astype(np.float64) + EXCEL_EPOCH) * 86_400
        whole = np.rint(seconds)  # days with few decimals: to the second, else to the millisecond
        if np.abs(seconds - whole).max() > 0.05:
            whole = np.rint(seconds * 1e3) / 1e3
        found = np.rint(whole * 1e6).astype(np.int64), "Excel's day numbers"
    if found is None:
        first, last = (np.datetime64(year, "us").astype(int) for year in EPOCH_YEARS)
        for name, scale in EPOCH_UNITS.items():
            if unit == name or (unit is None and first <= low * scale <= high * scale < last):
                micros = numbers * scale if name != "ns" else numbers // 1000
                found = np.rint(micros).astype(np.int64), f"epoch times in {name}"
    if found is None:
        raise DataError(
            f"{where}: the numbers {low} to {high} are no times that are plausible: neither dates "
            "(2016, 201607, 20160701, 2016070100, with minutes, with seconds), nor days of Excel, "
            f"nor epochs between {' and '.join(EPOCH_YEARS)}. Say how to read them: "
            f"data.time_format={', '.join(EPOCH_UNITS)} or excel, or a format such as %y%m%d."
        )
    micros, how = found
    return micros, [f"times read as {how} ({numbers[0]} is {iso(int(micros[0]), where=where)})"]


def _check_century(texts: pl.Series, times: pl.Series, where: str) -> None:
    """Refuses months (years) at unequal or huge steps which are days (months) with short years."""
    digits = len(texts[0])
    if digits not in (4, 6):
        return
    steps = np.diff(times.dt.year().to_numpy() * 12 + times.dt.month().to_numpy())
    is_even = not len(steps) or (np.ptp(steps) == 0 and abs(steps[0]) < 1200)
    others = _strptime(texts, ("%y%m%d", "01" if digits == 4 else ""))
    if not is_even and not others.null_count():
        raise DataError(
            f"{where}: {texts[0]} may be {iso(int(times.to_physical()[0]))} or "
            f"{iso(int(others.to_physical()[0]))}. Say which: data.time_format="
            f"{'%Y' if digits == 4 else '%Y%m'}, or write all digits of the years."
        )


def _mixed(where: str, row: int) -> DataError:
    return DataError(
        f"{where}: mixed time zones: row {row} has a UTC offset and others have none, or the other "
        "way round. Write all times in UTC, or all with an offset, or all without."
    )


@dataclass(kw_only=True)
class Grid:
    """Where the rows of a file lie on a regular time grid.

    Attributes:
        start_us: Time of grid row 0, microseconds since 1970.
        step: From one grid row to the next.
        num_rows: Rows on the grid.
        rows: (rows of the file,) grid row of each; None if file row i is grid row i.
        notes: What was reordered or filled in.
    """

    start_us: int
    step: Step
    num_rows: int
    rows: np.ndarray | None
    notes: list[str]

    @property
    def start(self) -> str:
        """ISO time of grid row 0."""
        return iso(self.start_us)


def regular_grid(
    times_us: np.ndarray,
    *,
    missing: str,
    where: str,
    keys: Callable[[], str] = lambda: "data.id=COLUMN data.value=COLUMN",
) -> Grid:
    """Finds the regular grid that the times lie on.

    A step is a number of seconds (also one that the stamps round, as 1/30 s in milliseconds), of
    calendar months, or of business days. Under `missing="error"` the file must itself be the grid:
    sorted, with equal steps. Under the other policies rows are sorted, and times that are skipped
    become missing values; both are noted. A time that occurs twice is an error always, since
    nothing says which of its rows holds.

    Args:
        times_us: (rows,) int64, microseconds, file order.
        missing: The policy for missing values.
        where: File and column, for messages.
        keys: Finds the keys that would read a long table, for the message on repeated times.

    Raises:
        DataError: for fewer than 3 rows, duplicate times, and what the policy refuses.
    """
    if len(times_us) < 3:
        raise DataError(
            f"{where}: {len(times_us)} rows; a series needs more (3 splits of windows)."
        )
    steps = np.diff(times_us)
    notes: list[str] = []
    order = None
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 2
        order = np.argsort(times_us, kind="stable")
        early, times_us = times_us[row - 1], times_us[order]
        steps = np.diff(times_us)
        if missing == "error" and (steps > 0).all():
            raise DataError(
                f"{where}: not sorted: row {row} ({iso(int(early))}) is earlier than "
                "the row before it. Sort the file by time, or choose data.missing=interpolate or "
                "mask, which sort it."
            )
        notes.append(f"rows were sorted by time (row {row} was the first out of order)")
    if (steps == 0).any():
        twice = iso(int(times_us[int(np.argmax(steps == 0))]))
        raise DataError(
            f"{where}: {int(np.count_nonzero(steps == 0))} duplicate times, the first {twice}. "
            "If rows belong to several series, name the column that tells them apart and the "
            f"column of values ({keys()}); else keep one row "
            "for each time. Local times repeat an hour in autumn: write UTC."
        )
    start = int(times_us[0])
    median = int(np.partition(steps, len(steps) // 2)[len(steps) // 2])
    step, rows = Step(median / 1e6), None
    if not (steps == median).all():
        del steps
        step, rows = _find_step(times_us, median)
        bad = np.flatnonzero([] if rows is None else np.diff(rows) != 1)
        if rows is None or (missing == "error" and len(bad)):
            # Without a grid: the first row off the steps that most rows make.
            off = np.flatnonzero((times_us - start) % median) if rows is None else bad + 1
            row = int(off[0])
            gap = duration(int(times_us[row] - times_us[row - 1]) / 1e6)
            many = f"; {len(off)} such places" if rows is not None else ""
            remedy = "Resample the data to a regular step"
            if rows is not None:
                remedy += ", or choose data.missing=interpolate or mask (skipped times are gaps)"
            raise DataError(
                f"{where}: irregular step: {iso(int(times_us[row]))} (row {row + 1}"
                f"{', sorted' if order is not None else ''}) lies {gap} after the row before it"
                f"{' and off the grid' if rows is None else ''}; the step is {step}, from "
                f"{iso(start)} on{many}. {remedy}."
            )
        if not len(bad):
            rows = None
    if rows is None and order is None:
        return Grid(start_us=start, step=step, num_rows=len(times_us), rows=None, notes=notes)
    if rows is None:
        rows = np.arange(len(times_us))
    num_rows = int(rows[-1]) + 1
    if num_rows > MAX_GRID * len(times_us):
        raise DataError(
            f"{where}: {len(times_us)} rows span {num_rows} steps of {step}, from "
            f"{iso(start)} to {iso(int(times_us[-1]))}; more than {MAX_GRID} times the rows looks "
            "like a wrong time. Correct it or resample the data."
        )
    if num_rows > len(times_us):
        notes.append(
            f"{num_rows - len(times_us)} skipped times of {num_rows} are missing values (the step "
            f"is {step})"
        )
    if order is not None:
        unsorted = np.empty_like(rows)
        unsorted[order] = rows
        rows = unsorted
    return Grid(start_us=start, step=step, num_rows=num_rows, rows=rows, notes=notes)


def _find_step(times_us: np.ndarray, median: int) -> tuple[Step, np.ndarray | None]:
    """The step of sorted times that are not equally far apart, and the grid row of each.

    The rows are None where the times lie on no grid; the step is then the median one.
    """
    start = times_us[0]
    days, clocks_us = times_us // DAY_US, times_us % DAY_US
    if median >= DAY_US and (clocks_us == clocks_us[0]).all():
        dates = days.astype("datetime64[D]")
        if median == DAY_US and np.is_busday(dates).all():
            return Step(1, "business day"), np.busday_count(dates[0], dates)
        if median >= 28 * DAY_US:
            months = dates.astype("datetime64[M]")
            firsts = months.astype("datetime64[D]")
            place = (dates - firsts).astype(np.int64)
            last = ((months + 1).astype("datetime64[D]") - firsts).astype(np.int64) - 1
            # One day of the month (or its end, where it is shorter), or a business month's end.
            alike = (place == np.minimum(place.max(), last)).all()
            if alike or (last - place).max() <= 3 or place.max() <= 3:
                index = (months - months[0]).astype(np.int64)
                every = np.diff(index)
                count = int(np.median(every))
                if count >= 1 and not (index % count).any():
                    return Step(count, "month"), index // count
    del days, clocks_us
    rows, rest = np.divmod(times_us - start, median)
    if not rest.any():
        return Step(median / 1e6), rows
    del rest
    # Stamps that are rounded: to the coarsest unit that holds them all.
    unit = next(u for u in (100_000, 10_000, 1000, 1) if not ((times_us - start) % u).any())
    steps = np.diff(times_us)
    mean = steps[np.abs(steps - median) <= unit].mean()
    if median > 2 * unit and median < 1_000_000:
        for step in (1e6 / round(1e6 / mean), (times_us[-1] - start) / (len(times_us) - 1)):
            rows = np.rint((times_us - start) / step).astype(np.int64)
            if (
                np.abs(times_us - start - rows * step).max() <= 1.01 * unit
                and (np.diff(rows) > 0).all()
            ):
                return Step(step / 1e6), rows
    return Step(median / 1e6), None
