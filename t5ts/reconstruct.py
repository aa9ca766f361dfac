"""The second task: give back the steps of a window that were hidden."""

from dataclasses import dataclass

import torch
from torch import Tensor

from t5ts.spans import draw_masks, num_masked
from t5ts.task import Batch, Task


@dataclass(frozen=True)
class Reconstruct(Task):
    """Predict the masked spans of a window of `seq_len` steps from the rest of it.

    The same steps are masked in all channels, so that a model that mixes them cannot read a masked
    step off another channel's, and sees no more than the baselines do. Which ones follows from
    (seed, window, epoch) in training; in validation and test from the window alone, so that every
    epoch, arm and seed is measured at the same points.

    Masked values are NaN in a batch's inputs: neither model nor baseline is handed them. The target
    is NaN everywhere else. A gap of the data is hidden like a masked step and not scored.

    Args:
        seq_len: L.
        ratio: Wished share of masked steps.
        min_len: Least length of a span.
        max_len: Greatest.
        mask: "token" or "value": what a model puts in place of a hidden step.
        seed: Of the training masks.
    """

    seq_len: int
    ratio: float
    min_len: int
    max_len: int
    mask: str
    seed: int
    naive = "linear_interpolation"
    uses_season = False

    @property
    def context_len(self) -> int:
        """Nothing lies before the target: a window lies wholly in its split."""
        return 0

    @property
    def target_len(self) -> int:
        """The window."""
        return self.seq_len

    @property
    def output_len(self) -> int:
        """The window: which of its steps are asked for changes from one to the next."""
        return self.seq_len

    @property
    def hides(self) -> str:
        """What stands for a hidden step."""
        return self.mask

    @property
    def num_masked(self) -> int:
        """Steps masked in every window."""
        return num_masked(
            self.seq_len, ratio=self.ratio, min_len=self.min_len, max_len=self.max_len
        )

    def batch(self, window_BCW: Tensor, index_B: Tensor, epoch: int | None = None) -> Batch:
        """Hide the masked steps from the inputs, and all others from the target."""
        mask_BL = draw_masks(
            index_B.cpu().numpy(),
            seq_len=self.seq_len,
            ratio=self.ratio,
            min_len=self.min_len,
            max_len=self.max_len,
            seed=0 if epoch is None else self.seed,
            epoch=epoch,
        )
        mask_B1L = torch.from_numpy(mask_BL).to(window_BCW.device, non_blocking=True)[:, None]
        nothing = window_BCW.new_full((), torch.nan)
        return Batch(
            inputs_BCL=torch.where(mask_B1L, nothing, window_BCW),
            target_BCH=torch.where(mask_B1L, window_BCW, nothing),
        )

    def last_value(self, batch: Batch) -> Tensor:
        """The last visible value; before the first one, that; 0, the train mean, without any."""
        before_BCL, after_BCL, _ = _neighbours(batch.inputs_BCL)
        return torch.where(before_BCL.isnan(), after_BCL, before_BCL).nan_to_num(0.0)

    def baselines(self, batch: Batch, *, season: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Predictions that need no training, (B, C, L) each.

        `linear_interpolation` is the straight line between the visible neighbours of a span, and
        the one neighbour's value at a window's ends; `last_value` holds the neighbour before it;
        `mean` predicts the train rows' mean (0 in standardised units).
        """
        before_BCL, after_BCL, weight_BCL = _neighbours(batch.inputs_BCL)
        last_BCL = self.last_value(batch)
        line_BCL = before_BCL + weight_BCL * (after_BCL - before_BCL)
        return {
            "linear_interpolation": torch.where(line_BCL.isnan(), last_BCL, line_BCL),
            "last_value": last_BCL,
            "mean": torch.zeros_like(batch.target_BCH),
        }

    def baseline_season(self, season: int) -> int:  # noqa: ARG002 - no baseline repeats one
        """1: no baseline repeats a season."""
        return 1

    def notes(self, season: int) -> list[str]:  # noqa: ARG002
        """How much is masked, by what seed, and what stands for it."""
        return [
            f"{self.num_masked} of the {self.seq_len} steps of each window are masked in all"
            f" channels, in spans of {self.min_len} to {self.max_len}, by (seed {self.seed},"
            " window, epoch); in validation and test by the window alone",
            f"masked steps are a {self.mask} to the model; loss and metrics are of masked steps"
            " only; horizon has no meaning",
        ]


def _neighbours(x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each step: the visible value at or before it, at or after it, and how far on it lies.

    Returns:
        (B, C, L) each; the values are NaN where there is none, the last is the step's place between
        its neighbours, from 0 to 1.
    """
    step_L = torch.arange(x_BCL.shape[-1], device=x_BCL.device)
    last = x_BCL.shape[-1] - 1
    is_hidden_BCL = x_BCL.isnan()
    # Where there is no neighbour the window's end is taken: it is hidden, so its value is NaN.
    before_BCL = torch.where(is_hidden_BCL, 0, step_L).cummax(-1).values
    after_BCL = torch.where(is_hidden_BCL, last, step_L).flip(-1).cummin(-1).values.flip(-1)
    weight_BCL = (step_L - before_BCL) / (after_BCL - before_BCL).clamp_min(1)
    return x_BCL.gather(-1, before_BCL), x_BCL.gather(-1, after_BCL), weight_BCL
