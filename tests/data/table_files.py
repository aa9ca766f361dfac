"""Small tables for the tests of reading: times of all kinds, as text and as files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from t5ts.data.sources import load_csv
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


def refused(path, *named, **keys) -> None:
    with pytest.raises(DataError) as error:
        load_csv(path=None if path is None else str(path), **keys)
    message = str(error.value)
    assert message.isprintable()
    assert [word for word in named if word not in message] == []


def wide(num_rows=60, step=HOUR, seed=0) -> pl.DataFrame:
    values = np.random.default_rng(seed).normal(size=(num_rows, 2)).astype(np.float32)
    times = every(step, dt.datetime(2020, 1, 1), num_rows)
    return pl.DataFrame({"time": times, "a": values[:, 0], "b": values[:, 1]})


def series_table(*, minutes=60, **channels) -> pl.DataFrame:
    """Rows from 2024 on, so many minutes apart, of these channels; NaN is a gap."""
    num_rows = len(next(iter(channels.values())))
    times = every(dt.timedelta(minutes=minutes), dt.datetime(2024, 1, 1), num_rows)
    return pl.DataFrame({"time": times, **channels}, nan_to_null=True)


def as_csv(path: Path, table: pl.DataFrame) -> str:
    table.write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")
    return str(path)
