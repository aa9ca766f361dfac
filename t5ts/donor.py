"""A finished run as a donor: its encoder as a checkpoint, and its patch embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t5ts.analysis.results import read_json
from t5ts.checkpoint import load_checkpoint
from t5ts.errors import UserError, WeightsError
from t5ts.model.architecture import Architecture
from t5ts.model.checkpoint_file import file_sha256
from t5ts.model.patching import PatchEmbedding
from t5ts.model.tensors import encoder_shapes, state_digest
from t5ts.model.verify import check_trained
from t5ts.model.weights import LoadReport, loaded_report
from t5ts.provenance import file_crc32


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A finished run: the tensors of its best checkpoint, and its records."""

    config: Mapping[str, Any]  # its config.yaml
    identity: str  # of that configuration
    tensors: Mapping[str, Tensor]  # the model's tensors by name
    token_rms: float  # RMS of the tokens it was trained on
    sha256: str  # of the checkpoint file, or of an export's forecaster.json
    folder: Path
    result: dict[str, Any]  # its result.json
    provenance: dict[str, Any]  # its provenance.json

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of a part ("patch.", "encoder."), by their names within it."""
        return _under(prefix, self.tensors)


#: The embedding that transformers' T5EncoderModel needs; an export's is a placeholder.
PLACEHOLDER = "shared.weight"
#: The file that makes a folder an export (`t5ts.export`): it lists the others' checksums.
EXPORT = "forecaster.json"


def best_checkpoint(path: str | Path) -> Path:
    """The file that identifies the selected weights of a run or an export."""
    folder = Path(path).expanduser()
    export = folder / EXPORT
    return export if export.is_file() else folder / "checkpoint" / "best.safetensors"


def read_donor(path: str | Path, *, key: str) -> Donor:
    """Read a finished run's best checkpoint, from its directory or from an export of it.

    Args:
        path: The directory.
        key: The setting it comes from, for messages.

    Raises:
        WeightsError: if it is neither, the run is not finished, or a file is corrupt.
    """
    folder = Path(path).expanduser()
    allowed = (
        "allowed: the directory of a finished run (with config.yaml and result.json), or an"
        f" export of t5ts.export (with {EXPORT})."
    )
    is_export = (folder / EXPORT).is_file()
    for name, problem in (
        ("config.yaml", "is not a run directory"),
        ("result.json", "is not finished: re-run that run's command until it is"),
    ):
        if not is_export and not (folder / name).is_file():
            raise WeightsError(f"{key}={path} {problem}; {allowed}")
    try:
        told, tensors = (_read_export if is_export else _read_run)(folder)
        provenance = told["provenance"]
        first_rms, identity = float(provenance["scale_audit"]["input"]), provenance["identity"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, UserError) as error:
        raise WeightsError(f"{key}={path}: that run cannot be read ({error}); {allowed}") from error
    return Donor(
        config=told["config"],
        identity=str(identity),
        tensors=tensors,
        token_rms=first_rms * norm_rms(tensors, "patch."),  # the norm starts at 1
        sha256=file_sha256(best_checkpoint(path)),
        folder=folder,
        result=told["result"],
        provenance=provenance,
    )


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and records, and the model's tensors, of a run directory."""
    names = ("provenance", "result")
    told: dict[str, Any] = {name: read_json(folder / f"{name}.json") for name in names}
    told["config"] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    files = told["result"].get("files", {})  # absent from the oldest runs
    if files.get("config.yaml") not in (None, file_crc32(folder / "config.yaml")):
        raise ValueError("config.yaml is not the file that the run wrote: its checksum differs")
    stored, _ = load_checkpoint(best_checkpoint(folder))
    return told, _under("model/", stored)


def _read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same for an export, whose files must match its recorded checksums."""
    told = read_json(folder / EXPORT)
    tensors: dict[str, Tensor] = {}
    for name, sha256 in told["files"].items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(f"{name} is not the file that was exported: its SHA-256 differs")
        tensors |= load_file(folder / name)
    ours = {theirs: name for name, theirs in told.get("names", {}).items()}
    for name in (PLACEHOLDER, ours.pop("", None)):
        tensors.pop(str(name), None)
    tensors = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    return told, tensors


def norm_rms(tensors: Mapping[str, Tensor], prefix: str = "") -> float:
    """RMS of a patch embedding's LayerNorm output; 1 if there is none."""
    weight, bias = (tensors.get(f"{prefix}norm.{name}") for name in ("weight", "bias"))
    if weight is None or bias is None:
        return 1.0
    return (weight.double().square() + bias.double().square()).mean().sqrt().item()


def load_donor(path: str | Path, *, arch: Architecture) -> tuple[dict[str, Tensor], LoadReport]:
    """The encoder of a finished run as a checkpoint, verified as one.

    Args:
        path: The run directory (`init.path`).
        arch: The shape of this run's encoder.

    Returns:
        float32 tensors by the encoder's names, and what was verified.

    Raises:
        WeightsError: as `read_donor`; if the encoder is not one of that shape, has values that are
            not finite, or looks freshly initialised (it was never trained).
    """
    donor = read_donor(path, key="init.path")
    found = donor.part("encoder.")
    shapes = encoder_shapes(arch)
    has = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if wrong := sorted(n for n in shapes.keys() | has.keys() if shapes.get(n) != has.get(n)):
        backbone = donor.config.get("backbone", {}).get("name")
        raise WeightsError(
            f"init.path={path}: that run's encoder (backbone {backbone}) has a different shape: "
            f"{len(wrong)} tensors differ, for example {wrong[0]}: {has.get(wrong[0], 'absent')} "
            f"there, {shapes.get(wrong[0], 'absent')} here. Use the backbone that it was trained "
            "with."
        )
    state = {name: found[name].float() for name in shapes}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"init.path={path}: {bad[0]} has values that are NaN or infinite.")
    is_trained = state_digest(found) != donor.provenance["initial_sha256"]["encoder"]
    seen = check_trained(state, arch, donor.folder, is_trained=is_trained)
    if is_trained:  # a small encoder may show no structure; that it is no control is known
        seen = replace(seen, has_structure=True)
    report = loaded_report(
        state,
        arch,
        seen,
        trained_on="time series",
        checks=[
            f"best checkpoint of the finished run {donor.identity}, its CRC-32 right",
            "the RMS is that of the run's own tokens, trained on "
            f"data={donor.config.get('data', {}).get('name')}",
            "trained by that run: its digest differs from the run's initial one"
            if is_trained
            else "note: the donor run never trained its encoder (frozen, or best at epoch 0)",
        ],
        init="run",
        source=str(path),
        path=str(donor.folder),
        files={best_checkpoint(path).name: donor.sha256},
        format="safetensors",
        embedding_rms=donor.token_rms,
        weights_sha256=donor.sha256,
    )
    # A run's model has no token embedding.
    return state, replace(report, num_params_encoder=report.num_params_trained)


def load_patch(patch: PatchEmbedding, path: str | Path) -> None:
    """Copy a finished run's patch-embedding weights into a patch embedding.

    Args:
        patch: Filled in place.
        path: The run directory (`patch.path`).

    Raises:
        WeightsError: as `read_donor`; if that patch embedding has different tensors or shapes.
    """
    donor = read_donor(path, key="patch.path")
    ours = {name: tuple(tensor.shape) for name, tensor in patch.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in donor.part("patch.").items()}
    if ours != theirs:
        raise WeightsError(
            f"patch.path={path}: that run's patch embedding has {theirs}, this one's {ours}. They"
            " must agree in backbone.d_model, patch.patch_len, patch.norm, patch.channels (mixing:"
            " also the number of channels) and task.mask."
        )
    patch.load_state_dict(donor.part("patch."))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
