"""Where an encoder's weights come from, and the proof of it: one entry point for all init arms.

State dicts use transformers' names without the leading "encoder.". The token embedding belongs to
the checkpoint, not to the encoder that trains on patches: it is checked, counted and its RMS
reported, then left behind.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model import hub
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import file_sha256, open_checkpoint
from t5ts.model.config_file import read_architecture
from t5ts.model.packaged import checkpoint_folder
from t5ts.model.tensors import (
    count,
    encoder_shapes,
    init_law,
    matched_state,
    random_state,
    shuffled_state,
    state_digest,
)
from t5ts.model.verify import check_config, check_header, check_trained, read_encoder

__all__ = [
    "INITS",
    "LoadReport",
    "describe",
    "encoder_shapes",
    "encoder_state",
    "init_law",
    "load_checkpoint",
    "matched_state",
    "random_state",
    "read_architecture",
    "shuffled_state",
    "state_digest",
    "verify_cached",
]

INITS = ("random", "t5", "matched", "shuffled")


@dataclass(kw_only=True)
class LoadReport:
    """Where an encoder's weights came from and what was checked; goes to `provenance.json`.

    Attributes:
        init: The arm: one of `INITS`.
        source: Hub id or directory; "random" when nothing was read.
        path: Folder that was read (the cache's, for a hub id).
        revision: Commit on the hub.
        files: SHA-256 of each file read, by name.
        format: "safetensors" or "pytorch".
        architecture: The encoder's `T5Architecture` as a dict.
        num_params_full: Parameters of the whole checkpoint, tied tensors once.
        num_params_encoder: Encoder blocks, final norm and token embedding.
        num_params_trained: The same without the token embedding: what the arm trains.
        embedding_rms: Root mean square of the token embeddings (the init law's, for "random").
        tensors: Number of encoder tensors.
        checks: What was verified, in words; entries that begin with "note:" deserve a look.
        tensors_sha256: `state_digest` of the returned tensors: the proof of the arm.
        checkpoint_sha256: `state_digest` of the checkpoint's tensors that a control was made from.
    """

    init: str
    source: str
    path: str | None = None
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    num_params_full: int | None = None
    num_params_encoder: int
    num_params_trained: int
    embedding_rms: float
    tensors: int
    checks: list[str] = field(default_factory=list)
    tensors_sha256: str
    checkpoint_sha256: str | None = None


def encoder_state(
    *,
    init: str,
    arch: T5Architecture,
    generator: torch.Generator,
    factor: float = 1.0,
    scale_norms: bool = False,
    hub_id: str | None = None,
    path: str | Path | None = None,
    revision: str = "main",
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    expected_full_params: tuple[int, int] | None = None,
    expected_sha256: str | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """The encoder's tensors for any init arm: the one place that arms come from.

    Args:
        init: "random" (reads nothing), "t5" (the checkpoint), or a control made from the same
            checkpoint: "matched", "shuffled".
        arch: The encoder's shape; a checkpoint must agree with it.
        generator: CPU generator for the arm's own randomness; "t5" draws nothing.
        factor: Scale of the "random" arm; see `random_state`.
        scale_norms: See `random_state`.
        hub_id: Repository on the hub; or
        path: A checkpoint folder. One of the two, unless `init` is "random".
        revision: As for `load_checkpoint`, like the following ones.
        token: Access token for the hub.
        endpoint: The hub's address.
        cache_dir: The hub's cache.
        offline: Use the cache only.
        expected_full_params: Least and most parameters that the whole checkpoint may have.
        expected_sha256: SHA-256 that the weight file must have.

    Returns:
        float32 tensors named as in `encoder_shapes`, and the report that proves the arm.

    Raises:
        WeightsError: if `init` is unknown or the weights cannot be had or trusted. There is no
            fallback.
    """
    if init not in INITS:
        raise WeightsError(f"init={init!r} is unknown; allowed are {', '.join(INITS)}.")
    if init == "random":
        state = random_state(arch, generator=generator, factor=factor, scale_norms=scale_norms)
        trained = count(encoder_shapes(arch))
        return state, LoadReport(
            init=init,
            source="random",
            architecture=asdict(arch),
            num_params_encoder=trained + arch.vocab_size * arch.d_model,
            num_params_trained=trained,
            embedding_rms=float(factor),  # the law's: T5 draws its embeddings with std = factor
            tensors=len(state),
            checks=[
                f"drawn from T5's initialisation law at factor {factor:g}, LayerNorm weights "
                f"{factor if scale_norms else 1:g}; no checkpoint was read"
            ],
            tensors_sha256=state_digest(state),
        )
    state, report = load_checkpoint(
        hub_id=hub_id,
        path=path,
        arch=arch,
        revision=revision,
        token=token,
        endpoint=endpoint,
        cache_dir=cache_dir,
        offline=offline,
        expected_full_params=expected_full_params,
        expected_sha256=expected_sha256,
    )
    if init == "t5":
        return state, report
    make, words = {
        "matched": (matched_state, "redrawn from normals of each tensor's mean and std"),
        "shuffled": (shuffled_state, "entries permuted inside each tensor"),
    }[init]
    state = make(state, generator=generator)
    return state, replace(
        report,
        init=init,
        checks=[*report.checks, f"control, not pretrained: {words}"],
        tensors_sha256=state_digest(state),
        checkpoint_sha256=report.tensors_sha256,
    )


def load_checkpoint(
    *,
    hub_id: str | None = None,
    path: str | Path | None = None,
    arch: T5Architecture | None = None,
    revision: str = "main",
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    refresh: bool = False,
    expected_full_params: tuple[int, int] | None = None,
    expected_sha256: str | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify a T5 checkpoint's encoder from the hub (or its cache) or from a folder.

    Args:
        hub_id: Repository on the hub, for instance "t5-small"; or
        path: A folder with config.json and weights, or "packaged:NAME". Exactly one of the two.
        arch: The shape that the config must have; None takes the config's.
        revision: Branch, tag or commit on the hub.
        token: Access token; None is `HF_TOKEN` or the stored login.
        endpoint: The hub's address; None is `HF_ENDPOINT` or huggingface.co.
        cache_dir: The hub's cache; None is the one under `HF_HOME`.
        offline: Use the cache only; None is `HF_HUB_OFFLINE`.
        refresh: Ask the hub for the revision's newest commit even if one is cached.
        expected_full_params: Least and most parameters that the whole checkpoint may have.
        expected_sha256: SHA-256 that the weight file must have.

    Returns:
        float32 tensors named as in `encoder_shapes`, and what was verified.

    Raises:
        WeightsError: if they cannot be had or do not verify, with the remedy. Never a fallback.
    """
    if (hub_id is None) == (path is None):
        raise WeightsError(
            f"Weights come from a hub id or from a folder, got hub_id={hub_id!r} and "
            f"path={None if path is None else str(path)!r}. Set backbone=t5_small for the hub, or "
            "backbone=local backbone.path=DIR."
        )
    commit = None
    if hub_id is not None:
        snapshot = hub.fetch_snapshot(
            hub_id,
            revision=revision,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            offline=offline,
            refresh=refresh,
        )
        folder, commit = snapshot.folder, snapshot.commit
    else:
        folder = checkpoint_folder(str(path))
    files = open_checkpoint(folder)
    hashes = {file.name: file_sha256(file) for file in files.files}
    if hub_id is not None:
        for file in files.files:
            hub.check_content(file, hashes[file.name])
    if expected_sha256 is not None:
        _check_sha256(files.files[-1], hashes, expected_sha256)
    found = check_config(files, arch)
    num_full, notes = check_header(files, found, expected_full_params)
    state, embedding_rms = read_encoder(files, found)
    notes += check_trained(state, found, folder)
    trained = count(encoder_shapes(found))
    return state, LoadReport(
        init="t5",
        source=hub_id if hub_id is not None else str(path),
        path=str(folder),
        revision=commit,
        files=hashes,
        format=files.format,
        architecture=asdict(found),
        num_params_full=num_full,
        num_params_encoder=trained + found.vocab_size * found.d_model,
        num_params_trained=trained,
        embedding_rms=embedding_rms,
        tensors=len(state),
        checks=[
            "config.json is a T5's" + ("" if arch is None else " and equals the backbone's values"),
            f"{files.format}, read without running code from it, not quantised",
            f"all {len(state)} encoder tensors present with their shapes, none unexpected",
            "all values finite",
            *(["the weight file has the recorded SHA-256"] if expected_sha256 else []),
            *notes,
        ],
        tensors_sha256=state_digest(state),
    )


def _check_sha256(file: Path, hashes: dict[str, str], expected: str) -> None:
    if hashes[file.name] != expected:
        raise WeightsError(
            f"{file} is not the file that this backbone names: its SHA-256 is {hashes[file.name]}, "
            f"backbone.sha256 is {expected}. It was altered or cut short; restore it (reinstall "
            "t5ts or check it out again), or use backbone=local for a checkpoint of your own."
        )


def verify_cached(
    hub_id: str,
    *,
    arch: T5Architecture | None = None,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    expected_full_params: tuple[int, int] | None = None,
) -> LoadReport:
    """Verify a cached checkpoint without a network, file hashes included.

    Raises:
        WeightsError: if it is not cached, or corrupted, or not a trained T5.
    """
    return load_checkpoint(
        hub_id=hub_id,
        arch=arch,
        revision=revision,
        cache_dir=cache_dir,
        offline=True,
        expected_full_params=expected_full_params,
    )[1]


def describe(report: LoadReport) -> list[str]:
    """A load report as five lines for the terminal, from where it came to the verdict."""
    arch = report.architecture
    revision = f" at {report.revision[:12]}" if report.revision else ""
    full = (
        "nothing was read"
        if report.num_params_full is None
        else f"{report.num_params_full:,} parameters"
    )
    notes = [check for check in report.checks if check.startswith("note:")]
    verdict = {
        "random": "random initialisation, nothing pretrained",
        "t5": "pretrained T5, verified",
    }.get(report.init, f"control '{report.init}' made from a verified T5")
    return [
        f"weights    {report.source}{revision} ({report.format or 'drawn'}), "
        f"in {report.path or 'memory'}",
        f"d_model    {arch['d_model']} ({arch['num_layers']} layers, {arch['num_heads']} heads, "
        f"d_ff {arch['d_ff']}, {arch['feed_forward_proj']})",
        f"full       {full}",
        f"encoder    {report.num_params_encoder:,} parameters with its token embedding "
        f"(RMS {report.embedding_rms:.3g}), {report.num_params_trained:,} without",
        f"verdict    {verdict}" + "".join(f"; {note}" for note in notes),
    ]
