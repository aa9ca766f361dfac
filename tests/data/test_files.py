# ruff: noqa: E501 - one line is one file
"""Files as people have them: each is read as it is meant, or one message says what to do.

One line is one file. What is expected comes from the standard library and numpy alone.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import zipfile
import zoneinfo
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from t5ts.data.sanity import check_sanity
from t5ts.data.sources import load_csv
from t5ts.data.windows import build_windows
from t5ts.errors import DataError

N = 40
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
T0 = dt.datetime(2013, 1, 1, 6)
UNIX = int(T0.replace(tzinfo=dt.UTC).timestamp())
VALUES = np.random.default_rng(0).normal(size=N).round(3)


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


def text(times, values=VALUES, header="time,a", mark=",") -> str:
    return (
        "\n".join([header, *(f"{t}{mark}{v}" for t, v in zip(times, values, strict=True))]) + "\n"
    )


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


# name: (times as written, first time, step in s or its words, keys)
TIMES = {
    "YYYYMMDDHH": (form("%Y%m%d%H"), T0, 3600, {}),
    "YYYYMMDDHHMM": (form("%Y%m%d%H%M"), T0, 3600, {}),
    "14 digits": (form("%Y%m%d%H%M%S"), T0, 3600, {}),
    "17 digits": ([t + "000" for t in form("%Y%m%d%H%M%S")], T0, 3600, {}),
    "YYYYMMDD": (form("%Y%m%d", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "YYYYMM": (form("%Y%m", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "YYYY": ([str(1980 + i) for i in range(N)], dt.datetime(1980, 1, 1), "12 months", {}),
    "Excel days": ([int(excel(t)) for t in every(DAY)], dt.datetime(2013, 1, 1), 86_400, {}),
    "Excel hours": ([f"{excel(t):.9f}" for t in every()], T0, 3600, {}),
    "epoch s": ([UNIX + 60 * i for i in range(N)], T0, 60, {}),
    "epoch ms": ([(UNIX + 60 * i) * 10**3 for i in range(N)], T0, 60, {}),
    "epoch us": ([(UNIX + 60 * i) * 10**6 for i in range(N)], T0, 60, {}),
    "epoch ns": ([(UNIX + 60 * i) * 10**9 for i in range(N)], T0, 60, {}),
    "epoch s with a point": ([f"{UNIX + 60 * i}.0" for i in range(N)], T0, 60, {}),
    "epoch s, halves": ([UNIX + i / 2 for i in range(N)], T0, 0.5, {}),
    "epoch s of 2030": ([1_900_000_000 + 60 * i for i in range(N)], dt.datetime(2030, 3, 17, 17, 46, 40), 60, {}),
    "epoch ms of 1976": ([(2**27 + 5 * 10**7 + 61 * i) * 10**3 for i in range(N)], dt.datetime(1970, 1, 1) + dt.timedelta(seconds=2**27 + 5 * 10**7), 61, {}),
    "elapsed s, said": (list(range(N)), dt.datetime(1970, 1, 1), 1, {"time_format": "s"}),
    "elapsed ms, said": (list(range(0, 10 * N, 10)), dt.datetime(1970, 1, 1), 0.01, {"time_format": "ms"}),
    "Excel, said": (list(range(100, 100 + N)), dt.datetime(1900, 4, 9), 86_400, {"time_format": "excel"}),
    "YYMMDD, said": (form("%y%m%d", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {"time_format": "%y%m%d"}),
    "day of the year, said": (form("%Y%j", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {"time_format": "%Y%j"}),
    "months, ISO": (form("%Y-%m", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "months, slash": (form("%m/%Y", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "months, name": (form("%b %Y", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "months, name and dash": (form("%b-%Y", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "month starts": (form("%Y-%m-%d", months()), dt.datetime(2013, 1, 1), "1 month", {}),
    "month ends": (form("%Y-%m-%d", month_ends()), dt.datetime(2013, 1, 31), "1 month", {}),
    "mid-months": (form("%Y-%m-%d", months(day=15)), dt.datetime(2013, 1, 15), "1 month", {}),
    "business month ends": ([str(np.busday_offset(t.date(), 0, "backward")) for t in month_ends()], dt.datetime(2013, 1, 31), "1 month", {}),
    "months at noon": (form("%Y-%m-%d 12:00", months()), dt.datetime(2013, 1, 1, 12), "1 month", {}),
    "quarters": (form("%Y-%m-%d", months(3)), dt.datetime(2013, 1, 1), "3 months", {}),
    "quarter ends": (form("%Y-%m-%d", month_ends(3)), dt.datetime(2013, 1, 31), "3 months", {}),
    "2013Q1": ([f"{2013 + i // 4}Q{i % 4 + 1}" for i in range(N)], dt.datetime(2013, 1, 1), "3 months", {}),
    "2013-Q1": ([f"{2013 + i // 4}-Q{i % 4 + 1}" for i in range(N)], dt.datetime(2013, 1, 1), "3 months", {}),
    "Q1 2013": ([f"Q{i % 4 + 1} {2013 + i // 4}" for i in range(N)], dt.datetime(2013, 1, 1), "3 months", {}),
    "year starts": ([f"{1950 + i}-01-01" for i in range(N)], dt.datetime(1950, 1, 1), "12 months", {}),
    "year ends": ([f"{1950 + i}-12-31" for i in range(N)], dt.datetime(1950, 12, 31), "12 months", {}),
    "business days": (form("%Y-%m-%d", business_days()), dt.datetime(2013, 1, 1), "1 business day", {}),
    "business days, 16:00": (form("%Y-%m-%d 16:00", business_days()), dt.datetime(2013, 1, 1, 16), "1 business day", {}),
    "weeks": (form("%Y-%m-%d", every(7 * DAY)), dt.datetime(2013, 1, 1), 7 * 86_400, {}),
    "ISO weeks": ([t.strftime("%G-W%V") for t in every(7 * DAY)], dt.datetime(2012, 12, 31), 7 * 86_400, {}),
    "MM/DD/YYYY": (form("%m/%d/%Y %H:%M", every(start=MID)), MID, 3600, {}),
    "DD/MM/YYYY": (form("%d/%m/%Y %H:%M", every(start=MID)), MID, 3600, {}),
    "M/D/YYYY": (form("%-m/%-d/%Y %-H:%M", every(start=MID)), MID, 3600, {}),
    "D/M/YYYY with the day later": (form("%-d/%-m/%Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "MM-DD-YYYY": (form("%m-%d-%Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "DD.MM.YYYY": (form("%d.%m.%Y %H:%M"), T0, 3600, {}),
    "DD.MM.YYYY alone": (form("%d.%m.%Y", EARLY), EARLY[0], 86_400, {}),
    "D.M.YYYY": (form("%-d.%-m.%Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "01-Jan-2013": (form("%d-%b-%Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "1 January 2013": (form("%-d %B %Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "January 1 2013": (form("%B %-d %Y", every(DAY)), dt.datetime(2013, 1, 1), 86_400, {}),
    "ambiguous, said American": (form("%m/%d/%Y", EARLY), EARLY[0], 86_400, {"time_format": "%m/%d/%Y"}),
    "ambiguous, said European": (form("%d/%m/%Y", EARLY), EARLY[0], 86_400, {"time_format": "%d/%m/%Y"}),
    "two-digit year, said": (form("%m/%d/%y", EARLY), EARLY[0], 86_400, {"time_format": "%m/%d/%y"}),
    "hour alone, said": (form("%Y/%m/%d-%H"), T0, 3600, {"time_format": "%Y/%m/%d-%H"}),
    "fractions, said": (form("%d.%m.%y %H:%M:%S.250"), T0 + dt.timedelta(milliseconds=250), 3600, {"time_format": "%d.%m.%y %H:%M:%S.%f"}),
    "offset, said": ([t + " +0200" for t in form("%y-%m-%d %H:%M")], T0 - 2 * HOUR, 3600, {"time_format": "%y-%m-%d %H:%M %z"}),
    "AM and PM": (form("%m/%d/%Y %I:%M:%S %p", every(start=MID)), MID, 3600, {}),
    "am and pm without a blank": ([t.lower() for t in form("%Y-%m-%d %I:%M%p")], T0, 3600, {}),
    "a.m. and p.m.": ([t.replace("AM", "a.m.").replace("PM", "p.m.") for t in form("%Y-%m-%d %I:%M %p")], T0, 3600, {}),
    "hour alone": (form("%Y-%m-%d %H"), T0, 3600, {}),
    "ISO with T": (form("%Y-%m-%dT%H:%M:%S"), T0, 3600, {}),
    "Z": (form("%Y-%m-%dT%H:%M:%SZ"), T0, 3600, {}),
    "UTC": (form("%Y-%m-%d %H:%M:%S UTC"), T0, 3600, {}),
    "GMT": (form("%Y-%m-%d %H:%M GMT"), T0, 3600, {}),
    "EST": (form("%Y-%m-%d %H:%M EST"), T0 + 5 * HOUR, 3600, {}),
    "CET": (form("%Y-%m-%d %H:%M CET"), T0 - HOUR, 3600, {}),
    "GMT+0100": (form("%d.%m.%Y %H:%M:%S.000 GMT+0100"), T0 - HOUR, 3600, {}),
    "Postgres +00": (form("%Y-%m-%d %H:%M:%S+00"), T0, 3600, {}),
    "offset": (form("%Y-%m-%d %H:%M:%S-05:30"), T0 + 5.5 * HOUR, 3600, {}),
    "Java's zones": (form("%Y-%m-%dT%H:%M:%S+01:00[Europe/Paris]"), T0 - HOUR, 3600, {}),
    "a place": (form("%Y-%m-%d %H:%M Europe/Paris"), T0 - HOUR, 3600, {}),
    "offsets that change": (berlin("%Y-%m-%d %H:%M:%S%z"), BERLIN[0], 3600, {}),
    "zone names that change": (berlin("%Y-%m-%d %H:%M %Z"), BERLIN[0], 3600, {}),
    "local midnights": ([t.replace(tzinfo=BERLIN_ZONE).isoformat() for t in every(DAY, dt.datetime(2020, 10, 1))], dt.datetime(2020, 10, 1), 86_400, {}),
    "local month starts": ([t.replace(tzinfo=BERLIN_ZONE).isoformat() for t in months()], dt.datetime(2013, 1, 1), "1 month", {}),
    "30 Hz in ms": ([(T0 + dt.timedelta(seconds=i / 30)).isoformat(timespec="milliseconds") for i in range(N)], T0, 1 / 30, {}),
    "60 Hz in us": ([(T0 + dt.timedelta(seconds=i / 60)).isoformat(timespec="microseconds") for i in range(N)], T0, 1 / 60, {}),
    "30 Hz epochs": ([round((UNIX + i / 30) * 1000) for i in range(N)], T0, 1 / 30, {}),
    "29.97 Hz in ms": ([(T0 + dt.timedelta(seconds=i / 29.97)).isoformat(timespec="milliseconds") for i in range(N)], T0, 1 / 29.97, {}),
    "300 Hz in ms": ([(T0 + dt.timedelta(seconds=i / 300)).isoformat(timespec="milliseconds") for i in range(N)], T0, 1 / 300, {}),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", TIMES)
def test_times_are_read_as_they_are_meant(tmp_path, name, suffix):
    times, start, step, keys = TIMES[name]
    values = VALUES[: len(times)]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        write(path, text(times, values))
    else:
        pl.DataFrame({"time": times, "a": values}).write_parquet(path)
    series = load_csv(path=str(path), splits=[0.5, 0.25, 0.25], season=1, **keys)
    assert series.start == start.isoformat()
    if isinstance(step, str):
        assert str(series.step) == step
    else:  # 40 stamps in ms cannot tell 29.97 Hz from 30
        assert series.step_s == pytest.approx(step, rel=2e-3 if "29.97" in name else 1e-9)
    np.testing.assert_allclose(series.values_TC[:, 0], values, rtol=1e-6)
    assert not np.isnan(series.values_TC).any()


REFUSED_TIMES = {
    "ambiguous days": (form("%m/%d/%Y", EARLY), ["'01/01/2013'", "%m/%d/%Y", "%d/%m/%Y", "data.time_format"]),
    "ambiguous hours": (form("%m/%d/%Y %H:%M"), ["two ways", "data.time_format"]),
    "ambiguous dashes": (form("%m-%d-%Y", EARLY), ["two ways", "data.time_format"]),
    "two-digit years": (form("%m/%d/%y", every(DAY)), ["row 1 ", "'01/01/13'", "data.time_format"]),
    "dotted two-digit years": (form("%d.%m.%y", every(DAY)), ["row 1 ", "data.time_format"]),
    "YYMMDD": (form("%y%m%d", every(DAY)), ["plausible", "data.time_format"]),
    "DDMMYYYY": (form("%d%m%Y", every(DAY)), ["plausible", "data.time_format"]),
    "row numbers": (list(range(N)), ["0 to 39", "plausible", "data.time_format"]),
    "seconds elapsed": ([i / 4 for i in range(N)], ["plausible", "data.time_format"]),
    "MATLAB's days": (list(range(736_330, 736_330 + N)), ["plausible", "data.time_format"]),
    "Julian days": ([2_458_849.5 + i for i in range(N)], ["plausible", "data.time_format"]),
    "epochs of 2200": ([7_258_118_400 + i for i in range(N)], ["plausible", "2100"]),
    "negative epochs": ([-(10**9) + i for i in range(N)], ["plausible"]),
    "hours up to 24": ([f"2013010{1 + i // 24}{i % 24 + 1:02}" for i in range(N)], ["row 24 ", "2013010124", "data.time_format"]),
    "years of decimals": ([f"{2013 + i / 12:.4f}" for i in range(N)], ["plausible"]),
    "CST": (form("%Y-%m-%d %H:%M CST"), ["'CST'", "UTC offset"]),
    "no such place": (form("%Y-%m-%d %H:%M Europe/Atlantis"), ["Europe/Atlantis"]),
    "a local hour that came twice": (form("%Y-%m-%d %H:%M Europe/Berlin", every(start=dt.datetime(2020, 10, 24, 12))), ["row 15", "02:00"]),
    "some with an offset": ([*form("%Y-%m-%d %H:%M:%SZ")[:20], *form("%Y-%m-%d %H:%M:%S")[20:]], ["mixed", "row 21"]),
    "some without": ([*form("%Y-%m-%d %H:%M:%S")[:20], *form("%Y-%m-%d %H:%M:%SZ")[20:]], ["mixed", "row 21"]),
    "another order later": ([*form("%m/%d/%Y", every(DAY, num=20)), *form("%d/%m/%Y", every(DAY, num=20, start=dt.datetime(2013, 1, 21)))], ["row 21 ", "'21/01/2013'"]),
    "text after numbers": ([*(UNIX + i for i in range(9)), "soon"], ["row 10 ", "'soon'"]),
    "a month missing": (form("%Y-%m", [*months()[:9], *months()[10:]]), ["row 10", "1 month", "data.missing"]),
    "a holiday": (form("%Y-%m-%d", [*business_days()[:9], *business_days()[10:]]), ["row 10", "1 business day", "data.missing"]),
    "28 days off": (form("%Y-%m-%d", [*every(28 * DAY)[:5], every(28 * DAY)[5] + 3 * DAY, *every(28 * DAY)[6:]]), ["row 6", "28 days", "31 days"]),
    "wrong format given": (form("%Y-%m-%d %H:%M"), ["row 1 ", "'%d/%m/%Y'"], {"time_format": "%d/%m/%Y"}),
    "no format": (form("%Y-%m-%d %H:%M"), ["data.time_format", "ms"], {"time_format": "hours"}),
    "bad format": (form("%Y-%m-%d %H:%M"), ["data.time_format"], {"time_format": "%Q%f"}),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", REFUSED_TIMES)
def test_times_that_cannot_be_trusted_are_refused(tmp_path, name, suffix):
    times, words, *keys = REFUSED_TIMES[name]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        write(path, text(times, VALUES[: len(times)]))
    elif len({type(t) for t in times}) > 1:
        return
    else:
        pl.DataFrame({"time": times, "a": VALUES[: len(times)]}).write_parquet(path)
    refused(path, *words, **(keys[0] if keys else {}))


def refused(path, *words, **keys) -> None:
    with pytest.raises(DataError) as error:
        load_csv(path=str(path), **keys)
    message = str(error.value)
    assert str(path) in message or "data.time_format=" in message
    assert "\n" not in message
    assert "e+0" not in message.replace("1e+0", "")
    for word in words:
        assert word in message


ISO = form("%Y-%m-%d %H:%M:%S")
COMMA = [f"{v:.3f}".replace(".", ",") for v in VALUES]
PLAIN = text(ISO)
GAPPY = [f"{v}" if i not in (5, 20) else None for i, v in enumerate(VALUES)]


def gaps(spelling: str) -> str:
    return text(ISO, [v if v is not None else spelling for v in GAPPY])


TABLES = {
    "semicolons": (text(ISO, header="time;a", mark=";"), {}),
    "semicolons, decimal commas": (text(ISO, COMMA, "time;a", ";"), {}),
    "semicolons, commas, quotes": (text([f'"{t}"' for t in ISO], [f'"{v}"' for v in COMMA], '"time";"a"', ";"), {}),
    "commas in quotes, said": (text(ISO, [f'"{v}"' for v in COMMA]), {"decimal": ","}),
    "tabs": (text(ISO, header="time\ta", mark="\t"), {}),
    "tabs, decimal commas": (text(ISO, COMMA, "time\ta", "\t"), {}),
    "bars": (text(ISO, header="time|a", mark="|"), {}),
    "carets, said": (text(ISO, header="time^a", mark="^"), {"separator": "^"}),
    "tab, said": (text(ISO, header="time\ta", mark="\t"), {"separator": "tab"}),
    "semicolons said in vain": (PLAIN, {"separator": ","}),
    "a comma in a name": (text(ISO, COMMA, "time;a", ";").replace("time;a", "time;a, °C"), {}),
    "blank line in the middle": (PLAIN.replace("\n2013-01-01 12", "\n\n2013-01-01 12"), {}),
    "blank lines at the ends": ("\n\n" + PLAIN + "\n\n", {}),
    "blank lines, CRLF": (PLAIN.replace("\n", "\r\n") + "\r\n\r\n", {}),
    "lines of separators": (PLAIN.replace("\n2013-01-01 12", "\n,\n2013-01-01 12") + ",\n", {}),
    "blanks around": (text([f" {t} " for t in ISO], [f" {v} " for v in VALUES]), {}),
    "BOM": (b"\xef\xbb\xbf" + PLAIN.encode(), {}),
    "UTF-16 with BOM": (PLAIN.encode("utf-16"), {}),
    "UTF-16 big-endian with BOM": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), {}),
    "UTF-16 without BOM": (PLAIN.encode("utf-16-le"), {}),
    "UTF-16, tabs, decimal commas": (text(ISO, COMMA, "time\ta", "\t").encode("utf-16"), {}),
    "Latin-1": (PLAIN.replace("a\n", "a in °C\n").encode("latin-1"), {}),
    "Latin-1, said": (PLAIN.replace("a\n", "a in °C\n").encode("latin-1"), {"encoding": "latin-1"}),
    "a trailing comma in every line": (PLAIN.replace("\n", ",\n"), {}),
    "two trailing commas in every line": (PLAIN.replace("\n", ",,\n"), {}),
    "Date and Time": ("Date,Time,a\n" + text([t.replace(" ", ",") for t in ISO]).partition("\n")[2], {}),
    "MetaTrader": ("Date,Time,a\n" + text(form("%Y.%m.%d,%H:%M")).partition("\n")[2], {}),
    "date+hour, said": ("d,h,a\n" + text(form("%Y-%m-%d,%H")).partition("\n")[2], {"time": "d+h"}),
    "year to hour, said": ("y,m,d,h,a\n" + text(form("%Y,%-m,%-d,%-H")).partition("\n")[2], {"time": "y+m+d+h", "time_format": "%Y %m %d %H"}),
    "pandas' index of dates": (PLAIN.replace("time,", ","), {}),
    "Unnamed: 0": ("Unnamed: 0,time,a\n" + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split("\n")[1:-1])), {}),
    "row numbers without a name": (",time,a\n" + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split("\n")[1:-1])), {}),
    "an epoch beside the date": ("date,timestamp,a\n" + "".join(f"{t},{UNIX + 3600 * i},{v}\n" for i, (t, v) in enumerate(zip(ISO, VALUES, strict=True))), {}),
    "unix beside the date": ("unix,date,a\n" + "".join(f"{UNIX + 3600 * i},{t},{v}\n" for i, (t, v) in enumerate(zip(ISO, VALUES, strict=True))), {}),
    "exponents": (text(ISO, [f"{v:.6E}" for v in VALUES]), {}),
    "plus signs": (text(ISO, [f"{v:+}" for v in VALUES]), {}),
    "upper-case name": (PLAIN.replace("time", "TIMESTAMP"), {}),
    "another name, said": (PLAIN.replace("time", "when"), {"time": "when"}),
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
         "--", '""', "#VALUE!", " ", " NA "]  # fmt: skip


@pytest.mark.parametrize("spelling", NULLS)
def test_spellings_of_a_missing_value(tmp_path, spelling):
    path = write(tmp_path / "x.csv", gaps(spelling))
    refused(path, "row 6 ", "'a'", "missing")
    series = load_csv(path=path, missing="mask")
    assert np.flatnonzero(np.isnan(series.values_TC)).tolist() == [5, 20]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("null", [-9999, -9999.0, "-9999"])
def test_other_spellings_are_named(tmp_path, null, suffix):
    values = [-9999.0 if v is None else float(v) for v in GAPPY]
    pl_table = pl.DataFrame({"time": ISO, "a": values})
    path = tmp_path / f"x.{suffix}"
    pl_table.write_csv(path) if suffix == "csv" else pl_table.write_parquet(path)
    series = load_csv(path=str(path), missing="mask", nulls=[null])
    assert np.flatnonzero(np.isnan(series.values_TC)).tolist() == [5, 20]


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("[Content_Types].xml" if name == "xlsx" else "x.csv", PLAIN)
        archive.writestr("xl/workbook.xml" if name == "xlsx" else "y.csv", PLAIN)
    return file.getvalue()


LONG = "".join(f"{t},{i},{v}\n" for i in ("a", "b") for t, v in zip(ISO, VALUES, strict=True))
REFUSED_TABLES = {
    "decimal or thousands": (text(ISO, ["1,234"] * N, "time;a", ";"), ["'1,234'", "data.decimal"], {}),
    "German thousands": (text(ISO, ["1.234,5"] * N, "time;a", ";"), ["row 1 ", "'1.234,5'", "data.decimal"], {}),
    "thousands in quotes": (text(ISO, ['"1,234.5"'] * N), ["row 1 ", "'1,234.5'", "thousands"], {}),
    "decimal comma between commas": (text(ISO, COMMA), ["row 1 ", "3 fields", "data.separator"], {}),
    "points among decimal commas": (text(ISO, [*COMMA[:-1], "1.500"], "time;a", ";"), ["row 40 ", "'1.500'", "data.decimal"], {}),
    "commas after many points": (text(ISO, [*VALUES[:-1], "1,5"], "time;a", ";"), ["data.decimal"], {"decimal": "."}),
    "a percent sign": (text(ISO, [*VALUES[:-1], "5%"]), ["row 40 ", "'5%'"], {}),
    "true and false": (text(ISO, ["True"] * N), ["row 1 ", "'True'"], {}),
    "a ragged row": (PLAIN + "2013-01-02 22:00:00,1,2\n", ["row 41 ", "3 fields", "2"], {}),
    "a ragged row above": (PLAIN.replace(",a\n", ",a\n2013-01-01 05:00:00,1,2\n"), ["row 1 ", "3 fields"], {}),
    "a ragged row, channels said": ("time,a,b\n" + "".join(f"{line},1\n" for line in PLAIN.split("\n")[1:-1]) + "2013-01-02 22:00:00,1,2,3\n", ["row 41 ", "4 fields"], {"channels": ["a"]}),
    "a trailing comma in the rows": (PLAIN.replace("\n", ",\n").replace("a,", "a"), ["row 1 ", "3 fields"], {}),
    "a short row": (PLAIN + "2013-01-02 22:00:00\n", ["row 41 ", "'a'", "missing"], {}),
    "1e39": (text(ISO, [*VALUES[:-1], "1e39"]), ["row 40 ", "1e+39", "3.4e+38"], {}),
    "1e39 under mask": (text(ISO, [*VALUES[:-1], "1e39"]), ["row 40 ", "1e+39"], {"missing": "mask"}),
    "all 1e39": (text(ISO, ["1e39"] * N), ["row 1 ", "1e+39"], {}),
    "infinite": (text(ISO, [*VALUES[:-1], "inf"]), ["row 40 ", "infinite"], {}),
    "zip": (zipped("zip"), ["zip", "Unpack"], {}),
    "xlsx": (zipped("xlsx"), ["Excel", "CSV"], {}),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, ["Excel", "CSV"], {}),
    "json": (json.dumps({"time": ISO, "a": list(VALUES)}), ["JSON"], {}),
    "json records": (json.dumps([{"time": t} for t in ISO], indent=1), ["JSON"], {}),
    "json lines": ("\n".join(json.dumps({"time": t}) for t in ISO), ["JSON"], {}),
    "a web page": ("<!DOCTYPE html><html>", ["web page"], {}),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, ["HDF5"], {}),
    "pickle": (b"\x80\x04\x95" + b"\0" * 99, ["pickle"], {}),
    "no header": (PLAIN.partition("\n")[2], ["no time column", "first line"], {}),
    "one column": (text(ISO, header="time a", mark=" "), ["data.separator"], {}),
    "Excel's sep=": ("sep=;\n" + text(ISO, header="time;a", mark=";"), ["data.separator", "sep=;"], {}),
    "long, not said": ("time,station,temp\n" + LONG, ["data.id=station", "data.value=temp"], {}),
    "long by numbers, not said": ("time,station_id,temp\n" + LONG.replace(",a,", ",1,").replace(",b,", ",2,"), ["data.id=station_id", "data.value=temp"], {}),
    "long by time, not said": ("time,station,temp\n" + "".join(sorted(LONG.splitlines(keepends=True))), ["data.id=station", "data.value=temp"], {}),
    "a time twice": (PLAIN + PLAIN.splitlines()[-1] + "\n", ["duplicate", "data.id"], {}),
    "an unknown encoding": (PLAIN, ["data.encoding", "utf-16"], {"encoding": "klingon"}),
    "two separators": (PLAIN, ["data.separator"], {"separator": ";;"}),
    "a decimal star": (PLAIN, ["data.decimal"], {"decimal": "*"}),
    "a wrong separator": (PLAIN, ["data.separator"], {"separator": ";"}),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, ["no text", "data.encoding"], {}),
    "zeros": (b"\0" * 500, ["no text"], {}),
    "UTF-16 called UTF-8": (PLAIN.encode("utf-16"), ["no text", "data.encoding"], {"encoding": "utf-8"}),
    "lines of CR alone": (PLAIN.replace("\n", "\r"), ["CR"], {}),
    "an old Feather": (b"FEA1" + b"\0" * 99, ["Feather", "version 2"], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_TABLES)
def test_tables_that_cannot_be_trusted_are_refused(tmp_path, name):
    content, words, keys = REFUSED_TABLES[name]
    path = write(tmp_path / "x.csv", content)
    with pytest.raises(DataError) as error:
        load_csv(path=path, **keys)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    for word in words:
        assert word in message


def test_local_days_of_a_parquet_with_a_zone(tmp_path):
    times = pl.Series("time", every(DAY, dt.datetime(2020, 10, 1))).dt.replace_time_zone(
        "Europe/Berlin"
    )
    pl.DataFrame([times, pl.Series("a", VALUES)]).write_parquet(tmp_path / "x.parquet")
    series = load_csv(path=str(tmp_path / "x.parquet"))
    assert (series.start, series.step_s) == ("2020-10-01T00:00:00", 86_400)


def test_arrow_and_parquet_of_pandas(tmp_path):
    times = pl.Series(every()).alias("__index_level_0__")
    dated = pl.DataFrame([times, pl.Series("a", VALUES)])
    numbered = pl.DataFrame({"time": every(), "a": VALUES, "__index_level_0__": range(N)})
    for name, table in {"dated": dated, "numbered": numbered}.items():
        table.write_parquet(tmp_path / f"{name}.parquet")
        table.write_ipc(tmp_path / f"{name}.feather", compression="lz4")
        table.write_ipc(tmp_path / f"{name}.csv", compression="zstd")  # known by its content
        for suffix in ("parquet", "feather", "csv"):
            series = load_csv(path=str(tmp_path / f"{name}.{suffix}"))
            assert (series.channels, series.start) == (["a"], T0.isoformat())
            np.testing.assert_array_equal(series.values_TC[:, 0], VALUES.astype(np.float32))
    assert any("__index_level_0__" in note for note in series.notes)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "long.csv"])
@pytest.mark.parametrize(
    ("middle", "spread"), [(1.6e9, 3.0), (1e6, 0.03), (-1e6, 0.03), (1e12, 1.0)]
)
def test_large_offsets_keep_their_digits(tmp_path, suffix, middle, spread):
    t = np.arange(600)
    raw = (
        middle
        + spread * np.sin(2 * np.pi * t / 24)
        + spread / 10 * np.random.default_rng(0).normal(size=600)
    )
    table = pl.DataFrame({"time": every(num=600), "a": raw, "b": raw - middle})
    keys = {}
    if suffix == "long.csv":
        table = table.unpivot(["a", "b"], index="time", variable_name="id", value_name="v")
        keys = {"id": "id", "value": "v"}
    path = tmp_path / f"x.{suffix}"
    table.write_parquet(path) if suffix == "parquet" else table.write_csv(path)
    series = load_csv(path=str(path), **keys)
    train = raw[:420]
    splits = build_windows(series, context_len=48, target_len=24)
    assert splits.constant_channels == []
    np.testing.assert_allclose(splits.mean_C[0], train.mean(), rtol=1e-13)
    np.testing.assert_allclose(splits.std_C[0], train.std(), rtol=1e-5)
    mean = math.fsum(train - middle) / 420  # a sum at 1e12 would lose digits itself
    scaled = (raw - middle - mean) / (train - middle).std()
    np.testing.assert_allclose(series.values_TC[:, 0], scaled, atol=2e-6)
    naive = np.mean((scaled[24:] - scaled[:-24]) ** 2)
    got = np.mean((series.values_TC[24:, 0].astype(float) - series.values_TC[:-24, 0]) ** 2)
    assert got == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize(
    ("times", "season"),
    [(months(num=240), 12), (month_ends(num=240), 12), (months(3, num=240), 4),
     (months(12, start=(1800, 1), num=240), 1), (business_days(240), 5),
     (every(DAY, num=240), 7), (every(num=240), 24), (every(7 * DAY, num=240), 52)],
)  # fmt: skip
def test_seasons_of_calendars(tmp_path, times, season):
    wave = np.sin(2 * np.pi * np.arange(240) / max(season, 2))
    if season == 1:
        wave = np.random.default_rng(0).normal(size=240)
    path = write(tmp_path / "x.csv", text(form("%Y-%m-%d %H:%M", times), wave))
    series = load_csv(path=path)
    assert series.season == season
    assert all(
        abs(float(word)) <= 1
        for word in series.season_note.split()
        if "." in word and word.replace(".", "").isdigit()
    )
    assert series.span[1] == times[-1].isoformat()
    dated = load_csv(path=path, splits=[times[100].isoformat(), times[200].isoformat()])
    assert dated.borders == (100, 200, 240)


@pytest.mark.parametrize(
    ("times", "step"),
    [(months(), "1 month"), (business_days(), "1 business day"), (every(), "1 h"),
     ([T0 + dt.timedelta(seconds=round(i / 30, 3)) for i in range(N)], "33.33 ms")],
)  # fmt: skip
def test_skipped_and_unsorted_times_of_calendars_are_gaps(tmp_path, times, step):
    kept = [i for i in range(N) if i not in (7, 8, 20)][::-1]
    lines = text([times[i].isoformat() for i in kept], VALUES[kept])
    series = load_csv(path=write(tmp_path / "x.csv", lines), missing="mask")
    assert str(series.step) == step
    assert np.flatnonzero(np.isnan(series.values_TC)).tolist() == [7, 8, 20]
    np.testing.assert_allclose(series.values_TC[kept, 0], VALUES[kept], rtol=1e-6)


def test_what_was_detected_is_noted(tmp_path):
    content = text(form("%d.%m.%Y %H:%M"), COMMA, "time;a°", ";").encode("cp1252")
    notes = " ".join(load_csv(path=write(tmp_path / "x.csv", content)).notes)
    for word in ("cp1252", "data.encoding", "semicolons", "decimal commas", "%d.%m.%Y %H:%M"):
        assert word in notes
    notes = " ".join(load_csv(path=write(tmp_path / "x.csv", text(form("%Y%m%d%H")))).notes)
    assert "%Y%m%d%H" in notes
    assert T0.isoformat() in notes


def test_a_ramp_is_warned_of(tmp_path):
    counter = np.arange(200) * 60 + 5
    table = pl.DataFrame({"time": every(num=200), "a": np.tile(VALUES, 5), "No": counter})
    table.write_csv(tmp_path / "x.csv")
    series = load_csv(path=str(tmp_path / "x.csv"))
    warnings = check_sanity(series, build_windows(series, context_len=8, target_len=4)).warnings
    assert any("'No'" in warning and "ramp" in warning for warning in warnings)
    assert not any("'a'" in warning and "ramp" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("content", "keys", "named"),
    [
        # whole numbers with short years are no months and years of the 17th century
        (text([f"{t:%y%m%d}" for t in months(start=(2016, 1))]), {}, "160101"),
        (text([f"{t:%y%m}" for t in months(start=(2016, 1))]), {}, "1601"),
        (text([f"{t:%y%m%d}" for t in months(12, start=(1916, 1), num=12)], VALUES[:12]), {}, "160101"),
        # intervals of hours are no UTC offsets
        (text([f"{t:%Y-%m-%d %H:%M}-{t + HOUR:%H:%M}" for t in every()]), {}, "interval"),
        # what data.time_format says cannot be true
        (text(every()), {"time_format": "s"}, "data.time_format=s"),
        (text(every()), {"time_format": "excel"}, "data.time_format=excel"),
        (text([UNIX * 10**9 + i for i in range(N)]), {"time_format": "s"}, "data.time_format=s"),
        (text([UNIX * 10**6 + i for i in range(N)]), {"time_format": "ms"}, "9999"),
        (text([UNIX * 10**6 + i for i in range(N)]), {"time_format": "excel"}, "data.time_format"),
        # thousands with points, beside whole numbers
        (text(every(), [f"{v:,}".replace(",", ".") for v in range(600, 600 + 40 * N, 40)], "time;a", ";"), {}, "data.decimal"),
        # codecs that are no texts' encodings
        *((text(every()), {"encoding": e}, "data.encoding") for e in ("hex", "rot13", "zlib", "bz2", "base64", "uu", "quopri")),
    ],
)  # fmt: skip
def test_what_may_mean_something_else_is_refused(tmp_path, content, keys, named):
    path = write(tmp_path / "x.csv", content)
    for missing in ("error", "interpolate"):
        with pytest.raises(DataError, match=named):
            load_csv(path=path, missing=missing, splits=[0.5, 0.25, 0.25], season=1, **keys)


def test_decimal_times_and_blanks_around_ids(tmp_path):
    times = pl.Series([UNIX + 3600 * i for i in range(N)])
    frame = pl.DataFrame({"time": times, "a": VALUES})
    frame.with_columns(pl.col("time").cast(pl.Decimal(18, 3))).write_parquet(tmp_path / "x.parquet")
    series = load_csv(path=str(tmp_path / "x.parquet"), splits=[0.5, 0.25, 0.25], season=1)
    assert series.start == T0.isoformat()
    rows = [f"{t},{s},{v}" for t, v in zip(every(), VALUES, strict=True) for s in ("p", " q")]
    rows = [row.replace(" q", "q") if i % 4 == 1 else row for i, row in enumerate(rows)]
    path = write(tmp_path / "x.csv", "\n".join(["time,s,v", *rows]))
    assert load_csv(path=path, id="s", value="v", splits=[0.5, 0.25, 0.25], season=1).channels == [
        "p",
        "q",
    ]
