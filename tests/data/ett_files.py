"""Makes files that are ETT files in all but their values (the real ones may not be shipped)."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl

from t5ts.data.fetch import ETT_FILES
from t5ts.data.sources import ETT_COLUMNS, ETT_HOURLY_ROWS


def write_ett(folder: Path, name: str, *, damage: str | None = None) -> np.ndarray:
    """Writes ETTh1.csv, … with random values into `folder` and returns them, (T, 7) float32."""
    scale = 4 if name.startswith("ettm") else 1
    num_rows = ETT_HOURLY_ROWS * scale - (damage == "rows")
    start = datetime.datetime(2016, 7, 2 if damage == "start" else 1)
    step = datetime.timedelta(hours=1) / (scale * (2 if damage == "step" else 1))
    times = pl.datetime_range(start, start + step * (num_rows - 1), step, eager=True)
    values = np.random.default_rng(0).integers(-99, 99, (num_rows, 7)).astype(np.float32) / 4
    columns = [*ETT_COLUMNS[:6], "oil" if damage == "columns" else "OT"]
    table = pl.DataFrame(values, schema=columns)
    table.insert_column(0, times.dt.strftime("%Y-%m-%d %H:%M:%S").alias("date"))
    table.write_csv(folder / ETT_FILES[name])
    return values
