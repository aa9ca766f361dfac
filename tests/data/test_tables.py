# ruff: noqa: E501 - one line is one file
"""Tables as people have them: each is read as it is meant, or one DataError names row and key.

One line is one file. What is expected comes from the standard library and numpy alone.
"""

from __future__ import annotations

import bz2
import contextlib
import datetime as dt
import gzip
import lzma
import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5ts.data.sources import load_csv
from t5ts.errors import DataError
from tests.data.table_files import (
    DAY,
    T0,
    UNIX,
    VALUES,
    N,
    as_csv,
    every,
    form,
    hours,
    months,
    refused,
    text,
    wide,
    write,
)

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
    "Unnamed: 0.1": ("Unnamed: 0.1," + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split("\n")[:-1]))[2:], {}),
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
    """The result does not depend on the block size (one row per block in tables of N rows)."""
    path = write(tmp_path / "x.csv", content)
    refused(path, *named, **keys)
    refused(path, *named, **keys, block_bytes=max(20, len(content) // 50))


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


def test_what_was_detected_is_noted(tmp_path):
    content = text(form("%d.%m.%Y %H:%M"), COMMA, "time;a°", ";").encode("cp1252")
    notes = " ".join(load_csv(path=write(tmp_path / "x.csv", content)).notes)
    told = ["cp1252", "data.encoding", "data.separator", "data.decimal", "%d.%m.%Y %H:%M"]
    told.append(T0.isoformat())
    assert [word for word in told if word not in notes] == []


HYPOTHESIS = {"suppress_health_check": list(HealthCheck)}
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
