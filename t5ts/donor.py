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
from t5ts.model.verify import check_tensors, finite_state
from t5ts.model.weights import LoadReport, verified_report
from t5ts.provenance import file_crc32


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A finished run: the tensors of its best checkpoint, and its records."""

    config: Mapping[str, Any]  # its config.yaml
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
    is_export = (folder / EXPORT).is_file()
    allowed = (
        "allowed: the directory of a finished run (with config.yaml and result.json; re-run its"
        f" command until it is), or an export of t5ts.export (with {EXPORT})."
    )
    for name in ("config.yaml", "result.json"):
        if not is_export and not (folder / name).is_file():
            raise WeightsError(f"{key}={path} is not a finished run, it has no {name}; {allowed}")
    try:
        records, tensors = (_read_export if is_export else _read_run)(folder)
        provenance = records["provenance"]
        first_rms = float(provenance["scale_audit"]["input"])
        if "identity" not in provenance:  # messages name it
            raise ValueError("its records have no identity")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, UserError) as error:
        raise WeightsError(f"{key}={path}: that run cannot be read ({error}); {allowed}") from error
    return Donor(
        config=records["config"],
        tensors=tensors,
        token_rms=first_rms * norm_rms(tensors, "patch."),  # the norm starts at 1
        sha256=file_sha256(best_checkpoint(path)),
        folder=folder,
        result=records["result"],
        provenance=provenance,
    )


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and records, and the model's tensors, of a run directory."""
    names = ("provenance", "result")
    records: dict[str, Any] = {name: read_json(folder / f"{name}.json") for name in names}
    records["config"] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    files = records["result"].get("files", {})  # absent from the oldest runs
    if files.get("config.yaml") not in (None, file_crc32(folder / "config.yaml")):
        raise ValueError("config.yaml is not the file that the run wrote: its checksum differs")
    stored, _ = load_checkpoint(best_checkpoint(folder))
    return records, _under("model/", stored)


def _read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same of an export, whose files must match its recorded checksums."""
    records = read_json(folder / EXPORT)
    tensors: dict[str, Tensor] = {}
    for name, sha256 in records["files"].items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(f"{name} is not the file that was exported: its SHA-256 differs")
        tensors |= load_file(folder / name)
    ours = {theirs: name for name, theirs in records.get("names", {}).items()}
    for name in (PLACEHOLDER, ours.pop("", None)):
        tensors.pop(str(name), None)
    tensors = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    return records, tensors


def norm_rms(tensors: Mapping[str, Tensor], prefix: str = "") -> float:
    """RMS of a patch embedding's LayerNorm output; 1 if there is none."""
    weight, bias = (tensors.get(f"{prefix}norm.{name}") for name in ("weight", "bias"))
    if weight is None or bias is None:
        return 1.0
    return (weight.double().square() + bias.double().square()).mean().sqrt().item()


def load_donor(
    path: str | Path, *, arch: Architecture, allow_untrained: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """The encoder of a finished run (`init.path`) as a checkpoint, verified as one.

    Returns:
        float32 tensors by the encoder's names, and what was verified.

    Raises:
        WeightsError: as `read_donor`; if the encoder is not of this shape, or looks freshly
            initialised (it was never trained) and `allow_untrained` is not set.
    """
    donor = read_donor(path, key="init.path")
    found, shapes, where = donor.part("encoder."), encoder_shapes(arch), f"init.path={path}"
    kind = f"encoder (that run's backbone is {donor.config.get('backbone', {}).get('name')})"
    check_tensors(found, shapes, inside="", kind=kind, where=where)
    state = finite_state(found, {name: name for name in shapes}, where=where)
    initial = donor.provenance["initial_sha256"]
    is_trained = state_digest(found) not in (initial["encoder"], initial.get("encoder_in_bf16"))
    report = verified_report(
        state,
        arch,
        is_trained=is_trained,
        allow_untrained=allow_untrained,
        trained_on="time series",
        checks=[
            f"best checkpoint of the finished run {donor.provenance['identity']}, its CRC-32 right",
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
    """Fill a patch embedding with a finished run's (`patch.path`).

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
