"""Small forecasters around any encoder, for tests of the model and of the tasks."""

from typing import Any

import torch

from t5ts.model.architecture import T5Architecture
from t5ts.model.encoders import Encoder, NoEncoder, SharedEncoder
from t5ts.model.forecaster import Forecaster
from t5ts.model.normalize import build_normalize
from t5ts.model.patching import PatchEmbedding, WholeContext
from t5ts.model.t5_encoder import T5Encoder

TINY = T5Architecture(d_model=24, d_ff=40, d_kv=6, num_layers=3, num_heads=2)


@torch.no_grad()
def build_t5(arch: T5Architecture = TINY, *, seed: int = 0, dropout: float = 0.1) -> T5Encoder:
    """HF's law at initializer_factor 1.0 (transformers' T5PreTrainedModel._init_weights)."""
    encoder = T5Encoder(arch, dropout=dropout)
    generator = torch.Generator().manual_seed(seed)
    inner = arch.num_heads * arch.d_kv
    std_of = {"q": (arch.d_model * arch.d_kv) ** -0.5, "o": inner**-0.5, "wo": arch.d_ff**-0.5}
    for name, parameter in encoder.named_parameters():
        if "layer_norm" in name:
            parameter.fill_(1.0)
        else:
            std = std_of.get(name.split(".")[-2], arch.d_model**-0.5)
            parameter.normal_(0.0, std, generator=generator)
    return encoder


def build_shared(d_model: int = 24) -> SharedEncoder:
    """Two layers of the light baseline."""
    encoder = SharedEncoder(d_model=d_model, num_layers=2, num_heads=2, d_ff=32)
    encoder.init_parameters(torch.Generator().manual_seed(0))
    return encoder


def build_model(
    encoder: Encoder,
    *,
    seed: int = 0,
    num_channels: int = 3,
    seq_len: int = 16,
    output_len: int = 5,
    channels: str = "independent",
    normalize: str = "instance",
    hidden: str = "none",
    per_patch: bool = False,
    patch_len: int = 4,
    **patching: Any,
) -> Forecaster:
    """A forecaster of 3 channels, 16 steps and plain patches of 4, unless told otherwise."""
    if isinstance(encoder, NoEncoder):
        patch = WholeContext(
            seq_len=seq_len, num_channels=num_channels, channels=channels, hidden=hidden
        )
    else:
        patch = PatchEmbedding(
            seq_len=seq_len,
            num_channels=num_channels,
            d_model=encoder.d_model,
            channels=channels,
            hidden=hidden,
            patch_len=patch_len,
            **({"stride": None, "norm": False} | patching),
            generator=torch.Generator().manual_seed(seed),
        )
    return Forecaster(
        normalize=build_normalize(normalize, has_hidden=hidden != "none"),
        patch=patch,
        encoder=encoder,
        num_channels=num_channels,
        output_len=output_len,
        per_patch=per_patch,
        generator=torch.Generator().manual_seed(seed + 1),
    )
