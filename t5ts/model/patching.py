"""From a context to tokens: which steps make a patch, and how a patch becomes a vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Cut a context into patches and project each to a token.

    A patch starts every `stride` steps. If L - P is not a multiple of the stride, the front is
    padded by repeating the first value, so that the last patch ends at the last observation and
    no observation is dropped.

    Channels are `independent` (each channel of each window is a row of its own, all sharing one
    projection: M = B·C, row b·C + c) or `mixing` (a token embeds the same patch of all channels:
    M = B). Positions are added by the encoder.

    A token is scale · norm(W patch + b), the norm being an optional LayerNorm over D. Weights
    are drawn in the constructor, from the generator alone: W normal with std 1/√fan_in, so that a
    token's RMS is about its patch's; b uniform within ±1/√fan_in; norm 1 and 0.

    b must not start at zero: a constant window is all zeros after instance normalisation, its
    tokens would be exactly zero, and each of T5's norms multiplies the gradient of a zero vector
    by 1/√ε = 1000. Through 4 blocks that made gradient norms of 3e12 on real data (LOG.md).

    Hidden steps are NaN, and `hidden` is what replaces them. "none": nothing, and a NaN propagates.
    "value": 0, which after instance normalisation is the mean of what is visible. "token": also 0,
    and before the norm the token gets the sum of a learnable vector for each hidden place of its
    patch. A wholly hidden patch is then always the same token; a partly hidden one keeps its
    visible values and shows which places are missing. The padding repeats the first step's mark.

    Args:
        seq_len: Context length L in steps.
        num_channels: Channels C.
        d_model: Token width D.
        patch_len: Patch length P in steps.
        stride: Steps from one patch to the next; None for `patch_len`. At most `patch_len`.
        channels: "independent" or "mixing".
        norm: LayerNorm after the projection.
        scale: What tokens are multiplied by after the norm.
        hidden: "none", "value" or "token". The mask token's entries are drawn after W and b, which
            are the same in all three: normal with std 1/√fan_in, so that a wholly hidden patch's
            token is as large as any other.
        generator: Source of the initial weights, on the CPU.

    Source: Nie et al. 2023 (PatchTST), section 3.1; norm, scale, padding and hidden steps own.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        num_channels: int,
        d_model: int,
        patch_len: int,
        stride: int | None,
        channels: str,
        norm: bool,
        scale: float = 1.0,
        hidden: str = "none",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        stride = patch_len if stride is None else stride
        assert 1 <= stride <= patch_len <= seq_len
        assert channels in ("independent", "mixing")
        assert hidden in ("none", "value", "token")
        self.d_model = d_model
        self.patch_len = patch_len
        self.stride = stride
        self.mixing = channels == "mixing"
        self.hidden = hidden
        self.pad = -(seq_len - patch_len) % stride
        self.num_patches = (seq_len + self.pad - patch_len) // stride + 1
        self.scale = scale
        fan_in = patch_len * num_channels if self.mixing else patch_len
        self.projection = torch.nn.utils.skip_init(nn.Linear, fan_in, d_model)
        self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()
        with torch.no_grad():
            bound = fan_in**-0.5
            self.projection.weight.normal_(0.0, bound, generator=generator)
            self.projection.bias.uniform_(-bound, bound, generator=generator)
        self.mask_token: nn.Parameter | None = None  # (fan_in, D): a vector for each place
        if hidden == "token":
            token_PD = torch.empty(fan_in, d_model).normal_(0.0, bound, generator=generator)
            self.mask_token = nn.Parameter(token_PD)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Embed a context, (B, C, L), as tokens, (M, N, D)."""
        tokens_MND = self.norm(self._project(self.patches(x_BCL)))
        return tokens_MND if self.scale == 1.0 else tokens_MND * self.scale

    def _project(self, patches_MNP: Tensor) -> Tensor:
        """Project patches, with hidden places replaced."""
        if self.hidden == "none":
            return self.projection(patches_MNP)
        is_hidden_MNP = patches_MNP.isnan()
        tokens_MND = self.projection(patches_MNP.masked_fill(is_hidden_MNP, 0.0))
        if self.mask_token is None:
            return tokens_MND
        return tokens_MND + is_hidden_MNP.to(patches_MNP.dtype) @ self.mask_token

    def patches(self, x_BCL: Tensor) -> Tensor:
        """The patches before projection: (B·C, N, P), or (B, N, C·P) when channels mix."""
        if self.pad:
            x_BCL = F.pad(x_BCL, (self.pad, 0), mode="replicate")
        patches_BCNP = x_BCL.unfold(-1, self.patch_len, self.stride)
        if self.mixing:
            return patches_BCNP.transpose(1, 2).flatten(2)
        return patches_BCNP.flatten(0, 1)


class WholeContext(nn.Module):
    """The context as one token without projection, for a forecaster without encoder.

    M, N, D are B·C, 1, L, or B, 1, C·L when channels mix. There are no parameters.

    Args:
        seq_len: Context length L in steps.
        num_channels: Channels C.
        channels: "independent" or "mixing".
        hidden: "none" or "value" (0 for a hidden step); see `PatchEmbedding`.
    """

    def __init__(
        self, *, seq_len: int, num_channels: int, channels: str, hidden: str = "none"
    ) -> None:
        super().__init__()
        assert channels in ("independent", "mixing")
        assert hidden in ("none", "value")  # there are no tokens
        self.hidden = hidden
        self.mixing = channels == "mixing"
        self.num_patches = 1
        self.d_model = seq_len * num_channels if self.mixing else seq_len

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Reshape a context, (B, C, L), to one token a row, (M, 1, D)."""
        if self.hidden == "value":
            x_BCL = x_BCL.masked_fill(x_BCL.isnan(), 0.0)
        return x_BCL.flatten(1)[:, None] if self.mixing else x_BCL.flatten(0, 1)[:, None]
