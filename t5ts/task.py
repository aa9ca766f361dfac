"""Tasks: what a window's input and target are. A second task is a second class of this shape."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a task cuts out of B windows.

    Attributes:
        inputs_BCL: What the model sees.
        target_BCH: What it must give.
        last_BC: Last value seen, from which `val_corr_delta` measures changes.
    """

    inputs_BCL: Tensor
    target_BCH: Tensor
    last_BC: Tensor


@dataclass(frozen=True)
class Forecast:
    """Predict the next `horizon` steps from `seq_len` steps of context."""

    seq_len: int
    horizon: int

    @property
    def context_len(self) -> int:
        """Steps of a window that may lie before the split (they are seen, not scored)."""
        return self.seq_len

    @property
    def target_len(self) -> int:
        """Steps of a window that must lie in the split."""
        return self.horizon

    @property
    def output_len(self) -> int:
        """Steps that the model's head gives."""
        return self.horizon

    def batch(self, window_BCW: Tensor) -> Batch:
        """Split windows of seq_len + horizon steps into context and target."""
        inputs_BCL = window_BCW[..., : self.seq_len]
        return Batch(
            inputs_BCL=inputs_BCL,
            target_BCH=window_BCW[..., self.seq_len :],
            last_BC=inputs_BCL[..., -1],
        )

    def loss(self, prediction_BCH: Tensor, batch: Batch) -> Tensor:
        """Mean squared error per element, in train-standardised units."""
        return torch.nn.functional.mse_loss(prediction_BCH.float(), batch.target_BCH)

    def baselines(self, batch: Batch, *, season: int) -> dict[str, Tensor]:
        """Forecasts that need no training, (B, C, H) each.

        `seasonal_naive` repeats the last season, `last_value` the last value, `mean` predicts the
        train rows' mean (0 in standardised units). A season longer than the context cannot be
        repeated from it: `baseline_season` says which is used.
        """
        steps = torch.arange(self.horizon, device=batch.inputs_BCL.device) % season
        return {
            "seasonal_naive": batch.inputs_BCL[..., self.seq_len - season + steps],
            "last_value": batch.last_BC[..., None].expand_as(batch.target_BCH),
            "mean": torch.zeros_like(batch.target_BCH),
        }

    def baseline_season(self, season: int) -> int:
        """The season that the naive baselines repeat: 1 where the context holds less than one."""
        return season if season <= self.seq_len else 1
