"""Is this folder the pretrained T5 it claims to be? Checked before anything trains."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import FLOAT_DTYPES, CheckpointFiles, TensorInfo
from t5ts.model.config_file import architecture_of
from t5ts.model.freshness import Freshness, examine
from t5ts.model.tensors import POSITION_BIAS, encoder_shapes, init_law

# Published T5 v1.0 files carry this bias of the decoder's cross-attention, which no T5 has used
# since; transformers ignores it too (T5Model._keys_to_ignore_on_load_unexpected).
STALE_KEY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_BLOCK = re.compile(r"encoder\.block\.\d+\.")
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def check_config(files: CheckpointFiles, arch: T5Architecture | None) -> T5Architecture:
    where = str(files.folder / "config.json")
    found = architecture_of(files.config, where=where)
    if arch is not None and found != arch:
        differing = [
            f"{f.name} is {getattr(found, f.name)!r} there, {getattr(arch, f.name)!r} in the config"
            for f in fields(arch)
            if getattr(found, f.name) != getattr(arch, f.name)
        ]
        raise WeightsError(
            f"{where} does not describe this backbone: {'; '.join(differing)}. Choose the backbone "
            "that the checkpoint belongs to, or backbone=local, which takes the checkpoint's own "
            "values."
        )
    return found


def _decoder_names(arch: T5Architecture, num_layers: int) -> set[str]:
    """Names of a full T5's decoder tensors."""
    names = {"decoder.final_layer_norm.weight", f"decoder.block.0.{POSITION_BIAS}"}
    feed_forward = [
        n.split(".")[-2] for n in encoder_shapes(arch) if n.startswith("block.0.layer.1.D")
    ]
    for i in range(num_layers):
        block = f"decoder.block.{i}.layer"
        names |= {f"{block}.{j}.layer_norm.weight" for j in range(3)}
        names |= {f"{block}.0.SelfAttention.{part}.weight" for part in "qkvo"}
        names |= {f"{block}.1.EncDecAttention.{part}.weight" for part in "qkvo"}
        names |= {f"{block}.2.DenseReluDense.{part}.weight" for part in feed_forward}
    return names


def check_header(
    files: CheckpointFiles, arch: T5Architecture, expected: tuple[int, int] | None
) -> tuple[int, list[str]]:
    """Compare names, shapes, dtypes and counts in the file's header with what a T5 has.

    Returns:
        Parameters of the whole checkpoint, tied tensors once, and the findings in words.
    """
    header, folder = files.header, files.folder
    shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(arch).items()}
    embedding = next((name for name in _EMBEDDINGS if name in header), None)
    in_encoder = {name for name in header if name.startswith("encoder.")} - set(_EMBEDDINGS)
    quantised = [
        name
        for name in sorted(in_encoder | ({embedding} if embedding else set()))
        if header[name].dtype not in FLOAT_DTYPES
    ]
    if quantised:
        raise WeightsError(
            f"{folder}: {quantised[0]} is stored as {header[quantised[0]].dtype} ({len(quantised)} "
            f"such tensors): quantised weights are not the pretrained T5. Allowed are "
            f"{', '.join(FLOAT_DTYPES)}; use the original floating-point checkpoint."
        )
    missing, unexpected = sorted(set(shapes) - in_encoder), sorted(in_encoder - set(shapes))
    if missing and (prefix := _foreign_prefix(header, missing[-1])) is not None:
        raise WeightsError(
            f"{folder}: its tensors are named {prefix}final_layer_norm.weight and the like, not "
            "encoder.final_layer_norm.weight: saved from a wrapper or from the encoder stack "
            "alone. Save it again with save_pretrained of transformers' T5EncoderModel, or rename "
            "them."
        )
    blocks = {int(n.split(".")[2]) for n in in_encoder if _BLOCK.match(n)}
    if blocks and max(blocks) + 1 != arch.num_layers:
        raise WeightsError(
            f"{folder}: the weights have {max(blocks) + 1} encoder blocks, config.json's num_layers"
            f" is {arch.num_layers}. Correct config.json, or fetch both again."
        )
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(shapes)} encoder tensors are missing, for instance "
            f"{missing[0]}"
            + (f"; there is {unexpected[0]} instead" if unexpected else "")
            + ". It is not a whole T5 encoder of its config.json's shape; fetch the checkpoint "
            "again or choose another."
        )
    if unexpected:
        raise WeightsError(
            f"{folder}: {len(unexpected)} tensors in the encoder are not a T5 encoder's, for "
            f"instance {unexpected[0]}. Adapters must be merged and quantised layers restored "
            "first; or choose the original checkpoint."
        )
    if embedding is None:
        raise WeightsError(
            f"{folder}: the token embedding is missing (shared.weight or "
            "encoder.embed_tokens.weight), so this is no whole T5 encoder. Save the model again "
            "with save_pretrained."
        )
    for name, shape in (shapes | {embedding: (arch.vocab_size, arch.d_model)}).items():
        if header[name].shape != shape:
            raise WeightsError(
                f"{folder}: {name} has shape {header[name].shape}; config.json asks for {shape}. "
                "Config and weights belong to different models; fetch both again."
            )
    layers = files.config.get("num_decoder_layers") or arch.num_layers
    decoder = _decoder_names(arch, layers)
    absent = decoder - set(header)
    if absent and absent != decoder:
        raise WeightsError(
            f"{folder}: {len(absent)} of {len(decoder)} decoder tensors are missing, for instance "
            f"{min(absent)}: a partial checkpoint. Fetch it again."
        )
    # The tied ones are the same parameters as the embedding, whatever the file repeats.
    uncounted = {STALE_KEY, *_EMBEDDINGS} - {embedding}
    if files.config.get("tie_word_embeddings", True):
        uncounted.add("lm_head.weight")
    counted = {name: info.numel for name, info in header.items() if name not in uncounted}
    num_full = sum(counted.values())
    if expected is not None and not expected[0] <= num_full <= expected[1]:
        only = " (encoder only: no decoder is there)" if absent else ""
        raise WeightsError(
            f"{folder} has {num_full:,} parameters{only}; this backbone's checkpoint has between "
            f"{expected[0]:,} and {expected[1]:,}. It is another model or a part of one; fetch the "
            "checkpoint again or choose its own backbone."
        )
    notes = [f"{num_full:,} parameters by the file's header"]
    notes[0] += ", encoder only" if absent else ", encoder and decoder"
    others = sorted(set(counted) - set(shapes) - decoder - {embedding, "lm_head.weight"})
    if others:
        notes.append(f"note: {len(others)} tensors are no T5's, for instance {others[0]}")
    return num_full, notes


def _foreign_prefix(header: Mapping[str, TensorInfo], missing: str) -> str | None:
    """What stands where `encoder.` should, if the encoder is there under other names."""
    stem = missing.removeprefix("encoder.")
    found = [name for name in header if name.endswith(stem) and not name.startswith("decoder.")]
    prefixes = sorted({name.removesuffix(stem) for name in found} - {"encoder."}, key=len)
    return next((p for p in prefixes if p == "" or p.endswith(".")), None)


def read_encoder(files: CheckpointFiles, arch: T5Architecture) -> tuple[dict[str, Tensor], float]:
    """The encoder's tensors in float32 and the embedding's RMS, all finite."""
    embedding = next(name for name in _EMBEDDINGS if name in files.header)
    names = list(encoder_shapes(arch))
    # Contiguous copies: a legacy file's tensors may share storage or map the file. Cast before they
    # are checked: float64 can hold what float32 cannot.
    stored = {
        name: tensor.to(torch.float32, copy=True).contiguous()
        for name, tensor in files.read([*(f"encoder.{n}" for n in names), embedding]).items()
    }
    for name, tensor in stored.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise WeightsError(
                f"{files.folder}: {name} has {bad} values that are NaN or infinite. The checkpoint "
                "is broken (fp16 overflow in its training?); choose another."
            )
    rms = stored[embedding].double().square().mean().sqrt().item()
    if rms == 0.0:
        raise WeightsError(f"{files.folder}: {embedding} is all zeros. Choose another checkpoint.")
    return {name: stored[f"encoder.{name}"] for name in names}, rms


def check_trained(state: Mapping[str, Tensor], arch: T5Architecture, folder: Path) -> Freshness:
    """Refuse an encoder that looks freshly initialised, whole or in part."""
    law = init_law(arch)
    norms = {name: tensor for name, tensor in state.items() if name not in law}
    seen = examine(state, law, norms)
    if seen.verdict is not None:
        raise WeightsError(
            f"{folder} looks freshly initialised, not pretrained: {seen.verdict}. Use a trained "
            "checkpoint; if random weights are what you want, say init=random."
        )
    return seen
