"""A series: the values, the step from row to row, and their metadata."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t5ts.errors import DataError

SPLITS = (
    "Allowed for data.splits: three ratios that sum to 1 (train, validation, test; for example "
    "[0.7, 0.1, 0.2]), or two ISO dates (start of validation, start of test)."
)
FIRST_BUSINESS_DAY, LAST_BUSINESS_DAY = "month (first business day)", "month (last business day)"
#: A day of the month that is the last one in the first row's month, but not in all.
DAY_OF_MONTH = {f"month (day {day})": day for day in (28, 29, 30)}
MONTH_S = 31_557_600 / 12
# Mean seconds of the units that a step may count.
UNITS_S = {
    "s": 1.0, "business day": 7 / 5 * 86_400,
    "month": MONTH_S, FIRST_BUSINESS_DAY: MONTH_S, LAST_BUSINESS_DAY: MONTH_S,
    **dict.fromkeys(DAY_OF_MONTH, MONTH_S),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Time from one row to the next, in seconds, calendar months, or days from Monday to Friday."""

    count: float
    unit: str = "s"

    @property
    def seconds(self) -> float:
        """Length in seconds; the mean length where it varies."""
        return self.count * UNITS_S[self.unit]

    def __str__(self) -> str:
        if self.unit == "s":
            return duration(self.count)
        return f"{self.count:g} {self.unit.partition(' (')[0]}{'s' * (self.count != 1)}"

    def time(self, start: datetime.datetime, row: int) -> datetime.datetime:
        """Time of a row, given that of row 0. A start at a month's end stays at month ends."""
        if self.unit == "s":
            return start + datetime.timedelta(seconds=row * self.count)
        count = round(row * self.count)
        date: Any = np.datetime64(start.date())
        if self.unit == "business day":
            date = np.busday_offset(date, count, roll="forward")
        else:
            month = date.astype("datetime64[M]")
            first, last = ((month + count + n).astype("datetime64[D]") - n for n in (0, 1))
            if self.unit == FIRST_BUSINESS_DAY:
                date = np.busday_offset(first, 0, roll="forward")
            elif self.unit == LAST_BUSINESS_DAY:
                date = np.busday_offset(last, 0, roll="backward")
            else:
                is_last = (date + 1).astype("datetime64[M]") > month
                day = DAY_OF_MONTH.get(self.unit, 31 if is_last else start.day)
                date = min(first + (day - 1), last)
        return datetime.datetime.combine(datetime.date.fromisoformat(str(date)), start.time())

    def row(self, start: datetime.datetime, moment: datetime.datetime) -> int:
        """The first row at or after a moment, given the time of row 0; it may be negative."""
        row = math.ceil((moment - start).total_seconds() / self.seconds - 1e-9)
        with contextlib.suppress(ValueError, OverflowError):  # outside the years 1 to 9999
            while self.time(start, row) < moment:  # the mean length was a guess
                row += 1
            while self.time(start, row - 1) >= moment:
                row -= 1
        return row


def moment(text: str) -> datetime.datetime:
    """An ISO time, in UTC if it has an offset; ValueError if it is none."""
    found = datetime.datetime.fromisoformat(text)
    return found.astimezone(datetime.UTC).replace(tzinfo=None) if found.tzinfo else found


def duration(seconds: float) -> str:
    """Seconds in the largest unit that divides them, else in the largest unit they fill.

    >>> duration(2_419_200), duration(5400), duration(1 / 30)
    ('28 days', '90 min', '33.33 ms')
    """
    units = {"days": 86_400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    filled = {unit: seconds / size for unit, size in units.items() if seconds >= size}
    whole = {unit: n for unit, n in filled.items() if abs(n - round(n)) < 1e-9 * n}
    unit, number = next(iter((whole or filled or {"s": seconds}).items()))
    text = f"{number:,.0f}" if unit in whole else f"{number:.4g}"
    return f"{text} {'day' if unit == 'days' and number == 1 else unit}"


@dataclass(kw_only=True, eq=False)
class Series:
    """A regular multivariate time series with its borders, units and provenance.

    Attributes:
        name: Short name for messages and plots.
        values_TC: (T, C) float32, C-contiguous, data units less `offset_C`; NaN where a value is
            missing. `build_windows` consumes it: afterwards it holds standardised values.
        channels: (C,) names.
        units: (C,) units, "" where not known.
        start: ISO time of row 0, in UTC or as in the source; "" if none.
        step_s: Seconds between rows; their mean if the step is not counted in seconds.
        step_unit: What the step counts: see `Step`.
        season: Rows in one season; 1 if the series has none.
        season_note: Whether the season is given, inferred or known.
        borders: Exclusive ends of the train, validation and test rows.
        source: Where the data comes from.
        licence: Its licence, or "the user's own".
        notes: What was repaired, reordered or assumed on loading, one sentence each.
        gap_share: Share of the values on the regular grid that were missing before repair.
        fills_contexts: Whether gaps are filled in contexts, from earlier rows only
            (`data.missing=interpolate`); they are never scored. Without it gaps stay NaN.
        offset_C: (C,) float64, data units: subtracted before the cast to float32, which would
            round the differences between values; None is 0 for all.
        sha256: Of the bytes of `values_TC` as loaded, before standardisation, and of the two
            fields above if they are set.
        best_mse: Synthetic series only: least achievable mean squared error of a forecast per
            element, in train-standardised units.
        scaler: (mean_C, std_C, constant channels) once `values_TC` is standardised, else None.
        computed: A cache of values derived from this series, keyed by their other inputs.
    """

    name: str
    values_TC: np.ndarray
    channels: list[str]
    units: list[str]
    start: str
    step_s: float
    season: int
    season_note: str
    borders: tuple[int, int, int]
    source: str
    licence: str
    notes: list[str] = field(default_factory=list)
    gap_share: float = 0.0
    step_unit: str = "s"
    fills_contexts: bool = False
    offset_C: np.ndarray | None = None
    sha256: str = ""
    best_mse: float | None = None
    scaler: tuple[np.ndarray, np.ndarray, list[int]] | None = None
    computed: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        values = self.values_TC
        assert values.ndim == 2
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert len(self.channels) == len(self.units) == values.shape[1]
        train_end, val_end, test_end = self.borders
        assert 0 < train_end < val_end < test_end <= len(values)
        assert self.season >= 1
        if self.offset_C is not None and not self.offset_C.any():
            self.offset_C = None
        if not self.sha256:
            digest = hashlib.sha256(values.data)
            if self.offset_C is not None:
                digest.update(self.offset_C.tobytes())
            if self.fills_contexts and self.gap_share:
                digest.update(b"gaps are filled in contexts")
            self.sha256 = digest.hexdigest()

    @property
    def step(self) -> Step:
        """The step from one row to the next."""
        return Step(self.step_s / UNITS_S[self.step_unit], self.step_unit)

    @property
    def span(self) -> tuple[str, str]:
        """ISO times of the first and last row; ("", "") for a series without times."""
        return (self.time_of(0), self.time_of(len(self.values_TC) - 1))

    def time_of(self, row: int) -> str:
        """ISO time of a row, to the second (finer where the step is); "" without times."""
        if not self.start:
            return ""
        return self.step.time(datetime.datetime.fromisoformat(self.start), row).isoformat()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data, for `provenance.json`."""
        names = (
            "name", "sha256", "channels", "units", "step_s", "season", "season_note", "gap_share",
            "notes", "source", "licence", "best_mse",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {
            "rows": len(self.values_TC),
            "span": list(self.span),
            "step": str(self.step),
            "borders": list(self.borders),
        }


def split_borders(
    splits: Sequence[float | str], *, num_rows: int, start: str, step: Step, name: str
) -> tuple[int, int, int]:
    """Turn ratios or dates into row numbers, in time order.

    Args:
        splits: Three ratios that sum to 1, or two ISO dates. Fractions of a row go to validation;
            a date is the first row at or after it.
        num_rows: T.
        start: ISO time of row 0, "" if there is none (dates are then refused).
        step: From one row to the next.
        name: The series' name, for messages.

    Returns:
        Exclusive ends of the train, validation and test rows.

    Raises:
        DataError: if `splits` is neither, or a split is empty.
    """
    values: list[Any] = list(splits)
    is_ratio = len(values) == 3 and all(isinstance(v, int | float) and v > 0 for v in values)
    if is_ratio and math.isclose(sum(values), 1.0, abs_tol=1e-6):
        # 1e-9: 0.7 · 10 must be 7 rows, not 6.
        train_end = int(values[0] * num_rows + 1e-9)
        val_end = num_rows - int(values[2] * num_rows + 1e-9)
    else:
        try:
            validation, test = map(moment, values)
            train_end, val_end = (step.row(moment(start), t) for t in (validation, test))
        except (ValueError, TypeError):
            why = "" if start else ", which has no times"
            raise DataError(
                f"data.splits={values} cannot be used with {name}{why}. {SPLITS}"
            ) from None
    if not 0 < train_end < val_end < num_rows:
        end = step.time(moment(start), num_rows - 1).isoformat() if start else ""
        raise DataError(
            f"data.splits={values} leaves a split empty: {name} has {num_rows} rows"
            f"{f', from {start} to {end}' if start else ''}. {SPLITS}"
        )
    return train_end, val_end, num_rows
