"""Measuring a model, or a forecast that needs none, on all windows of a split."""

import ctypes
import gc
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5ts import distributed
from t5ts.data.windows import Windows
from t5ts.errors import DataError
from t5ts.metrics import RegressionSums, one_thread
from t5ts.tasks import Task


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a type; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: Windows,
    task: Task,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    mase_denominator_C: Tensor | None,
    naive_mse: float,
    limit: int | None = None,
    window_losses: list[Tensor] | None = None,
    transform: Callable[[Tensor, Tensor], Tensor] = lambda inputs_BCL, _index_B: inputs_BCL,
) -> dict[str, float]:
    """Metrics of a model on all windows of a split, independent of the batch size.

    Each of several processes measures its share of the windows; all get the metrics of all.

    Args:
        model: A forecaster; left in evaluation mode.
        windows: The split.
        task: Cuts windows.
        batch_size: Windows at a time.
        autocast: As in training.
        mase_denominator_C, naive_mse: See `RegressionSums.compute`.
        limit: Evaluate only so many windows, the first (a dry run); None for all.
        window_losses: Receives (B,) float32 tensors, in the windows' order: each window's mean
            squared error over its scored values (NaN if it has none).
        transform: Changes what the model sees, given a batch's inputs (B, C, L) and its windows'
            numbers (B,). Targets and last values are those of the unchanged batch.
    """
    model.eval()
    device = windows.series_TC.device
    sums = RegressionSums(windows.series_TC.shape[1], device=device)
    share_B = distributed.share(torch.arange(limit or len(windows))[: len(windows)])
    for index_B in share_B.split(batch_size) if len(share_B) else ():
        batch = task.batch(windows.gather(index_B), index_B)
        with autocast_to(device, autocast):
            prediction_BCH = model(transform(batch.inputs_BCL, index_B))
        with one_thread(device):
            sums.update(prediction_BCH, batch.target_BCH, task.last_value(batch))
            if window_losses is not None:
                error_BCH = prediction_BCH.float() - batch.target_BCH  # NaN where nothing is scored
                window_losses.append(error_BCH.square().nanmean(dim=(1, 2)).cpu())
    sums.add_other_processes()
    return sums.compute(mase_denominator_C=mase_denominator_C, naive_mse=naive_mse)


@torch.no_grad()
def evaluate_baselines(
    windows: Windows,
    task: Task,
    *,
    season: int,
    batch_size: int,
    mase_denominator_C: Tensor | None,
    computed: dict[Any, Any],
) -> dict[str, dict[str, float]]:
    """The same metrics for the predictions that need no training, on all windows of a split.

    Args:
        windows, task, batch_size, mase_denominator_C: As in `evaluate`.
        season: What the seasonal forecast repeats.
        computed: `Series.computed` of the windows' series, which caches the results.

    Raises:
        DataError: if nothing in them can be scored, because every target is a gap.
    """
    span = (windows.first_row, len(windows), windows.window_len, str(windows.series_TC.device))
    key = (type(task), task, season, batch_size, *span)
    if key in computed:
        return deepcopy(computed[key])
    sums: dict[str, RegressionSums] = {}
    channels, device = windows.series_TC.shape[1], windows.series_TC.device
    with one_thread(device):
        for index_B in torch.arange(len(windows)).split(batch_size):
            batch = task.batch(windows.gather(index_B), index_B)
            last_BCH = task.last_value(batch)
            for name, prediction_BCH in task.baselines(batch, season=season).items():
                if name not in sums:
                    sums[name] = RegressionSums(channels, device=device)
                sums[name].update(prediction_BCH, batch.target_BCH, last_BCH)
    metrics = {
        name: total.compute(mase_denominator_C=mase_denominator_C) for name, total in sums.items()
    }
    if math.isnan(metrics[task.naive]["loss"]):
        raise DataError(
            f"The {windows.name} windows have nothing to score: all targets are gaps. Move"
            " data.splits, or use a series with values there."
        )
    computed[key] = deepcopy(metrics)
    return metrics


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory, because every step allocates the same sizes again.

    By default large blocks go back to the system and are faulted in again: 4 ms of a 46 ms step
    (t5-small, batch 8, two threads). Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names and values of <malloc.h>
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring `peak_memory`, after returning what earlier runs of this process freed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with suppress(OSError):  # peak_memory then returns NaN
        _CLEAR_REFS.write_text("5")  # sets VmHWM, the peak, to what is resident now


def peak_memory(device: torch.device) -> float:
    """Peak memory in bytes since `reset_peak_memory`; NaN where it cannot be reset.

    On a GPU the allocator's; on a CPU what was resident, the libraries and the data included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError), _CLEAR_REFS.open("w"):  # writable, so that the reset was possible
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return 1024.0 * int(found[1])
    return math.nan
