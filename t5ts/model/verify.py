"""Are these files the encoder that a backbone names: all of it, nothing else, all finite?"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import Architecture, HFArchitecture, kind_of, t5_architecture
from t5ts.model.checkpoint_file import Checkpoint
from t5ts.model.hf_encoder import (
    BOOKKEEPING,
    HFEncoder,
    hf_architecture,
    hf_config,
)
from t5ts.model.tensors import count, encoder_shapes

# Published T5 v1.0 files carry this bias of the decoder's cross-attention, which no T5 has used
# since; transformers ignores it too (T5Model._keys_to_ignore_on_load_unexpected).
_STALE_KEY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Buffers that old files carry, computed from the configuration since.
_DERIVED = re.compile(r"attn\.(masked_)?bias$|inv_freq$|position_ids$")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Layout:
    """Where a file has the encoder's tensors, by transformers' names in the base model."""

    tensors: Mapping[str, Tensor]  # all of the file's
    names: dict[str, str]  # of the tensors in use, by the encoder's names
    shapes: dict[str, tuple[int, ...]]  # of all that the file must have
    inside: str  # a prefix that only the tensors in `shapes` may have
    embedding: str  # the token embedding
    embedding_scale: float  # what the model multiplies it by


def check_config(
    checkpoint: Checkpoint, arch: Architecture | None, *, must_be_chronos: bool = False
) -> Architecture:
    """The shape that config.json describes; an error names each value that differs from `arch`.

    A Chronos checkpoint may have a different vocabulary, which no arm uses.
    """
    where = str(checkpoint.folder / "config.json")
    if must_be_chronos and "chronos_config" not in checkpoint.config:
        raise WeightsError(
            f"{where} has no chronos_config: it is not a Chronos model. Use init=t5 for a text T5."
        )
    found: Architecture
    if isinstance(arch, HFArchitecture):
        found = arch
        whole = hf_architecture(checkpoint.config, num_layers=None, where=where)
        theirs, ours = (hf_config(one).to_dict() for one in (whole, arch))
        ignored = {key for key in theirs if key not in ours or BOOKKEEPING.fullmatch(key)}
    else:
        found = t5_architecture(checkpoint.config, where=where)
        theirs, ours = asdict(found), asdict(arch or found)
        ignored = {"vocab_size"} if must_be_chronos else set()
    differing = [
        f"{key} is {theirs[key]!r} there, {ours[key]!r} in the config"
        for key in sorted(theirs.keys() - ignored)
        if theirs[key] != ours[key]
    ]
    if differing:
        raise WeightsError(
            f"{where} does not describe this backbone: {'; '.join(differing)}. Choose the matching"
            " backbone, or backbone=local (or hf), which takes the checkpoint's own values."
        )
    return found


def read_encoder(
    checkpoint: Checkpoint, arch: Architecture
) -> tuple[dict[str, Tensor], float, int, list[str]]:
    """Check names, shapes and dtypes, then read the encoder: all of it, all finite.

    Args:
        checkpoint: The opened folder.
        arch: The shape that `check_config` found; its blocks alone are read.

    Returns:
        float32 tensors by the encoder's names, the RMS of the token embedding, the parameters of
        the whole file, tied tensors once, and the findings in words.

    Raises:
        WeightsError: if a tensor is missing, foreign, of another shape, quantised or not finite.
    """
    layout, where = _layout(checkpoint, arch), str(checkpoint.folder)
    kind = f"{kind_of(arch)}, whose num_layers is {arch.num_layers}"
    check_tensors(layout.tensors, layout.shapes, inside=layout.inside, kind=kind, where=where)
    num_full, notes = _count(checkpoint, arch, layout)
    state = finite_state(layout.tensors, layout.names, where=where)
    table = layout.tensors[layout.embedding]
    # Part by part, since it may be large; a T5's in one, so that its last digit stays what it was.
    rows = 4096 if isinstance(arch, HFArchitecture) else len(table)
    squares = sum(part.double().square().sum().item() for part in table.split(rows))
    if not 0.0 < squares < math.inf:
        raise WeightsError(
            f"{where}: {layout.embedding} is all zeros or not finite: choose another checkpoint."
        )
    return state, layout.embedding_scale * (squares / table.numel()) ** 0.5, num_full, notes


def read_embedding(checkpoint: Checkpoint, arch: Architecture) -> Tensor:
    """The token embedding, (V, D) float32, of a checkpoint that `read_encoder` accepted."""
    layout = _layout(checkpoint, arch)
    table_VD = layout.tensors[layout.embedding].to(torch.float32, copy=True).contiguous()
    return table_VD * layout.embedding_scale


def _layout(checkpoint: Checkpoint, arch: Architecture) -> _Layout:
    tensors = checkpoint.tensors
    if not isinstance(arch, HFArchitecture):
        embedding = next((name for name in _EMBEDDINGS if name in tensors), _EMBEDDINGS[0])
        shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(arch).items()}
        names = {name.removeprefix("encoder."): name for name in shapes}
        shapes[embedding] = (arch.vocab_size, arch.d_model)
        return _Layout(tensors, names, shapes, "encoder.", embedding, 1.0)
    whole = HFEncoder(replace(arch, num_layers=_depth(arch)), dropout=0.0, device="meta")
    embedding, its_shape, scale = whole.token_embedding
    shapes = {whole.hf_names[n]: tuple(t.shape) for n, t in whole.state_dict().items()}
    shapes[embedding] = its_shape
    if whole.prefix + embedding in tensors:
        tensors = {name.removeprefix(whole.prefix): tensor for name, tensor in tensors.items()}
    if not shapes.keys() <= tensors.keys():
        floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in _FLOATS}
        tensors = whole.convert(floats)
    used = HFEncoder(arch, dropout=0.0, device="meta").hf_names
    return _Layout(tensors, used, shapes, whole.blocks_name, embedding, scale)


def _depth(arch: HFArchitecture) -> int:
    """Blocks of the whole model."""
    return int(hf_config(arch).num_hidden_layers)


def check_tensors(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    inside: str,
    kind: str,
    where: str,
) -> None:
    """Compare tensors with the names and shapes that a model of this `kind` has.

    Raises:
        WeightsError: if one is absent, quantised, of another shape, or, with a name that begins
            with `inside`, not the model's.
    """
    missing = sorted(shapes.keys() - tensors.keys())
    own = {*shapes, *_EMBEDDINGS}
    stray = sorted(
        n for n in tensors.keys() - own if n.startswith(inside) and not _DERIVED.search(n)
    )
    if missing or stray:
        others = [n for n in tensors if n not in shapes and not n.startswith("decoder.")]
        near = difflib.get_close_matches((missing or [""])[-1], others, n=1, cutoff=0.5)
        instead = f"; there is {near[0]}" if near else ""
        raise WeightsError(
            f"{where}: of the {len(shapes)} tensors of this {kind}, {len(missing)} are missing"
            + (f" (for example {missing[-1]}{instead})" if missing else "")
            + f", and {len(stray)} do not belong to it"
            + (f" (for example {stray[0]})" if stray else "")
            + ". Choose the backbone it belongs to, or save it again with save_pretrained of"
            " transformers' model; adapters must be merged and quantised layers restored first."
        )
    for name, shape in shapes.items():
        if tensors[name].dtype not in _FLOATS:
            raise WeightsError(
                f"{where}: {name} is stored as {tensors[name].dtype}: quantised weights cannot be"
                f" trained; allowed: {', '.join(map(str, _FLOATS))}. Use the original checkpoint."
            )
        if tensors[name].shape != shape:
            raise WeightsError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}; this backbone needs"
                f" {shape}. Choose the backbone it belongs to, or download the checkpoint again."
            )


def finite_state(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], *, where: str
) -> dict[str, Tensor]:
    """Tensors under other names, in float32; WeightsError if a value is not finite."""
    # Contiguous copies: a file's tensors may share storage or map the file. Cast before checking:
    # float64 can represent values that float32 cannot.
    state = {
        ours: tensors[name].to(torch.float32, copy=True).contiguous()
        for ours, name in names.items()
    }
    for ours, tensor in state.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise WeightsError(
                f"{where}: {names[ours]} has {bad} values that are NaN or infinite (fp16 overflow"
                " in its training?): choose another checkpoint."
            )
    return state


def _count(checkpoint: Checkpoint, arch: Architecture, layout: _Layout) -> tuple[int, list[str]]:
    """Parameters of the whole file, and notes; a T5's decoder is whole, or absent by config."""
    config, sizes = checkpoint.config, {name: t.numel() for name, t in checkpoint.tensors.items()}
    # Tied tensors are the same parameters as the embedding, even if the file repeats them.
    tied = {_STALE_KEY, *_EMBEDDINGS} - {layout.embedding}
    if config.get("tie_word_embeddings", True):
        tied.add("lm_head.weight")
    total = sum(size for name, size in sizes.items() if name not in tied)
    notes = [f"{total:,} parameters by the file's header"]
    if isinstance(arch, HFArchitecture):
        return total, [*notes, f"the first {arch.num_layers} of {_depth(arch)} blocks are used"]
    decoder = {name for name in sizes if name.startswith("decoder.")} - tied
    found = sum(sizes[name] for name in decoder)
    depth = config.get("num_decoder_layers") or arch.num_layers
    if type(depth) is not int:
        raise WeightsError(
            f"{checkpoint.folder}: config.json's num_decoder_layers is {depth!r}; it must be a"
            " whole number. Correct it, or download the checkpoint again."
        )
    crossed = 4 * arch.num_heads * arch.d_kv * arch.d_model + arch.d_model
    expected = count(encoder_shapes(replace(arch, num_layers=depth))) + depth * crossed
    is_encoder = config.get("architectures", ["T5EncoderModel"]) == ["T5EncoderModel"]
    if found != expected and not (found == 0 and is_encoder):
        raise WeightsError(
            f"{checkpoint.folder}: its decoder has {found:,} parameters, this T5's {expected:,}: a"
            " partial checkpoint. Download it again, or save the encoder alone (T5EncoderModel)."
        )
    notes[0] += ", encoder and decoder" if found else ", encoder only"
    if others := sorted(sizes.keys() - layout.shapes.keys() - decoder - tied - {"lm_head.weight"}):
        notes.append(f"note: {len(others)} tensors do not belong to a T5, for example {others[0]}")
    return total, notes
