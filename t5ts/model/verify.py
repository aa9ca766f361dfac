"""Is this folder the pretrained T5 it claims to be? Checked before anything trains."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import Architecture, HFArchitecture, T5Architecture
from t5ts.model.checkpoint_file import (
    FLOAT_DTYPES,
    CheckpointFiles,
    TensorInfo,
    architecture_of,
)
from t5ts.model.freshness import Freshness, examine
from t5ts.model.hf_encoder import (
    BOOKKEEPING,
    HFEncoder,
    hf_architecture,
    hf_config,
    hf_init_law,
    is_norm_weight,
)
from t5ts.model.tensors import POSITION_BIAS, encoder_shapes, init_law

# Published T5 v1.0 files carry this bias of the decoder's cross-attention, which no T5 has used
# since; transformers ignores it too (T5Model._keys_to_ignore_on_load_unexpected).
_STALE_KEY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_Header = Mapping[str, TensorInfo]


def check_config(
    files: CheckpointFiles, arch: T5Architecture | None, *, must_be_chronos: bool = False
) -> T5Architecture:
    """The shape that config.json describes; an error names each value that differs from `arch`.

    A Chronos checkpoint may have a different vocabulary, which no arm uses.
    """
    where = str(files.folder / "config.json")
    found = architecture_of(files.config, where=where)
    if must_be_chronos and "chronos_config" not in files.config:
        raise WeightsError(
            f"{where} has no chronos_config, so it is not a Chronos model. Use init=t5 for a T5 "
            "pretrained on text."
        )
    if must_be_chronos and arch is not None:
        arch = replace(arch, vocab_size=found.vocab_size)
    differing = [
        f"{f.name} is {getattr(found, f.name)!r} there, {getattr(arch, f.name)!r} in the config"
        for f in fields(found)
        if arch is not None and getattr(found, f.name) != getattr(arch, f.name)
    ]
    if differing:
        raise WeightsError(
            f"{where} does not describe this backbone: {'; '.join(differing)}. Choose the backbone "
            "that matches the checkpoint, or backbone=local, which takes the checkpoint's own "
            "values."
        )
    return found


def check_header(
    files: CheckpointFiles, arch: T5Architecture, expected: tuple[int, int] | None
) -> tuple[int, list[str]]:
    """Compare names, shapes, dtypes and counts in the file's header with a T5's.

    Args:
        files: The opened checkpoint.
        arch: Its config's shape.
        expected: Fewest and most parameters the whole checkpoint may have.

    Returns:
        Parameters of the whole checkpoint, tied tensors once, and the findings in words.
    """
    header, folder = files.header, files.folder
    if problem := _encoder_problem(header, arch):
        raise WeightsError(f"{folder}: {problem} Or use the original checkpoint.")
    decoder = _decoder_names(arch, files.config.get("num_decoder_layers") or arch.num_layers)
    absent = decoder - set(header)
    if absent and absent != decoder:
        raise WeightsError(
            f"{folder}: {len(absent)} of {len(decoder)} decoder tensors are missing, for example "
            f"{min(absent)}: a partial checkpoint. Download it again."
        )
    embedding = _embedding(header)
    # Tied tensors are the same parameters as the embedding, even if the file repeats them.
    uncounted = {_STALE_KEY, *_EMBEDDINGS} - {embedding}
    if files.config.get("tie_word_embeddings", True):
        uncounted.add("lm_head.weight")
    num_full = sum(math.prod(header[name].shape) for name in header.keys() - uncounted)
    parts = "encoder only" if absent else "encoder and decoder"
    if expected is not None and not expected[0] <= num_full <= expected[1]:
        raise WeightsError(
            f"{folder} has {num_full:,} parameters ({parts}); this backbone's checkpoint has "
            f"between {expected[0]:,} and {expected[1]:,}. It is a different model or part of one; "
            "download the checkpoint again or choose the matching backbone."
        )
    notes = [f"{num_full:,} parameters by the file's header, {parts}"]
    known = {f"encoder.{name}" for name in encoder_shapes(arch)} | decoder | uncounted
    if others := sorted(header.keys() - known - {embedding, "lm_head.weight"}):
        notes.append(f"note: {len(others)} tensors do not belong to a T5, for example {others[0]}")
    return num_full, notes


def read_encoder(files: CheckpointFiles, arch: T5Architecture) -> tuple[dict[str, Tensor], float]:
    """The encoder's tensors in float32 and the embedding's RMS, all finite."""
    embedding = _embedding(files.header)
    assert embedding is not None
    names = list(encoder_shapes(arch))
    # Contiguous copies: a legacy file's tensors may share storage or map the file. Cast before
    # checking: float64 can represent values that float32 cannot.
    stored = {
        name: tensor.to(torch.float32, copy=True).contiguous()
        for name, tensor in files.read([*(f"encoder.{n}" for n in names), embedding]).items()
    }
    for name, tensor in stored.items():
        _check_finite(name, tensor, files.folder)
    rms = stored[embedding].double().square().mean().sqrt().item()
    if rms == 0.0:
        raise WeightsError(f"{files.folder}: {embedding} is all zeros. Choose another checkpoint.")
    return {name: stored[f"encoder.{name}"] for name in names}, rms


def read_embedding(files: CheckpointFiles) -> Tensor:
    """The token embedding, (V, D) float32, of a checkpoint that `check_header` accepted."""
    name = _embedding(files.header)
    assert name is not None
    return files.read([name])[name].to(torch.float32, copy=True).contiguous()


def read_hf_encoder(
    files: CheckpointFiles, arch: HFArchitecture
) -> tuple[dict[str, Tensor], float, int, list[str]]:
    """The same of any other architecture, after the same checks of config and header.

    Args:
        files: The opened checkpoint.
        arch: The shape that its config must describe; its blocks alone are read.

    Returns:
        float32 tensors by `HFEncoder`'s names, the RMS of the token embedding, the parameters of
        the whole file, and the findings in words.
    """
    folder, header = files.folder, files.header
    where = str(folder / "config.json")
    found = hf_config(hf_architecture(files.config, num_layers=None, where=where)).to_dict()
    wanted = hf_config(arch).to_dict()
    differing = [
        f"{key} is {found[key]!r} there, {wanted[key]!r} in the config"
        for key in sorted(found.keys() & wanted.keys())
        if not BOOKKEEPING.fullmatch(key) and found[key] != wanted[key]
    ]
    if differing:
        raise WeightsError(
            f"{where} does not describe this backbone: {'; '.join(differing)}. Choose the backbone "
            "that matches the checkpoint, or backbone=hf, which takes the checkpoint's own values."
        )
    depth = int(hf_config(arch).num_hidden_layers)
    whole = HFEncoder(replace(arch, num_layers=depth), dropout=0.0, device="meta")
    embedding, its_shape, factor = whole.token_embedding
    shapes = {whole.hf_names[n]: tuple(p.shape) for n, p in whole.named_parameters()}
    shapes[embedding] = its_shape
    # Old files call a norm's weight and bias gamma and beta; heads have the base model's prefix.
    stored = {re.sub("gamma$", "weight", re.sub("beta$", "bias", name)): name for name in header}
    prefix = next((p for p in (whole.prefix, "") if f"{p}{embedding}" in stored), "")
    stored = {name.removeprefix(prefix): of for name, of in stored.items()}
    missing = sorted(shapes.keys() - stored.keys())
    inner = {n for n in stored if n.startswith(whole.blocks_name)} - shapes.keys()
    unexpected = sorted(n for n in inner if not _DERIVED.search(n))
    if missing or unexpected:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(shapes)} tensors of this {arch.model_type} are "
            f"missing, {len(unexpected)} do not belong to its blocks (for example "
            f"{(missing or unexpected)[0]}). Download the checkpoint again; adapters must be "
            "merged and quantised layers restored first."
        )
    for name, shape in shapes.items():
        info = header[stored[name]]
        if info.dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{folder}: {name} is stored as {info.dtype}: quantised weights cannot be trained. "
                f"Allowed are {', '.join(FLOAT_DTYPES[:4])}."
            )
        if info.shape != shape:
            raise WeightsError(
                f"{folder}: {name} has shape {info.shape}; config.json requires {shape}. Config "
                "and weights belong to different models; download both again."
            )
    used = HFEncoder(arch, dropout=0.0, device="meta").hf_names
    tensors = files.read([stored[name] for name in used.values()])
    state = {
        ours: tensors[stored[name]].to(torch.float32, copy=True).contiguous()
        for ours, name in used.items()
    }
    for name, tensor in state.items():
        _check_finite(name, tensor, folder)
    table = files.read([stored[embedding]])[stored[embedding]]
    total = sum(math.prod(info.shape) for info in header.values())
    return (
        state,
        factor * _rms(embedding, table, folder),
        total,
        [
            f"{total:,} parameters by the file's header",
            f"the first {arch.num_layers} of {depth} blocks are used",
        ],
    )


#: Buffers that old files carry, computed from the configuration since.
_DERIVED = re.compile(r"attn\.(masked_)?bias$|inv_freq$|position_ids$")


def _check_finite(name: str, tensor: Tensor, folder: Path) -> None:
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise WeightsError(
            f"{folder}: {name} has {bad} values that are NaN or infinite. The checkpoint "
            "is broken (fp16 overflow in its training?); choose another."
        )


def _rms(name: str, table: Tensor, folder: Path) -> float:
    """RMS of a token embedding, which may be large: part by part."""
    squares = sum(part.double().square().sum().item() for part in table.split(4096))
    if not 0.0 < squares < math.inf:
        raise WeightsError(
            f"{folder}: {name} is all zeros or has values that are NaN or infinite. Choose another "
            "checkpoint."
        )
    return (squares / table.numel()) ** 0.5


def check_trained(state: Mapping[str, Tensor], arch: Architecture, folder: Path) -> Freshness:
    """Refuse an encoder that looks freshly initialised, whole or in part."""
    if isinstance(arch, HFArchitecture):
        law = hf_init_law(arch)
        norms = {name: t for name, t in state.items() if is_norm_weight(name)}
    else:
        law = init_law(arch)
        norms = {name: t for name, t in state.items() if name not in law}
    seen = examine(state, law, norms)
    if seen.verdict is not None:
        raise WeightsError(
            f"{folder} looks freshly initialised, not pretrained: {seen.verdict}. Use a trained "
            "checkpoint; if you want random weights, set init=random."
        )
    return seen


def _embedding(header: _Header) -> str | None:
    return next((name for name in _EMBEDDINGS if name in header), None)


def _encoder_problem(header: _Header, arch: T5Architecture) -> str | None:
    """What is wrong with the encoder's names, shapes and dtypes, with the remedy; None if right."""
    shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(arch).items()}
    embedding = _embedding(header)
    found = {name for name in header if name.startswith("encoder.")} - set(_EMBEDDINGS)
    for name in sorted(found | ({embedding} if embedding else set())):
        if header[name].dtype not in FLOAT_DTYPES:
            return (
                f"{name} is stored as {header[name].dtype}: quantised weights are not the "
                f"pretrained T5. Allowed are {', '.join(FLOAT_DTYPES[:4])}."
            )
    missing, unexpected = sorted(shapes.keys() - found), sorted(found - shapes.keys())
    if missing and (prefix := _foreign_prefix(header, missing[-1])) is not None:
        return (
            f"its tensors are named {prefix}final_layer_norm.weight and the like, not "
            "encoder.final_layer_norm.weight: saved from a wrapper or from the encoder stack "
            "alone. Save it again with save_pretrained of transformers' T5EncoderModel, or rename "
            "them."
        )
    blocks = {int(n.split(".")[2]) for n in found if re.match(r"encoder\.block\.\d+\.", n)}
    if blocks and max(blocks) + 1 != arch.num_layers:
        return (
            f"the weights have {max(blocks) + 1} encoder blocks, config.json's num_layers is "
            f"{arch.num_layers}. Correct config.json, or download both again."
        )
    if missing or unexpected:
        return (
            f"{len(missing)} of {len(shapes)} encoder tensors are missing, {len(unexpected)} do "
            f"not belong to one (for example {(missing or unexpected)[0]}). Download the "
            "checkpoint again; adapters must be merged and quantised layers restored first."
        )
    if embedding is None:
        return f"the token embedding is missing ({_EMBEDDINGS[0]}). Save it with save_pretrained."
    for name, shape in (shapes | {embedding: (arch.vocab_size, arch.d_model)}).items():
        if header[name].shape != shape:
            return (
                f"{name} has shape {header[name].shape}; config.json requires {shape}. Config and "
                "weights belong to different models; download both again."
            )
    return None


def _foreign_prefix(header: _Header, missing: str) -> str | None:
    """The prefix used instead of `encoder.`, if the encoder is there under other names."""
    stem = missing.removeprefix("encoder.")
    found = [name for name in header if name.endswith(stem) and not name.startswith("decoder.")]
    prefixes = sorted({name.removesuffix(stem) for name in found} - {"encoder."}, key=len)
    return next((prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")), None)


def _decoder_names(arch: T5Architecture, num_layers: int) -> set[str]:
    """Names of a full T5's decoder tensors: an encoder's, with a cross-attention between."""
    block = [name.removeprefix("block.0.") for name in encoder_shapes(arch) if "block.0." in name]
    own = {name.replace("layer.1.", "layer.2.") for name in block if name != POSITION_BIAS}
    crossed = {
        name.replace("layer.0.", "layer.1.").replace("SelfAttention", "EncDecAttention")
        for name in block
        if name.startswith("layer.0.") and name != POSITION_BIAS
    }
    names = {f"decoder.block.{i}.{part}" for i in range(num_layers) for part in own | crossed}
    return names | {"decoder.final_layer_norm.weight", f"decoder.block.0.{POSITION_BIAS}"}
