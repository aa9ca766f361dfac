"""The encoder as a checkpoint folder: loadable by `T5EncoderModel.from_pretrained` unchanged."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config

from tools.pretrain.vocabulary import Vocabulary

WEIGHTS = "model.safetensors"


def export_encoder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: T5Config,
    vocabulary: Vocabulary,
    *,
    dtype: torch.dtype,
) -> list[Path]:
    """Write encoder, token embedding, config and tokenizer.

    Args:
        folder: Made if it is not there; files of these names are replaced.
        tensors: A whole T5's parameters by transformers' names.
        config: That T5's.
        vocabulary: Its tokenizer.
        dtype: Stored type; bfloat16 keeps 8 bits of each weight's mantissa and halves the file.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in sorted(tensors.items())
        if name == "shared.weight" or name.startswith("encoder.")
    }
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
    values = config.to_diff_dict() | {
        "architectures": ["T5EncoderModel"],
        "dtype": str(dtype).removeprefix("torch."),
        "is_encoder_decoder": False,
        "use_cache": False,
        # Written out even where they are transformers' defaults: the folder explains itself.
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "feed_forward_proj": config.feed_forward_proj,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        **{
            key: getattr(config, key)
            for key in ("d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads")
        },
    }
    _write_json(folder / "config.json", values)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "model_max_length": 512,
        },
    )
    return sorted(folder.iterdir())


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
