"""The network that is pretrained: transformers' own T5 v1.0, so that what is shipped is a T5."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from tools.pretrain.vocabulary import EOS, PAD


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes in the words of T5's `config.json`; the defaults are t5-efficient-tiny's."""

    d_model: int = 256
    d_ff: int = 1024
    d_kv: int = 64
    num_layers: int = 4
    num_heads: int = 4


def t5_config(shape: Shape, *, vocab_size: int, dropout: float) -> T5Config:
    """A T5 v1.0 configuration (ReLU, tied embeddings) of this shape."""
    # Fields of every configuration, which a type checker does not find among T5Config's own.
    inherited: dict[str, Any] = {"tie_word_embeddings": True, "decoder_start_token_id": PAD}
    return T5Config(
        vocab_size=vocab_size,
        d_model=shape.d_model,
        d_ff=shape.d_ff,
        d_kv=shape.d_kv,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_layers,
        num_heads=shape.num_heads,
        dropout_rate=dropout,
        feed_forward_proj="relu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        initializer_factor=1.0,
        **inherited,
    )


def build_t5(
    shape: Shape, *, vocab_size: int, dropout: float, seed: int
) -> T5ForConditionalGeneration:
    """A freshly initialised encoder-decoder; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration._from_config(
            t5_config(shape, vocab_size=vocab_size, dropout=dropout), attn_implementation="sdpa"
        )
