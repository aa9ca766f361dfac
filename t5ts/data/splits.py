"""Where train ends and validation and test begin."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from t5ts.data.series import Step
from t5ts.errors import DataError

ALLOWED = (
    "Allowed for data.splits: three ratios that sum to 1 (train, validation, test; for example "
    "[0.7, 0.1, 0.2]), or two ISO dates (start of validation, start of test)."
)


def split_borders(
    splits: Sequence[float | str], *, num_rows: int, start: str, step: Step, name: str
) -> tuple[int, int, int]:
    """Turns ratios or dates into row numbers, in time order.

    Args:
        splits: Three ratios that sum to 1, or two ISO dates. Fractions of a row go to validation;
            a date is the first row at or after it.
        num_rows: T.
        start: ISO time of row 0, "" if none (then dates are refused).
        step: From one row to the next.
        name: The series' name, for messages.

    Returns:
        Exclusive ends of the train, validation and test rows.

    Raises:
        DataError: if `splits` is neither, or leaves a split empty.
    """
    values = list(splits)
    if len(values) == 3 and all(_is_number(value) for value in values):
        ratios = [float(value) for value in values]
        if min(ratios) <= 0 or not math.isclose(sum(ratios), 1.0, abs_tol=1e-6):
            raise DataError(
                f"data.splits={ratios} does not sum to 1 with every part > 0. {ALLOWED}"
            )
        # 1e-9: 0.7 · 10 must be 7 rows, not 6.
        train_end = int(ratios[0] * num_rows + 1e-9)
        val_end = num_rows - int(ratios[2] * num_rows + 1e-9)
    elif len(values) == 2 and all(isinstance(value, str) for value in values):
        if not start:
            raise DataError(f"data.splits has dates, but {name} has no times. {ALLOWED}")
        train_end, val_end = (_row_of(str(value), start, step) for value in values)
        last = step.time(datetime.datetime.fromisoformat(start), num_rows - 1)
        if not 0 < train_end < val_end < num_rows:
            raise DataError(
                f"data.splits={values} does not leave rows for train, validation and test: {name} "
                f"runs from {start} to {last.isoformat()}, and the dates must lie inside, in order."
            )
    else:
        raise DataError(f"data.splits={values} cannot be read. {ALLOWED}")
    if not 0 < train_end < val_end < num_rows:
        raise DataError(
            f"{name} has {num_rows} rows, too few for data.splits={values}: a split is empty. "
            "Bring a longer series or larger parts."
        )
    return train_end, val_end, num_rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _row_of(date: str, start: str, step: Step) -> int:
    """The first row at or after a date."""
    try:
        moment = datetime.datetime.fromisoformat(date)
    except ValueError:
        raise DataError(f"data.splits has {date!r}, which is not an ISO date. {ALLOWED}") from None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    first = datetime.datetime.fromisoformat(start)
    row = math.ceil((moment - first).total_seconds() / step.seconds - 1e-9)
    if step.unit != "s":  # the mean length was a guess
        try:
            while step.time(first, row) < moment:
                row += 1
            while step.time(first, row - 1) >= moment:
                row -= 1
        except ValueError:  # outside the years 1 to 9999: it is outside the series anyway
            pass
    return row
