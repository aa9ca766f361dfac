"""A series: the values, and all that must be said about them."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(kw_only=True, eq=False)
class Series:
    """A regular multivariate time series with its borders, units and provenance.

    Attributes:
        name: Short name for messages and plots.
        values_TC: (T, C) float32, C-contiguous, data units; NaN only under `data.missing=mask`.
            `build_windows` consumes it: afterwards it holds standardised values.
        channels: (C,) names.
        units: (C,) units, "" where not known.
        start: ISO time of row 0, UTC or as the source has it; "" if none.
        step_s: Seconds between rows.
        season: Rows in one season; 1 where there is none.
        season_note: Whether the season is given, inferred or known.
        borders: Exclusive ends of the train, validation and test rows.
        source: Where the data comes from.
        licence: Its licence, or "the user's own".
        notes: What was repaired, reordered or assumed on loading, one sentence each.
        gap_share: Share of the values on the regular grid that were missing before repair.
        sha256: Of the bytes of `values_TC` as loaded, before standardisation.
        best_mse: Synthetic series only: least achievable mean squared error of a forecast per
            element, in train-standardised units.
        scaler: (mean_C, std_C, constant channels) once `values_TC` is standardised, else None.
        computed: What was computed of this series, by what it depends on besides (a cache).
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
        if not self.sha256:
            self.sha256 = hashlib.sha256(values.data).hexdigest()

    @property
    def span(self) -> tuple[str, str]:
        """ISO times of the first and last row; ("", "") for a series without times."""
        return (self.time_of(0), self.time_of(len(self.values_TC) - 1))

    def time_of(self, row: int) -> str:
        """ISO time of a row, to the second (finer where the step is); "" without times."""
        if not self.start:
            return ""
        start = datetime.datetime.fromisoformat(self.start)
        return (start + datetime.timedelta(seconds=row * self.step_s)).isoformat()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data, for `provenance.json`."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "rows": len(self.values_TC),
            "channels": list(self.channels),
            "units": list(self.units),
            "span": list(self.span),
            "step_s": self.step_s,
            "season": self.season,
            "season_note": self.season_note,
            "borders": list(self.borders),
            "gap_share": self.gap_share,
            "notes": list(self.notes),
            "source": self.source,
            "licence": self.licence,
            "best_mse": self.best_mse,
        }
