"""Measuring a model, or a forecast that needs none, on all windows of a split."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.data.windows import Windows
from t5ts.metrics import RegressionSums
from t5ts.task import Forecast


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a type; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: Windows,
    task: Forecast,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    mase_denominator_C: Tensor,
    naive_mse: float,
    limit: int | None = None,
    window_losses: list[Tensor] | None = None,
) -> dict[str, float]:
    """Metrics of a model on all windows of a split, whatever the batch size.

    Args:
        model: A forecaster; left in evaluation mode.
        windows: The split.
        task: Cuts windows.
        batch_size: Windows at a time.
        autocast: As in training.
        mase_denominator_C: See `RegressionSums.compute`.
        naive_mse: See `RegressionSums.compute`.
        limit: Only the first so many windows (a dry run).
        window_losses: Where given, (B,) float32 tensors are added to it, in the windows' order:
            each window's mean squared error over channels and steps. Their mean is the loss.
    """
    model.eval()
    device = windows.series_TC.device
    sums = RegressionSums(windows.series_TC.shape[1], device=device)
    for index_B in torch.arange(limit or len(windows))[: len(windows)].split(batch_size):
        batch = task.batch(windows.gather(index_B))
        with autocast_to(device, autocast):
            prediction_BCH = model(batch.inputs_BCL)
        sums.update(prediction_BCH, batch.target_BCH, batch.last_BC)
        if window_losses is not None:
            error_BCH = prediction_BCH.float() - batch.target_BCH
            window_losses.append(error_BCH.square().mean((1, 2)).cpu())
    return sums.compute(mase_denominator_C=mase_denominator_C, naive_mse=naive_mse)


@torch.no_grad()
def evaluate_baselines(
    windows: Windows, task: Forecast, *, season: int, batch_size: int, mase_denominator_C: Tensor
) -> dict[str, dict[str, float]]:
    """The same metrics for the forecasts that need no training, on all windows of a split."""
    sums: dict[str, RegressionSums] = {}
    for index_B in torch.arange(len(windows)).split(batch_size):
        batch = task.batch(windows.gather(index_B))
        for name, prediction_BCH in task.baselines(batch, season=season).items():
            if name not in sums:
                channels, device = windows.series_TC.shape[1], windows.series_TC.device
                sums[name] = RegressionSums(channels, device=device)
            sums[name].update(prediction_BCH, batch.target_BCH, batch.last_BC)
    return {name: its.compute(mase_denominator_C=mase_denominator_C) for name, its in sums.items()}
