"""Where an encoder's weights come from, and the proof: one entry point for all init arms.

State dicts of T5 use transformers' names without the leading "encoder.", others `HFEncoder`'s. The
token embedding belongs to the checkpoint, not to the encoder that trains on patches: it is checked
and counted, its RMS is reported, and then it is dropped.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.architecture import Architecture, HFArchitecture, kind_of
from t5ts.model.checkpoint_file import (
    T5_TYPES,
    Checkpoint,
    CorruptError,
    checkpoint_folder,
    file_sha256,
    open_checkpoint,
)
from t5ts.model.freshness import LAW_LIMIT, Freshness, examine
from t5ts.model.hf_encoder import is_norm_weight
from t5ts.model.hub import fetch_snapshot, in_cache
from t5ts.model.tensors import init_law, matched_state, random_state, shuffled_state, state_digest
from t5ts.model.verify import check_config, read_encoder

# The published Chronos-T5 of each d_model. Source: Ansari et al. 2024.
CHRONOS = {256: "tiny", 384: "mini", 512: "small", 768: "base", 1024: "large"}
#: What was found of encoders that this process loaded, by their digest: a sweep's trials load one.
_examined: dict[tuple[str, str], Freshness] = {}
#: How a control is made from a checkpoint's tensors, and in words.
CONTROLS = {
    "matched": (matched_state, "redrawn from normals of each tensor's mean and std"),
    "shuffled": (shuffled_state, "entries permuted inside each tensor"),
}


@dataclass(kw_only=True)
class LoadReport:
    """Where an encoder's weights came from and what was checked; goes to `provenance.json`."""

    init: str  # the arm, as in `init.name`
    source: str  # hub id or directory; "random" when nothing was read
    path: str | None = None  # folder that was read (the cache's, for a hub id)
    revision: str | None = None  # commit on the hub
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file read, by name
    format: str | None = None  # "safetensors" or "pytorch"
    architecture: dict[str, Any] = field(default_factory=dict)  # the `Architecture`
    num_params_full: int | None = None  # of the whole checkpoint, tied tensors once
    num_params_encoder: int  # encoder blocks, final norm and token embedding
    num_params_trained: int  # the same without the token embedding: what the arm trains
    embedding_rms: float  # of the token embeddings; for a run's encoder, of its tokens
    tensors: int  # number of encoder tensors
    # SHA-256 of the weight file; of several shards, that of the lines that `sha256sum` prints for
    # them in the order of their names.
    weights_sha256: str | None = None
    # "pretrained" on text as far as the checks show (the study's report calls only this text
    # pretraining), "time series" (a run's, or a Chronos checkpoint), "barely trained", "control"
    # (no structure: shuffled or redrawn) or "random".
    origin: str
    fresh_tensors: list[str] = field(default_factory=list)  # scatter like a fresh draw
    checks: list[str] = field(default_factory=list)  # in words; "note: …" is worth a look
    tensors_sha256: str  # `state_digest` of the returned tensors: the proof of the arm
    checkpoint_sha256: str | None = None  # digest of the tensors a control was made from


def encoder_state(
    *,
    init: str,
    arch: Architecture,
    generator: torch.Generator,
    factor: float = 1.0,
    scale_norms: bool = False,
    keep: Sequence[str] = (),
    load: Callable[[], tuple[dict[str, Tensor], LoadReport]],
) -> tuple[dict[str, Tensor], LoadReport]:
    """The encoder's tensors for any init arm: the one place where arms are made.

    Args:
        init: "random" (reads nothing), "pretrained" or, of a T5, "t5", "chronos" or "run" (the
            checkpoint: the backbone's, a Chronos-T5 or the encoder of a finished run), or a control
            made from the same checkpoint: "matched", "shuffled".
        arch: The encoder's shape.
        generator: CPU generator of this arm alone; checkpoints draw nothing.
        factor, scale_norms: Of the "random" arm; see `random_state`.
        keep: Regular expressions: tensors that "random" and the controls take from the checkpoint.
        load: Loads the checkpoint; not called for "random" that keeps nothing.

    Returns:
        float32 tensors by the encoder's names, and the report that proves the arm.

    Raises:
        WeightsError: if the weights are not available or not to be trusted, or `keep` matches
            no tensor or all. There is no fallback.
    """
    if init != "random" or keep:
        checkpoint, loaded = load()
    if init == "random":
        state, rms = random_state(arch, generator=generator, factor=factor, scale_norms=scale_norms)
        report = LoadReport(
            init=init,
            source="random",
            origin="random",
            embedding_rms=rms,  # the law's
            checks=[
                f"drawn from {kind_of(arch)}'s initialisation law at factor {factor:g}, "
                f"LayerNorm weights {factor if scale_norms else 1:g}"
            ],
            **_facts(state, arch),
        )
    elif init in CONTROLS:
        make, words = CONTROLS[init]
        state = make(checkpoint, generator=generator)
        report = replace(
            loaded,
            init=init,
            origin="control",
            checks=[*loaded.checks, f"control, not pretrained: {words}"],
            tensors_sha256=state_digest(state),
            checkpoint_sha256=loaded.tensors_sha256,
        )
    else:
        return checkpoint, replace(loaded, init=init)
    return (state, report) if not keep else _keeping(state, report, keep, checkpoint, loaded)


def _keeping(
    state: dict[str, Tensor],
    report: LoadReport,
    keep: Sequence[str],
    checkpoint: dict[str, Tensor],
    loaded: LoadReport,
) -> tuple[dict[str, Tensor], LoadReport]:
    """An arm with the tensors that match `keep` taken from the checkpoint."""
    kept = [name for name in state if any(re.search(text, name) for text in keep)]
    if not 0 < len(kept) < len(state):
        raise WeightsError(
            f"init.keep={list(keep)} matches {len(kept)} of {len(state)} tensors: it must leave"
            f" some to init={report.init} and keep some; names are like"
            f" {', '.join(list(state)[:3])}."
        )
    state |= {name: checkpoint[name] for name in kept}
    return state, replace(
        report,
        files=loaded.files,
        checks=[*report.checks, f"kept from the checkpoint {loaded.source}: {', '.join(kept)}"],
        tensors_sha256=state_digest(state),
        checkpoint_sha256=loaded.tensors_sha256,
    )


def _facts(state: dict[str, Tensor], arch: Architecture) -> dict[str, Any]:
    """What a load report states of any encoder."""
    trained = sum(tensor.numel() for tensor in state.values())
    return {
        "architecture": asdict(arch),
        "num_params_trained": trained,
        "num_params_encoder": trained + arch.vocab_size * arch.d_model,
        "tensors": len(state),
        "tensors_sha256": state_digest(state),
    }


def load_checkpoint(
    *,
    hub_id: str | None = None,
    revision: str = "main",
    path: str | Path | None = None,
    arch: Architecture | None = None,
    expected_sha256: str | None = None,
    must_be_chronos: bool = False,
    allow_untrained: bool = False,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify a checkpoint's encoder from the hub (or its cache) or from a folder.

    Args:
        hub_id: Repository on the hub, for instance "t5-small", and
        revision: its branch, tag or commit; or
        path: A folder with config.json and weights, or "packaged:NAME". Exactly one of the two.
        arch: The shape the config must have; None takes the config's, which must be a T5's.
        expected_sha256: SHA-256 that the weight file must have.
        must_be_chronos: Refuse models other than Chronos, and allow a different vocabulary.
        allow_untrained: Accept one that looks freshly initialised; the report has a note then.

    Returns:
        float32 tensors by the encoder's names, and what was verified.

    Raises:
        WeightsError: if they are unavailable or fail verification, with the fix. No fallback.
    """
    assert (hub_id is None) != (path is None)
    folder = checkpoint_folder(str(path)) if hub_id is None else fetch_snapshot(hub_id, revision)
    try:
        types = (arch.model_type,) if isinstance(arch, HFArchitecture) else T5_TYPES
        checkpoint = open_checkpoint(folder, model_types=types)
        found = check_config(checkpoint, arch, must_be_chronos=must_be_chronos)
        hashes = {file.name: file_sha256(file) for file in checkpoint.files}
        weights_sha256 = _pin(checkpoint, hashes, expected_sha256)
        state, embedding_rms, num_full, notes = read_encoder(checkpoint, found)
    except CorruptError as error:
        raise (error if hub_id is None else in_cache(error, folder)) from error
    is_chronos = "chronos_config" in checkpoint.config
    return state, verified_report(
        state,
        found,
        trained_on="time series" if is_chronos else "pretrained",
        allow_untrained=allow_untrained,
        checks=[
            f"config.json is a {kind_of(found)}'s"
            + ("" if arch is None else " and equals the backbone's values"),
            f"{checkpoint.format}, read without running code from it, not quantised",
            *(["the weight file has the recorded SHA-256"] if expected_sha256 else []),
            *notes,
            *(["note: a Chronos checkpoint, pretrained on time series, not text"] * is_chronos),
        ],
        init="pretrained" if isinstance(found, HFArchitecture) else "t5",
        source=hub_id if hub_id is not None else str(path),
        path=str(folder),
        revision=None if hub_id is None else folder.name,
        files=hashes,
        format=checkpoint.format,
        num_params_full=num_full,
        embedding_rms=embedding_rms,
        weights_sha256=weights_sha256,
    )


def _pin(checkpoint: Checkpoint, hashes: dict[str, str], expected: str | None) -> str:
    """The `weights_sha256` of a load report, which must be the expected one if there is one."""
    weights = checkpoint.files[-1]
    sha256 = hashes[weights.name]
    if len(hashes) > 2:  # config.json, an index, and shards
        lines = "".join(f"{hashes[file.name]}  {file.name}\n" for file in checkpoint.files[2:])
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
    if expected not in (None, sha256):
        raise WeightsError(
            f"{weights} is not the file this backbone expects: its SHA-256 is {sha256} (of shards:"
            f" of what `sha256sum model-*.safetensors` prints), backbone.sha256 is {expected}."
            " Restore it, or use backbone=local for your own checkpoint."
        )
    return sha256


def verified_report(
    state: dict[str, Tensor],
    arch: Architecture,
    *,
    trained_on: str,
    checks: list[str],
    is_trained: bool = False,
    allow_untrained: bool = False,
    **facts: Any,
) -> LoadReport:
    """The report of a complete encoder, which is refused if it looks freshly initialised.

    Args:
        state, arch: Its tensors and shape.
        trained_on: Its origin, unless it shows no sign of training.
        checks: What was verified before, in words.
        is_trained: It is known to have been trained, however briefly, and so is never refused.
        allow_untrained: Looking freshly initialised is a note; what is broken is still refused.
        facts: The report's other fields.
    """
    own = _facts(state, arch)
    if (key := (own["tensors_sha256"], repr(arch))) not in _examined:
        norms = {name: tensor for name, tensor in state.items() if is_norm_weight(name)}
        _examined[key] = examine(state, init_law(arch), norms)
    seen = _examined[key]
    looks = [
        f"not a random initialisation: distance {seen.law_distance:.3g} from the init law "
        f"(fresh: below {LAW_LIMIT:g}), LayerNorm weights vary by {seen.norm_spread:.0%}"
    ]
    if is_trained:  # a small encoder may show no structure, but it is not a control
        seen = replace(seen, has_structure=True)
    elif seen.verdict is not None:
        if seen.broken or not allow_untrained:
            # No tensor tells a brief training from none; only a run's own records prove it.
            brief = (
                " If it was trained too briefly to show, train longer, use a finished run of t5ts"
                " (init=run), or, as a last resort, set init.allow_untrained=true: reports then"
                " say that its weights look freshly initialised."
            )
            raise WeightsError(
                f"{facts['path']} looks freshly initialised, not pretrained: {seen.verdict}. Use a"
                " trained checkpoint; if you want random weights, set init=random."
                + ("" if seen.broken else brief)
            )
        accepted = "note: looks freshly initialised, accepted by init.allow_untrained=true"
        looks = [accepted, f"as {seen.verdict}"]
    return LoadReport(
        origin=trained_on if seen.origin == "pretrained" else seen.origin,
        fresh_tensors=list(seen.structureless),
        checks=[
            *checks,
            f"all {len(state)} encoder tensors present with their shapes, none unexpected",
            "all values finite",
            *looks,
            *seen.notes,
        ],
        **own,
        **facts,
    )


def chronos_source(checkpoint: str | None, d_model: int) -> tuple[str | None, str | None]:
    """The hub id and the folder, one of them None, of a Chronos-T5.

    `checkpoint` is a hub id, or a folder (it exists, or begins with "/", "." or "~"), or None for
    the published model of this width; WeightsError if there is none.
    """
    if checkpoint is None:
        if d_model not in CHRONOS:
            raise WeightsError(
                f"No Chronos-T5 has d_model {d_model}; allowed: {', '.join(map(str, CHRONOS))}, or"
                " set init.checkpoint=ID_OR_DIR."
            )
        return f"amazon/chronos-t5-{CHRONOS[d_model]}", None
    if checkpoint.startswith(("/", ".", "~")) or Path(checkpoint).is_dir():
        return None, checkpoint
    return checkpoint, None


def describe(report: LoadReport) -> list[str]:
    """A load report as five lines for the terminal, from the source to the verdict."""
    arch, kind = report.architecture, kind_of(report.architecture)
    verdict = {
        "random": "random initialisation, nothing pretrained",
        "pretrained": f"pretrained {kind}, verified",
        "time series": f"{kind} pretrained on time series, verified",
        "barely trained": f"{kind} that was barely trained",
        "control": f"{kind} without structure, like a shuffled or redrawn one",
    }[report.origin]
    if report.init in CONTROLS:
        verdict = f"control '{report.init}' made from a verified {kind}"
    revision = f" at {report.revision[:12]}" if report.revision else ""
    shape = f"d_ff {arch['d_ff']}, {arch['feed_forward_proj']}" if kind == "T5" else kind
    full = report.num_params_full
    return [
        f"weights    {report.source}{revision} ({report.format or 'drawn'}), in"
        f" {report.path or 'memory'}",
        f"d_model    {arch['d_model']} ({arch['num_layers']} layers, {arch['num_heads']} heads,"
        f" {shape})",
        f"full       {'nothing was read' if full is None else f'{full:,} parameters'}",
        f"encoder    {report.num_params_encoder:,} parameters with its token embedding"
        f" (RMS {report.embedding_rms:.3g}), {report.num_params_trained:,} without",
        f"verdict    {'; '.join([verdict, *(c for c in report.checks if c.startswith('note:'))])}",
    ]
