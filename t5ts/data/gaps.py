"""Missing values: found, counted, and repaired or kept by a stated rule."""

from __future__ import annotations

import numpy as np

from t5ts.errors import DataError

POLICIES = ("error", "interpolate", "mask")
MAX_NAMED = 6


def check_policy(missing: str) -> None:
    """Raises DataError unless `missing` is one of POLICIES."""
    if missing not in POLICIES:
        raise DataError(
            f"data.missing={missing!r} is not a policy. Allowed: error (any gap stops the run), "
            "interpolate (linear inside, nearest value at the ends), mask (gaps stay NaN)."
        )


def repair(
    values_TC: np.ndarray, channels: list[str], *, missing: str, name: str
) -> tuple[float, list[str]]:
    """Applies the policy to the NaNs of a series, in place.

    `interpolate` draws a straight line between the neighbours of a gap and repeats the nearest
    value at the ends; the line may cross a split's border. Repaired values are scored like others.

    Args:
        values_TC: (T, C) float32, NaN where missing; changed under `interpolate`.
        channels: (C,) names, for messages.
        missing: One of POLICIES.
        name: The series' name, for messages.

    Returns:
        Share of the values that were missing, and a note for each channel group repaired.

    Raises:
        DataError: if there is a gap under `error`, or a channel has no value at all.
    """
    num_rows = len(values_TC)
    counts: dict[str, int] = {}
    longest = (0, "")
    for column, channel in enumerate(channels):
        missing_T = np.isnan(values_TC[:, column])
        count = int(np.count_nonzero(missing_T))
        if count == 0:
            continue
        if count == num_rows:
            raise DataError(
                f"Channel {channel!r} of {name} has no value in any of its {num_rows} rows. "
                "Leave it out: name the others in data.channels."
            )
        if missing == "error":
            raise DataError(
                f"Channel {channel!r} of {name} has {count} missing values, the first in row "
                f"{int(np.argmax(missing_T)) + 1}. Mend the data, or choose data.missing="
                "interpolate (straight lines over gaps) or mask (gaps are left out of the loss)."
            )
        counts[channel] = count
        starts, ends = _runs(missing_T)
        longest = max(longest, (int((ends - starts).max()), channel))
        if missing == "interpolate":
            _interpolate(values_TC[:, column], starts, ends)
    if not counts:
        return 0.0, []
    total = sum(counts.values())
    share = total / values_TC.size
    how = {"interpolate": "repaired by linear interpolation (nearest value at the ends)"}
    worst = sorted(counts.items(), key=lambda item: -item[1])
    per_channel = ", ".join(f"{channel} {count}" for channel, count in worst[:MAX_NAMED])
    if len(worst) > MAX_NAMED:
        per_channel += f", … ({len(worst)} channels)"
    note = (
        f"{total} missing values ({share:.2%}) {how.get(missing, 'kept as NaN and masked')}; "
        f"longest gap {longest[0]} rows in {longest[1]}; by channel: {per_channel}"
    )
    return share, [note]


def _runs(missing_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rows and exclusive ends of the runs of True."""
    border = np.int8(0)  # a plain 0 would make all of it int64
    edges = np.diff(missing_T.astype(np.int8), prepend=border, append=border)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _interpolate(column_T: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Fills the gaps of a column that has at least one value; memory grows with the gaps only."""
    lengths = ends - starts
    before = np.where(starts > 0, starts - 1, np.minimum(ends, len(column_T) - 1))
    after = np.where(ends < len(column_T), ends, before)
    left = column_T[before].astype(np.float64)
    right = column_T[after].astype(np.float64)
    which = np.repeat(np.arange(len(starts)), lengths)
    rows = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    weight = (rows + 1) / (lengths[which] + 1)
    column_T[rows + starts[which]] = left[which] + weight * (right[which] - left[which])
