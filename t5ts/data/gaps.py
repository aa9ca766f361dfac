"""Missing values: refused, or counted and left as NaN."""

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
            "interpolate (in a context a gap holds the last value before it; it is not scored), "
            "mask (the model sees that there is a gap; it is not scored)."
        )


def count_gaps(
    values_TC: np.ndarray, channels: list[str], *, missing: str, name: str
) -> tuple[float, list[str]]:
    """Counts the NaNs of a series, or refuses them.

    Args:
        values_TC: (T, C) float32, NaN where missing.
        channels: (C,) names, for messages.
        missing: One of POLICIES.
        name: The series' name, for messages.

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
                f"{int(np.argmax(missing_T)) + 1}. Complete the data, or choose data.missing="
                "interpolate or mask, which leave gaps out of the loss."
            )
        counts[channel] = count
        known = np.flatnonzero(~missing_T)
        gap = int(np.diff(known, prepend=-1, append=num_rows).max()) - 1
        longest = max(longest, (gap, channel))
    if not counts:
        return 0.0, []
    total = sum(counts.values())
    worst = sorted(counts.items(), key=lambda item: -item[1])
    per_channel = ", ".join(f"{channel} {count}" for channel, count in worst[:MAX_NAMED])
    if len(worst) > MAX_NAMED:
        per_channel += f", … ({len(worst)} channels)"
    how = "in contexts the last value before the gap" if missing == "interpolate" else "masked"
    return total / values_TC.size, [
        f"{total} missing values ({total / values_TC.size:.2%}): {how}, never scored; "
        f"longest gap {longest[0]} rows in {longest[1]}; by channel: {per_channel}"
    ]
