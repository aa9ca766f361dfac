"""Is this folder the pretrained encoder it claims to be? Checked before anything trains."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import Architecture, HFArchitecture, T5Architecture
from t5ts.model.checkpoint_file import FLOAT_DTYPES, CheckpointFiles, architecture_of
from t5ts.model.freshness import Freshness, examine
from t5ts.model.hf_encoder import (
    BOOKKEEPING,
    HFEncoder,
    hf_architecture,
    hf_config,
    is_norm_weight,
)
from t5ts.model.tensors import count, encoder_shapes, init_law

# Published T5 v1.0 files carry this bias of the decoder's cross-attention, which no T5 has used
# since; transformers ignores it too (T5Model._keys_to_ignore_on_load_unexpected).
_STALE_KEY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Buffers that old files carry, computed from the configuration since.
_DERIVED = re.compile(r"attn\.(masked_)?bias$|inv_freq$|position_ids$")


@dataclass(frozen=True)
class _Layout:
    """Where a file of an architecture has the encoder's tensors."""

    names: dict[str, str]  # of each tensor in use, by the encoder's names: the file's name
    shapes: dict[str, tuple[int, ...]]  # of all that the file must have, by the file's names
    embedding: str  # the token embedding, by the file's name
    embedding_scale: float  # what the model multiplies it by
    stray: list[str]  # what the file has among the encoder's tensors and must not


def check_config(
    files: CheckpointFiles, arch: Architecture | None, *, must_be_chronos: bool = False
) -> Architecture:
    """The shape that config.json describes; an error names each value that differs from `arch`.

    A Chronos checkpoint may have a different vocabulary, which no arm uses.
    """
    where = str(files.folder / "config.json")
    if must_be_chronos and "chronos_config" not in files.config:
        raise WeightsError(
            f"{where} has no chronos_config, so it is not a Chronos model. Use init=t5 for a T5 "
            "pretrained on text."
        )
    found: Architecture
    if isinstance(arch, HFArchitecture):
        found = arch
        whole = hf_architecture(files.config, num_layers=None, where=where)
        theirs, ours = (hf_config(one).to_dict() for one in (whole, arch))
        ignored = {key for key in theirs if key not in ours or BOOKKEEPING.fullmatch(key)}
    else:
        found = architecture_of(files.config, where=where)
        theirs, ours = asdict(found), asdict(arch or found)
        ignored = {"vocab_size"} if must_be_chronos else set()
    differing = [
        f"{key} is {theirs[key]!r} there, {ours[key]!r} in the config"
        for key in sorted(theirs.keys() - ignored)
        if theirs[key] != ours[key]
    ]
    if differing:
        raise WeightsError(
            f"{where} does not describe this backbone: {'; '.join(differing)}. Choose the backbone "
            "that matches the checkpoint, or backbone=local (or hf), which takes the checkpoint's "
            "own values."
        )
    return found


def read_encoder(
    files: CheckpointFiles, arch: Architecture
) -> tuple[dict[str, Tensor], float, int, list[str]]:
    """Check a file's names, shapes and dtypes, then read the encoder: all of it, all finite.

    Args:
        files: The opened checkpoint.
        arch: The shape that `check_config` found; its blocks alone are read.

    Returns:
        float32 tensors by the encoder's names, the RMS of the token embedding, the parameters of
        the whole file, tied tensors once, and the findings in words.

    Raises:
        WeightsError: if a tensor is missing, foreign, of another shape, quantised or not finite.
    """
    layout = _layout(files, arch)
    _check_header(files, arch, layout)
    num_full, notes = _count(files, arch, layout)
    # Contiguous copies: a legacy file's tensors may share storage or map the file. Cast before
    # checking: float64 can represent values that float32 cannot.
    stored = files.read(list(layout.names.values()))
    state = {
        ours: stored[name].to(torch.float32, copy=True).contiguous()
        for ours, name in layout.names.items()
    }
    for name, tensor in state.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise WeightsError(
                f"{files.folder}: {layout.names[name]} has {bad} values that are NaN or infinite. "
                "The checkpoint is broken (fp16 overflow in its training?); choose another."
            )
    table = files.read([layout.embedding])[layout.embedding]
    # Part by part, since it may be large; a T5's in one, so that its last digit stays what it was.
    rows = 4096 if isinstance(arch, HFArchitecture) else len(table)
    squares = sum(part.double().square().sum().item() for part in table.split(rows))
    if not 0.0 < squares < math.inf:
        raise WeightsError(
            f"{files.folder}: {layout.embedding} is all zeros or has values that are NaN or "
            "infinite. Choose another checkpoint."
        )
    return state, layout.embedding_scale * (squares / table.numel()) ** 0.5, num_full, notes


def read_embedding(files: CheckpointFiles) -> Tensor:
    """The token embedding, (V, D) float32, of a T5 that `read_encoder` accepted."""
    name = next(name for name in _EMBEDDINGS if name in files.header)
    return files.read([name])[name].to(torch.float32, copy=True).contiguous()


def check_trained(
    state: Mapping[str, Tensor], arch: Architecture, folder: Path, *, is_trained: bool = False
) -> Freshness:
    """Refuse an encoder that looks freshly initialised, whole or in part.

    With `is_trained` it is known to have been trained, however briefly, and so is never refused.
    """
    norms = {name: tensor for name, tensor in state.items() if is_norm_weight(name)}
    seen = examine(state, init_law(arch), norms)
    if seen.verdict is not None and not is_trained:
        raise WeightsError(
            f"{folder} looks freshly initialised, not pretrained: {seen.verdict}. Use a trained "
            "checkpoint; if you want random weights, set init=random."
        )
    return seen


def kind_of(arch: Mapping[str, Any]) -> str:
    """What a model is called, from an architecture's values."""
    return str(arch.get("model_type", "T5"))


def _layout(files: CheckpointFiles, arch: Architecture) -> _Layout:
    header = files.header
    if isinstance(arch, T5Architecture):
        embedding = next((name for name in _EMBEDDINGS if name in header), _EMBEDDINGS[0])
        shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(arch).items()}
        inside = {name for name in header if name.startswith("encoder.")} - {*_EMBEDDINGS}
        return _Layout(
            names={name: f"encoder.{name}" for name in encoder_shapes(arch)},
            shapes=shapes | {embedding: (arch.vocab_size, arch.d_model)},
            embedding=embedding,
            embedding_scale=1.0,
            stray=sorted(inside - shapes.keys()),
        )
    whole = HFEncoder(replace(arch, num_layers=_depth(arch)), dropout=0.0, device="meta")
    embedding, its_shape, scale = whole.token_embedding
    shapes = {whole.hf_names[n]: tuple(p.shape) for n, p in whole.named_parameters()}
    shapes[embedding] = its_shape
    # Old files call a norm's weight and bias gamma and beta; heads have the base model's prefix.
    stored = {re.sub("gamma$", "weight", re.sub("beta$", "bias", name)): name for name in header}
    prefix = next((p for p in (whole.prefix, "") if f"{p}{embedding}" in stored), "")
    stored = {name.removeprefix(prefix): of for name, of in stored.items()}
    inside = {n for n in stored if n.startswith(whole.blocks_name)} - shapes.keys()
    used = HFEncoder(arch, dropout=0.0, device="meta").hf_names
    return _Layout(
        names={ours: stored.get(name, name) for ours, name in used.items()},
        shapes={stored.get(name, name): shape for name, shape in shapes.items()},
        embedding=stored.get(embedding, embedding),
        embedding_scale=scale,
        stray=sorted(name for name in inside if not _DERIVED.search(name)),
    )


def _depth(arch: HFArchitecture) -> int:
    """Blocks of the whole model."""
    return int(hf_config(arch).num_hidden_layers)


def _check_header(files: CheckpointFiles, arch: Architecture, layout: _Layout) -> None:
    folder, header, shapes = files.folder, files.header, layout.shapes
    missing = sorted(shapes.keys() - header.keys())
    if missing or layout.stray:
        others = [n for n in header if n not in shapes and not n.startswith("decoder.")]
        near = difflib.get_close_matches((missing or [""])[-1], others, n=1, cutoff=0.5)
        instead = f"; the file has {near[0]}" if near else ""
        raise WeightsError(
            f"{folder}: of the {len(shapes)} tensors of this {kind_of(asdict(arch))}, whose "
            f"num_layers is {arch.num_layers}, {len(missing)} are missing"
            + (f" (for example {missing[-1]}{instead})" if missing else "")
            + f", and {len(layout.stray)} do not belong to it"
            + (f" (for example {layout.stray[0]})" if layout.stray else "")
            + ". Save it again with save_pretrained of transformers' model, or download it again; "
            "adapters must be merged and quantised layers restored first."
        )
    for name, shape in shapes.items():
        if header[name].dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{folder}: {name} is stored as {header[name].dtype}: quantised weights cannot be "
                f"trained. Allowed are {', '.join(FLOAT_DTYPES[:4])}. Use the original checkpoint."
            )
        if header[name].shape != shape:
            raise WeightsError(
                f"{folder}: {name} has shape {header[name].shape}; config.json requires {shape}. "
                "Config and weights belong to different models; download both again."
            )


def _count(files: CheckpointFiles, arch: Architecture, layout: _Layout) -> tuple[int, list[str]]:
    """Parameters of the whole file, and notes; a T5's decoder is whole, or absent by config."""
    sizes = {name: math.prod(info.shape) for name, info in files.header.items()}
    # Tied tensors are the same parameters as the embedding, even if the file repeats them.
    tied = {_STALE_KEY, *_EMBEDDINGS} - {layout.embedding}
    if files.config.get("tie_word_embeddings", True):
        tied.add("lm_head.weight")
    total = sum(size for name, size in sizes.items() if name not in tied)
    notes = [f"{total:,} parameters by the file's header"]
    if isinstance(arch, HFArchitecture):
        return total, [*notes, f"the first {arch.num_layers} of {_depth(arch)} blocks are used"]
    decoder = {name for name in sizes if name.startswith("decoder.")} - tied
    found = sum(sizes[name] for name in decoder)
    depth = files.config.get("num_decoder_layers") or arch.num_layers
    if type(depth) is not int:
        raise WeightsError(
            f"{files.folder}: config.json's num_decoder_layers is {depth!r}, which must be a whole "
            "number. Correct it, or download the checkpoint again."
        )
    crossed = 4 * arch.num_heads * arch.d_kv * arch.d_model + arch.d_model
    expected = count(encoder_shapes(replace(arch, num_layers=depth))) + depth * crossed
    if found not in (0, expected):
        raise WeightsError(
            f"{files.folder}: its decoder has {found:,} parameters, this T5's has {expected:,}: a "
            "partial checkpoint, or an adapter. Download it again."
        )
    if not found and files.config.get("architectures", ["T5EncoderModel"]) != ["T5EncoderModel"]:
        raise WeightsError(
            f"{files.folder}: config.json describes {files.config['architectures']}, and the file "
            "has no decoder: a partial checkpoint. Download it again, or save the encoder with "
            "transformers' T5EncoderModel."
        )
    notes[0] += ", encoder and decoder" if found else ", encoder only"
    if others := sorted(sizes.keys() - layout.shapes.keys() - decoder - tied - {"lm_head.weight"}):
        notes.append(f"note: {len(others)} tensors do not belong to a T5, for example {others[0]}")
    return total, notes
