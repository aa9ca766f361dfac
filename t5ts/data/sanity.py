"""What a run reports about its data before it trains: gaps, statistics, and warnings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from t5ts.data.series import Series
from t5ts.data.windows import CHUNK_ROWS, WindowSplits, chunk_sums
from t5ts.errors import DataError

MAX_NAMED = 6
# Range of mean squares, in train-standardised units, within which no warning is given.
ALIKE = (0.1, 10.0)


class Sanity(NamedTuple):
    """The data in one line, and a sentence for each thing that looks wrong."""

    line: str
    warnings: list[str]


def check_sanity(series: Series, splits: WindowSplits) -> Sanity:
    """Summarise a series after `build_windows`.

    The line has rows, channels, span, step, gaps, windows per split, variance of the targets.

    Source: own. The log that this project started from reported losses of 204 and 3333 on
    standardised data and nobody asked why.
    """
    train_end, val_end, test_end = series.borders
    rows = {"train": (0, train_end), "val": (train_end, val_end), "test": (val_end, test_end)}
    moments, variances = {}, []
    for name, (first, end) in rows.items():
        num_C, sum_C, square_C = chunk_sums(
            series.values_TC[first:end], lambda x: ~np.isnan(x), lambda x: x, np.square
        )
        with np.errstate(invalid="ignore"):
            moments[name] = mean_C, square_C = sum_C / num_C, square_C / num_C
        variances.append(f"{name} {np.nanmean(square_C - mean_C**2):.3g}")
    span = f", {series.span[0]} … {series.span[1]}" if series.start else ""
    windows = (f"{part.name} {len(part)}" for part in (splits.train, splits.val, splits.test))
    count = len(series.channels)
    line = (
        f"{series.name}: {len(series.values_TC)} rows × {count} channel{'s' * (count > 1)}{span}, "
        f"step {series.step}, gaps {series.gap_share:.2%}, {series.season_note}; windows "
        f"{', '.join(windows)}; variance after scaling {', '.join(variances)}"
    )
    warnings = []
    for c, channel in enumerate(series.channels):
        if c in splits.constant_channels:
            warnings.append(
                f"channel {channel!r} is constant in the train rows: it is scaled by 1, left out "
                "of correlation and MASE, and pulls the loss towards 0"
            )
        elif _is_ramp(series.values_TC[:train_end, c]):
            warnings.append(
                f"channel {channel!r} is an exact ramp in the train rows, like a row number or a "
                "clock: it is predicted without error and makes losses look small; leave it out "
                "(data.channels) unless it is intended"
            )
    for name in ("val", "test"):
        for c, (mean, square) in enumerate(zip(*moments[name], strict=True)):
            if c in splits.constant_channels:
                continue
            if np.isnan(square):
                warnings.append(f"channel {series.channels[c]!r} has no value in the {name} rows")
            elif not ALIKE[0] <= square <= ALIKE[1]:
                warnings.append(
                    f"channel {series.channels[c]!r} differs wildly in scale between train and "
                    f"{name}: mean square {square:.3g} in {name}, 1 in train (its mean moved by "
                    f"{mean:.2g} standard deviations)"
                )
    return Sanity(line, warnings)


def _is_ramp(values_T: np.ndarray) -> bool:
    """Whether all steps from the first value to the last are equal, up to float32 rounding."""
    known = np.flatnonzero(~np.isnan(values_T))
    if len(known) < 4:
        return False
    (first, last), (low, high) = known[[0, -1]], values_T[known[[0, -1]]].astype(np.float64)
    for start in range(0, len(values_T), CHUNK_ROWS):
        chunk_T = values_T[start : start + CHUNK_ROWS].astype(np.float64)
        chunk_T -= low + (high - low) * (np.arange(len(chunk_T)) + start - first) / (last - first)
        if np.nanmax(np.abs(chunk_T), initial=0.0) > 1e-6 * abs(high - low):
            return False
    return True


def count_gaps(
    values_TC: np.ndarray, channels: list[str], *, missing: str, name: str
) -> tuple[float, list[str]]:
    """Count the NaNs of a series, or refuse them.

    Args:
        values_TC: (T, C) float32, NaN where missing.
        channels: (C,) names, for messages, as is `name`, the series' own.
        missing: One of POLICIES.

    Returns:
        Share of the values that are missing, and at most one note.

    Raises:
        DataError: if there is a gap under `error`, or a channel has no value at all.
    """
    num_rows = len(values_TC)
    counts: dict[str, int] = {}
    longest = (0, "")
    for channel, values_T in zip(channels, values_TC.T, strict=True):
        missing_T = np.isnan(values_T)
        count = int(np.count_nonzero(missing_T))
        if count and (count == num_rows or missing == "error"):
            raise DataError(
                f"Channel {channel!r} of {name} has {count} missing values in {num_rows} rows, the "
                f"first in row {int(np.argmax(missing_T)) + 1}. Fill the gaps, leave the channel "
                "out (list the others in data.channels), or, if it has some values, choose "
                "data.missing=interpolate or mask, which never score gaps."
            )
        if count:
            counts[channel] = count
            known = np.flatnonzero(~missing_T)
            gap = int(np.diff(known, prepend=-1, append=num_rows).max()) - 1
            longest = max(longest, (gap, channel))
    if not counts:
        return 0.0, []
    share = sum(counts.values()) / values_TC.size
    worst = sorted(counts.items(), key=lambda item: -item[1])
    by_channel = ", ".join(f"{channel} {count}" for channel, count in worst[:MAX_NAMED])
    if len(worst) > MAX_NAMED:
        by_channel += f", … ({len(worst)} channels)"
    how = "in contexts the last value before the gap" if missing == "interpolate" else "masked"
    return share, [
        f"{sum(counts.values())} missing values ({share:.2%}): {how}, never scored; longest gap "
        f"{longest[0]} rows in {longest[1]}; by channel: {by_channel}"
    ]
