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
    windows_without_target   windows with nothing to score, counted per channel and summed
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from t5ts import distributed

#: Columns of a batch's Gram product: whether a value is scored (1 or 0), |error|, prediction and
#: truth, and their changes since the last value. Entry (COUNT, X) of it is the sum of X.
COUNT, ERROR, LEVELS, CHANGES = 0, 1, (2, 3), (4, 5)


class RegressionSums:
    """Running sums of predictions against truth for C channels."""

    def __init__(self, num_channels: int, *, device: torch.device | str = "cpu") -> None:
        # float64 also on a GPU: this is one small product per batch. MPS has no float64.
        device = torch.device(device)
        device = self._device = torch.device("cpu") if device.type == "mps" else device
        self._gram_CVV = torch.zeros(num_channels, 6, 6, dtype=torch.float64, device=device)
        self._empty_C = torch.zeros(num_channels, dtype=torch.float64, device=device)
        # The largest values of −x and of x, where x are LEVELS and CHANGES.
        self._most = torch.full((num_channels, 8), -math.inf, dtype=torch.float64, device=device)

    def update(self, prediction_BCH: Tensor, target_BCH: Tensor, last_BCH: Tensor) -> None:
        """Add a batch.

        Args:
            prediction_BCH: Any float type; a NaN at a scored value makes the metrics NaN.
            target_BCH: Same shape; NaN where the value is not scored.
            last_BCH: Same shape: the last value seen before each step; no NaN.
        """
        with one_thread(self._device):
            scored_BCH = ~target_BCH.to(self._device).isnan()
            scored_CN = _per_channel(scored_BCH)
            p, y, last = (
                torch.where(scored_CN, _per_channel(x).to(self._device).double(), 0.0)
                for x in (prediction_BCH, target_BCH, last_BCH)
            )
            terms_CVN = torch.stack([scored_CN, (p - y).abs(), p, y, p - last, y - last], dim=1)
            self._gram_CVV += terms_CVN @ terms_CVN.mT
            self._empty_C += (~scored_BCH.any(dim=2)).sum(dim=0)
            signed_CVN = torch.cat([-terms_CVN[:, LEVELS[0] :], terms_CVN[:, LEVELS[0] :]], dim=1)
            most = torch.where(scored_CN[:, None], signed_CVN, -math.inf).amax(dim=2)
            self._most = torch.maximum(self._most, most)

    def add_other_processes(self) -> None:
        """Add the sums of the other processes, so that all have the same."""
        distributed.all_reduce_sum(self._gram_CVV, self._empty_C)
        distributed.all_reduce_max(self._most)

    def compute(
        self, *, mase_denominator_C: Tensor | None = None, naive_mse: float | None = None
    ) -> dict[str, float]:
        """The metrics of everything added so far; NaN if undefined.

        Args:
            mase_denominator_C: Seasonal-naive MAE of the train rows per channel; channels in
                which it is 0, or nothing is scored, are left out of the mean. None: no `mase`.
            naive_mse: MSE of the task's naive baseline on the same windows. None: no `skill`.
        """
        gram_CVV = self._gram_CVV.cpu()
        count_C, error_C = gram_CVV[:, COUNT, COUNT], gram_CVV[:, COUNT, ERROR]
        mse = float(gram_CVV[:, ERROR, ERROR].sum() / count_C.sum())
        corr, constant = self._correlation(gram_CVV, LEVELS)
        corr_delta, constant_delta = self._correlation(gram_CVV, CHANGES)
        metrics = {
            "loss": mse,
            "mae": float(error_C.sum() / count_C.sum()),
            "corr": corr,
            "corr_constant_channels": float(constant),
            "corr_delta": corr_delta,
            "corr_delta_constant_channels": float(constant_delta),
            "windows_without_target": float(self._empty_C.sum()),
        }
        if mase_denominator_C is not None:
            denominator_C = mase_denominator_C.double().cpu()
            usable = (denominator_C > 0) & (count_C > 0)
            ratio_C = error_C[usable] / count_C[usable] / denominator_C[usable]
            metrics["mase"] = float(ratio_C.mean()) if bool(usable.any()) else math.nan
        if naive_mse is not None:
            metrics["skill"] = 1 - mse / naive_mse if naive_mse > 0 else math.nan
        return metrics

    def _correlation(self, gram_CVV: Tensor, pair: tuple[int, int]) -> tuple[float, int]:
        """Mean Pearson r over the channels in which both sides vary, and how many do not."""
        a, b = pair
        n_C, sum_a, sum_b = (gram_CVV[:, COUNT, i] for i in (COUNT, a, b))
        covariance = gram_CVV[:, a, b] - sum_a * sum_b / n_C
        variance = (gram_CVV[:, a, a] - sum_a * sum_a / n_C) * (
            gram_CVV[:, b, b] - sum_b * sum_b / n_C
        )
        # Whether a side varies is decided from its extremes: the difference of two sums of squares
        # is never exactly 0 for a constant.
        least_CX, most_CX = -self._most[:, :4], self._most[:, 4:]
        sides = slice(a - LEVELS[0], b - LEVELS[0] + 1)
        moves_C = (most_CX > least_CX)[:, sides].all(dim=1).cpu()
        varies_C = moves_C & (variance > 0)
        if not bool(varies_C.any()):
            return math.nan, len(n_C)
        r_C = (covariance[varies_C] / variance[varies_C].sqrt()).clamp(-1, 1)
        return float(r_C.mean()), int((~varies_C).sum())


def _per_channel(x_BCH: Tensor) -> Tensor:
    """(C, N): each channel's N = B·H values."""
    return x_BCH.transpose(0, 1).reshape(x_BCH.shape[1], -1)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run the block on one thread on a CPU; on a GPU, change nothing.

    Small operations gain nothing from more threads, and next to another busy process two threads
    wait for each other at every operation: an update of 2 ms became 210 ms.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
