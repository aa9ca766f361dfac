"""An arm's encoder and patch embedding: architecture, weights, and the files they are read from."""

import math
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.config import Config
from t5ts.donor import best_checkpoint, load_donor, load_patch, norm_rms
from t5ts.draws import component_generator
from t5ts.errors import ConfigError
from t5ts.model import hub
from t5ts.model.architecture import Architecture, T5Architecture
from t5ts.model.checkpoint_file import (
    checkpoint_folder,
    file_sha256,
    open_checkpoint,
    read_architecture,
    read_config,
)
from t5ts.model.encoders import Encoder, NoEncoder, SharedEncoder
from t5ts.model.hf_encoder import HFEncoder, hf_architecture
from t5ts.model.patching import PatchEmbedding, WholeContext, token_bank
from t5ts.model.tensors import empty_encoder
from t5ts.model.weights import LoadReport, chronos_source, encoder_state, load_checkpoint
from t5ts.schema import CheckpointBackbone, HFBackbone, LinearBackbone, SharedBackbone, T5Backbone


def build_encoder(config: Config) -> tuple[Encoder, LoadReport | None]:
    """The encoder, and where its weights came from; None without a published encoder.

    Raises:
        WeightsError: if the weights are unavailable or fail verification.
    """
    backbone, init = config.backbone, config.init
    if isinstance(backbone, LinearBackbone):
        return NoEncoder(), None
    if isinstance(backbone, SharedBackbone):
        shared = SharedEncoder(**{k: v for k, v in asdict(backbone).items() if k != "name"})
        shared.init_parameters(component_generator(config.seed, "encoder"))
        return shared, None
    assert isinstance(backbone, CheckpointBackbone)
    arch = architecture(backbone)
    # Each arm has its own stream: matched noise is not random's.
    stream = "encoder" if init.name == "random" else f"encoder/{init.name}"
    state, report = encoder_state(
        init=init.name,
        arch=arch,
        generator=component_generator(config.seed, stream),
        factor=init.factor,
        scale_norms=init.scale_norms,
        keep=init.keep,
        load=partial(load_encoder, config, arch),
    )
    encoder = empty_encoder(arch, dropout=backbone.dropout, device="cpu")
    encoder.load_state_dict(state)
    if isinstance(encoder, HFEncoder):
        encoder.try_out()
    return encoder, report


def load_encoder(config: Config, arch: Architecture) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify the checkpoint of an arm.

    Raises:
        WeightsError: as `load_donor`, `chronos_source` and `load_checkpoint`.
    """
    allow_untrained = config.init.allow_untrained
    if config.init.path:
        return load_donor(config.init.path, arch=arch, allow_untrained=allow_untrained)
    return load_checkpoint(arch=arch, allow_untrained=allow_untrained, **_checkpoint(config))


def _checkpoint(config: Config) -> dict[str, Any]:
    """What `load_checkpoint` loads for an arm, or for its control."""
    backbone, init = config.backbone, config.init
    assert isinstance(backbone, CheckpointBackbone)
    if init.name == "chronos" or init.checkpoint is not None:
        hub_id, path = chronos_source(init.checkpoint, architecture(backbone).d_model)
        return {"hub_id": hub_id, "path": path, "must_be_chronos": True}
    return {
        "hub_id": None if backbone.path else backbone.hub_id,
        "path": backbone.path,
        "revision": backbone.revision,
        "expected_sha256": backbone.sha256,
    }


def architecture(backbone: CheckpointBackbone) -> Architecture:
    """The backbone's shape, from its own values or from its checkpoint's config.json.

    Raises:
        UserError: if they are incomplete or describe no encoder.
    """
    if isinstance(backbone, HFBackbone):
        values, where = backbone.sizes, f"backbone={backbone.name}"
        if not values:
            if backbone.path is not None:
                folder = checkpoint_folder(backbone.path)
            else:
                folder = hub.fetch_snapshot(str(backbone.hub_id), backbone.revision)
            values, where = read_config(folder, model_types=None), str(folder / "config.json")
        return hf_architecture(values, num_layers=backbone.num_layers, where=where)
    assert isinstance(backbone, T5Backbone)
    if backbone.d_model is None:
        return read_architecture(str(backbone.path))
    names = [f.name for f in fields(T5Architecture) if hasattr(backbone, f.name)]
    sizes = {name: getattr(backbone, name) for name in names}
    if absent := ", ".join(f"backbone.{name}" for name, value in sizes.items() if value is None):
        raise ConfigError(f"backbone.d_model={backbone.d_model} needs the other sizes: {absent}.")
    return T5Architecture(**sizes)


def build_patch(
    config: Config, encoder: Encoder, report: LoadReport | None, *, num_channels: int, hidden: str
) -> PatchEmbedding | WholeContext:
    """The patch embedding; without an encoder, one token per row and `config.patch` is ignored."""
    patch = config.patch
    common: dict[str, Any] = {
        "seq_len": config.seq_len,
        "num_channels": num_channels,
        "channels": patch.channels,
        "hidden": hidden,
    }
    if isinstance(encoder, NoEncoder):
        return WholeContext(**common)
    embedding = PatchEmbedding(
        **common,
        d_model=encoder.d_model,
        patch_len=patch.patch_len,
        stride=patch.stride,
        norm=patch.norm,
        scale=_token_factor(config, encoder.d_model, report),
        num_prototypes=patch.num_prototypes,
        bank_SD=_bank(config, encoder.d_model, report),
        generator=component_generator(config.seed, "patch"),
    )
    most = getattr(encoder, "max_tokens", None)
    if most is not None and embedding.num_patches > most:
        raise ConfigError(
            f"{embedding.num_patches} patches, but backbone={config.backbone.name} has positions"
            f" for {most}: raise patch.patch_len or patch.stride, or shorten seq_len."
        )
    if patch.path is not None:
        load_patch(embedding, patch.path)
        if patch.scale == "native":  # the arm's RMS, not the donor norm's
            embedding.scale /= norm_rms(embedding.state_dict())
    return embedding


def _bank(config: Config, d_model: int, report: LoadReport | None) -> Tensor | None:
    """Token embeddings for prototypes, from the arm's own weights; a donor's patch has its own."""
    patch = config.patch
    if patch.num_prototypes is None:
        return None
    if patch.path is not None:
        return torch.empty(patch.bank_size, d_model)
    assert report is not None
    return token_bank(
        report,
        num_rows=patch.bank_size,
        sample=component_generator(config.seed, "bank"),
        own=component_generator(config.seed, f"bank/{report.init}"),
    )


def _token_factor(config: Config, d_model: int, report: LoadReport | None) -> float:
    """`patch.scale` as a number.

    "match_embedding" is the RMS of the checkpoint's token embedding, equal in every arm; "native"
    is the RMS that the arm's own weights expect, 1 if there are none.
    """
    scale = config.patch.scale
    if scale not in ("match_embedding", "native"):
        return {"none": 1.0, "div_sqrt_d": d_model**-0.5, "mul_sqrt_d": d_model**0.5}[scale]
    rms = 1.0 if report is None else report.embedding_rms
    fixed = getattr(config.backbone, "embedding_rms", None)
    if scale == "match_embedding" and fixed is not None:
        rms = fixed
    if not 0 < rms < math.inf:
        raise ConfigError(
            f"patch.scale={scale}: the RMS of the checkpoint's token embedding is {rms}, and must"
            " be finite and positive; choose another scale or checkpoint."
        )
    return rms


def patch_files(config: Config) -> dict[str, str]:
    """Name and SHA-256 of the file that `patch.init=run` reads; empty otherwise."""
    path = config.patch.path
    return {} if path is None else {"patch": file_sha256(best_checkpoint(path))}


def weight_files(config: Config) -> dict[str, str] | None:
    """SHA-256 by name of each file that weights would be read from now; None if one is absent."""
    init, backbone = config.init, config.backbone
    reads_checkpoint = init.name != "random" or bool(init.keep)
    donor = init.path if reads_checkpoint else None
    donors = [best_checkpoint(path) for path in (config.patch.path, donor) if path is not None]
    if not all(path.is_file() for path in donors):
        return None
    files: list[Path] = []
    if donor is not None:
        files = [best_checkpoint(donor)]
    elif isinstance(backbone, CheckpointBackbone) and reads_checkpoint:
        source = _checkpoint(config)
        revision = source.get("revision", "main")
        folder = source["path"] or hub.cached_snapshot(source["hub_id"], revision)
        if folder is None:
            return None
        files = list(open_checkpoint(folder, model_types=None).files)
    return {path.name: file_sha256(path) for path in files} | patch_files(config)
