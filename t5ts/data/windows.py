"""Windows over a series: indexed, gathered, never materialised.

The three splits share one standardised tensor. A window is a row number; a batch is one
`index_select` on a strided view, on the CPU or on the GPU that holds the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from t5ts.data.series import Series
from t5ts.errors import DataError
from t5ts.tasks import last_seen

# Rows per pass of the scaler: its float64 temporaries stay a few MB for any series length.
CHUNK_ROWS = 65_536


@dataclass(eq=False)
class Windows:
    """The windows of one split, one for every row at which they can start.

    Attributes:
        series_TC: (T, C) float32, standardised; storage shared among the splits.
        name: "train", "val" or "test"; "ood" for another series' test windows.
        window_len: W, rows in a window, of which the first `context_len` are seen and not scored.
        first_row: Row of the series at which window 0 of `num_windows` starts.
        carried: Rows of the series with a gap, ascending (G,), and the values that fill it in a
            context (G, C); None where gaps stay NaN.
    """

    series_TC: Tensor
    name: str
    window_len: int
    first_row: int
    num_windows: int
    context_len: int = 0
    carried: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        last = self.first_row + self.num_windows - 1
        assert self.num_windows > 0, "build_windows refuses an empty split"
        assert self.first_row >= 0
        assert last + self.window_len <= self.series_TC.shape[0]
        # (num_windows, C, W), a strided view: index_select copies from it in one pass.
        rows = self.series_TC[self.first_row : last + self.window_len]
        self._windows_KCW = rows.unfold(0, self.window_len, 1)

    def __len__(self) -> int:
        return self.num_windows

    def gather(self, index_B: Tensor) -> Tensor:
        """A batch of windows, by their (B,) numbers, 0 … len − 1, on any device.

        Returns:
            (B, C, W) contiguous float32 on the series' device; NaN where the series has no value.
            Under `data.missing=interpolate` a gap in the context holds the last value
            before it (0, the train mean, before the first): no step is computed from a later one.

        Raises:
            IndexError: on the CPU, if a number is out of range (on a GPU: a device assertion).

        Source: own. index_select was 2–5 times faster than advanced indexing here.
        """
        index_B = index_B.to(self.series_TC.device, non_blocking=True)
        windows_BCW = self._windows_KCW.index_select(0, index_B)
        if self.carried is not None and self.context_len:
            rows_G, values_GC = self.carried
            context_BCL = windows_BCW[..., : self.context_len]
            place_B = torch.searchsorted(rows_G, index_B + self.first_row)
            first_BC = context_BCL[..., 0]
            before_BC = values_GC[place_B.clamp_max(len(rows_G) - 1)]
            first_BC.copy_(torch.where(first_BC.isnan(), before_BC, first_BC))
            context_BCL.copy_(last_seen(context_BCL))
        return windows_BCW

    def first(self, num_windows: int, *, name: str) -> Windows:
        """The first of these windows, under another name."""
        return replace(self, name=name, num_windows=num_windows)


@dataclass(kw_only=True, eq=False)
class WindowSplits:
    """The windows of all splits, and the mean and standard deviation that they share.

    `mean_C` and `std_C` are (C,) float64 on the CPU, in data units, of `scaler_rows`, [start, end):
    all train rows. Of `constant_channels`, which have one value there, std is set to 1.
    """

    train: Windows
    val: Windows
    test: Windows
    mean_C: Tensor
    std_C: Tensor
    constant_channels: list[int]
    scaler_rows: tuple[int, int]


def build_windows(
    series: Series,
    *,
    context_len: int,
    target_len: int,
    fraction: float = 1.0,
    device: torch.device | str = "cpu",
) -> WindowSplits:
    """Standardises a series in place and builds the windows of its splits.

    Train windows are entirely inside the last `fraction` of the train rows. The target of a
    validation or test window is entirely inside its split; its context may reach `context_len`
    rows back into the split before. No window is dropped: each of the two has
    rows − target_len + 1. The scaler sees all train rows and nothing else, whatever `fraction` is,
    so that val_loss has the same unit at every fraction.

    Args:
        series: Consumed: `values_TC` is standardised in place, by `series.scaler`, and a second
            call reuses both.
        context_len: Rows seen before the target: seq_len to forecast, 0 to reconstruct.
        target_len: Rows to predict: horizon to forecast, seq_len to reconstruct.
        fraction: Share of the train rows to train on, in (0, 1]; the last ones.
        device: Where the series is kept and batches are gathered.

    Raises:
        DataError: if a split is too short, a channel has no value in the train rows, or all train
            targets are gaps.

    Source: own; borders and standardisation as in Zhou et al. 2021 (Informer), without its dropped
    last batch.
    """
    assert context_len >= 0
    assert target_len >= 1
    assert 0 < fraction <= 1
    train_end, val_end, test_end = series.borders
    train_start = train_end - max(1, math.floor(fraction * train_end + 0.5))
    window_len = context_len + target_len
    # (first row of window 0, end, rows the split has, rows it needs)
    spans = {
        "train": (train_start, train_end, train_end - train_start, window_len),
        "val": (train_end - context_len, val_end, val_end - train_end, target_len),
        "test": (val_end - context_len, test_end, test_end - val_end, target_len),
    }
    for name, (_, _, rows, needed) in spans.items():
        if rows < needed:
            share = f" (data.fraction={fraction} of {train_end})" if name == "train" else ""
            raise DataError(
                f"Too few rows for one window in the {name} split of {series.name}: it has {rows} "
                f"rows{share} and needs {needed}, with {context_len} rows seen and {target_len} "
                "predicted. Lower seq_len or horizon, give the split a larger part (data.splits, "
                "data.fraction), or use a longer series."
            )
    first_target = train_start + context_len
    if np.isnan(np.fmax.reduce(series.values_TC[first_target:train_end], axis=None)):
        raise DataError(
            f"The train windows of {series.name} have no target to learn: rows {first_target} … "
            f"{train_end - 1} are all gaps, which are not scored. Move data.splits, or raise "
            "data.fraction."
        )
    mean_C, std_C, constant_channels = standardise(series)
    series_TC = torch.from_numpy(series.values_TC).to(device)
    filled = carried(series.values_TC) if series.fills_contexts else None
    if filled is not None:
        filled = (filled[0].to(device), filled[1].to(device))
    windows = {
        name: Windows(
            series_TC, name, window_len, first, end - first - window_len + 1, context_len, filled
        )
        for name, (first, end, _, _) in spans.items()
    }
    return WindowSplits(
        **windows,
        mean_C=torch.from_numpy(mean_C.copy()),
        std_C=torch.from_numpy(std_C.copy()),
        constant_channels=list(constant_channels),
        scaler_rows=(0, train_end),
    )


def carried(values_TC: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """The rows with a gap and, for each channel, the last value at or before them; 0 before any."""
    is_gap_T = np.zeros(len(values_TC), dtype=bool)
    for values_T in values_TC.T:
        is_gap_T |= np.isnan(values_T)
    rows_G = np.flatnonzero(is_gap_T)
    if not len(rows_G):
        return None
    filled_GC = np.zeros((len(rows_G), values_TC.shape[1]), dtype=np.float32)
    for column, values_T in enumerate(values_TC.T):
        known = np.flatnonzero(~np.isnan(values_T))
        place_G = np.searchsorted(known, rows_G, side="right") - 1
        has_G = place_G >= 0
        filled_GC[has_G, column] = values_T[known[place_G[has_G]]]
    return torch.from_numpy(rows_G), torch.from_numpy(filled_GC)


def standardise(series: Series) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Scales `series.values_TC` in place, once, by mean and std (ddof 0) of its train rows.

    Sums are float64, taken in chunks in row order by numpy, so no float64 copy of the
    series is made and the number of threads has no effect. Sets and returns `series.scaler`.

    Raises:
        DataError: if a channel has no value in the train rows, or overflows.
    """
    if series.scaler is not None:
        return series.scaler
    values_TC = series.values_TC
    train_TC = values_TC[: series.borders[0]]
    num_C, sum_C = chunk_sums(train_TC, lambda x: ~np.isnan(x), lambda x: x)
    if (num_C == 0).any():
        name = series.channels[int(np.argmin(num_C))]
        raise DataError(
            f"Channel {name!r} of {series.name} has no value in the train rows "
            f"(0 … {series.borders[0] - 1}). Leave it out (data.channels) or move data.splits."
        )
    mean_C = sum_C / num_C
    # A second pass: sums of squares about the mean do not cancel.
    (square_C,) = chunk_sums(train_TC, lambda x: (x - mean_C) ** 2)
    std_C = np.sqrt(square_C / num_C)
    # Of a constant it is exactly 0: float64 holds the sum of 2^29 equal float32 values.
    constant_C = std_C == 0
    std_C[constant_C] = 1.0
    for start in range(0, len(values_TC), CHUNK_ROWS):
        chunk_TC = values_TC[start : start + CHUNK_ROWS]
        with np.errstate(over="ignore"):
            chunk_TC[:] = (chunk_TC.astype(np.float64) - mean_C) / std_C
        if np.isinf(chunk_TC).any():
            name = series.channels[int(np.argmax(np.isinf(chunk_TC).any(axis=0)))]
            raise DataError(
                f"Channel {name!r} of {series.name} overflows float32 when scaled by the std of "
                "its train rows: train and later rows differ wildly. Check the data, or leave the "
                "channel out (data.channels)."
            )
    if series.offset_C is not None:
        mean_C = mean_C + series.offset_C
    series.scaler = (mean_C, std_C, [int(c) for c in np.flatnonzero(constant_C)])
    return series.scaler


def chunk_sums(rows_TC: np.ndarray, *terms: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Sums over the rows of functions of the values: (C,) float64 each, NaN left out."""
    totals = [np.zeros(rows_TC.shape[1]) for _ in terms]
    for start in range(0, len(rows_TC), CHUNK_ROWS):
        chunk_TC = rows_TC[start : start + CHUNK_ROWS].astype(np.float64)
        for total_C, term in zip(totals, terms, strict=True):
            total_C += np.nansum(term(chunk_TC), axis=0)
    return totals


def epoch_order(num_windows: int, *, seed: int, epoch: int, limit: int | None = None) -> Tensor:
    """The order in which an epoch visits the train windows.

    A pure function of its arguments (epochs count from 0): it uses no random generator's state, so
    every init arm, a resumed run and a run on another device see the same batches.

    Returns:
        (min(num_windows, limit),) int64 on the CPU: the head of a permutation.
    """
    state = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    order = torch.randperm(num_windows, generator=generator)
    return order if limit is None else order[:limit].clone()


def mase_denominator(train_TC: Tensor, *, season: int) -> Tensor:
    """Mean absolute error of the seasonal naive forecast (season 1: the naive one) in train rows.

    Returns:
        (C,) float64 on the CPU, in the units of `train_TC`, without pairs that have a NaN. 0 where
        the forecast is perfect, as in a constant channel, NaN without pairs: leave these out.

    Raises:
        DataError: if there are no more than `season` train rows.

    Source: Hyndman & Koehler 2006, eq. 3, with the seasonal naive forecast.
    """
    assert season >= 1
    if train_TC.shape[0] <= season:
        raise DataError(
            f"MASE needs more train rows ({train_TC.shape[0]}) than one season ({season}): "
            "set data.season to a smaller number, or 1 for the plain naive forecast."
        )
    rows_TC = train_TC.detach().cpu().numpy()
    sum_C, num_C = np.zeros((2, rows_TC.shape[1]))
    for start in range(season, len(rows_TC), CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, len(rows_TC))
        error_TC = rows_TC[start:end].astype(np.float64) - rows_TC[start - season : end - season]
        sum_C += np.nansum(np.abs(error_TC), axis=0)
        num_C += np.count_nonzero(~np.isnan(error_TC), axis=0)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(sum_C / num_C)
