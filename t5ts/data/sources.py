"""The data sources: each loader returns a `Series` that states what it is and how it was read.

polars is imported by the loaders that read a file, not by --help.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.data import disguise, processes
from t5ts.data.fetch import ETT_FILES, KNOWN_SHA256, check_sha256, fetch_ett
from t5ts.data.sanity import count_gaps
from t5ts.data.seasons import choose_season
from t5ts.data.series import Series, Step, split_borders
from t5ts.data.synthetic import best_forecast_mse, generate
from t5ts.errors import DataError

NYC_FILE = Path(__file__).with_name("nyc_weather.parquet")
NYC_STATIONS = ("EWR", "JFK", "LGA")
# The range of each instrument; anything outside is a typo and treated as missing. The file has
# one such value: wind_speed 1048 mph at EWR on 2013-02-12.
NYC_RANGES = {
    "temp": (-40.0, 130.0),
    "dewp": (-60.0, 100.0),
    "humid": (0.0, 100.0),
    "wind_speed": (0.0, 150.0),
    "pressure": (900.0, 1090.0),
    "visib": (0.0, 100.0),
}
ETT_COLUMNS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
ETT_START = "2016-07-01T00:00:00"
ETT_HOURLY_ROWS = 17_420
ETT_HOURLY_BORDERS = (8640, 11_520, 14_400)


def load_nyc_weather(
    *, stations: Sequence[str] = NYC_STATIONS, channels: Sequence[str] | None = None
) -> Series:
    """Hourly NOAA weather at three New York airports, 2013; shipped inside the package.

    Hours absent from the source and values outside the instrument's physical range are missing,
    as under `missing=interpolate` in `load_csv`. Splits are 70/10/20 % in time order.

    Args:
        stations: Among EWR, JFK, LGA.
        channels: Among temp and dewp (°F), humid (%), wind_speed (mph), pressure (mbar), visib
            (miles); None is all six. A channel of the result is called "JFK.temp".

    Raises:
        DataError: for an unknown station or channel.

    Source: NOAA via the R package nycflights13 (CC0); `scripts/make_nyc_weather.py` made the file.
    """
    from t5ts.data.tables import check_names, read_table

    wanted = list(NYC_RANGES) if channels is None else list(channels)
    check_names(list(stations), NYC_STATIONS, "data.stations")
    check_names(wanted, list(NYC_RANGES), "data.channels")
    names = [f"{station}.{channel}" for station in stations for channel in wanted]
    table = read_table(NYC_FILE, time="time", channels=names, missing="interpolate")
    provenance = json.loads(NYC_FILE.with_suffix(".json").read_text(encoding="utf-8"))
    for name, values_T in zip(names, table.values_TC.T, strict=True):
        low, high = NYC_RANGES[name.split(".")[1]]
        wrong_T = (values_T < low) | (values_T > high)
        if wrong_T.any():
            table.notes.append(
                f"{int(wrong_T.sum())} value of {name} outside {low:g} … {high:g} treated as "
                f"missing ({values_T[wrong_T][0]:g})"
            )
            values_T[wrong_T] = np.nan
    return _series(
        **vars(table),
        name="nyc_weather",
        units=[provenance["units"][name.split(".")[1]] for name in names],
        splits=(0.7, 0.1, 0.2),
        missing="interpolate",
        season=24,
        season_note="season 24: known (a day of hourly rows)",
        source=provenance["source"],
        licence=provenance["licence"],
    )


def load_ett(*, dataset: str, dir: str | None = None, sha256: str | None = None) -> Series:
    """An Electricity Transformer series: six loads and the oil temperature, two years.

    Borders are the standard 12/4/4 months of 30 days (8640/2880/2880 hours, four times that for
    the quarter-hourly files); rows after month 20 are unused.

    Args:
        dataset: etth1, etth2 (hourly), ettm1 or ettm2 (15 minutes).
        dir: Folder with the file (ETTh1.csv, …); None takes it from the cache or downloads it.
        sha256: Checksum of your own copy; None is the published one. Columns, rows and times are
            checked in either case.

    Raises:
        DataError: for a file that is absent or not the published one, and a failed download.

    Source: Zhou et al. 2021 (Informer), https://github.com/zhouhaoyi/ETDataset.
    """
    from t5ts.data.tables import read_table

    if dataset not in ETT_FILES:
        raise DataError(f"Unknown ETT series {dataset!r}; allowed: {', '.join(ETT_FILES)}.")
    file_name = ETT_FILES[dataset]
    path = fetch_ett(dataset, sha256=sha256) if dir is None else Path(dir).expanduser() / file_name
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: data.dir must be a folder with {file_name}. `python -m "
            f"t5ts.download data={dataset}` fetches it into the cache, for data.dir=null."
        )
    digest = check_sha256(
        path,
        sha256 or KNOWN_SHA256.get(dataset),
        remedy="It is not the published file: fetch it again, set data.sha256 if you want "
        "this copy, or read it with data=csv.",
    )
    table = read_table(path, time="date")
    scale = 4 if dataset.startswith("ettm") else 1
    found = (table.channels, len(table.values_TC), table.start, table.step.seconds)
    expected = (ETT_COLUMNS, ETT_HOURLY_ROWS * scale, ETT_START, 3600 / scale)
    if found != expected:
        raise DataError(
            f"{path} is not {file_name}: it has columns, rows, first time and step (s) "
            f"{found}, expected {expected}. Fetch it again, or read it with data=csv."
        )
    # No other notes: a copy with dates in another format is the same data.
    table.notes = ["units of the six loads are not stated by the source"]
    train_end, val_end, test_end = (scale * border for border in ETT_HOURLY_BORDERS)
    return _series(
        **vars(table),
        name=dataset,
        units=[""] * 6 + ["°C"],
        borders=(train_end, val_end, test_end),
        season=24 * scale,
        season_note=f"season {24 * scale}: known (a day)",
        source=f"{file_name} of https://github.com/zhouhaoyi/ETDataset, sha256 {digest}",
        licence="CC BY-ND 4.0",
    )


def load_csv(
    *,
    path: str,
    missing: str = "error",
    splits: Sequence[float | str] = (0.7, 0.1, 0.2),
    season: int | None = None,
    **columns_and_spelling: Any,
) -> Series:
    """A CSV, Parquet or Arrow file of your own, wide or long.

    Args:
        path: The file; the series gets its name without folder and suffix.
        missing: error (the file must be clean), interpolate (in contexts a gap holds the last value
            before it) or mask (stays NaN); see `t5ts.data.grid.regular_grid`. No gap is scored.
        splits: Three ratios that sum to 1, or two ISO dates (start of validation, of test).
        season: Rows in one season; None infers it, see `t5ts.data.seasons.choose_season`.
        columns_and_spelling: The other arguments of `t5ts.data.tables.read_table`.

    Raises:
        DataError: if the file or a key is not as described.
    """
    from t5ts.data.tables import read_table

    table = read_table(path, missing=missing, **columns_and_spelling)
    return _series(
        **vars(table),
        name=Path(path).stem,
        splits=splits,
        missing=missing,
        season=season,
        source=str(Path(path).expanduser().resolve()),
        licence="the user's own",
    )


def load_synthetic(
    *,
    horizon: int | None = 24,
    splits: Sequence[float | str] = (0.7, 0.1, 0.2),
    season: int = 24,
    **process: Any,
) -> Series:
    """A seeded mixture of season, trend, autoregression and random walk; its best loss is known.

    Rows are hours from 2020-01-01.

    Args:
        horizon: H; `best_mse` is the expected squared error per element of the best forecast from
            the whole past, over steps 1 … H, divided by each channel's variance over the train
            rows. None (nothing is forecast) leaves it None.
        splits: As in `load_csv`.
        season: Rows in one season.
        process: The other arguments of `t5ts.data.synthetic.generate`.

    Raises:
        DataError: for an autoregression that is not stationary, and impossible splits.
    """
    values_TC = generate(season=season, **process)
    series = _series(
        values_TC,
        name="synthetic",
        splits=splits,
        start="2020-01-01T00:00:00",
        step=Step(3600.0),
        season=season,
        season_note=f"season {season}: known (it is the sine's)",
        source=f"t5ts.data.synthetic, seed {process.get('seed', 0)}",
    )
    if horizon is not None:
        innovations = {k: v for k, v in process.items() if k in ("ar", "noise_std", "walk_std")}
        mse = best_forecast_mse(**innovations, horizon=horizon)
        variance_C = values_TC[: series.borders[0]].astype(np.float64).var(axis=0)
        series.best_mse = float(np.mean(mse / np.where(variance_C > 0, variance_C, 1.0)))
    return series


def load_text_in_disguise(*, splits: Sequence[float | str], **text: Any) -> Series:
    """English as a series; `text` are the arguments of `t5ts.data.disguise.disguise`.

    Raises:
        DataError: for more rows or channels than available, or impossible splits.
    """
    facts = disguise.provenance()
    return _series(
        disguise.disguise(**text),
        name="text_in_disguise",
        splits=splits,
        season_note="season 1: known (a text has none)",
        source=f"{facts['text']}; {facts['source']}; seed {text['seed']}",
        licence=facts["licence"],
        notes=["a row is one token; its values are a rotated embedding plus noise"],
    )


def load_process(*, kind: str, splits: Sequence[float | str], **draw: Any) -> Series:
    """A draw of a random process; `draw` are the arguments of `t5ts.data.processes.generate`.

    Raises:
        DataError: for impossible splits.
    """
    return _series(
        np.ascontiguousarray(processes.generate(kind, **draw)[:, None]),
        name=kind,
        splits=splits,
        season_note="season 1: known (the process has none)",
        source=f"t5ts.data.processes, {kind}, seed {draw['seed']}",
    )


def _series(
    values_TC: np.ndarray,
    *,
    name: str,
    start: str = "",
    step: Step | None = None,
    channels: list[str] | None = None,
    units: list[str] | None = None,
    splits: Sequence[float | str] = (),
    borders: tuple[int, int, int] | None = None,
    missing: str = "error",
    season: int | None = 1,
    season_note: str = "",
    notes: Sequence[str] = (),
    licence: str = "none needed",
    **facts: Any,
) -> Series:
    """Count gaps, and find borders and season if not given; without a step, rows are seconds.

    `facts` are further fields of the series.
    """
    num_rows, num_channels = values_TC.shape
    step = step or Step(1.0)
    channels = channels or [f"x{channel}" for channel in range(num_channels)]
    borders = borders or split_borders(splits, num_rows=num_rows, start=start, step=step, name=name)
    gap_share, gaps = count_gaps(values_TC, channels, missing=missing, name=name)
    if not season_note:
        season, season_note = choose_season(values_TC[: borders[0]], step=step, season=season)
    return Series(
        name=name,
        values_TC=values_TC,
        channels=channels,
        units=units or [""] * num_channels,
        start=start,
        step_s=step.seconds,
        step_unit=step.unit,
        season=season or 1,
        season_note=season_note,
        borders=borders,
        notes=[*notes, *gaps],
        gap_share=gap_share,
        fills_contexts=missing == "interpolate",
        licence=licence,
        **facts,
    )
