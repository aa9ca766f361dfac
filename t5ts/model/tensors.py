"""An encoder's tensors: their names and shapes, the initialisation law, the control arms."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from t5ts.model.architecture import Architecture, HFArchitecture
from t5ts.model.hf_encoder import HFEncoder, hf_init_law, is_norm_weight
from t5ts.model.t5_encoder import T5Encoder


def empty_encoder(
    arch: Architecture, *, dropout: float = 0.0, device: str = "meta"
) -> T5Encoder | HFEncoder:
    """An encoder whose parameters are NaN until a state dict is loaded."""
    if isinstance(arch, HFArchitecture):
        return HFEncoder(arch, dropout=dropout, device=device)
    with torch.device(device):
        return T5Encoder(arch, dropout=dropout)


def encoder_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder's tensors, block by block."""
    return {name: tuple(t.shape) for name, t in empty_encoder(arch).state_dict().items()}


def init_law(arch: Architecture) -> dict[str, float]:
    """Standard deviation of each matrix under the initialisation at factor 1; norms are left out.

    Source: transformers' T5PreTrainedModel._init_weights, after mesh-tensorflow's initialisers; of
    other architectures see `hf_init_law`.
    """
    if isinstance(arch, HFArchitecture):
        return hf_init_law(arch)
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
    arch: Architecture,
    *,
    generator: torch.Generator,
    factor: float = 1.0,
    scale_norms: bool = False,
) -> tuple[dict[str, Tensor], float]:
    """Freshly initialised float32 tensors under the architecture's own law, and its tokens' RMS.

    Args:
        arch: The encoder's shape.
        generator: CPU generator that no other component draws from.
        factor: Multiplies every matrix (HF's default 1.0, Chronos's 0.05).
        scale_norms: Multiply norms' weights too, as HF's initialiser does.
    """
    if isinstance(arch, HFArchitecture):
        encoder = HFEncoder(arch, dropout=0.0)
        encoder.draw(generator)
        state, rms = (
            encoder.state_dict(),
            HFEncoder(replace(arch, num_layers=1), dropout=0.0).draw_tokens(),
        )
        for name, tensor in state.items():
            if tensor.ndim >= 2 or (scale_norms and is_norm_weight(name)):
                tensor *= factor
        return state, factor * rms
    law = init_law(arch)
    state = {
        name: torch.empty(shape).normal_(0.0, factor * law[name], generator=generator)
        if name in law
        else torch.full(shape, float(factor) if scale_norms else 1.0)
        for name, shape in encoder_shapes(arch).items()
    }
    return state, float(factor)  # T5 draws its embeddings with std = factor


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
