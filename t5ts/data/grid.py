"""The regular time grid of a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t5ts.data.series import FIRST_BUSINESS_DAY, LAST_BUSINESS_DAY, Step, duration
from t5ts.data.times import DAY_US, iso
from t5ts.errors import DataError

POLICIES = ("error", "interpolate", "mask")
# A grid with more rows than this for each row of the file is a wrong time, not a gap.
MAX_GRID = 20


@dataclass(kw_only=True)
class Grid:
    """Where the rows of a file are on a regular time grid.

    `start` is the ISO time of grid row 0; `rows` has the grid row of each row of the file, None if
    file row i is grid row i; `notes` say what was reordered or filled in.
    """

    start: str
    step: Step
    num_rows: int
    rows: np.ndarray | None
    notes: list[str]


def regular_grid(
    times_us: np.ndarray,
    *,
    missing: str,
    where: str,
    file_rows: np.ndarray | None = None,
    columns: str = "",
) -> Grid:
    """Find the regular grid of the times.

    A step is a number of seconds (also one that the stamps round, as 1/30 s in milliseconds), of
    calendar months, or of business days. Under `missing="error"` the file must itself be the grid:
    sorted, with equal steps. Under the other policies rows are sorted, and skipped times become
    missing values; both are noted. A time that occurs twice is always an error.

    Args:
        times_us: (rows,) int64, microseconds, file order.
        missing: The policy for missing values.
        where: File and column, for messages.
        file_rows: (rows,) row of the file for each time, from 0; None is 0, 1, ….
        columns: The file's others, for the message on repeated times.

    Raises:
        DataError: for fewer than 3 rows, duplicate times, and anything the policy refuses.
    """
    num_times = len(times_us)
    if num_times < 3:
        raise DataError(f"{where}: {num_times} rows; a series needs more (3 splits of windows).")
    order, notes = None, []
    steps = np.diff(times_us)
    if not (steps > 0).all():
        file_rows = np.arange(num_times) if file_rows is None else file_rows
        order = np.argsort(times_us, kind="stable")
        in_order = times_us[order]
        is_twice = np.diff(in_order) == 0
        if is_twice.any():
            raise DataError(
                f"{where}: {is_twice.sum()} duplicate times, the first "
                f"{iso(in_order[np.argmax(is_twice)])}. If rows belong to several series, name the "
                "column that identifies them and the column of values (data.id=COLUMN "
                f"data.value=COLUMN, of {columns or 'the others'}); else keep one row for each "
                "time. Local times repeat an hour in autumn: use UTC."
            )
        first = check_order(times_us, file_rows, missing, where)
        notes.append(f"rows were sorted by time ({first} was the first out of order)")
        times_us, file_rows = in_order, file_rows[order]
        steps = np.diff(times_us)
    median = int(np.partition(steps, len(steps) // 2)[len(steps) // 2])
    if missing != "error":
        _refuse_stray_rows(times_us, file_rows, median, where)
    is_even = bool((steps == median).all())
    del steps
    step, rows = (Step(median / 1e6), None) if is_even else _find_step(times_us, median)
    if rows is not None and (np.diff(rows) == 1).all():
        rows, is_even = None, True
    if not is_even and (rows is None or missing == "error"):
        # Without a grid: the first row that does not fit the step of most rows.
        is_off, remedy = (times_us - times_us[0]) % median, " (it is off the grid)."
        if rows is not None:
            is_off = np.diff(rows, prepend=-1) - 1
            remedy = ", or choose data.missing=interpolate or mask (skipped times are gaps)."
        at = int(np.argmax(is_off != 0))
        raise DataError(
            f"{where}: irregular step: {_row(times_us, file_rows, at)} is "
            f"{duration((times_us[at] - times_us[at - 1]) / 1e6)} after the time before it; the "
            f"step is {step}, from {iso(times_us[0])} on. Resample to a regular step{remedy}"
        )
    num_rows = num_times if rows is None else int(rows[-1]) + 1
    if num_rows > num_times:
        skipped = f"{num_rows - num_times} skipped times of {num_rows}"
        notes.append(f"{skipped} are missing values (the step is {step})")
    if order is not None:
        in_file_order = np.empty(num_times, dtype=np.int64)
        in_file_order[order] = np.arange(num_times) if rows is None else rows
        rows = in_file_order
    return Grid(start=iso(times_us[0]), step=step, num_rows=num_rows, rows=rows, notes=notes)


def _row(times_us: np.ndarray, file_rows: np.ndarray | None, at: int) -> str:
    """The row of the file, from 1, and its time."""
    return f"row {(at if file_rows is None else int(file_rows[at])) + 1} ({iso(times_us[at])})"


def check_order(times_us: np.ndarray, file_rows: np.ndarray, missing: str, where: str) -> str:
    """Name the first row of a series that is out of order, or refuse to sort it.

    Takes its times in file order, all different, and the file's row of each, from 0.

    Raises:
        DataError: under `error`, and if the order shows that days and months are swapped.
    """
    swapped = _swapped_row(times_us)
    if swapped is not None:
        raise DataError(
            f"{where}: in some rows day and month are swapped: {_row(times_us, file_rows, swapped)}"
            " is in order only if they are exchanged. Write all dates alike, as in 2016-07-01."
        )
    first = _row(times_us, file_rows, int(np.argmax(np.diff(times_us) < 0)) + 1)
    if missing == "error":
        raise DataError(
            f"{where}: not sorted: {first} is earlier than the row before it. Sort the file by "
            "time, or choose data.missing=interpolate or mask, which sort it."
        )
    return first


def _swapped_row(times_us: np.ndarray) -> int | None:
    """The first row, from 0, whose day and month must be exchanged to put the rows in order.

    None if no exchanges put all rows in order, with steps as even as those of the sorted times.
    The earliest time after the one before is the best choice for each row.
    """
    dates = times_us.astype("datetime64[us]").astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    day = (dates - months.astype("datetime64[D]")).astype(int)
    month = months.astype(int) % 12
    exchanged = (months + (day - month)).astype("datetime64[D]") + month
    other_us = times_us + np.where(day < 12, (exchanged - dates).astype(np.int64) * DAY_US, 0)
    sorted_steps = np.diff(np.sort(times_us))
    usual = np.median(sorted_steps)
    for first in (times_us[0], other_us[0]):
        chosen = [int(first)]
        for pair in zip(times_us[1:].tolist(), other_us[1:].tolist(), strict=True):
            following = min((time for time in pair if time > chosen[-1]), default=None)
            if following is None:
                break
            chosen.append(following)
        else:
            if np.sum(np.diff(chosen) == usual) >= np.sum(sorted_steps == usual):
                return int(np.argmax(chosen != times_us))
    return None


def _refuse_stray_rows(
    times_us: np.ndarray, file_rows: np.ndarray | None, median: int, where: str
) -> None:
    """Refuse sorted times if a few are far from all others, as after a typo in the year.

    Few: one, or one in a hundred. Far: more than 100 steps, and half of what the others span unless
    the file was in order without them.
    """
    gaps, num_times = np.diff(times_us), len(times_us)
    after = int(np.argmax(gaps)) + 1
    gap, is_first_part = int(gaps[after - 1]), after <= num_times - after
    kept = slice(after, None) if is_first_part else slice(after)
    others = times_us[kept]
    is_alone = (
        file_rows is not None
        and (np.diff(file_rows) < 0).any()
        and (np.diff(file_rows[kept]) > 0).all()
    )
    is_stray = (
        num_times - len(others) <= max(1, num_times // 100)
        and gap > 100 * median
        and (is_alone or gap > (others[-1] - others[0]) / 2)
    )
    if is_stray or (times_us[-1] - times_us[0]) / median > MAX_GRID * num_times:
        stray = _row(times_us, file_rows, 0 if is_stray and is_first_part else after)
        raise DataError(
            f"{where}: {stray} is probably a wrong time: {duration(gap / 1e6)} from the other "
            f"rows, whose step is {duration(median / 1e6)}. Correct it, remove it, or resample."
        )


def _find_step(times_us: np.ndarray, median: int) -> tuple[Step, np.ndarray | None]:
    """The step of sorted times that are not equally far apart, and the grid row of each.

    The rows are None if the times are not on a grid; the step is then the median one.
    """
    if median >= DAY_US and not ((times_us - times_us[0]) % DAY_US).any():
        dates = (times_us // DAY_US).astype("datetime64[D]")
        if median == DAY_US and np.is_busday(dates).all():
            return Step(1, "business day"), np.busday_count(dates[0], dates)
        if median >= 28 * DAY_US and (found := _find_months(dates)) is not None:
            return found
        del dates
    since_us = times_us - times_us[0]
    rows, rest = np.divmod(since_us, median)
    if not rest.any():
        return Step(median / 1e6), rows
    del rest
    # Rounded timestamps: use the coarsest unit that represents them all.
    unit = next(u for u in (100_000, 10_000, 1000, 1) if not (since_us % u).any())
    if 2 * unit < median < 1_000_000:
        steps = np.diff(times_us)
        mean = steps[np.abs(steps - median) <= unit].mean()
        for step in (1e6 / round(1e6 / mean), since_us[-1] / (len(times_us) - 1)):
            rows = np.rint(since_us / step).astype(np.int64)
            if np.abs(since_us - rows * step).max() <= 1.01 * unit and (np.diff(rows) > 0).all():
                return Step(step / 1e6), rows
    return Step(median / 1e6), None


def _find_months(dates: np.ndarray) -> tuple[Step, np.ndarray] | None:
    """The step and rows of dates on one day of the month, or near one of its ends."""
    months = dates.astype("datetime64[M]")
    firsts, lasts = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]") - 1
    latest = (dates - firsts).max()
    days = {
        "month": np.minimum(firsts + latest, lasts),
        FIRST_BUSINESS_DAY: np.busday_offset(firsts, 0, roll="forward"),
        LAST_BUSINESS_DAY: np.busday_offset(lasts, 0, roll="backward"),
    }
    unit = next((unit for unit, of_month in days.items() if (dates == of_month).all()), None)
    index = (months - months[0]).astype(np.int64)
    count = int(np.median(np.diff(index)))
    if count < 1 or (index % count).any():
        return None
    if unit is None and latest.astype(int) > 3 and (lasts - dates).max().astype(int) > 3:
        return None
    if unit == "month" and dates[0] == lasts[0] and (dates < lasts).any():
        unit = f"month (day {latest.astype(int) + 1})"
    return Step(count, unit or "month"), index // count
