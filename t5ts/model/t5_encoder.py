"""T5's encoder stack, with transformers' parameter names and numbers."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5ts.model.architecture import T5Architecture
from t5ts.model.layers import Dropout, Embedding, Linear, SelfAttention, mark_unset


class _RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, statistics in float32.

    The sequence of operations is T5's own, since it determines the last bits; `F.rms_norm` is not
    faster on a CPU.

    Source: Zhang & Sennrich 2019, eq. 4.
    """

    def __init__(self, arch: T5Architecture) -> None:
        super().__init__()
        self.eps = arch.layer_norm_epsilon
        self.weight = nn.Parameter(torch.empty(arch.d_model))
        mark_unset(self)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        mean_square_MN1 = hidden_MND.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_MND * torch.rsqrt(mean_square_MN1 + self.eps))


class _RelativePositionBias(Embedding):
    """T5's bias on the attention scores: one learned value per head and distance bucket.

    `weight` is (buckets, heads). From `max_distance` tokens on, every distance shares the last
    bucket, so one table of 2·max_distance + 1 entries serves every length.

    Source: Raffel et al. 2020, section 2.1.
    """

    buckets_of_distance: Tensor

    def __init__(self, arch: T5Architecture) -> None:
        num_buckets = arch.relative_attention_num_buckets
        super().__init__(num_buckets, arch.num_heads)
        self.max_distance = arch.relative_attention_max_distance
        # Not on the meta device, where shapes are found: the table's arithmetic takes 57 ms there.
        distances = torch.arange(-self.max_distance, self.max_distance + 1, device="cpu")
        buckets = _relative_position_bucket(distances, num_buckets, self.max_distance)
        self.register_buffer("buckets_of_distance", buckets, persistent=False)

    def bias(self, num_tokens: int) -> Tensor:
        """The bias for `num_tokens` tokens, (1, heads, N, N), query first."""
        position_N = torch.arange(num_tokens, device=self.weight.device)
        distance_NN = position_N[None, :] - position_N[:, None]  # key minus query
        index_NN = distance_NN.clamp(-self.max_distance, self.max_distance) + self.max_distance
        bias_NNh = F.embedding(self.buckets_of_distance[index_NN], self.weight)
        return bias_NNh.permute(2, 0, 1)[None]


def _relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each signed distance (key minus query): exact when near, logarithmic when far.

    Logarithms are taken in float32, as T5 does: bucket borders depend on the rounding.
    """
    per_direction = num_buckets // 2
    num_exact = per_direction // 2
    far = distance.abs()
    log_ratio = torch.log(far.float() / num_exact) / math.log(max_distance / num_exact)
    logarithmic = num_exact + (log_ratio.clamp(min=0) * (per_direction - num_exact)).long()
    bucket = torch.where(far < num_exact, far, logarithmic.clamp(max=per_direction - 1))
    return bucket + (distance > 0).long() * per_direction


class _T5FeedForward(nn.Module):
    """relu(x Wi) Wo, or (gelu(x Wi_0) · x Wi_1) Wo in T5 v1.1 (tanh gelu)."""

    def __init__(self, arch: T5Architecture, *, dropout: float) -> None:
        super().__init__()
        self.gated = arch.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = Linear(arch.d_model, arch.d_ff, bias=False)
            self.wi_1 = Linear(arch.d_model, arch.d_ff, bias=False)
        else:
            self.wi = Linear(arch.d_model, arch.d_ff, bias=False)
        self.wo = Linear(arch.d_ff, arch.d_model, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, normed_MND: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.wi_0(normed_MND), self.wi_1(normed_MND)
            inner = F.gelu(_widen_float16(gate), approximate="tanh") * _widen_float16(value)
        else:
            inner = _widen_float16(F.relu(self.wi(normed_MND)))
        inner = self.dropout(inner)
        device = inner.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16:
            # Pretrained T5's output here exceeds float16's largest value, 65504 (HF #4586).
            with torch.autocast(device, enabled=False):
                return self.wo(inner)
        return self.wo(inner)


def _widen_float16(x: Tensor) -> Tensor:
    """float32 instead of float16; bfloat16 has float32's range and is kept."""
    return x.float() if x.dtype is torch.float16 else x


class _T5Block(nn.Module):
    def __init__(self, arch: T5Architecture, *, dropout: float, owns_bias: bool) -> None:
        super().__init__()
        attention = SelfAttention(
            arch.d_model,
            arch.num_heads * arch.d_kv,
            num_heads=arch.num_heads,
            scale=1.0,  # T5 folds 1/√d_kv into the initialisation of q
            dropout=dropout,
            bias=False,
        )
        if owns_bias:
            attention.relative_attention_bias = _RelativePositionBias(arch)
        inner = {
            "SelfAttention": attention,
            "DenseReluDense": _T5FeedForward(arch, dropout=dropout),
        }
        self.layer = nn.ModuleList(
            nn.ModuleDict({name: module, "layer_norm": _RMSNorm(arch)})
            for name, module in inner.items()
        )
        self.dropout = Dropout(dropout)

    def forward(self, hidden_MND: Tensor, bias_1hNN: Tensor) -> Tensor:
        first: Any = self.layer[0]
        second: Any = self.layer[1]
        mixed_MND = first.SelfAttention(first.layer_norm(hidden_MND), bias_1hNN)
        hidden_MND = hidden_MND + self.dropout(mixed_MND)
        return hidden_MND + self.dropout(second.DenseReluDense(second.layer_norm(hidden_MND)))


class T5Encoder(nn.Module):
    """T5's encoder stack on embeddings, without the token embedding.

    Parameters carry transformers' names without the leading `encoder.`, and forward and gradients
    equal those of its `T5EncoderModel(inputs_embeds=...)`. They are NaN until a state dict is
    loaded: `load_state_dict` is the only way to fill them, and arms differ in nothing else.

    The residual stream and the feed-forward's output matmul stay in float32 under float16
    autocast, where pretrained T5 overflows otherwise.

    Args:
        arch: Shape of the stack.
        dropout: Probability, on the input, the attention weights, inside the feed-forward, after
            each sublayer and after the final norm, as T5 has it.

    Source: Raffel et al. 2020; Shazeer 2020 for the gated feed-forward.
    """

    def __init__(self, arch: T5Architecture, *, dropout: float) -> None:
        super().__init__()
        assert arch.feed_forward_proj in ("relu", "gated-gelu")  # v1.0; v1.1 and Flan
        self.d_model = arch.d_model
        self.num_blocks = arch.num_layers
        self.block = nn.ModuleList(
            _T5Block(arch, dropout=dropout, owns_bias=i == 0) for i in range(arch.num_layers)
        )
        self.final_layer_norm = _RMSNorm(arch)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens, (M, N, D) in and out; half precision is widened to float32."""
        if tokens_MND.dtype in (torch.float16, torch.bfloat16):
            tokens_MND = tokens_MND.float()
        position = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        assert isinstance(position, _RelativePositionBias)
        bias_1hNN = position.bias(tokens_MND.shape[1])
        hidden_MND = self.dropout(tokens_MND)
        for block in self.block:
            hidden_MND = block(hidden_MND, bias_1hNN)
        return self.dropout(self.final_layer_norm(hidden_MND))
