"""Tasks: a window's input and target, and how they are scored.

NaN marks both: in a batch's inputs, steps that the model must not or cannot see; in its
target, steps that are not scored (a gap in the data, a step that was visible).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t5ts.draws import draw_masks, num_masked


@dataclass(frozen=True)
class Batch:
    """A task's inputs and targets for B windows."""

    inputs_BCL: Tensor  # what the model sees; NaN where a step is hidden
    target_BCH: Tensor  # what it must predict; NaN where nothing is scored

    @cached_property
    def scored_BCH(self) -> Tensor:
        """Where there is something to score, bool."""
        return ~self.target_BCH.isnan()

    @cached_property
    def num_scored(self) -> Tensor:
        """Number of scored values; a scalar on the batch's device, to avoid a synchronisation."""
        return self.scored_BCH.sum()


class _SquaredError:
    """The loss of every task."""

    def loss(self, prediction_BCH: Tensor, batch: Batch) -> Tensor:
        """Mean squared error per scored element, in train-standardised units; 0 if there is none.

        Where everything is scored this is `mse_loss`, bit for bit (times exactly 1).
        """
        zero = prediction_BCH.new_zeros((), dtype=torch.float32)
        scored_BCH = batch.scored_BCH
        mse = torch.nn.functional.mse_loss(
            torch.where(scored_BCH, prediction_BCH.float(), zero),
            torch.where(scored_BCH, batch.target_BCH, zero),
        )
        # Two tensors: torch divides a number by a tensor as number · (1 / tensor), 1 ulp off 1.
        num_BCH = torch.full_like(batch.num_scored, scored_BCH.numel())
        return mse * (num_BCH / batch.num_scored.clamp_min(1))


@dataclass(frozen=True)
class Forecast(_SquaredError):
    """Predict the next `horizon` steps from `seq_len` steps of context."""

    seq_len: int
    horizon: int
    naive = "seasonal_naive"  # the baseline that `val_skill` is measured against and plots show
    uses_season = True  # whether `val_mase` is defined: errors over a seasonal naive forecast's
    hides = "none"  # how hidden steps look to the model: a "token" or "value", or "none" are hidden

    @property
    def context_len(self) -> int:
        """Steps of a window that may lie before the split: seen, not scored."""
        return self.seq_len

    @property
    def target_len(self) -> int:
        """Steps of a window that must lie in the split; the model's output."""
        return self.horizon

    def batch(
        self,
        window_BCW: Tensor,
        index_B: Tensor | None = None,  # noqa: ARG002 - every window is cut in the same way
        epoch: int | None = None,  # noqa: ARG002
    ) -> Batch:
        """Split windows into context and target.

        Args:
            window_BCW: (B, C, context_len + target_len); NaN where the data has a gap.
            index_B: Their numbers in the split.
            epoch: Of training; None in validation and test, which must not change with it.
        """
        return Batch(
            inputs_BCL=window_BCW[..., : self.seq_len], target_BCH=window_BCW[..., self.seq_len :]
        )

    def last_value(self, batch: Batch) -> Tensor:
        """The last value seen before each step of the target, (B, C, H); 0 if there is none."""
        last_BC1 = last_seen(batch.inputs_BCL)[..., -1:]
        return last_BC1.nan_to_num(0.0).expand_as(batch.target_BCH)

    def baselines(self, batch: Batch, *, season: int) -> dict[str, Tensor]:
        """Forecasts that need no training, (B, C, H) each, no NaN; `naive` first.

        `seasonal_naive` repeats the last season (`baseline_season` rows); where that has a gap, the
        season before it, and so on; then the last value. `mean` is the train rows' mean, 0.
        """
        steps = torch.arange(self.horizon, device=batch.inputs_BCL.device) % season
        naive_BCH = batch.inputs_BCL[..., self.seq_len - season + steps]
        for start in range(self.seq_len - 2 * season, -1, -season):
            if not bool(naive_BCH.isnan().any()):
                break
            earlier_BCH = batch.inputs_BCL[..., start + steps]
            naive_BCH = torch.where(naive_BCH.isnan(), earlier_BCH, naive_BCH)
        return _baselines(self.naive, naive_BCH, self.last_value(batch))

    def baseline_season(self, season: int) -> int:
        """The season that the naive baselines repeat: 1 where the context holds less than one."""
        return season if season <= self.seq_len else 1

    def notes(self, season: int) -> list[str]:
        """What a reader of the run must know about the task, one sentence each."""
        if self.baseline_season(season) == season:
            return []
        return ["the season exceeds seq_len: seasonal naive repeats the last value"]


@dataclass(frozen=True)
class Reconstruct(_SquaredError):
    """Predict the masked spans of a window of `seq_len` steps from the rest of it.

    The same steps are masked in all channels, so that a model that mixes them cannot infer a masked
    step from another channel, and sees no more than the baselines do. Which ones follows from
    (seed, window, epoch) in training; in validation and test from the window alone, so that every
    epoch, arm and seed is measured at the same points.

    Masked values are NaN in a batch's inputs: neither model nor baseline sees them. The target
    is NaN everywhere else. A gap in the data is hidden like a masked step and not scored.

    `ratio`, `min_len` and `max_len` are as in `t5ts.draws.num_masked`.
    """

    seq_len: int
    ratio: float
    min_len: int
    max_len: int
    mask: str  # "token" or "value": what replaces a hidden step in the model
    seed: int  # of the training masks
    naive = "linear_interpolation"
    uses_season = False
    context_len = 0  # a window is entirely inside its split

    @property
    def target_len(self) -> int:
        """The window."""
        return self.seq_len

    @property
    def hides(self) -> str:
        """What replaces a hidden step in the model."""
        return self.mask

    @property
    def num_masked(self) -> int:
        """Steps masked in every window."""
        return num_masked(**self._spans)

    @property
    def _spans(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("seq_len", "ratio", "min_len", "max_len")}

    def batch(self, window_BCW: Tensor, index_B: Tensor, epoch: int | None = None) -> Batch:
        """Hide the masked steps from the inputs, and all others from the target."""
        seed = 0 if epoch is None else self.seed
        mask_BL = draw_masks(index_B.cpu().numpy(), seed=seed, epoch=epoch, **self._spans)
        mask_B1L = torch.from_numpy(mask_BL).to(window_BCW.device, non_blocking=True)[:, None]
        nothing = window_BCW.new_full((), torch.nan)
        return Batch(
            inputs_BCL=torch.where(mask_B1L, nothing, window_BCW),
            target_BCH=torch.where(mask_B1L, window_BCW, nothing),
        )

    def last_value(self, batch: Batch) -> Tensor:
        """The last visible value; before the first one, that one; 0, the train mean, if none."""
        before_BCL, after_BCL, _ = _neighbours(batch.inputs_BCL)
        return torch.where(before_BCL.isnan(), after_BCL, before_BCL).nan_to_num(0.0)

    def baselines(self, batch: Batch, *, season: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Predictions that need no training, (B, C, L) each.

        `linear_interpolation` is the straight line between the visible neighbours of a span, and
        the one neighbour's value at a window's ends; `last_value` holds the neighbour before it.
        """
        before_BCL, after_BCL, weight_BCL = _neighbours(batch.inputs_BCL)
        line_BCL = before_BCL + weight_BCL * (after_BCL - before_BCL)
        return _baselines(self.naive, line_BCL, self.last_value(batch))

    def baseline_season(self, season: int) -> int:  # noqa: ARG002 - no baseline repeats one
        """1: no baseline repeats a season."""
        return 1

    def notes(self, season: int) -> list[str]:  # noqa: ARG002
        """How much is masked, by what seed, and what replaces it."""
        return [
            f"{self.num_masked} of the {self.seq_len} steps of each window are masked in all"
            f" channels, in spans of {self.min_len} to {self.max_len}, by (seed {self.seed},"
            " window, epoch); in validation and test by the window only",
            f"masked steps are a {self.mask} to the model; loss and metrics cover masked steps"
            " only; horizon has no effect",
        ]


Task = Forecast | Reconstruct


def _baselines(name: str, naive_BCH: Tensor, last_BCH: Tensor) -> dict[str, Tensor]:
    return {
        name: torch.where(naive_BCH.isnan(), last_BCH, naive_BCH),
        "last_value": last_BCH,
        "mean": torch.zeros_like(last_BCH),
    }


def _neighbours(x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At each step the visible values before and after it (NaN: none), and its place, 0 to 1."""
    step_L = torch.arange(x_BCL.shape[-1], device=x_BCL.device)
    last = x_BCL.shape[-1] - 1
    is_hidden_BCL = x_BCL.isnan()
    # Without a neighbour the window's end is used: it is hidden, so its value is NaN.
    before_BCL = torch.where(is_hidden_BCL, 0, step_L).cummax(-1).values
    after_BCL = torch.where(is_hidden_BCL, last, step_L).flip(-1).cummin(-1).values.flip(-1)
    weight_BCL = (step_L - before_BCL) / (after_BCL - before_BCL).clamp_min(1)
    return x_BCL.gather(-1, before_BCL), x_BCL.gather(-1, after_BCL), weight_BCL


def last_seen(x_BCL: Tensor) -> Tensor:
    """At each step the last value that is not NaN, at or before it; NaN where there is none."""
    step_L = torch.arange(x_BCL.shape[-1], device=x_BCL.device)
    # If there is none before, step 0 is used: it is NaN itself.
    return x_BCL.gather(-1, torch.where(x_BCL.isnan(), 0, step_L).cummax(-1).values)
