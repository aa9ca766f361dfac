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
from t5ts.model.architecture import Architecture, HFArchitecture
from t5ts.model.checkpoint_file import (
    T5_TYPES,
    CorruptError,
    checkpoint_folder,
    file_sha256,
    open_checkpoint,
)
from t5ts.model.freshness import LAW_LIMIT, Freshness
from t5ts.model.hub import fetch_snapshot, in_cache
from t5ts.model.tensors import (
    matched_state,
    random_state,
    shuffled_state,
    state_digest,
)
from t5ts.model.verify import check_config, check_trained, kind_of, read_encoder

# The published Chronos-T5 of each d_model. Source: Ansari et al. 2024.
CHRONOS = {256: "tiny", 384: "mini", 512: "small", 768: "base", 1024: "large"}
_CONTROLS = {
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
    # RMS of the token embeddings: the init law's for "random", that of its own tokens for a run's
    # encoder.
    embedding_rms: float
    tensors: int  # number of encoder tensors
    # SHA-256 of the weight file; of several shards, that of the lines that `sha256sum` prints for
    # them in the order of their names.
    weights_sha256: str | None = None
    # What the tensors are: "pretrained" on text as far as the checks show, "time series" (a run's,
    # or a Chronos checkpoint), "barely trained", "control" (no structure: shuffled or redrawn) or
    # "random". The study's report calls only "pretrained" text pretraining.
    origin: str
    # Tensors that scatter like a fresh draw, in an accepted checkpoint.
    fresh_tensors: list[str] = field(default_factory=list)
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
        if init not in ("random", *_CONTROLS):
            return checkpoint, replace(loaded, init=init)
    if init == "random":
        state, rms = random_state(arch, generator=generator, factor=factor, scale_norms=scale_norms)
        report = LoadReport(
            init=init,
            source="random",
            origin="random",
            embedding_rms=rms,  # the law's
            checks=[
                f"drawn from {kind_of(asdict(arch))}'s initialisation law at factor {factor:g}, "
                f"LayerNorm weights {factor if scale_norms else 1:g}"
            ],
            **_facts(state, arch),
        )
    else:
        make, words = _CONTROLS[init]
        state = make(checkpoint, generator=generator)
        report = replace(
            loaded,
            init=init,
            origin="control",
            checks=[*loaded.checks, f"control, not pretrained: {words}"],
            tensors_sha256=state_digest(state),
            checkpoint_sha256=loaded.tensors_sha256,
        )
    if not keep:
        return state, report
    kept = [name for name in state if any(re.search(text, name) for text in keep)]
    if not 0 < len(kept) < len(state):
        raise WeightsError(
            f"init.keep={list(keep)} matches {len(kept)} of {len(state)} tensors: it must leave"
            f" some to init={init} and keep some; names are like {', '.join(list(state)[:3])}."
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
) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify a checkpoint's encoder from the hub (or its cache) or from a folder.

    Args:
        hub_id: Repository on the hub, for instance "t5-small", and
        revision: its branch, tag or commit; or
        path: A folder with config.json and weights, or "packaged:NAME". Exactly one of the two.
        arch: The shape the config must have; None takes the config's, which must be a T5's.
        expected_sha256: SHA-256 that the weight file must have.
        must_be_chronos: Refuse models other than Chronos, and allow a different vocabulary.

    Returns:
        float32 tensors by the encoder's names, and what was verified.

    Raises:
        WeightsError: if they are unavailable or fail verification, with the fix. No fallback.
    """
    assert (hub_id is None) != (path is None)
    if hub_id is not None:
        folder = fetch_snapshot(hub_id, revision)
    else:
        folder = checkpoint_folder(str(path))
    try:
        types = (arch.model_type,) if isinstance(arch, HFArchitecture) else T5_TYPES
        files = open_checkpoint(folder, model_types=types)
        found = check_config(files, arch, must_be_chronos=must_be_chronos)
        hashes = {file.name: file_sha256(file) for file in files.files}
        weights_sha256 = hashes[files.weights[0].name]
        if len(files.files) > 2:  # an index, and shards
            lines = "".join(f"{hashes[file.name]}  {file.name}\n" for file in files.weights)
            weights_sha256 = hashlib.sha256(lines.encode()).hexdigest()
        if expected_sha256 not in (None, weights_sha256):
            raise WeightsError(
                f"{files.weights[0]} is not the file this backbone expects: its SHA-256 is "
                f"{weights_sha256}, backbone.sha256 is {expected_sha256}. It was modified or "
                "truncated; restore it (reinstall t5ts or check it out again), or use "
                "backbone=local for your own checkpoint. (For several shards it is the SHA-256 of "
                "the output of `sha256sum`: sha256sum model-*.safetensors | sha256sum.)"
            )
        state, embedding_rms, num_full, notes = read_encoder(files, found)
    except CorruptError as error:
        raise (error if hub_id is None else in_cache(error, folder)) from error
    seen = check_trained(state, found, folder)
    checks = [
        f"config.json is a {kind_of(asdict(found))}'s"
        + ("" if arch is None else " and equals the backbone's values"),
        f"{files.format}, read without running code from it, not quantised",
        *(["the weight file has the recorded SHA-256"] if expected_sha256 else []),
        *notes,
    ]
    is_chronos = "chronos_config" in files.config
    if is_chronos:
        checks.append("note: a Chronos checkpoint, pretrained on time series, not text")
    return state, loaded_report(
        state,
        found,
        seen,
        trained_on="time series" if is_chronos else "pretrained",
        checks=checks,
        init="pretrained" if isinstance(found, HFArchitecture) else "t5",
        source=hub_id if hub_id is not None else str(path),
        path=str(folder),
        revision=None if hub_id is None else folder.name,
        files=hashes,
        format=files.format,
        num_params_full=num_full,
        embedding_rms=embedding_rms,
        weights_sha256=weights_sha256,
    )


def chronos_source(checkpoint: str | None, d_model: int) -> tuple[str | None, str | None]:
    """The hub id and the folder, one of them None, of a Chronos-T5.

    Args:
        checkpoint: Hub id, or a folder (it exists, or begins with "/", "." or "~"); None chooses
            the published model of this width.
        d_model: The encoder's width.

    Raises:
        WeightsError: if no model of this width was published.
    """
    if checkpoint is None:
        if d_model not in CHRONOS:
            raise WeightsError(
                f"No Chronos-T5 has d_model {d_model}; allowed are "
                f"{', '.join(map(str, CHRONOS))} (backbone=t5_efficient_tiny, t5_efficient_mini, "
                "t5_small, t5_base, t5_large). Or set init.checkpoint=ID_OR_DIR."
            )
        return f"amazon/chronos-t5-{CHRONOS[d_model]}", None
    if checkpoint.startswith(("/", ".", "~")) or Path(checkpoint).is_dir():
        return None, checkpoint
    return checkpoint, None


def loaded_report(
    state: dict[str, Tensor],
    arch: Architecture,
    seen: Freshness,
    *,
    trained_on: str,
    checks: list[str],
    **facts: Any,
) -> LoadReport:
    """The report of a verified encoder; `trained_on` is its origin unless `seen` objects."""
    return LoadReport(
        origin=trained_on if seen.origin == "pretrained" else seen.origin,
        fresh_tensors=list(seen.structureless),
        checks=[
            *checks,
            f"all {len(state)} encoder tensors present with their shapes, none unexpected",
            "all values finite",
            f"not a random initialisation: distance {seen.law_distance:.3g} from the init law "
            f"(fresh: below {LAW_LIMIT:g}), LayerNorm weights vary by {seen.norm_spread:.0%}",
            *seen.notes,
        ],
        **_facts(state, arch),
        **facts,
    )


def describe(report: LoadReport) -> list[str]:
    """A load report as five lines for the terminal, from the source to the verdict."""
    arch = report.architecture
    revision = f" at {report.revision[:12]}" if report.revision else ""
    num_full = report.num_params_full
    kind = kind_of(arch)
    verdict = {
        "random": "random initialisation, nothing pretrained",
        "pretrained": f"pretrained {kind}, verified",
        "time series": f"{kind} pretrained on time series, verified",
        "barely trained": f"{kind} that was barely trained",
        "control": f"{kind} without structure, like a shuffled or redrawn one",
    }[report.origin]
    if report.init in _CONTROLS:
        verdict = f"control '{report.init}' made from a verified {kind}"
    shape = f"d_ff {arch['d_ff']}, {arch['feed_forward_proj']}" if kind == "T5" else kind
    lines = {
        "weights": f"{report.source}{revision} ({report.format or 'drawn'}), in "
        f"{report.path or 'memory'}",
        "d_model": f"{arch['d_model']} ({arch['num_layers']} layers, {arch['num_heads']} heads, "
        f"{shape})",
        "full": "nothing was read" if num_full is None else f"{num_full:,} parameters",
        "encoder": f"{report.num_params_encoder:,} parameters with its token embedding "
        f"(RMS {report.embedding_rms:.3g}), {report.num_params_trained:,} without",
        "verdict": "; ".join([verdict, *(c for c in report.checks if c.startswith("note:"))]),
    }
    return [f"{name:<10} {text}" for name, text in lines.items()]
