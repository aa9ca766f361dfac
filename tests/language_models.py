"""Tiny language models of other architectures, as transformers builds and saves them."""

from pathlib import Path
from typing import Any

import torch

from t5ts.model.architecture import HFArchitecture
from t5ts.model.hf_encoder import hf_architecture, hf_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40} | {
    "intermediate_size": 64,
    "pad_token_id": 0,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 40}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 40},
    "modernbert": SIZES,
    "gpt2": GPT,
    "llama": SIZES | {"num_key_value_heads": 1},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "vocab_size": 40},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 40},  # tuples
    "roberta-prelayernorm": SIZES | {"pad_token_id": 1},  # its final norm is not beside its blocks
    "mixtral": SIZES | {"num_key_value_heads": 1, "num_local_experts": 2},  # files by expert
}
CAUSAL = ("gpt2", "llama", "qwen2", "opt", "bloom", "xglm", "mixtral")


def arch_of(kind: str, in_use: int | None = None, **more: Any) -> HFArchitecture:
    """Its architecture; of a kind outside the table, BERT's sizes and `more`."""
    values = {"model_type": kind, **FAMILIES.get(kind, SIZES), **more}
    return hf_architecture(values, num_layers=in_use, where="x")


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def oracle(kind: str, *, looks_trained: bool = True, **more: Any) -> Any:
    """transformers' own model, freshly initialised or as after training."""
    from transformers import AutoModel

    torch.manual_seed(3)
    model = AutoModel.from_config(hf_config(arch_of(kind, **more))).eval()
    return seem_trained(model) if looks_trained else model


@torch.no_grad()
def seem_trained(model: Any) -> Any:
    """Make a model's spreads, rows, columns and norms uneven."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            for shape in ((*p.shape[:-1], 1), (*[1] * (p.ndim - 1), p.shape[-1])):
                p *= torch.randn(shape).mul_(0.4).exp_()
            p *= 2.0 ** (3 * torch.rand(()))
        elif name.endswith("weight"):
            p *= torch.randn(p.shape).mul_(0.3).exp_()
    return model


def save(kind: str, folder: Path, *, looks_trained: bool = True) -> Path:
    """Save a model as transformers does."""
    oracle(kind, looks_trained=looks_trained).save_pretrained(folder)
    return folder


def hf(folder: Path, *more: str) -> list[str]:
    """A backbone's overrides."""
    return ["backbone=hf", f"backbone.path={folder}", "init=pretrained", *more]
