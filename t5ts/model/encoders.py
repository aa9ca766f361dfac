"""The encoders between patch embedding and head: T5's stack, a light baseline, and none.

All of them are built without drawing from any random state: an arm is decided by the state dict
that is loaded afterwards (T5) or by the generator that is handed to `init_parameters` (the light
baseline), so building one cannot shift the randomness of anything else.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5ts.errors import ConfigError
from t5ts.model.architecture import T5Architecture


class _Linear(nn.Linear):
    """`nn.Linear` that leaves its parameters for a later load or init, and draws nothing."""

    def reset_parameters(self) -> None:
        _mark_unset(self)


class _Embedding(nn.Embedding):
    """`nn.Embedding`, likewise."""

    def reset_parameters(self) -> None:
        _mark_unset(self)


class _Conv1d(nn.Conv1d):
    """`nn.Conv1d`, likewise."""

    def reset_parameters(self) -> None:
        _mark_unset(self)


@torch.no_grad()
def _mark_unset(module: nn.Module) -> None:
    """Fill a module's own parameters with NaN.

    Memory that nobody set is often all zeros, which trains without a word; NaN cannot be missed.
    """
    for parameter in module.parameters(recurse=False):
        parameter.fill_(math.nan)


def _dropout(x: Tensor, p: float) -> Tensor:
    """Dropout, three times faster than `F.dropout` on a CPU, where it took a third of a step.

    A 64-bit draw serves four entries, so `p` is rounded to a multiple of 2^-16; what is kept is
    scaled by the rounded probability and stays unbiased. Measured on 2 cores for (64, 4, 2048)
    entries, forward and backward: 1.2 ms against 3.1 ms. On a GPU, and compiled, `F.dropout` is
    one fused kernel.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    chunks = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on ±2^15
    num_dropped = min(round(p * 2**16), 2**16 - 1)
    kept = (chunks >= num_dropped - 2**15).to(x.dtype)
    return x * kept.mul_(2**16 / (2**16 - num_dropped))


class _Dropout(nn.Module):
    """`_dropout` as a module: active in training mode only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return _dropout(x, self.p) if self.training and self.p > 0.0 else x


class _RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, statistics in float32.

    The sequence of operations is T5's own, since it decides the last bits. `F.rms_norm` is no
    faster on CPU (M=256, N=4, D=512, forward and backward: 1.7 ms against 1.9 ms).

    Source: Zhang & Sennrich 2019, eq. 4.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        _mark_unset(self)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        mean_square_MN1 = hidden_MND.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_MND * torch.rsqrt(mean_square_MN1 + self.eps))


class _RelativePositionBias(_Embedding):
    """T5's bias on the attention scores: one learned value per head and distance bucket.

    `weight` is (buckets, heads). From `max_distance` tokens on, every distance shares the last
    bucket, so one table of 2·max_distance + 1 entries serves every length.

    Source: Raffel et al. 2020, section 2.1.
    """

    buckets_of_distance: Tensor

    def __init__(self, *, num_buckets: int, max_distance: int, num_heads: int) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance = max_distance
        distances = torch.arange(-max_distance, max_distance + 1)
        self.register_buffer(
            "buckets_of_distance",
            _relative_position_bucket(distances, num_buckets, max_distance),
            persistent=False,
        )

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


def _attend(
    q_MND: Tensor,
    k_MND: Tensor,
    v_MND: Tensor,
    bias_1hNN: Tensor | None,
    *,
    num_heads: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """Multi-head attention, (M, N, heads · d_kv).

    SDPA, except on a CPU with dropout, where SDPA has no fused kernel. Measured on 2 cores,
    T5-small's heads, forward and backward, ms, SDPA / explicit:

        M, N      8, 4          64, 4         256, 4        1536, 4     16, 64       4, 256
        p = 0     0.17 / 0.25   0.84 / 0.82   3.13 / 3.11   41 / 23     3.0 / 3.5     8.8 / 9.5
        p = 0.1   0.32 / 0.28   0.98 / 0.87   3.35 / 2.97   30 / 24     7.5 / 6.6    25.9 / 23.6

    and the same order on one core. Multiply-and-sum instead of batched matmul is slower from
    M=64 on, 3.5 times so at M=1536.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_MND, k_MND, v_MND))
    if bias_1hNN is not None:
        bias_1hNN = bias_1hNN.to(q.dtype)  # SDPA wants one dtype; under AMP q is a half
    if q.device.type == "cpu" and dropout > 0.0:
        scores = torch.matmul(q if scale == 1.0 else q * scale, k.transpose(2, 3))
        if bias_1hNN is not None:
            scores = scores + bias_1hNN
        mixed = torch.matmul(_dropout(scores.softmax(-1), dropout).to(v.dtype), v)
    else:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias_1hNN, dropout_p=dropout, scale=scale
        )
    return mixed.transpose(1, 2).flatten(2)


class _T5SelfAttention(nn.Module):
    def __init__(self, arch: T5Architecture, *, dropout: float, owns_bias: bool) -> None:
        super().__init__()
        inner = arch.num_heads * arch.d_kv
        self.num_heads = arch.num_heads
        self.dropout = dropout
        self.q = _Linear(arch.d_model, inner, bias=False)
        self.k = _Linear(arch.d_model, inner, bias=False)
        self.v = _Linear(arch.d_model, inner, bias=False)
        self.o = _Linear(inner, arch.d_model, bias=False)
        if owns_bias:
            self.relative_attention_bias = _RelativePositionBias(
                num_buckets=arch.relative_attention_num_buckets,
                max_distance=arch.relative_attention_max_distance,
                num_heads=arch.num_heads,
            )

    def forward(self, normed_MND: Tensor, bias_1hNN: Tensor) -> Tensor:
        mixed = _attend(
            self.q(normed_MND),
            self.k(normed_MND),
            self.v(normed_MND),
            bias_1hNN,
            num_heads=self.num_heads,
            scale=1.0,  # T5 folds 1/√d_kv into the initialisation of q
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o(mixed)


class _T5AttentionLayer(nn.Module):
    def __init__(self, arch: T5Architecture, *, dropout: float, owns_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = _T5SelfAttention(arch, dropout=dropout, owns_bias=owns_bias)
        self.layer_norm = _RMSNorm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.dropout = _Dropout(dropout)

    def forward(self, hidden_MND: Tensor, bias_1hNN: Tensor) -> Tensor:
        return hidden_MND + self.dropout(self.SelfAttention(self.layer_norm(hidden_MND), bias_1hNN))


class _T5FeedForward(nn.Module):
    """relu(x Wi) Wo, or (gelu(x Wi_0) · x Wi_1) Wo in T5 v1.1 (tanh gelu)."""

    def __init__(self, arch: T5Architecture, *, dropout: float) -> None:
        super().__init__()
        self.gated = arch.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = _Linear(arch.d_model, arch.d_ff, bias=False)
            self.wi_1 = _Linear(arch.d_model, arch.d_ff, bias=False)
        else:
            self.wi = _Linear(arch.d_model, arch.d_ff, bias=False)
        self.wo = _Linear(arch.d_ff, arch.d_model, bias=False)
        self.dropout = _Dropout(dropout)

    def forward(self, normed_MND: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.wi_0(normed_MND), self.wi_1(normed_MND)
            inner = F.gelu(_widen_float16(gate), approximate="tanh") * _widen_float16(value)
        else:
            inner = _widen_float16(F.relu(self.wi(normed_MND)))
        inner = self.dropout(inner)
        if _autocast_dtype(inner) is torch.float16:
            # Pretrained T5's output here passes float16's largest value, 65504 (HF #4586).
            with torch.autocast(inner.device.type, enabled=False):
                return self.wo(inner)
        return self.wo(inner)


def _widen_float16(x: Tensor) -> Tensor:
    """float32 in place of float16; bfloat16 has float32's range and stays."""
    return x.float() if x.dtype is torch.float16 else x


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would compute a matmul of `x` in, or None where it is off."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


class _T5FeedForwardLayer(nn.Module):
    def __init__(self, arch: T5Architecture, *, dropout: float) -> None:
        super().__init__()
        self.DenseReluDense = _T5FeedForward(arch, dropout=dropout)
        self.layer_norm = _RMSNorm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.dropout = _Dropout(dropout)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        return hidden_MND + self.dropout(self.DenseReluDense(self.layer_norm(hidden_MND)))


class _T5Block(nn.Module):
    def __init__(self, arch: T5Architecture, *, dropout: float, owns_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                _T5AttentionLayer(arch, dropout=dropout, owns_bias=owns_bias),
                _T5FeedForwardLayer(arch, dropout=dropout),
            ]
        )

    def forward(self, hidden_MND: Tensor, bias_1hNN: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](hidden_MND, bias_1hNN))


class T5Encoder(nn.Module):
    """T5's encoder stack on embeddings, without the token embedding.

    Parameters carry transformers' names without the leading `encoder.`, and forward and gradients
    equal those of its `T5EncoderModel(inputs_embeds=...)`. They are NaN until a state dict is
    loaded: `load_state_dict` is the only way to fill them, and arms differ by nothing else.

    The residual stream and the feed-forward's output matmul stay in float32 under float16
    autocast, where pretrained T5 overflows otherwise.

    Args:
        arch: Shape of the stack.
        dropout: Probability, on the input, the attention weights, inside the feed-forward, after
            each sublayer and after the final norm, as T5 has it.

    Raises:
        ConfigError: if the feed-forward is none of T5's, or dropout is no probability.

    Source: Raffel et al. 2020; Shazeer 2020 for the gated feed-forward.
    """

    def __init__(self, arch: T5Architecture, *, dropout: float) -> None:
        super().__init__()
        if arch.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ConfigError(
                f"feed_forward_proj={arch.feed_forward_proj!r} is no T5 feed-forward: "
                "use 'relu' (v1.0) or 'gated-gelu' (v1.1, Flan)."
            )
        _check_dropout(dropout)
        self.d_model = arch.d_model
        self.num_blocks = arch.num_layers
        self.block = nn.ModuleList(
            _T5Block(arch, dropout=dropout, owns_bias=i == 0) for i in range(arch.num_layers)
        )
        self.final_layer_norm = _RMSNorm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.dropout = _Dropout(dropout)

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens, each attending to all of its row.

        Args:
            tokens_MND: Embedded patches; a half-precision input is widened to float32.

        Returns:
            (M, N, D), after the final norm.
        """
        if tokens_MND.dtype in (torch.float16, torch.bfloat16):
            tokens_MND = tokens_MND.float()
        position = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        assert isinstance(position, _RelativePositionBias)
        bias_1hNN = position.bias(tokens_MND.shape[1])
        hidden_MND = self.dropout(tokens_MND)
        for block in self.block:
            hidden_MND = block(hidden_MND, bias_1hNN)
        return self.dropout(self.final_layer_norm(hidden_MND))


class _Stem(nn.Module):
    """Depthwise then pointwise convolution along the tokens, LayerNorm, GELU."""

    def __init__(self, width: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.depthwise = _Conv1d(width, width, kernel_size, padding="same", groups=width)
        self.pointwise = _Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens_MND: Tensor) -> Tensor:
        local_MND = self.depthwise(tokens_MND.transpose(1, 2)).transpose(1, 2)
        return F.gelu(self.layer_norm(self.pointwise(local_MND)))


class _SharedSelfAttention(nn.Module):
    def __init__(self, width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q = _Linear(width, width)
        self.k = _Linear(width, width)
        self.v = _Linear(width, width)
        self.o = _Linear(width, width)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        q_MND = self.q(hidden_MND)
        mixed = _attend(
            q_MND,
            self.k(hidden_MND),
            self.v(hidden_MND),
            None,
            num_heads=self.num_heads,
            scale=(q_MND.shape[-1] / self.num_heads) ** -0.5,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o(mixed)


class _SharedAttentionLayer(nn.Module):
    def __init__(self, width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.SelfAttention = _SharedSelfAttention(width, num_heads=num_heads, dropout=dropout)
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = _Dropout(dropout)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        return self.layer_norm(hidden_MND + self.dropout(self.SelfAttention(hidden_MND)))


class _SharedFeedForwardLayer(nn.Module):
    def __init__(self, width: int, *, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.wi = _Linear(width, d_ff)
        self.wo = _Linear(d_ff, width)
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = _Dropout(dropout)

    def forward(self, hidden_MND: Tensor) -> Tensor:
        inner = self.dropout(F.gelu(self.wi(hidden_MND)))
        return self.layer_norm(hidden_MND + self.dropout(self.wo(inner)))


class _SharedBlock(nn.Module):
    def __init__(self, width: int, *, num_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                _SharedAttentionLayer(width, num_heads=num_heads, dropout=dropout),
                _SharedFeedForwardLayer(width, d_ff=d_ff, dropout=dropout),
            ]
        )

    def forward(self, hidden_MND: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](hidden_MND))


class SharedEncoder(nn.Module):
    """The light baseline: a convolution stem, then post-norm transformer layers.

    Parameters are named `stem.*` and `block.{i}.layer.{0,1}.*`, with `layer_norm` for every norm,
    so that freezing patterns written for T5 hold here too. There is no final norm: a post-norm
    layer ends in one. Positions are sinusoidal, added after the stem: they fit any number of
    tokens and add no parameters. At the default size 0.8 M parameters.

    Args:
        d_model: Width.
        num_layers: Transformer layers.
        num_heads: Attention heads; must divide the width.
        d_ff: Inner width of the feed-forward.
        dropout: Probability, after stem and positions, on the attention weights, inside the
            feed-forward and after each sublayer.

    Raises:
        ConfigError: if the heads do not divide the width, the width is odd, or dropout is no
            probability.

    Source: the lab log's SharedEncoder; post-norm layers and positions, Vaswani et al. 2017.
    """

    def __init__(
        self,
        *,
        d_model: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        d_ff: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if d_model % num_heads or d_model % 2:
            raise ConfigError(
                f"d_model={d_model} must be even and a multiple of num_heads={num_heads}."
            )
        _check_dropout(dropout)
        self.d_model = d_model
        self.num_blocks = num_layers
        self.stem = _Stem(d_model)
        self.block = nn.ModuleList(
            _SharedBlock(d_model, num_heads=num_heads, d_ff=d_ff, dropout=dropout)
            for _ in range(num_layers)
        )
        self.dropout = _Dropout(dropout)

    @torch.no_grad()
    def init_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights: normal with std 1/√fan_in; biases 0; norms 1 and 0.

        Args:
            generator: The only source of randomness; a CPU generator for a module on the CPU.

        Source: own; LeCun et al. 1998's scale, which keeps unit variance through each matrix.
        """
        for module in self.modules():
            if isinstance(module, _Linear | _Conv1d):
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
    """Nothing between patching and head: with it, the forecaster is one linear map.

    It has no width of its own (`d_model` 0) and no blocks.

    Source: Zeng et al. 2023 (NLinear), "Are Transformers Effective for Time Series Forecasting?".
    """

    def __init__(self) -> None:
        super().__init__()
        self.d_model = 0
        self.num_blocks = 0

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return tokens_MND


Encoder = T5Encoder | SharedEncoder | NoEncoder


def component_of(parameter_name: str) -> str:
    """The part of a `Forecaster` that a parameter belongs to.

    T5's relative position bias, which all blocks use, stands in block 0 and counts there.

    Args:
        parameter_name: As in `Forecaster.named_parameters()`.

    Returns:
        "patch", "stem", "block_<i>", "final_norm" or "head".

    Raises:
        ValueError: if the name is none of a forecaster's.
    """
    match = re.match(r"encoder\.block\.(\d+)\.", parameter_name)
    if match:
        return f"block_{match[1]}"
    for prefix, component in _COMPONENT_OF_PREFIX.items():
        if parameter_name.startswith(prefix):
            return component
    raise ValueError(
        f"{parameter_name!r} is no forecaster parameter: names begin with "
        f"encoder.block.<i>. or one of {', '.join(_COMPONENT_OF_PREFIX)}"
    )


_COMPONENT_OF_PREFIX = {
    "patch.": "patch",
    "encoder.stem.": "stem",
    "encoder.final_layer_norm.": "final_norm",
    "head.": "head",
}


def _check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout={dropout} must be at least 0 and less than 1.")
