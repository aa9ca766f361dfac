"""The encoders between patch embedding and head: T5's or another model's stack, a light
baseline, and none."""

import math
import re
from collections.abc import Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5ts.model.hf_encoder import HFEncoder
from t5ts.model.layers import Conv1d, Dropout, Linear, SelfAttention
from t5ts.model.t5_encoder import T5Encoder


class _Stem(nn.Module):
    """Depthwise then pointwise convolution along the tokens, LayerNorm, GELU."""

    def __init__(self, width: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.depthwise = Conv1d(width, width, kernel_size, padding="same", groups=width)
        self.pointwise = Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens_MND: Tensor) -> Tensor:
        local_MND = self.depthwise(tokens_MND.transpose(1, 2)).transpose(1, 2)
        return F.gelu(self.layer_norm(self.pointwise(local_MND)))


class _SharedBlock(nn.Module):
    def __init__(
        self, width: int, *, num_heads: int, d_ff: int, dropout: float, norm_first: bool
    ) -> None:
        super().__init__()
        scale = (width / num_heads) ** -0.5
        attention = SelfAttention(
            width, width, num_heads=num_heads, scale=scale, dropout=dropout, bias=True
        )
        feed_forward = {"wi": Linear(width, d_ff), "wo": Linear(d_ff, width)}
        self.layer = nn.ModuleList(
            nn.ModuleDict({**inner, "layer_norm": nn.LayerNorm(width)})
            for inner in ({"SelfAttention": attention}, feed_forward)
        )
        self.dropout = Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, hidden_MND: Tensor) -> Tensor:
        first: Any = self.layer[0]
        second: Any = self.layer[1]
        if self.norm_first:
            hidden_MND = hidden_MND + self.dropout(
                first.SelfAttention(first.layer_norm(hidden_MND))
            )
            return hidden_MND + self._feed_forward(second.layer_norm(hidden_MND))
        hidden_MND = first.layer_norm(hidden_MND + self.dropout(first.SelfAttention(hidden_MND)))
        return second.layer_norm(hidden_MND + self._feed_forward(hidden_MND))

    def _feed_forward(self, hidden_MND: Tensor) -> Tensor:
        second: Any = self.layer[1]
        return self.dropout(second.wo(self.dropout(F.gelu(second.wi(hidden_MND)))))


class SharedEncoder(nn.Module):
    """The light baseline: a convolution stem, then post-norm transformer layers.

    Parameters are named `stem.*` and `block.{i}.layer.{0,1}.*`, with `layer_norm` for every norm,
    so that freezing patterns written for T5 also work here. Positions are sinusoidal, added after
    the stem. A post-norm layer ends in a norm, so there is no final one.

    Without the stem and with `norm_first` it is close to PatchTST: there is no norm on the residual
    path from patches to head, so that the head can see how large each patch is.

    Args:
        d_model, num_layers, num_heads, d_ff: Sizes; the heads must divide the width.
        dropout: Probability, after stem and positions, on the attention weights, inside the
            feed-forward and after each sublayer.
        stem: Whether there is a convolution stem.
        norm_first: Norm before each sublayer, inside the residual branch, instead of after it.

    Source: the lab log's SharedEncoder; post-norm layers and positions, Vaswani et al. 2017;
        `norm_first`, Xiong et al. 2020.
    """

    def __init__(
        self,
        *,
        d_model: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        d_ff: int = 512,
        dropout: float = 0.1,
        stem: bool = True,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        assert d_model % num_heads == d_model % 2 == 0
        self.d_model = d_model
        self.num_blocks = num_layers
        self.stem = _Stem(d_model) if stem else nn.Identity()
        self.block = nn.ModuleList(
            _SharedBlock(
                d_model, num_heads=num_heads, d_ff=d_ff, dropout=dropout, norm_first=norm_first
            )
            for _ in range(num_layers)
        )
        self.dropout = Dropout(dropout)

    @torch.no_grad()
    def init_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights from this CPU generator: std 1/√fan_in; biases 0; norms 1 and 0.

        Source: own; LeCun et al. 1998's scale, which keeps unit variance through each matrix.
        """
        for module in self.modules():
            if isinstance(module, Linear | Conv1d):
                fan_in = math.prod(module.weight.shape[1:])
                module.weight.normal_(0.0, fan_in**-0.5, generator=generator)
                assert module.bias is not None
                module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens; (M, N, D) in and out."""
        hidden_MND = self.stem(tokens_MND)
        hidden_MND = self.dropout(hidden_MND + _sinusoids(hidden_MND))
        for block in self.block:
            hidden_MND = block(hidden_MND)
        return hidden_MND


def _sinusoids(like_MND: Tensor) -> Tensor:
    """Sinusoidal positions, (N, D): sines in the first half of the width, cosines in the second.

    Source: Vaswani et al. 2017, section 3.5.
    """
    _, num_tokens, width = like_MND.shape
    position_N = torch.arange(num_tokens, device=like_MND.device, dtype=torch.float32)
    exponent = torch.arange(0, width, 2, device=like_MND.device, dtype=torch.float32) / width
    angle = position_N[:, None] * 10_000.0**-exponent
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like_MND.dtype)


class NoEncoder(nn.Module):
    """Nothing between patching and head, without width or blocks: the forecaster is a linear map.

    Source: Zeng et al. 2023 (NLinear), "Are Transformers Effective for Time Series Forecasting?".
    """

    def __init__(self) -> None:
        super().__init__()
        self.d_model = 0
        self.num_blocks = 0

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return tokens_MND


Encoder = T5Encoder | HFEncoder | SharedEncoder | NoEncoder


def store_in_bfloat16(encoder: Encoder, frozen: Set[str]) -> None:
    """Keep the linear maps that never train in bfloat16, to which autocast rounds them anyway.

    A frozen encoder takes half of the memory, and no output under autocast changes. Norms and
    tables of positions stay float32. From here on the encoder enters autocast by itself, also where
    its caller does not.

    Args:
        encoder: On its device, with its weights.
        frozen: Names of its parameters that no step changes.
    """
    stored = False
    for prefix, module in encoder.named_modules():
        names = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's
        if is_linear and names <= frozen:
            module.to(torch.bfloat16)
            stored = True
    if not stored:
        return
    device, forward = next(encoder.parameters()).device.type, encoder.forward

    def under_autocast(tokens_MND: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return forward(tokens_MND).float()

    vars(encoder)["forward"] = under_autocast


def component_of(parameter_name: str) -> str:
    """The part of a `Forecaster` that a parameter belongs to.

    T5's relative position bias, which all blocks use, belongs to block 0.

    Returns:
        "patch", "stem", "block_<i>", "final_norm" or "head"; ValueError for another name.
    """
    match = re.match(
        r"(patch|head)\.|encoder\.(stem|final_layer_norm|block\.\d+)\.", parameter_name
    )
    if match is None:
        raise ValueError(
            f"{parameter_name!r} is not a parameter of a forecaster: names begin with patch.,"
            " head., encoder.stem., encoder.block.<i>. or encoder.final_layer_norm."
        )
    part = match[1] or match[2]
    return part.replace("block.", "block_").replace("final_layer_norm", "final_norm")
