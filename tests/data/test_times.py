# ruff: noqa: E501 - one line is one file
"""Times as people write them: read as they are meant, or refused by row and key.

One line is one file. What is expected comes from the standard library and numpy alone.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

import numpy as np
import polars as pl
import pytest

from t5ts.data.sources import load_csv
from t5ts.data.times import iso, parse_times
from tests.data.table_files import (
    DAY,
    DAY1,
    HOUR,
    T0,
    UNIX,
    VALUES,
    N,
    business_days,
    every,
    form,
    month_ends,
    months,
    refused,
    text,
    write,
)

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
    "Julian days, said": ([int(excel(t)) + 15_018 for t in every(DAY)], DAY1, 86_400, {"time_format": "mjd"}),
    "Julian hours, said": ([f"{excel(t) + 15_018:.9f}" for t in every()], T0, 3600, {"time_format": "mjd"}),
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


@pytest.mark.parametrize("name", REFUSED_TIMES)
def test_times_that_cannot_be_trusted_are_refused(tmp_path, name):
    times, named, *keys = REFUSED_TIMES[name]
    keys = keys[0] if keys else {}
    refused(write(tmp_path / "x.csv", text(times)), *named, **keys)
    if len({type(t) for t in times}) == 1:
        table = pl.DataFrame({"time": times, "a": VALUES[: len(times)]})
        table.write_parquet(tmp_path / "x.parquet")
        refused(tmp_path / "x.parquet", *named, **keys)


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


@pytest.mark.parametrize(("unit", "year"), [(None, 2054), ("mjd", 2013)])
def test_modified_julian_days_look_like_excels_and_the_note_says_so(unit, year):
    times_us, notes = parse_times([pl.Series([56_293, 56_294])], where="x", time_format=unit)
    assert iso(times_us[0]).startswith(str(year))
    assert str(year) in notes[0]
    assert "mjd" in notes[0]
