"""An encoder's tensors: their names and shapes, T5's initialisation law, the control arms.

Names are transformers' without the leading "encoder.".
"""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from t5ts.model.architecture import T5Architecture

POSITION_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def encoder_shapes(arch: T5Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder's tensors, block by block, as transformers names them."""
    d_model, d_ff, inner = arch.d_model, arch.d_ff, arch.num_heads * arch.d_kv
    gated = arch.feed_forward_proj.startswith("gated-")
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(arch.num_layers):
        attention = f"block.{i}.layer.0.SelfAttention"
        shapes |= {f"{attention}.{part}.weight": (inner, d_model) for part in "qkv"}
        shapes[f"{attention}.o.weight"] = (d_model, inner)
        if i == 0:  # all blocks share block 0's position bias
            shapes[f"block.0.{POSITION_BIAS}"] = (
                arch.relative_attention_num_buckets,
                arch.num_heads,
            )
        shapes[f"block.{i}.layer.0.layer_norm.weight"] = (d_model,)
        feed_forward = f"block.{i}.layer.1.DenseReluDense"
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{feed_forward}.{part}.weight"] = (d_ff, d_model)
        shapes[f"{feed_forward}.wo.weight"] = (d_model, d_ff)
        shapes[f"block.{i}.layer.1.layer_norm.weight"] = (d_model,)
    shapes["final_layer_norm.weight"] = (d_model,)
    return shapes


def init_law(arch: T5Architecture) -> dict[str, float]:
    """Standard deviation of each matrix under T5's initialisation at factor 1; norms are left out.

    Source: transformers' T5PreTrainedModel._init_weights, after mesh-tensorflow's initialisers.
    """
    fan_in = {
        ".q.weight": arch.d_model * arch.d_kv,  # T5 has no 1/√d_kv in its attention: it is here
        ".k.weight": arch.d_model,
        ".v.weight": arch.d_model,
        ".o.weight": arch.num_heads * arch.d_kv,
        "bias.weight": arch.d_model,
        ".wi.weight": arch.d_model,
        ".wi_0.weight": arch.d_model,
        ".wi_1.weight": arch.d_model,
        ".wo.weight": arch.d_ff,
    }
    return {
        name: next(n for end, n in fan_in.items() if name.endswith(end)) ** -0.5
        for name in encoder_shapes(arch)
        if not name.endswith("layer_norm.weight")
    }


def random_state(
    arch: T5Architecture,
    *,
    generator: torch.Generator,
    factor: float = 1.0,
    scale_norms: bool = False,
) -> dict[str, Tensor]:
    """Freshly initialised float32 encoder tensors under T5's own law.

    Args:
        arch: The encoder's shape.
        generator: CPU generator that no other component draws from.
        factor: Multiplies every matrix's standard deviation (HF's default 1.0, Chronos's 0.05).
        scale_norms: Set LayerNorm weights to `factor` like HF's initialiser, instead of 1.

    Source: transformers' T5PreTrainedModel._init_weights.
    """
    law = init_law(arch)
    return {
        name: torch.empty(shape).normal_(0.0, factor * law[name], generator=generator)
        if name in law
        else torch.full(shape, float(factor) if scale_norms else 1.0)
        for name, shape in encoder_shapes(arch).items()
    }


def matched_state(state: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Control: normal draws with exactly each tensor's own mean and standard deviation.

    Keeps a checkpoint's scale, tensor by tensor, and nothing else. The draws are
    standardised in float64 first: in small tensors a sample's own spread is off by several percent.
    """
    control = {}
    for name, tensor in state.items():
        mean, std = tensor.double().mean(), tensor.double().std(correction=0)
        draw = torch.empty(tensor.shape, dtype=torch.float64).normal_(generator=generator)
        draw -= draw.mean()
        spread = draw.std(correction=0)
        control[name] = (mean + draw * (std / spread if spread > 0 else 0.0)).float()
    return control


def shuffled_state(state: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Control: each tensor's own entries in random order.

    Keeps every tensor's exact distribution and destroys the arrangement.
    """
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(
            tensor.shape
        )
        for name, tensor in state.items()
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
