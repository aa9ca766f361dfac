"""Metrics as exact sums and counts in float64, so that batch size and order do not matter.

Everything is over the values that are scored: those whose target is not NaN. Definitions
(train-standardised units throughout):
    loss         mean squared error per element
    mae          mean absolute error per element
    corr         Pearson r of prediction and truth, pooled over windows and steps per channel, then
                 averaged over the channels in which both vary; the others are counted
    corr_delta   the same after subtracting each window's last observed value
    mase         mean over channels of MAE / the seasonal-naive MAE of the train rows
    skill        1 − MSE / MSE(the task's naive baseline), given the baseline's MSE
    windows_without_target   windows of which nothing is scored, counted per channel and added up
"""

import math

import torch
from torch import Tensor

from t5ts import distributed


class RegressionSums:
    """Running sums of predictions against truth for C channels."""

    def __init__(self, num_channels: int, *, device: torch.device | str = "cpu") -> None:
        # Rows: count, |e|, e², then (p, y, pp, yy, py) of the levels and of the changes since the
        # last value, then windows without a target. float64 also on a GPU: these are a few
        # additions per batch.
        self._sums = torch.zeros(14, num_channels, dtype=torch.float64, device=device)
        infinity = torch.full((4, num_channels), math.inf, dtype=torch.float64, device=device)
        self._least, self._most = infinity, -infinity

    def update(self, prediction_BCH: Tensor, target_BCH: Tensor, last_BCH: Tensor) -> None:
        """Add a batch.

        Args:
            prediction_BCH: Any float type; a NaN where something is scored makes the metrics NaN.
            target_BCH: Same shape; NaN where nothing is scored.
            last_BCH: Same shape: the last value seen before each step; no NaN.
        """
        is_scored = ~target_BCH.isnan()
        p, y, last = (
            torch.where(is_scored, x.double(), 0.0) for x in (prediction_BCH, target_BCH, last_BCH)
        )
        error = p - y
        terms = [is_scored.double(), error.abs(), error.square()]
        spans = []
        for a, b in ((p, y), (p - last, y - last)):
            terms += [a, b, a * a, b * b, a * b]
            spans += [a, b]
        sums = [term.sum(dim=(0, 2)) for term in terms]
        self._sums += torch.stack([*sums, (~is_scored.any(dim=2)).double().sum(dim=0)])
        least = [torch.where(is_scored, s, math.inf).amin(dim=(0, 2)) for s in spans]
        most = [torch.where(is_scored, s, -math.inf).amax(dim=(0, 2)) for s in spans]
        self._least = torch.minimum(self._least, torch.stack(least))
        self._most = torch.maximum(self._most, torch.stack(most))

    def add_other_processes(self) -> None:
        """Add what the other processes have summed: the same in all of them afterwards."""
        distributed.all_reduce_sum(self._sums)
        extremes = torch.cat([-self._least, self._most])
        distributed.all_reduce_max(extremes)
        self._least, self._most = -extremes[:4], extremes[4:]

    def compute(
        self, *, mase_denominator_C: Tensor | None = None, naive_mse: float | None = None
    ) -> dict[str, float]:
        """The metrics of everything added so far; NaN where one is not defined.

        Args:
            mase_denominator_C: Seasonal-naive MAE of the train rows per channel; channels in
                which it is 0, or nothing is scored, are left out of the mean. None: no `mase`.
            naive_mse: MSE of the task's naive baseline on the same windows. None: no `skill`.
        """
        sums = self._sums.cpu()
        count_C = sums[0]
        mae_C = sums[1] / count_C
        mse = float(sums[2].sum() / count_C.sum())
        corr, constant = self._correlation(sums[3:8], slice(0, 2))
        corr_delta, constant_delta = self._correlation(sums[8:13], slice(2, 4))
        metrics = {
            "loss": mse,
            "mae": float(sums[1].sum() / count_C.sum()),
            "corr": corr,
            "corr_constant_channels": float(constant),
            "corr_delta": corr_delta,
            "corr_delta_constant_channels": float(constant_delta),
            "windows_without_target": float(sums[13].sum()),
        }
        if mase_denominator_C is not None:
            denominator_C = mase_denominator_C.double().cpu()
            usable = (denominator_C > 0) & (count_C > 0)
            ratio_C = mae_C[usable] / denominator_C[usable]
            metrics["mase"] = float(ratio_C.mean()) if bool(usable.any()) else math.nan
        if naive_mse is not None:
            metrics["skill"] = 1 - mse / naive_mse if naive_mse > 0 else math.nan
        return metrics

    def _correlation(self, moments: Tensor, rows: slice) -> tuple[float, int]:
        """Mean Pearson r over the channels in which both sides vary, and how many do not."""
        n_C = self._sums[0].cpu()
        p, y, pp, yy, py = moments
        covariance = py - p * y / n_C
        variance = (pp - p * p / n_C) * (yy - y * y / n_C)
        # Whether a side varies is read from its extremes: the difference of two sums of squares
        # is never exactly 0 for a constant.
        varies = (self._most[rows] > self._least[rows]).all(dim=0).cpu() & (variance > 0)
        if not bool(varies.any()):
            return math.nan, len(n_C)
        r_C = (covariance[varies] / variance[varies].sqrt()).clamp(-1, 1)
        return float(r_C.mean()), int((~varies).sum())
