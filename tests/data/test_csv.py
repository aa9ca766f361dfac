"""The user's own files: every layout read exactly, every kind of bad file one clear DataError."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5ts.data import tables
from t5ts.data.sources import load_csv
from t5ts.data.tables import read_table
from t5ts.errors import DataError

START = datetime.datetime(2020, 1, 1)


def frame(num_rows=60, step_s=3600, seed=0) -> pl.DataFrame:
    times = [START + datetime.timedelta(seconds=step_s * row) for row in range(num_rows)]
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num_rows, 2)).astype(np.float32)
    return pl.DataFrame({"time": times, "a": values[:, 0], "b": values[:, 1]})


def as_csv(folder: Path, table: pl.DataFrame, name="x.csv") -> str:
    table.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%d %H:%M:%S")).write_csv(
        folder / name
    )
    return str(folder / name)


def write(folder: Path, text: str, name="x.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def rows_text(times, values=None, header="time,a") -> str:
    values = range(len(times)) if values is None else values
    return "\n".join([header, *(f"{t},{v}" for t, v in zip(times, values, strict=True))]) + "\n"


def hours(num_rows, form="%Y-%m-%d %H:%M:%S"):
    return [(START + datetime.timedelta(hours=h)).strftime(form) for h in range(num_rows)]


def refused(path, *words, **keys) -> str:
    with pytest.raises(DataError) as error:
        load_csv(path=path, **keys)
    message = str(error.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    return message


# --- layouts -------------------------------------------------------------------------------------


def test_csv_and_parquet_give_the_same_series(tmp_path):
    table = frame()
    table.write_parquet(tmp_path / "x.parquet")
    one = load_csv(path=as_csv(tmp_path, table))
    two = load_csv(path=str(tmp_path / "x.parquet"))
    expected = table.select("a", "b").to_numpy()
    for series in (one, two):
        np.testing.assert_array_equal(series.values_TC, expected)
        assert series.values_TC.flags.c_contiguous
        assert series.channels == ["a", "b"]
        assert (series.start, series.step_s) == ("2020-01-01T00:00:00", 3600)
        assert series.span[1] == "2020-01-03T11:00:00"
        assert series.borders == (42, 48, 60)
        assert (series.gap_share, series.notes) == (0, [])
    assert one.sha256 == two.sha256 != ""
    assert one.fingerprint()["sha256"] == one.sha256


def test_channels_are_chosen_in_the_order_given(tmp_path):
    table = frame()
    series = load_csv(path=as_csv(tmp_path, table), channels=["b"])
    np.testing.assert_array_equal(series.values_TC[:, 0], table["b"].to_numpy())
    series = load_csv(path=as_csv(tmp_path, table), channels=["b", "a"])
    assert series.channels == ["b", "a"]
    np.testing.assert_array_equal(series.values_TC, table.select("b", "a").to_numpy())


def test_text_columns_are_no_hindrance_when_channels_are_named(tmp_path):
    table = frame().with_columns(remark=pl.lit("calm"))
    assert load_csv(path=as_csv(tmp_path, table), channels=["a"]).channels == ["a"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("order", ["by id", "by time"])
def test_long_table_equals_the_wide_one(tmp_path, suffix, order):
    wide = frame()
    long = wide.unpivot(index="time", variable_name="station", value_name="temp")
    long = long.sort("station", "time") if order == "by id" else long.sort("time", "station")
    path = str(tmp_path / f"x.{suffix}")
    if suffix == "parquet":
        long.write_parquet(path)
    else:
        as_csv(tmp_path, long)
    keys = {"path": path, "time": "time", "id": "station", "value": "temp"}
    series = load_csv(**keys)
    assert series.channels == ["a", "b"]
    np.testing.assert_array_equal(series.values_TC, wide.select("a", "b").to_numpy())
    chosen = load_csv(**keys, channels=["b"])
    np.testing.assert_array_equal(chosen.values_TC[:, 0], wide["b"].to_numpy())


def test_long_table_with_ragged_ids_has_gaps(tmp_path):
    lines = [f"{t},a,{h}" for h, t in enumerate(hours(20))]
    lines += [f"{t},b,{h}" for h, t in enumerate(hours(20)) if h >= 5]
    path = write(tmp_path, "\n".join(["time,id,v", *lines]))
    keys = {"time": "time", "id": "id", "value": "v"}
    refused(path, "'b'", "5 missing values", **keys)
    series = load_csv(path=path, missing="mask", **keys)
    assert np.isnan(series.values_TC[:5, 1]).all()
    assert np.isfinite(series.values_TC[5:]).all()
    assert series.gap_share == pytest.approx(5 / 40)


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%dT%H:%M:%S.%f",
        "%Y-%m-%d %H:%M",
        "%Y/%m/%d %H:%M",
        "%Y.%m.%d %H:%M",
        "%Y%m%d %H%M%S",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%d %H:%M:%S+00:00",
    ],
)
def test_iso_like_times(tmp_path, form):
    series = load_csv(path=write(tmp_path, rows_text(hours(20, form))))
    assert (series.start, series.step_s) == ("2020-01-01T00:00:00", 3600)


def test_fractions_and_blanks_may_begin_in_any_row(tmp_path):
    times = [*hours(8), *hours(20, "%Y-%m-%d %H:%M:%S.000")[8:], " 2020-01-01 20:00:00 "]
    series = load_csv(path=write(tmp_path, rows_text(times)))
    assert series.span == ("2020-01-01T00:00:00", "2020-01-01T20:00:00")


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_epoch_integers_of_every_unit(tmp_path, unit, suffix):
    epoch = int(START.replace(tzinfo=datetime.UTC).timestamp())
    times = [(epoch + 60 * row) * unit for row in range(20)]
    path = str(tmp_path / f"x.{suffix}")
    table = pl.DataFrame({"time": times, "a": range(20)})
    table.write_parquet(path) if suffix == "parquet" else table.write_csv(path)
    series = load_csv(path=path)
    assert (series.start, series.step_s) == ("2020-01-01T00:00:00", 60)


def test_dates_and_eight_digit_dates_are_days(tmp_path):
    days = [(START + datetime.timedelta(days=d)).date() for d in range(40)]
    for form in ("%Y-%m-%d", "%Y%m%d"):
        path = write(tmp_path, rows_text([day.strftime(form) for day in days]))
        assert load_csv(path=path).step_s == 86_400
    pl.DataFrame({"date": days, "a": range(40)}).write_parquet(tmp_path / "x.parquet")
    assert load_csv(path=str(tmp_path / "x.parquet")).step_s == 86_400


def test_an_offset_is_taken_to_utc(tmp_path):
    path = write(tmp_path, rows_text(hours(20, "%Y-%m-%d %H:%M:%S+02:00")))
    assert load_csv(path=path).start == "2019-12-31T22:00:00"
    table = frame().with_columns(pl.col("time").dt.replace_time_zone("Europe/Paris"))
    table.write_parquet(tmp_path / "x.parquet")
    assert load_csv(path=str(tmp_path / "x.parquet")).start == "2019-12-31T23:00:00"


def test_splits_by_date_and_season_given(tmp_path):
    path = as_csv(tmp_path, frame())
    series = load_csv(path=path, splits=["2020-01-02", "2020-01-03T00:30:00"], season=7)
    assert series.borders == (24, 49, 60)
    assert (series.season, series.season_note) == (7, "season 7: given")


# --- the policy for missing values ---------------------------------------------------------------


def test_gaps_are_kept_counted_and_noted(tmp_path):
    values = ["", *range(1, 10), "NA", "", 12, *range(13, 19), "NaN"]
    path = write(tmp_path, rows_text(hours(20), values))
    refused(path, "row 1 ", "'a'", "missing", "data.missing")
    for missing in ("interpolate", "mask"):
        series = load_csv(path=path, missing=missing)
        assert np.flatnonzero(np.isnan(series.values_TC[:, 0])).tolist() == [0, 10, 11, 19]
        assert series.fills_contexts == (missing == "interpolate")
        assert series.gap_share == pytest.approx(4 / 20)
        assert "4 missing values" in series.notes[0]
        assert "longest gap 2 rows in a" in series.notes[0]


def test_skipped_and_unsorted_times_are_mended_and_noted(tmp_path):
    table = frame()
    holed = table.filter(~pl.int_range(pl.len()).is_between(10, 14)).reverse()
    path = as_csv(tmp_path, holed)
    series = load_csv(path=path, missing="mask")
    expected = table.select("a", "b").to_numpy().copy()
    expected[10:15] = np.nan
    np.testing.assert_array_equal(series.values_TC, expected)
    assert "sorted by time" in series.notes[0]
    assert "5 skipped times" in series.notes[1]
    assert series.gap_share == pytest.approx(5 / 60)


def test_infinities_are_refused_or_missing(tmp_path):
    path = write(tmp_path, rows_text(hours(20), [*range(7), "inf", *range(12)]))
    refused(path, "row 8 ", "'a'", "infinite")
    series = load_csv(path=path, missing="interpolate")
    assert np.flatnonzero(np.isnan(series.values_TC[:, 0])).tolist() == [7]
    assert "1 infinite values of a" in series.notes[0]


# --- bad files -----------------------------------------------------------------------------------


def test_files_that_are_no_files(tmp_path):
    refused(str(tmp_path / "no.csv"), "does not exist", "data.path")
    refused(str(tmp_path), "folder")
    refused(None, "data.path is not set")
    for name in ("x.csv", "x.parquet"):
        refused(write(tmp_path, "", name), "empty")
    refused(write(tmp_path, "not parquet at all", "x.parquet"), "cannot be read as Parquet")
    whole = io.BytesIO()
    frame().write_parquet(whole)
    (tmp_path / "cut.parquet").write_bytes(whole.getvalue()[:-200])
    refused(str(tmp_path / "cut.parquet"), "cannot be read as Parquet")


@pytest.mark.parametrize(
    ("text", "words", "keys"),
    [
        ("time,a\n", ["no rows"], {}),
        ("x,a\n1,2\n", ["no time column", "data.time", "x, a"], {}),
        ("time\n2020-01-01\n", ["data.channels"], {}),
        ("time,a,a\n2020-01-01,1,2\n", ["two columns are called 'a'"], {}),
        (rows_text(hours(5)), ["data.time", "'when'", "time, a"], {"time": "when"}),
        (rows_text(hours(5)), ["data.channels", "'c'", "time, a"], {"channels": ["c"]}),
        (rows_text(hours(5)), ["data.channels"], {"channels": []}),
        (rows_text(hours(5)), ["data.channels"], {"channels": ["a", "a"]}),
        (rows_text(hours(5)), ["data.channels"], {"channels": ["time"]}),
        (rows_text(hours(5)), ["data.missing", "error", "mask"], {"missing": "drop"}),
        (rows_text(hours(5)), ["data.id and data.value"], {"id": "a"}),
        (rows_text(hours(20), ["x", *range(19)]), ["row 1 ", "'a'", "'x'"], {}),
        (rows_text(hours(300), [*range(299), "calm"]), ["row 300", "'a'", "'calm'"], {}),
        (rows_text(hours(20), [*range(12), '"1', *range(7)]), ["quotes", '12:00:00,"1'], {}),
        (rows_text(hours(20)) + '2020-01-01 20:00:00",1\n', ["quotes", '20:00:00",1'], {}),
        (rows_text(hours(20), [""] * 20), ["'a'", "no value"], {}),
        (rows_text(hours(20), [""] * 20), ["'a'", "no value"], {"missing": "interpolate"}),
        (rows_text(hours(20), [""] * 20), ["'a'", "no value"], {"missing": "mask"}),
        (rows_text(["soon", *hours(9)]), ["row 1 ", "'soon'", "ISO 8601"], {}),
        (rows_text([*hours(9), "later"]), ["row 10", "'later'"], {}),
        (rows_text([*hours(9), ""]), ["row 10", "no time"], {}),
        (rows_text([*hours(9), "2020-01-01 09:00:00Z"]), ["mixed time zones"], {}),
        (rows_text([*hours(9, "%Y-%m-%d %H:%MZ"), "2020-13-01 09:00Z"]), ["row 10", "13-01"], {}),
        (
            rows_text([*hours(9, "%Y-%m-%d %H:%M:%SZ"), "2020-01-01 09:00:00"]),
            ["mixed time zones"],
            {},
        ),
        (
            rows_text([*hours(9, "%Y-%m-%d %H:%M:%SZ"), "2020-01-01 09:00:00+01:00"]),
            ["duplicate times", "08:00:00"],
            {},
        ),
        (rows_text(hours(9)[::-1]), ["not sorted", "row 2", "data.missing"], {}),
        (rows_text([*hours(9), hours(9)[-1]]), ["1 duplicate times", "08:00:00"], {}),
        (rows_text([*hours(9), hours(9)[3]]), ["duplicate times"], {"missing": "mask"}),
        (
            rows_text([*hours(9), "2020-01-01 10:00:00"]),
            ["irregular step", "row 10", "2 h", "1 h"],
            {},
        ),
        (
            rows_text([*hours(9), "2020-01-01 08:30:00"]),
            ["off the grid", "Resample"],
            {"missing": "mask"},
        ),
        (
            rows_text([*hours(9), "2999-01-01 00:00:00"]),
            ["looks like a wrong time"],
            {"missing": "mask"},
        ),
        (rows_text(hours(2)), ["2 rows"], {}),
        (rows_text(hours(4)), ["data.splits", "too few"], {}),
        (rows_text(hours(20)), ["sum to 1"], {"splits": [0.7, 0.1, 0.1]}),
        (rows_text(hours(20)), ["sum to 1"], {"splits": [1.2, -0.4, 0.2]}),
        (rows_text(hours(20)), ["data.splits"], {"splits": [0.5, 0.5]}),
        (rows_text(hours(20)), ["ISO date"], {"splits": ["soon", "2020-01-01"]}),
        (
            rows_text(hours(20)),
            ["2020-01-01T19:00:00", "inside"],
            {"splits": ["2020-01-01T05", "2021-01-01"]},
        ),
        (rows_text(hours(20)), ["data.season"], {"season": 0}),
        (rows_text(hours(20)), ["data.season"], {"season": 2.5}),
        (rows_text(hours(20), header=",time"), ["data.channels"], {}),
        (rows_text(hours(20)) + "2020-01-01 20:00:00,1,2,3\n", ["row 21", "4 fields"], {}),
        (rows_text([10**18, 10**18 * 10, 3], header="time,a"), ["1e+19", "plausible"], {}),
    ],
)
def test_bad_tables(tmp_path, text, words, keys):
    refused(write(tmp_path, text), *words, **keys)


def test_bad_parquet_columns(tmp_path):
    path = str(tmp_path / "x.parquet")
    frame().with_columns(remark=pl.lit("calm")).write_parquet(path)
    refused(path, "'remark'", "String", "data.channels")
    frame().with_columns(time=pl.lit(True)).write_parquet(path)
    refused(path, "'time'", "Boolean")
    frame().with_columns(a=pl.lit(None, dtype=pl.Float32)).write_parquet(path)
    refused(path, "'a'", "no value")


def test_bad_long_tables(tmp_path):
    keys = {"time": "time", "id": "id", "value": "v"}

    def long(lines):
        return write(tmp_path, "\n".join(["time,id,v", *lines]))

    good = [f"{t},{i},{h}" for i in "ab" for h, t in enumerate(hours(20))]
    assert load_csv(path=long(good), **keys).channels == ["a", "b"]
    refused(long(good), "'z'", "a, b", **keys, channels=["z"])
    refused(long([*good, f"{hours(20)[-1]},b,3"]), "'b'", "twice", **keys)
    refused(long(good[::-1]), "not sorted", "data.missing", **keys)
    assert load_csv(path=long(good[::-1]), **keys, missing="mask").gap_share == 0
    refused(long([*good, f"{hours(21)[-1]},,3"]), "row 41", "'id'", **keys)
    refused(long([*good, f"{hours(21)[-1]},b,x"]), "row 41", "'x'", **keys)
    refused(long(good), "three columns", time="time", id="id", value="id")
    refused(long(good), "data.channels", "once each", **keys, channels=["a", "a"])


# --- blocks --------------------------------------------------------------------------------------

ODD_TEXTS = ["calm", "", "a,b", 'says "5"', "two\nlines", "\n", '","', "é"]


@st.composite
def csv_files(draw):
    """A clean wide table with a column of texts, and how it is written down."""
    num_rows, seed = draw(st.integers(3, 40)), draw(st.integers(0, 2**31))
    table = frame(num_rows, step_s=60, seed=seed)
    texts = draw(st.lists(st.sampled_from(ODD_TEXTS), min_size=num_rows, max_size=num_rows))
    table = table.insert_column(draw(st.integers(0, 3)), pl.Series("text", texts))
    written = table.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S")).write_csv(
        line_terminator=draw(st.sampled_from(["\n", "\r\n"])),
        quote_style=draw(st.sampled_from(["necessary", "always", "non_numeric"])),
        include_bom=draw(st.booleans()),
    )
    return table, written.rstrip("\r\n") if draw(st.booleans()) else written


BLOCKS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BLOCKS
@given(file=csv_files(), block_bytes=st.integers(20, 500))
def test_blocks_hold_what_polars_finds_in_the_whole_file(tmp_path, file, block_bytes):
    table, text = file
    path = tmp_path / "any.csv"
    path.write_bytes(text.encode())
    whole = pl.read_csv(path, schema_overrides={"a": pl.Float32, "b": pl.Float32})
    found = read_table(path, channels=["a", "b"], block_bytes=block_bytes)
    np.testing.assert_array_equal(found.values_TC, whole.select("a", "b").to_numpy())
    assert found.grid.num_rows == len(table)

    shuffled = table.select("time", "a", "b").sample(fraction=1, shuffle=True, seed=block_bytes)
    path = as_csv(tmp_path, shuffled)
    found = read_table(path, missing="mask", block_bytes=block_bytes)
    np.testing.assert_array_equal(found.values_TC, table.select("a", "b").to_numpy())

    long = table.unpivot(["a", "b"], index="time", variable_name="id", value_name="v")
    path = as_csv(tmp_path, long.sort("time") if block_bytes % 2 else long)
    found = read_table(path, id="id", value="v", block_bytes=block_bytes)
    np.testing.assert_array_equal(found.values_TC, table.select("a", "b").to_numpy())


@BLOCKS
@given(
    num_rows=st.integers(3, 60),
    block_bytes=st.integers(20, 500),
    fault=st.sampled_from(["", "calm", "inf", "1e99", '"', " 1", "1 "]),
    column=st.sampled_from([0, 1, 2]),
    where=st.integers(0, 59),
    long=st.booleans(),
)
def test_a_fault_is_named_alike_whatever_the_blocks(
    tmp_path, num_rows, block_bytes, fault, column, where, long
):
    row = where % num_rows
    cells = [[time, "x", str(h)] for h, time in enumerate(hours(num_rows))]
    cells[row][column] = fault
    path = write(tmp_path, "\n".join(["time,id,v", *(",".join(line) for line in cells)]))
    keys = {"id": "id", "value": "v"} if long else {"channels": ["v"]}

    def outcome(size: int) -> object:
        try:
            return read_table(path, **keys, block_bytes=size).values_TC.tobytes()
        except DataError as error:
            return str(error)

    expected = outcome(2**20)
    assert outcome(block_bytes) == expected
    if column == 2 and fault in ("", "calm", "inf", "1e99"):
        assert f"row {row + 1} of column 'v'" in str(expected)
    if column == 0 and row and fault != '"':
        assert f"row {row + 1} has" in str(expected)


TIMES = st.one_of(
    st.sampled_from(hours(8) + hours(4, "%Y-%m-%dT%H:%M:%SZ") + ["", "NA", "2020-13-01", "\x00"]),
    st.integers(-(10**19), 10**20).map(str),
    st.text(max_size=8),
)
VALUES = st.one_of(
    st.floats(width=64).map(str),
    st.sampled_from(["", "NaN", "inf", "-", "1e400", '"', "é", "1;2", "True", "0x10"]),
    st.text(max_size=6),
)


@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    header=st.sampled_from(["time,a", "time,a,b", "date,a", "a,b", "time", ""])
    | st.text(max_size=9),
    body=st.lists(st.lists(TIMES | VALUES, min_size=0, max_size=4), max_size=8),
    clean=st.integers(0, 12),
    missing=st.sampled_from(["error", "interpolate", "mask"]),
    tail=st.sampled_from([b"", b"\n", b'"', b"\xff\xfe", b"\r\n\r\n", b"\x00"]),
)
def test_whatever_the_file_nothing_but_a_data_error_comes_out(
    tmp_path, header, body, clean, missing, tail
):
    lines = [header, *(f"{t},{h}" for h, t in enumerate(hours(clean)))]
    lines += [",".join(row) for row in body]
    path = tmp_path / "any.csv"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    try:
        series = load_csv(path=str(path), missing=missing)
    except DataError:
        return
    assert series.values_TC.dtype == np.float32
    assert not np.isinf(series.values_TC).any()
    assert missing == "mask" or np.isfinite(series.values_TC).all()
    assert 0 < series.borders[0] < series.borders[1] < series.borders[2]


# The same examples each time: polars once aborted the process on a random one (1 in 20,000 or so),
# which no caller can catch.
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**31), where=st.sampled_from(["anywhere", "footer"]), cut=st.booleans())
def test_a_damaged_parquet_is_a_data_error_or_a_series(tmp_path, capfd, seed, where, cut):
    whole = io.BytesIO()
    frame(200).write_parquet(whole)
    damaged = bytearray(whole.getvalue())
    rng = np.random.default_rng(seed)
    first = 0 if where == "anywhere" else max(0, len(damaged) - 600)
    for position in rng.integers(first, len(damaged), 4):
        damaged[position] = rng.integers(256)
    path = tmp_path / "damaged.parquet"
    path.write_bytes(damaged[: rng.integers(1, len(damaged))] if cut else damaged)
    with contextlib.suppress(DataError):
        assert load_csv(path=str(path), missing="mask").values_TC.dtype == np.float32
    capfd.readouterr()  # polars announces its panics on stderr


def test_spelling_of_the_file_does_not_matter(tmp_path):
    expected = load_csv(path=write(tmp_path, rows_text(hours(20)))).sha256
    plain = rows_text(hours(20))
    for name, text in {
        "bom.csv": "\ufeff" + plain,
        "crlf.csv": plain.replace("\n", "\r\n"),
        "quoted.csv": plain.replace("time,a", '"time","a"'),
        "tabs.tsv": plain.replace(",", "\t"),
        "capital.csv": plain.replace("time", " Time "),
        "packed.csv.gz": plain,
        "packed.csv.z": plain,
    }.items():
        pack = {".gz": gzip.compress, ".z": zlib.compress}.get(Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(text.encode()))
        assert load_csv(path=str(tmp_path / name)).sha256 == expected


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, rows_text(hours(20)))

    def grow(pieces, **keys):
        times = parse_times(pieces, **keys)
        with Path(path).open("a") as file:
            file.write("2020-01-01 20:00:00,1\n")
        return times

    parse_times = tables.parse_times
    monkeypatch.setattr(tables, "parse_times", grow)
    refused(path, "changed while it was read", "20 rows")


def test_a_wrong_number_is_found_in_a_packed_file(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(rows_text(hours(5), "123x5").encode()))
    refused(str(tmp_path / "x.csv.gz"), "row 4 ", "'x'")
