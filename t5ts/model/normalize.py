"""Per-window normalisation of the context, and its inverse on the output."""

import torch
from torch import Tensor, nn

MIN_STD = 1e-5**0.5
"""Smallest divisor, in train-standardised units: RevIN's √eps."""


class InstanceNorm(nn.Module):
    """RevIN without its affine part: subtract each window's mean, divide by its std.

    Statistics are taken over the context alone, per window and channel, biased (divided by L),
    in float32 or wider. The divisor is max(std, `MIN_STD`), whereas RevIN adds eps to the variance:
    a window at or above the floor is normalised exactly, so that the forecast follows any shift and
    positive scale of the context. Values are first taken relative to the last one, which loses
    nothing and keeps a constant window's deviations at exactly 0. A NaN spreads to its window and
    channel, and from there into the loss, where training stops.

    Source: Kim et al. 2022, "Reversible Instance Normalization", eqs. 1-2, without gamma and beta.
    """

    def forward(self, x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise a context, (B, C, L): mean 0 and std 1; then mean and divisor, (B, C, 1)."""
        x_BCL = x_BCL.to(torch.promote_types(x_BCL.dtype, torch.float32))
        last_BC1 = x_BCL[..., -1:]
        from_last_BCL = x_BCL - last_BC1
        mean_BC1 = from_last_BCL.mean(-1, keepdim=True)
        centred_BCL = from_last_BCL - mean_BC1
        std_BC1 = centred_BCL.square().mean(-1, keepdim=True).sqrt()
        divisor_BC1 = std_BC1.clamp_min(MIN_STD)
        return centred_BCL / divisor_BC1, last_BC1 + mean_BC1, divisor_BC1

    def invert(self, y_BCH: Tensor, mean_BC1: Tensor, divisor_BC1: Tensor) -> Tensor:
        """Convert a forecast back to data units, with the statistics of its context."""
        return y_BCH.to(divisor_BC1.dtype) * divisor_BC1 + mean_BC1


class VisibleInstanceNorm(InstanceNorm):
    """Instance normalisation by the visible steps, those that are not NaN.

    No hidden step reaches the model or its output through the scale. NaN stays where it was, for
    the patches to fill. If a channel of a window has no visible step, mean 0 and divisor 1 are
    used, those of the train rows. Without a NaN this is `InstanceNorm`, up to rounding.
    """

    def forward(self, x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise a context, NaN where it is hidden; see `InstanceNorm.forward`."""
        x_BCL = x_BCL.to(torch.promote_types(x_BCL.dtype, torch.float32))
        is_seen_BCL = ~x_BCL.isnan()
        num_BC1 = is_seen_BCL.sum(-1, keepdim=True)
        step_L = torch.arange(x_BCL.shape[-1], device=x_BCL.device)
        last_step_BC1 = torch.where(is_seen_BCL, step_L, 0).amax(-1, keepdim=True)
        last_BC1 = x_BCL.gather(-1, last_step_BC1).nan_to_num(0.0)
        from_last_BCL = torch.where(is_seen_BCL, x_BCL - last_BC1, 0.0)
        mean_BC1 = from_last_BCL.sum(-1, keepdim=True) / num_BC1.clamp_min(1)
        centred_BCL = torch.where(is_seen_BCL, from_last_BCL - mean_BC1, 0.0)
        square_BC1 = centred_BCL.square().sum(-1, keepdim=True)
        std_BC1 = (square_BC1 / num_BC1.clamp_min(1)).sqrt()
        divisor_BC1 = torch.where(num_BC1 > 0, std_BC1.clamp_min(MIN_STD), 1.0)
        normed_BCL = torch.where(is_seen_BCL, centred_BCL / divisor_BC1, torch.nan)
        return normed_BCL, last_BC1 + mean_BC1, divisor_BC1


class NoNorm(nn.Module):
    """The context as it is, and the forecast in the context's dtype."""

    def forward(self, x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the context, mean 0 and divisor 1."""
        return x_BCL, x_BCL.new_zeros(()), x_BCL.new_ones(())

    def invert(self, y_BCH: Tensor, mean_BC1: Tensor, divisor_BC1: Tensor) -> Tensor:  # noqa: ARG002
        """Return the forecast."""
        return y_BCH.to(divisor_BC1.dtype)


def build_normalize(name: str, *, has_hidden: bool = False) -> InstanceNorm | NoNorm:
    """The normalisation "instance" or "none"; with `has_hidden` NaN marks hidden steps."""
    assert name in ("instance", "none")
    if name == "none":
        return NoNorm()
    return VisibleInstanceNorm() if has_hidden else InstanceNorm()
