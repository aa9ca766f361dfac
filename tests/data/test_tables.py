# ruff: noqa: E501 - one line is one file
"""Files as people have them: each is read as it is meant, or one DataError names row and key.

One line is one file. What is expected comes from the standard library and numpy alone.
"""

from __future__ import annotations

import bz2
import contextlib
import datetime as dt
import gzip
import io
import lzma
import math
import re
import zlib
import zoneinfo
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5ts.data import tables
from t5ts.data.sources import load_csv
from t5ts.data.tables import read_table
from t5ts.data.windows import build_windows
from t5ts.errors import DataError

N = 40
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
T0, DAY1 = dt.datetime(2013, 1, 1, 6), dt.datetime(2013, 1, 1)
UNIX = int(T0.replace(tzinfo=dt.UTC).timestamp())
VALUES = np.random.default_rng(0).normal(size=N).round(3)


def hours(num: int, pattern: str = "%Y-%m-%d %H:%M:%S") -> list[str]:
    return form(pattern, every(start=dt.datetime(2020, 1, 1), num=num))


def every(step=HOUR, start=T0, num=N) -> list[dt.datetime]:
    return [start + step * i for i in range(num)]


def months(step=1, start=(2013, 1), day=1, num=N) -> list[dt.datetime]:
    index = [start[0] * 12 + start[1] - 1 + step * i for i in range(num)]
    return [dt.datetime(m // 12, m % 12 + 1, day) for m in index]


def month_ends(step=1, num=N) -> list[dt.datetime]:
    return [t - DAY for t in months(step, start=(2013, 2), num=num)]


def business_days(num=N) -> list[dt.datetime]:
    days = (dt.datetime(2013, 1, 1) + DAY * i for i in range(2 * num))
    return [day for day in days if day.weekday() < 5][:num]


def text(times, values=None, header="time,a", mark=",") -> str:
    values = np.resize(VALUES, len(times)) if values is None else values
    rows = (f"{t}{mark}{v}\n" for t, v in zip(times, values, strict=True))
    return header + "\n" + "".join(rows)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def form(pattern: str, times=None) -> list[str]:
    return [t.strftime(pattern) for t in times or every()]


MID = dt.datetime(2013, 1, 20, 6)  # days above 12 follow: the order of day and month shows
EARLY = [dt.datetime(2013, 1, 1) + DAY * i for i in range(12)]
BERLIN = every(start=dt.datetime(2020, 10, 24, 22))  # UTC; the clocks change in the night to 25th


BERLIN_ZONE = zoneinfo.ZoneInfo("Europe/Berlin")


def berlin(pattern: str) -> list[str]:
    return [t.replace(tzinfo=dt.UTC).astimezone(BERLIN_ZONE).strftime(pattern) for t in BERLIN]


def excel(t: dt.datetime) -> float:
    return (t - dt.datetime(1899, 12, 30)) / DAY


def cases(step, times, patterns: str) -> dict:
    """Each pattern applied to the times; they are read as those times."""
    return {p: (form(p, times), times[0], step, {}) for p in patterns.split("|")}


# name: (times as written, first time, step in s or its words, keys)
TIMES = {
    **cases(3600, every(), "%Y%m%d%H|%Y%m%d%H%M|%Y%m%d%H%M%S|%Y%m%d%H%M%S000|%d.%m.%Y %H:%M|%Y-%m-%d %H|%Y-%m-%dT%H:%M:%S|%Y-%m-%dT%H:%M:%SZ|%Y-%m-%d %H:%M GMT|%Y-%m-%d %H:%M:%S UTC|%Y-%m-%d %H:%M:%S+00"),
    **cases(3600, every(start=MID), "%m/%d/%Y %H:%M|%d/%m/%Y %H:%M|%-m/%-d/%Y %-H:%M|%m/%d/%Y %I:%M:%S %p"),
    **cases(86_400, every(DAY, DAY1), "%Y%m%d|%-d/%-m/%Y|%m-%d-%Y|%-d.%-m.%Y|%d-%b-%Y|%-d %B %Y|%B %-d %Y"),
    **cases("1 month", months(), "%Y%m|%Y-%m|%m/%Y|%b %Y|%b-%Y|%Y-%m-%d|%Y-%m-%d 00:00"),
    **{str(ts[0]) + step: (form("%Y-%m-%d %H:%M", ts), ts[0], step, {}) for step, ts in (
        ("1 month", month_ends()), ("1 month", months(day=15)), ("3 months", months(3)), ("3 months", month_ends(3)),
        ("12 months", months(12, (1950, 1))), ("12 months", months(12, (1950, 1), 28)), ("1 business day", business_days()),
        ("1 business day", [t + 16 * HOUR for t in business_days()]), ("1 month", [t + 12 * HOUR for t in months()]))},
    "YYYY": ([str(1980 + i) for i in range(N)], dt.datetime(1980, 1, 1), "12 months", {}),
    "Excel days": ([int(excel(t)) for t in every(DAY)], DAY1, 86_400, {}),
    "Excel hours": ([f"{excel(t):.9f}" for t in every()], T0, 3600, {}),
    **{f"epoch {u}": ([(UNIX + 60 * i) * 1000**p for i in range(N)], T0, 60, {}) for p, u in enumerate(("s", "ms", "us", "ns"))},
    "epoch s, halves": ([UNIX + i / 2 for i in range(N)], T0, 0.5, {}),
    "epoch s of 2030": ([1_900_000_000 + 60 * i for i in range(N)], dt.datetime(2030, 3, 17, 17, 46, 40), 60, {}),
    "elapsed s, said": (list(range(N)), dt.datetime(1970, 1, 1), 1, {"time_format": "s"}),
    **{f"{p}, said": (form(p, ts), ts[0], step, {"time_format": p}) for p, ts, step in (
        ("%y%m%d", every(DAY, DAY1), 86_400), ("%Y%j", every(DAY, DAY1), 86_400), ("%m/%d/%Y", EARLY, 86_400),
        ("%d/%m/%Y", EARLY, 86_400), ("%m/%d/%y", EARLY, 86_400), ("%Y/%m/%d-%H", every(), 3600), ("%Y-%m-%d %I:%M%p", every(), 3600))},
    "fractions, said": (form("%d.%m.%y %H:%M:%S.250"), T0 + dt.timedelta(milliseconds=250), 3600, {"time_format": "%d.%m.%y %H:%M:%S.%f"}),
    "offset, said": (form("%y-%m-%d %H:%M +0200"), T0 - 2 * HOUR, 3600, {"time_format": "%y-%m-%d %H:%M %z"}),
    **{q: ([q.format(y=2013 + i // 4, q=i % 4 + 1) for i in range(N)], DAY1, "3 months", {}) for q in ("{y}Q{q}", "{y}-Q{q}", "Q{q} {y}")},
    "ISO weeks": (form("%G-W%V", every(7 * DAY)), dt.datetime(2012, 12, 31), 7 * 86_400, {}),
    "business month ends": ([str(np.busday_offset(t.date(), 0, "backward")) for t in month_ends()], dt.datetime(2013, 1, 31), "1 month", {}),
    "am and pm without a blank": ([t.lower() for t in form("%Y-%m-%d %I:%M%p")], T0, 3600, {}),
    "a.m. and p.m.": ([t.replace("AM", "a.m.").replace("PM", "p.m.") for t in form("%Y-%m-%d %I:%M %p")], T0, 3600, {}),
    **{zone: (form("%Y-%m-%d %H:%M" + zone), T0 - hours * HOUR, 3600, {}) for zone, hours in (
        (" EST", -5), (" CET", 1), (":00.000 GMT+0100", 1), (":00-05:30", -5.5), (":00+01:00[Europe/Paris]", 1), (" Europe/Paris", 1))},
    "offsets that change": (berlin("%Y-%m-%d %H:%M:%S%z"), BERLIN[0], 3600, {}),
    "zone names that change": (berlin("%Y-%m-%d %H:%M %Z"), BERLIN[0], 3600, {}),
    "local midnights": ([t.replace(tzinfo=BERLIN_ZONE).isoformat() for t in every(DAY, dt.datetime(2020, 10, 1))], dt.datetime(2020, 10, 1), 86_400, {}),
    "local month starts": ([t.replace(tzinfo=BERLIN_ZONE).isoformat() for t in months()], DAY1, "1 month", {}),
    **{f"{rate} Hz in {unit}": ([(T0 + dt.timedelta(seconds=i / rate)).isoformat(timespec=unit) for i in range(N)], T0, 1 / rate, {})
       for rate, unit in ((30, "milliseconds"), (60, "microseconds"), (29.97, "milliseconds"), (300, "milliseconds"))},
    "30 Hz epochs": ([round((UNIX + i / 30) * 1000) for i in range(N)], T0, 1 / 30, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMES)
def test_times_are_read_as_they_are_meant(tmp_path, name):
    times, start, step, keys = TIMES[name]
    values = VALUES[: len(times)]
    write(tmp_path / "x.csv", text(times, values))
    pl.DataFrame({"time": times, "a": values}).write_parquet(tmp_path / "x.parquet")
    for suffix in ("csv", "parquet"):
        path = str(tmp_path / f"x.{suffix}")
        series = load_csv(path=path, splits=[0.5, 0.25, 0.25], season=1, **keys)
        assert series.start == start.isoformat()
        if isinstance(step, str):
            assert str(series.step) == step
        else:  # 40 stamps in ms cannot tell 29.97 Hz from 30
            assert series.step_s == pytest.approx(step, rel=2e-3 if "29.97" in name else 1e-9)
        np.testing.assert_allclose(series.values_TC[:, 0], values, rtol=1e-6)
        assert not np.isnan(series.values_TC).any()


CHANGED = [
    *form("%m/%d/%Y", every(DAY, num=20)),
    *form("%d/%m/%Y", every(DAY, dt.datetime(2013, 1, 21), 20)),
]
Z, NO_Z, KEY = form("%Y-%m-%d %H:%M:%SZ"), form("%Y-%m-%d %H:%M:%S"), "data.time_format"
REFUSED_TIMES = {
    "ambiguous days": (form("%m/%d/%Y", EARLY), ["'01/01/2013'", "2013-01-02", "2013-02-01", "%m/%d/%Y", "%d/%m/%Y", KEY]),
    "ambiguous hours": (form("%m/%d/%Y %H:%M"), [KEY]),
    **{p: (form(p, every(DAY)), ["row 1 ", KEY]) for p in ("%m/%d/%y", "%d.%m.%y", "%y%m%d", "%d%m%Y")},
    "row numbers": (list(range(N)), [KEY]),
    "seconds elapsed": ([i / 4 for i in range(N)], [KEY]),
    "hours up to 24": ([f"2013010{1 + i // 24}{i % 24 + 1:02}" for i in range(N)], ["row 24 ", "2013010124", KEY]),
    "years of decimals": ([f"{2013 + i / 12:.4f}" for i in range(N)], []),
    "CST": (form("%Y-%m-%d %H:%M CST"), ["row 1 ", "CST", KEY]),
    "no such place": (form("%Y-%m-%d %H:%M Europe/Atlantis"), ["Europe/Atlantis"]),
    "a local hour that came twice": (form("%Y-%m-%d %H:%M Europe/Berlin", every(start=dt.datetime(2020, 10, 24, 12))), ["row 15", "02:00"]),
    "some with an offset": ([*Z[:20], *NO_Z[20:]], ["row 21"]),
    "another order later": (CHANGED, ["row 21 ", "'21/01/2013'"]),
    "text after numbers": ([*(UNIX + i for i in range(9)), "soon"], ["row 10 ", "'soon'"]),
    "a month missing": (form("%Y-%m", [*months()[:9], *months()[10:]]), ["row 10", "1 month", "data.missing"]),
    "a holiday": (form("%Y-%m-%d", [*business_days()[:9], *business_days()[10:]]), ["row 10", "1 business day", "data.missing"]),
    # whole numbers with short years are no months and years of the 17th century
    "YYMMDD of months, mask": (form("%y%m%d", months(start=(2016, 1))), ["160101", KEY], {"missing": "mask"}),
    "YYMM, mask": (form("%y%m", months(start=(2016, 1))), ["1601", KEY], {"missing": "mask"}),
    "intervals of hours": ([f"{t:%Y-%m-%d %H:%M}-{t + HOUR:%H:%M}" for t in every()], ["column 'time'"]),
    # a format that was given and does not fit
    **{f"as {f}": (NO_Z, [KEY], {"time_format": f}) for f in ("%d/%m/%Y", "hours", "%Q%f", "s", "excel")},
    "ns, said s": ([UNIX * 10**9 + i for i in range(N)], ["data.time_format='s'"], {"time_format": "s"}),
    "us, said ms": ([UNIX * 10**6 + i for i in range(N)], ["9999"], {"time_format": "ms"}),
}  # fmt: skip


def refused(path, *named, **keys) -> None:
    with pytest.raises(DataError) as error:
        load_csv(path=None if path is None else str(path), **keys)
    message = str(error.value)
    assert message.isprintable()
    assert [word for word in named if word not in message] == []


@pytest.mark.parametrize("name", REFUSED_TIMES)
def test_times_that_cannot_be_trusted_are_refused(tmp_path, name):
    times, named, *keys = REFUSED_TIMES[name]
    keys = keys[0] if keys else {}
    refused(write(tmp_path / "x.csv", text(times)), *named, **keys)
    if len({type(t) for t in times}) == 1:
        table = pl.DataFrame({"time": times, "a": VALUES[: len(times)]})
        table.write_parquet(tmp_path / "x.parquet")
        refused(tmp_path / "x.parquet", *named, **keys)


ISO = form("%Y-%m-%d %H:%M:%S")
COMMA = [f"{v:.3f}".replace(".", ",") for v in VALUES]
PLAIN = text(ISO)


TABLES = {
    "semicolons, commas, quotes": (text([f'"{t}"' for t in ISO], [f'"{v}"' for v in COMMA], '"time";"a"', ";"), {}),
    "commas in quotes, said": (text(ISO, [f'"{v}"' for v in COMMA]), {"decimal": ","}),
    "bars": (text(ISO, header="time|a", mark="|"), {}),
    "a comma in a name": (text(ISO, COMMA, "time;a", ";").replace("time;a", "time;a, °C"), {}),
    "blank line in the middle": (PLAIN.replace("\n2013-01-01 12", "\n\n2013-01-01 12"), {}),
    "blank lines at the ends": ("\n\n" + PLAIN + "\n\n", {}),
    "lines of separators": (PLAIN.replace("\n2013-01-01 12", "\n,\n2013-01-01 12") + ",\n", {}),
    "blanks around": (text([f" {t} " for t in ISO], [f" {v} " for v in VALUES]), {}),
    **{pack.__module__: (pack(PLAIN.encode()), {}) for pack in (gzip.compress, zlib.compress, bz2.compress, lzma.compress)},
    "fractions and blanks in any row": (text([*ISO[:8], *(t + ".000 " for t in ISO[8:])]), {}),
    "BOM": (b"\xef\xbb\xbf" + PLAIN.encode(), {}),
    "UTF-16 without BOM": (PLAIN.encode("utf-16-le"), {}),
    "UTF-16, tabs, decimal commas": (text(ISO, COMMA, "time\ta", "\t").encode("utf-16"), {}),
    "Latin-1": (PLAIN.replace("a\n", "a in °C\n").encode("latin-1"), {}),
    "a trailing comma in every line": (PLAIN.replace("\n", ",\n"), {}),
    "Date and Time": ("Date,Time,a\n" + text([t.replace(" ", ",") for t in ISO]).partition("\n")[2], {}),
    "MetaTrader": ("Date,Time,a\n" + text(form("%Y.%m.%d,%H:%M")).partition("\n")[2], {}),
    "year to hour, said": ("y,m,d,h,a\n" + text(form("%Y,%-m,%-d,%-H")).partition("\n")[2], {"time": "y+m+d+h", "time_format": "%Y %m %d %H"}),
    "pandas' index of dates": (PLAIN.replace("time,", ","), {}),
    "Unnamed: 0": ("Unnamed: 0,time,a\n" + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split("\n")[1:-1])), {}),
    "an epoch beside the date": ("date,timestamp,a\n" + "".join(f"{t},{UNIX + 3600 * i},{v}\n" for i, (t, v) in enumerate(zip(ISO, VALUES, strict=True))), {}),
    "a text column, channels said": ("time,a,b\n" + "".join(f"{line},calm\n" for line in PLAIN.split("\n")[1:-1]), {"channels": ["a"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_they_are_meant(tmp_path, name):
    content, keys = TABLES[name]
    series = load_csv(path=write(tmp_path / "x.csv", content), **keys)
    assert len(series.channels) == 1
    assert (series.start, series.step_s) == (T0.isoformat(), 3600)
    np.testing.assert_allclose(series.values_TC[:, 0], VALUES, rtol=1e-6)


NULLS = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "?", "-", ".",
         "--", '""', "#VALUE!", " ", " NA ", "inf", "-inf", -9999, -9999.0]  # fmt: skip


@pytest.mark.parametrize("spelling", NULLS)
def test_spellings_of_a_missing_value(tmp_path, spelling):
    values = [spelling if row in (5, 20) else value for row, value in enumerate(VALUES)]
    path = write(tmp_path / "x.csv", text(ISO, values))
    keys = {"nulls": [spelling]} if isinstance(spelling, float | int) else {}
    refused(path, "row 6 ", "'a'", "data.missing", **keys)
    series = load_csv(path=path, missing="interpolate", **keys)
    assert np.flatnonzero(np.isnan(series.values_TC)).tolist() == [5, 20]
    assert series.fills_contexts
    if keys:
        pl.read_csv(path).write_parquet(tmp_path / "x.parquet")
        other = load_csv(path=str(tmp_path / "x.parquet"), missing="mask", nulls=["-9999"])
        np.testing.assert_array_equal(other.values_TC, series.values_TC)


SWAPPED = [t.replace(day=t.month, month=t.day) if t.day < 13 else t for t in every(DAY)]
LONG = "".join(f"{t},{i},{v}\n" for i in ("a", "b") for t, v in zip(ISO, VALUES, strict=True))
REFUSED = [
    (text(ISO, ["1,234"] * N, "time;a", ";"), ["'1,234'", "data.decimal"], {}),
    (text(ISO, ['"1,234.5"'] * N), ["row 1 ", "'1,234.5'", "data.decimal"], {}),
    (text(ISO, COMMA), ["row 1 ", "data.separator"], {}),
    (text(ISO, [*COMMA[:-1], "1.500"], "time;a", ";"), ["row 40 ", "'1.500'", "data.decimal"], {}),
    (PLAIN + "2013-01-02 22:00:00,1,2\n", ["row 41 "], {}),
    ("time,a,b\n" + "".join(f"{line},1\n" for line in PLAIN.split("\n")[1:-1]) + "2013-01-02 22:00:00,1,2,3\n", ["row 41 "], {"channels": ["a"]}),
    (PLAIN + "2013-01-02 22:00:00\n", ["row 41 ", "'a'"], {}),
    (text(ISO, [*VALUES[:-1], "inf"]), ["row 40 ", "'a'"], {}),
    *((start + b"\n" * 99, ["Excel", "JSON", "data.path"], {}) for start in (
        b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x89HDF", b"\x80\x04\x95", b"FEA1", b"SQLite format 3",
        b'{"time": [1]}', b'[\n {"time": 1}]', b" <!DOCTYPE html>")),
    (PLAIN.partition("\n")[2], ["data.time"], {}),
    (text(ISO, header="time a", mark=" "), ["data.separator"], {}),
    ("sep=;\n" + text(ISO, header="time;a", mark=";"), ["data.separator"], {}),
    ("time,station,temp\n" + LONG, ["data.id", "data.value", "station, temp"], {}),
    (PLAIN + PLAIN.splitlines()[-1] + "\n", ["data.id"], {}),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, ["data.encoding"], {}),
    (PLAIN.encode("utf-16"), ["data.encoding"], {"encoding": "utf-8"}),
    (PLAIN.replace("\n", "\r"), [], {}),
    ("time,a\n", [], {}),
    ("x,a\n1,2\n", ["data.time"], {}),
    ("time,a,a\n2020-01-01,1,2\n", ["'a'"], {}),
    (text(hours(300), [*range(299), "calm"]), ["row 300", "'a'", "'calm'"], {}),
    (text(hours(20), [*range(12), '"1', *range(7)]), ["quotes", '12:00:00,"1'], {}),
    (text(hours(20)) + '2020-01-01 20:00:00",1\n', ["quotes", '20:00:00",1'], {}),
    (text(hours(20), [""] * 20), ["'a'", "leave the channel out"], {"missing": "mask"}),
    *((blank, ["data.path", "blank"], {}) for blank in ("\n\n", "\ufeff", " \n")),
    (text([*hours(9, "%Y-%m-%d %H:%MZ"), "2020-13-01 09:00Z"]), ["row 10", "13-01"], {}),
    (text([*hours(9, "%Y-%m-%d %H:%M:%SZ"), "2020-01-01 09:00:00+01:00"]), ["2020-01-01T08:00:00"], {}),
    (text(hours(9)[::-1]), ["row 2", "data.missing"], {}),
    (text([*hours(9), "2020-01-01 10:00:00"]), ["row 10", "2 h", "1 h"], {}),
    (text(hours(2)), [], {}),
    (text(hours(4)), ["data.splits"], {}),
    (text(hours(20), header=",time"), ["data.channels"], {}),
    # a wrong value of a key; some codecs are no texts' encodings
    *((PLAIN, [f"data.{key}"], {key: value}) for key, value in (
        ("time", "when"), ("channels", ["c"]), ("channels", []), ("missing", "drop"), ("id", "a"), ("decimal", "*"),
        *(("encoding", e) for e in ("klingon", "hex", "rot13", "zlib", "quopri")), ("separator", ";;"),
        ("splits", [0.5, 0.5]), ("splits", ["soon", "2020-01-01"]), ("splits", ["2013-01-01T09", "2021-01-01"]))),
    # a wrong time in the last row
    *((text([*hours(9), last]), named, {"missing": "mask"}) for last, *named in (
        ("", "row 10"), (hours(9)[3], "data.id"), ("2020-01-01 08:30:00", "2020-01-01T08:30:00"), ("2999-01-01 00:00:00", "row 10 ", "2999"))),
    # thousands with points, beside whole numbers
    (text(every(), [f"{v:,}".replace(",", ".") for v in range(600, 600 + 40 * N, 40)], "time;a", ";"), ["data.decimal"], {}),
    (gzip.compress(text(hours(5), "123x5").encode(), mtime=0), ["row 4 ", "'x'"], {}),
    # days and months swapped where that can be, as spreadsheets do: sorting would mix the days
    (text(SWAPPED), ["row 2 ", "2013-02-01"], {"missing": "interpolate"}),
    ("time,s,a\n" + "".join(f"{t},{s},1\n" for t in SWAPPED for s in "pq"), ["row 3 ", "2013-02-01"], {"missing": "mask", "id": "s", "value": "a"}),
    ("time,s,a\n" + "".join(f"{t},{s},1\n" for t in [*every(num=20), T0.replace(year=2106)] for s in "pq"), ["row 41 ", "2106"], {"missing": "mask", "id": "s", "value": "a"}),
    # years mistyped: one row must not make a grid of a century
    *((text([*every(num=9), t, *every(start=every(num=11)[-1], num=N - 10)]), ["row 10 ", t.isoformat()], {"missing": m})
      for t in (dt.datetime(2106, 1, 1, 15), dt.datetime(1016, 1, 1, 15)) for m in ("mask", "interpolate")),
    (text([*every(DAY, num=1990), every(DAY, num=1991)[-1].replace(year=2019), *every(DAY, num=2000)[1991:]], range(2000)), ["row 1991 ", "2019"], {"missing": "mask"}),
    (text(every(num=2000, start=T0.replace(year=1016))[:1] + every(num=1999), range(2000)), ["row 1 ", "1016"], {"missing": "mask"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "named", "keys"), REFUSED)
def test_tables_that_cannot_be_trusted_are_refused(tmp_path, content, named, keys):
    """The result does not depend on the block size (one row per block at 40 bytes)."""
    path = write(tmp_path / "x.csv", content)
    refused(path, *named, **keys)
    refused(path, *named, **keys, block_bytes=20)


@pytest.mark.parametrize(
    "times",
    [
        [*every(DAY, num=9)[::-1], *every(DAY, num=20)[9:]],
        [months()[{3: 4, 4: 3}.get(i, i)] for i in range(N)],
        [*every(num=20), *every(start=T0 + 8 * DAY, num=20)],
        [*every(num=20), T0 + 3 * DAY],
    ],
)
def test_unsorted_rows_and_long_gaps_are_no_mistakes(tmp_path, times):
    path = write(tmp_path / "x.csv", text(times, range(len(times))))
    series = load_csv(path=path, missing="mask", splits=[0.4, 0.2, 0.4])
    assert np.count_nonzero(~np.isnan(series.values_TC)) == len(times)


def test_files_that_are_no_files(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path, None, "x" * 5000, write(tmp_path / "x.csv", "")):
        refused(path, "data.path")
    parquet = tmp_path / "x.parquet"
    pl.DataFrame({"time": every(), "a": VALUES}).write_parquet(parquet)
    for content in ("not parquet at all", parquet.read_bytes()[:-200]):
        refused(write(parquet, content), "Parquet")


@pytest.mark.parametrize(
    ("column", "named"),
    [
        ({"b": ["calm"] * N}, ["'b'", "String"]),
        ({"time": [True] * N}, ["'time'", "Boolean"]),
        ({"a": pl.Series([None] * N, dtype=pl.Float32)}, ["'a'"]),
        # integers that float64 would round
        ({"a": [2**53 + 1 + i for i in range(N)]}, ["row 1 ", "'a'"]),
        ({"a": pl.Series([2**63 + 3 * i for i in range(N)], dtype=pl.UInt64)}, ["row 2 ", "'a'"]),
        ({"a": [*range(N - 1), -(2**60) - 1]}, [f"row {N} ", "'a'"]),
    ],
)
def test_columns_that_are_no_values(tmp_path, column, named):
    table = pl.DataFrame({"time": every(), "a": VALUES} | column)
    table.write_parquet(tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", *named)
    in_csv = [word for word in named if word not in ("String", "Boolean")]
    refused(as_csv(tmp_path / "x.csv", table), *in_csv)


def wide(num_rows=60, step=HOUR, seed=0) -> pl.DataFrame:
    values = np.random.default_rng(seed).normal(size=(num_rows, 2)).astype(np.float32)
    times = every(step, dt.datetime(2020, 1, 1), num_rows)
    return pl.DataFrame({"time": times, "a": values[:, 0], "b": values[:, 1]})


def as_csv(path: Path, table: pl.DataFrame) -> str:
    table.write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_long_tables_and_splits(tmp_path, suffix):
    def load(table, **keys):
        path = tmp_path / f"{len(table)}.{suffix}"
        table.write_parquet(path) if suffix == "parquet" else as_csv(path, table)
        return load_csv(path=str(path), **keys)

    table, values_TC = wide(), wide().select("a", "b").to_numpy()
    series = load(table)
    np.testing.assert_array_equal(series.values_TC, values_TC)
    assert (series.channels, series.gap_share, series.notes) == (["a", "b"], 0, [])
    assert series.span == ("2020-01-01T00:00:00", "2020-01-03T11:00:00")
    assert (series.borders, series.step_s) == ((42, 48, 60), 3600)
    assert series.sha256 == load_csv(path=as_csv(tmp_path / "x.csv", table)).sha256
    swapped = load(
        table, channels=["b", "a"], season=7, splits=["2020-01-02T02:00+02:00", "2020-01-03T00:30"]
    )
    np.testing.assert_array_equal(swapped.values_TC, values_TC[:, ::-1])
    assert (swapped.borders, swapped.season_note) == ((24, 49, 60), "season 7: given")
    keys = {"id": "station", "value": "temp"}
    for order in (["station", "time"], ["time", "station"]):
        long = table.unpivot(index="time", variable_name="station", value_name="temp").sort(order)
        np.testing.assert_array_equal(load(long, **keys).values_TC, values_TC)
        one = load(long.with_columns(" " + pl.col("station") + " "), **keys, channels=["b"])
        np.testing.assert_array_equal(one.values_TC, values_TC[:, 1:])
    # Decimal times, and integers that float64 holds.
    numbers = pl.DataFrame(
        {"time": [UNIX + 60 * i for i in range(N)], "a": [2**54 + 4 * i for i in range(N)]}
    )
    series = load(numbers.cast({"time": pl.Decimal(18, 3)}), missing="mask")
    np.testing.assert_array_equal(series.values_TC[:, 0], 4 * np.arange(N))
    assert (series.offset_C, series.start) == ([2**54], T0.isoformat())
    far = {"time": every(), "id": ["x"] * N, "v": np.arange(2**20, 2**20 + N, dtype=np.float32)}
    series = load(pl.DataFrame(far), id="id", value="v")
    np.testing.assert_array_equal(series.values_TC[:, 0] + series.offset_C, far["v"])


def test_long_tables_have_gaps_and_faults(tmp_path):
    keys = {"time": "time", "id": "id", "value": "v"}

    def long(lines) -> str:
        return write(tmp_path / "x.csv", "\n".join(["time,id,v", *lines]))

    good = [f"{t},{i},{h}" for i in "ab" for h, t in enumerate(hours(20))]
    refused(long(good), "'z'", "a, b", **keys, channels=["z"])
    refused(long([*good, f"{hours(20)[-1]},b,3"]), "'b'", **keys)
    refused(long(good[::-1]), "row 2 ", "data.missing", **keys)
    assert load_csv(path=long(good[::-1]), **keys, missing="mask").gap_share == 0
    refused(long([*good, f"{hours(21)[-1]},,3"]), "row 41", "'id'", **keys)
    refused(long([*good, f"{hours(21)[-1]},b,x"]), "row 41", "'x'", **keys)
    refused(long(good), "data.id", time="time", id="id", value="id")
    refused(long(good[:20] + good[25:]), "'b'", "5 ", **keys)
    series = load_csv(path=long(good[:20] + good[25:]), missing="mask", **keys)
    assert np.argwhere(np.isnan(series.values_TC)).tolist() == [[row, 1] for row in range(5)]
    assert series.gap_share == pytest.approx(5 / 40)


def test_arrow_and_parquet_of_pandas(tmp_path):
    days = pl.Series(every(DAY, dt.datetime(2020, 10, 1))).dt.replace_time_zone("Europe/Berlin")
    dated = pl.DataFrame([days.alias("__index_level_0__"), pl.Series("a", VALUES)])
    numbered = pl.DataFrame({"time": days, "a": VALUES, "__index_level_0__": range(N)})
    for name, table in {"dated": dated, "numbered": numbered}.items():
        table.write_parquet(tmp_path / f"{name}.parquet")
        table.write_ipc(tmp_path / f"{name}.feather", compression="lz4")
        table.write_ipc(tmp_path / f"{name}.csv", compression="zstd")  # known by its content
        for suffix in ("parquet", "feather", "csv"):
            series = load_csv(path=str(tmp_path / f"{name}.{suffix}"))
            assert (series.channels, series.start) == (["a"], "2020-10-01T00:00:00")
            np.testing.assert_array_equal(series.values_TC[:, 0], VALUES.astype(np.float32))
    assert any("__index_level_0__" in note for note in series.notes)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "long.csv"])
@pytest.mark.parametrize(("middle", "spread"), [(1.6e9, 3.0), (-1e6, 0.03), (1e12, 1.0)])
def test_large_offsets_keep_their_digits(tmp_path, suffix, middle, spread):
    noise = np.random.default_rng(0).normal(size=600)
    raw = middle + spread * (np.sin(2 * np.pi * np.arange(600) / 24) + noise / 10)
    table = pl.DataFrame({"time": every(num=600), "a": raw, "b": raw - middle})
    keys = {}
    if suffix == "long.csv":
        table = table.unpivot(["a", "b"], index="time", variable_name="id", value_name="v")
        keys = {"id": "id", "value": "v"}
    path = tmp_path / f"x.{suffix}"
    table.write_parquet(path) if suffix == "parquet" else table.write_csv(path)
    series = load_csv(path=str(path), **keys)
    splits = build_windows(series, context_len=48, target_len=24)
    assert splits.constant_channels == []
    np.testing.assert_allclose(splits.mean_C[0], raw[:420].mean(), rtol=1e-13)
    np.testing.assert_allclose(splits.std_C[0], raw[:420].std(), rtol=1e-5)
    mean = math.fsum(raw[:420] - middle) / 420  # a sum at 1e12 would lose digits itself
    scaled = (raw - middle - mean) / (raw[:420] - middle).std()
    np.testing.assert_allclose(series.values_TC[:, 0], scaled, atol=2e-6)


def business_ends(roll: str, num=241) -> list[dt.datetime]:
    """First or last business days of months."""
    ends = {"forward": months(num=num), "backward": month_ends(num=num)}[roll]
    days = np.busday_offset([t.date() for t in ends], 0, roll)
    return [dt.datetime.combine(day, dt.time()) for day in days.tolist()]


@pytest.mark.parametrize(
    ("times", "season"),
    [(months(num=241), 12), (month_ends(num=241), 12), (months(3, num=241), 4),
     (business_ends("forward"), 12), (business_ends("backward"), 12),
     *(([t.replace(day=min(t.day, 30)) for t in month_ends(num=241 + n)[n:]], 12) for n in (1, 3)),
     (months(12, start=(1800, 1), num=241), 1), (business_days(241), 5),
     (every(DAY, num=241), 7), (every(num=241), 24), (every(7 * DAY, num=241), 52)],
)  # fmt: skip
def test_calendars_their_seasons_and_their_future(tmp_path, times, season):
    wave = np.sin(2 * np.pi * np.arange(240) / season)
    wave = np.random.default_rng(0).normal(size=240) if season == 1 else wave
    path = write(tmp_path / "x.csv", text(form("%Y-%m-%d %H:%M", times[:240]), wave))
    series = load_csv(path=path)
    assert series.season == season
    assert all(float(word) <= 1 for word in re.findall(r"\d+\.\d+", series.season_note))
    assert [series.time_of(row) for row in range(241)] == [t.isoformat() for t in times]
    dated = load_csv(path=path, splits=[times[100].isoformat(), times[200].isoformat()])
    assert dated.borders == (100, 200, 240)


@pytest.mark.parametrize(
    ("times", "step"),
    [(months(), "1 month"), (business_days(), "1 business day"), (every(), "1 h"),
     (business_ends("forward", N), "1 month"),
     ([T0 + dt.timedelta(seconds=round(i / 30, 3)) for i in range(N)], "33.33 ms")],
)  # fmt: skip
def test_skipped_and_unsorted_times_are_gaps_and_noted(tmp_path, times, step):
    kept = [i for i in range(N) if i not in (7, 8, 20)][::-1]
    lines = text([times[i].isoformat() for i in kept], VALUES[kept])
    series = load_csv(path=write(tmp_path / "x.csv", lines), missing="mask")
    assert str(series.step) == step
    assert np.flatnonzero(np.isnan(series.values_TC)).tolist() == [7, 8, 20]
    np.testing.assert_allclose(series.values_TC[kept, 0], VALUES[kept], rtol=1e-6)
    assert [note.split()[0] for note in series.notes] == ["rows", "3", "3"]
    assert series.gap_share == pytest.approx(3 / N)
    assert not series.fills_contexts


def test_what_was_detected_is_noted(tmp_path):
    content = text(form("%d.%m.%Y %H:%M"), COMMA, "time;a°", ";").encode("cp1252")
    notes = " ".join(load_csv(path=write(tmp_path / "x.csv", content)).notes)
    told = (
        "cp1252",
        "data.encoding",
        "data.separator",
        "data.decimal",
        "%d.%m.%Y %H:%M",
        T0.isoformat(),
    )
    assert [word for word in told if word not in notes] == []


HYPOTHESIS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
ODD_TEXTS = ["calm", "", "a,b", 'says "5"', "two\nlines", "\n", '","', "é"]


@settings(max_examples=5, **HYPOTHESIS)
@given(
    num_rows=st.integers(3, 40),
    texts=st.lists(st.sampled_from(ODD_TEXTS), min_size=40, max_size=40),
    at=st.integers(0, 3),
    end=st.sampled_from(["\n", "\r\n"]),
    quotes=st.sampled_from(["necessary", "always", "non_numeric"]),
    is_cut=st.booleans(),
    block_bytes=st.integers(20, 500),
)
def test_blocks_hold_what_polars_finds_in_the_whole_file(
    tmp_path, num_rows, texts, at, end, quotes, is_cut, block_bytes
):
    table = wide(num_rows, dt.timedelta(minutes=1), block_bytes)
    spelt = {"datetime_format": "%Y-%m-%d %H:%M:%S", "line_terminator": end, "quote_style": quotes}
    shuffled = table.sample(fraction=1, shuffle=True, seed=block_bytes)
    written = shuffled.insert_column(at, pl.Series("text", texts[:num_rows])).write_csv(**spelt)
    path = write(tmp_path / "any.csv", written.rstrip("\r\n") if is_cut else written)
    found = read_table(path, channels=["a", "b"], missing="mask", block_bytes=block_bytes)
    np.testing.assert_array_equal(found.values_TC, table.select("a", "b").to_numpy())


ODD_TIMES = st.one_of(
    st.sampled_from(hours(8) + hours(4, "%Y-%m-%dT%H:%M:%SZ") + ["", "NA", "2020-13-01", "\x00"]),
    st.integers(-(10**19), 10**20).map(str),
    st.text(max_size=8),
)
ODD_VALUES = st.one_of(
    st.floats(width=64).map(str),
    st.sampled_from(["", "NaN", "inf", "-", "1e400", '"', "é", "1;2", "True", "0x10"]),
    st.text(max_size=6),
)


@settings(max_examples=60, **HYPOTHESIS)
@given(
    header=st.sampled_from(["time,a", "time,a,b", "date,a", "a,b", "time", ""])
    | st.text(max_size=9),
    body=st.lists(st.lists(ODD_TIMES | ODD_VALUES, min_size=0, max_size=4), max_size=8),
    clean=st.integers(0, 12),
    missing=st.sampled_from(["error", "interpolate", "mask"]),
    tail=st.sampled_from([b"", b"\n", b'"', b"\xff\xfe", b"\r\n\r\n", b"\x00"]),
    block_bytes=st.sampled_from([30, 2**20]),
)
def test_whatever_the_file_nothing_but_a_data_error_comes_out(
    tmp_path, header, body, clean, missing, tail, block_bytes
):
    lines = [header, *(f"{t},{h}" for h, t in enumerate(hours(clean)))]
    lines += [",".join(row) for row in body]
    path = write(tmp_path / "any.csv", "\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    with contextlib.suppress(DataError):
        series = load_csv(path=path, missing=missing, block_bytes=block_bytes)
        assert not np.isinf(series.values_TC).any()
        assert missing != "error" or np.isfinite(series.values_TC).all()


# The same examples each time: polars once aborted the process on a random one (1 in 20,000 or so),
# which no caller can catch.
@settings(max_examples=25, derandomize=True, **HYPOTHESIS)
@given(seed=st.integers(0, 2**31), where=st.sampled_from(["anywhere", "footer"]), cut=st.booleans())
def test_a_damaged_parquet_is_a_data_error_or_a_series(tmp_path, capfd, seed, where, cut):
    whole = io.BytesIO()
    wide(200).write_parquet(whole)
    damaged = bytearray(whole.getvalue())
    rng = np.random.default_rng(seed)
    first = 0 if where == "anywhere" else max(0, len(damaged) - 600)
    for position in rng.integers(first, len(damaged), 4):
        damaged[position] = rng.integers(256)
    path = write(
        tmp_path / "x.parquet", damaged[: rng.integers(1, len(damaged))] if cut else damaged
    )
    with contextlib.suppress(DataError):
        assert load_csv(path=path, missing="mask").values_TC.dtype == np.float32
    capfd.readouterr()  # polars announces its panics on stderr


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.csv", text(hours(20)))
    parse_times = tables.parse_times

    def grow(pieces, **keys):
        times = parse_times(pieces, **keys)
        write(Path(path), text(hours(21)))
        return times

    monkeypatch.setattr(tables, "parse_times", grow)
    refused(path, "20 rows")
