"""The packaged weather and the ETT files: what they hold, state and refuse."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from t5ts.data.fetch import KNOWN_SHA256
from t5ts.data.sources import NYC_FILE, NYC_RANGES, load_ett, load_nyc_weather
from t5ts.errors import DataError
from tests.data.ett_files import write_ett


def test_weather_is_the_file_that_its_provenance_describes():
    provenance = json.loads(NYC_FILE.with_suffix(".json").read_text())
    assert hashlib.sha256(NYC_FILE.read_bytes()).hexdigest() == provenance["parquet_sha256"]
    table = pl.read_parquet(NYC_FILE)
    assert table.height == provenance["rows"] == 8730
    assert sum(table.null_count().row(0)) == provenance["nulls"]
    assert table["time"].diff().drop_nulls().n_unique() == 1
    assert NYC_FILE.stat().st_size < 300_000


def test_weather_keeps_its_gaps_and_counts_them():
    series = load_nyc_weather()
    assert series.values_TC.shape == (8730, 18)
    assert np.isnan(series.values_TC).sum() == 3187
    assert series.fills_contexts
    assert series.channels[0] == "EWR.temp"
    assert dict(zip(series.channels, series.units, strict=True))["JFK.pressure"] == "mbar"
    assert (series.season, series.step_s, series.licence) == (24, 3600, "CC0-1.0")
    assert series.borders == (6111, 6984, 8730)
    assert series.gap_share == pytest.approx(3187 / (8730 * 18))
    assert [n for n in ("EWR.wind_speed", "3187 ") if n not in " ".join(series.notes)] == []
    for name, column in zip(series.channels, series.values_TC.T, strict=True):
        low, high = NYC_RANGES[name.split(".")[1]]
        assert low <= np.nanmin(column) < np.nanmax(column) <= high


def test_weather_channels_are_chosen_and_keep_their_values():
    table = pl.read_parquet(NYC_FILE)
    series = load_nyc_weather(stations=["LGA", "JFK"], channels=["visib", "temp"])
    assert series.channels == ["LGA.visib", "LGA.temp", "JFK.visib", "JFK.temp"]
    raw = table["JFK.temp"].to_numpy()
    known = np.isfinite(raw)
    np.testing.assert_array_equal(series.values_TC[known, 3], raw[known])
    for key, names in (("stations", ["SFO"]), ("stations", []), ("channels", ["snow"])):
        with pytest.raises(DataError, match=rf"data\.{key}"):
            load_nyc_weather(**{key: names})


@pytest.mark.parametrize(
    ("name", "scale"), [("etth1", 1), ("etth2", 1), ("ettm1", 4), ("ettm2", 4)]
)
def test_ett_from_a_folder_has_the_standard_borders(tmp_path, name, scale):
    values = write_ett(tmp_path, name)
    digest = hashlib.sha256(next(tmp_path.iterdir()).read_bytes()).hexdigest()
    series = load_ett(dataset=name, dir=str(tmp_path), sha256=digest if scale == 1 else None)
    np.testing.assert_array_equal(series.values_TC, values)
    assert series.channels == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert series.borders == (8640 * scale, 11_520 * scale, 14_400 * scale)
    assert (series.season, series.step_s) == (24 * scale, 3600 / scale)
    assert series.start == "2016-07-01T00:00:00"
    assert series.licence == "CC BY-ND 4.0"
    assert digest in series.source


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [("etth1", None, f"expected {KNOWN_SHA256['etth1']}.*data=csv"),
     *(("ettm1", damage, r"ETTm1\.csv") for damage in ("rows", "columns", "start", "step")),
     ("etth2", "absent", r"ETTh2\.csv.*data\.dir.*t5ts\.download"),
     ("etth3", "absent", "etth1, etth2, ettm1, ettm2")],
)  # fmt: skip
def test_another_ett_file_or_none_is_refused(tmp_path, name, damage, named):
    if damage != "absent":
        write_ett(tmp_path, name, damage=damage)
    with pytest.raises(DataError, match=named):
        load_ett(dataset=name, dir=str(tmp_path))
