"""Per-window normalisation: what the model sees, and how its output returns to data units."""

import torch
from torch import Tensor, nn

from t5ts.errors import ConfigError

MIN_STD = 1e-5**0.5
"""Smallest divisor, in train-standardised units: RevIN's √eps."""


class InstanceNorm(nn.Module):
    """RevIN without its affine part: subtract each window's mean, divide by its std.

    Statistics are taken over the context alone, per window and channel, biased (divided by L),
    in float32 or wider. The divisor is max(std, `MIN_STD`), where RevIN adds eps to the variance:
    a window at or above the floor is then normalised exactly, so that the forecast follows any
    shift and positive scale of the context, and a constant window becomes zeros, whose forecast
    is its own level up to `MIN_STD` times the network's output. Values are taken relative to the
    last one first, which loses nothing and keeps a constant window's deviations at exactly 0.

    A NaN spreads to the whole window of that channel, and from there into the loss, where the
    training loop stops; nothing here replaces it.

    Source: Kim et al. 2022, "Reversible Instance Normalization", eqs. 1-2, without gamma and beta.
    """

    def forward(self, x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise a context.

        Args:
            x_BCL: Context in train-standardised units.

        Returns:
            The context of mean 0 and std 1, (B, C, L); then mean and divisor, (B, C, 1).
        """
        x_BCL = x_BCL.to(torch.promote_types(x_BCL.dtype, torch.float32))
        last_BC1 = x_BCL[..., -1:]
        from_last_BCL = x_BCL - last_BC1
        mean_BC1 = from_last_BCL.mean(-1, keepdim=True)
        centred_BCL = from_last_BCL - mean_BC1
        std_BC1 = centred_BCL.square().mean(-1, keepdim=True).sqrt()
        divisor_BC1 = std_BC1.clamp_min(MIN_STD)
        return centred_BCL / divisor_BC1, last_BC1 + mean_BC1, divisor_BC1

    def invert(self, y_BCH: Tensor, mean_BC1: Tensor, divisor_BC1: Tensor) -> Tensor:
        """Return a forecast to data units, with the statistics of its context."""
        return y_BCH.to(divisor_BC1.dtype) * divisor_BC1 + mean_BC1


class NoNorm(nn.Module):
    """The context as it is, and the forecast in the context's dtype."""

    def forward(self, x_BCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the context, mean 0 and divisor 1."""
        return x_BCL, x_BCL.new_zeros(()), x_BCL.new_ones(())

    def invert(self, y_BCH: Tensor, mean_BC1: Tensor, divisor_BC1: Tensor) -> Tensor:  # noqa: ARG002
        """Return the forecast."""
        return y_BCH.to(divisor_BC1.dtype)


def build_normalize(name: str) -> InstanceNorm | NoNorm:
    """The normalisation of that name.

    Args:
        name: "instance" or "none".

    Raises:
        ConfigError: for any other name.
    """
    if name == "instance":
        return InstanceNorm()
    if name == "none":
        return NoNorm()
    raise ConfigError(f"normalize={name!r} is unknown: use 'instance' or 'none'.")
