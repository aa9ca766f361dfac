"""`python -m t5ts.export RUN --out DIR`: a trained model as files for others (docs/predict.md)."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from t5ts.command import finish
from t5ts.errors import OutputError, UserError

if TYPE_CHECKING:
    from t5ts.analysis.statistics import Estimate
    from t5ts.analysis.study import Run, Study
    from t5ts.donor import Donor
    from t5ts.model.architecture import Architecture

#: Metrics that count what was left out, and do not measure the model.
COUNTS = ("constant_channels", "windows_without_target")
CARD = Path(__file__).with_name("model_card.md.j2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit status is 2 for what the user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m t5ts.export",
        description="Export a finished run: its encoder for transformers, its forecaster for"
        " t5ts.predict, t5ts.load and init=run, and a model card.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="directory of a finished run")
    add("--out", type=Path, required=True, metavar="DIR", help="a new directory")
    study = "directories of other runs: the model card gets their verdict, and intervals over the"
    study += " seeds of this run's setting (default: intervals over those of its own sweep)"
    add("--study", type=Path, nargs="+", default=(), metavar="DIR", help=study)
    options = parser.parse_args(arguments)
    try:
        out = export(options.run, options.out, study=options.study)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    for path in sorted(out.iterdir()):
        print(f"{path}  ({path.stat().st_size:,} bytes)")
    where = shlex.quote(str(out))
    print(f"Forecast with it: python -m t5ts.predict {where} --data FILE --out forecast.csv")
    return 0


def export(run: str | Path, out: str | Path, *, study: Sequence[str | Path] = ()) -> Path:
    """Write a finished run's model into a new directory, which appears when it is complete.

    Args:
        run: A run directory, or another export.
        out: A directory that does not exist, or is empty.
        study: Directories of runs, whose verdict goes into the model card, with intervals over the
            seeds of this run's setting. Without it, intervals over those of the run's own sweep.

    Returns:
        `out`.

    Raises:
        WeightsError: as `t5ts.donor.read_donor`.
        OutputError: if `out` is not empty or cannot be written.
    """
    from t5ts.analysis import collect, verdict
    from t5ts.donor import read_donor

    donor, out = read_donor(run, key="RUN"), Path(out).expanduser()
    # The sweep that the run belongs to, or one level more: the sweep of an arm, a trial's seeds.
    home = [f for f in donor.folder.resolve().parents[:3] if (f / "multirun.yaml").is_file()][:1]
    found = collect(study or home) if study or home else None
    findings = verdict(found) if found and study else None
    intervals = _intervals(found, donor) if found else {}
    place = out.absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} exists and is not empty: give a new directory with --out.")
        place.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own: another command may be writing the same export.
        with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
            complete = Path(folder) / place.name
            complete.mkdir()
            _write(donor, complete, intervals=intervals, verdict=findings)
            complete.replace(place)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error}): give another --out.") from error
    return out


def _intervals(study: "Study", donor: "Donor") -> dict[str, "Estimate"]:
    """Test metrics over the seeds of a run's setting; none if it is not of the study."""
    from t5ts.analysis.statistics import mean_interval

    def setting(run: "Run") -> tuple[object, ...]:
        return run.settings, run.condition, run.fingerprint

    identity = donor.provenance["identity"]
    of_run = [setting(r) for r in study.finished if r.provenance.get("identity") == identity]
    seeds = [run for run in study.finished if setting(run) in of_run]
    names = [name for name in donor.result["metrics"] if name.startswith("test_")]
    return {name: mean_interval([run.metric(name) for run in seeds]) for name in names}


def _write(donor: "Donor", folder: Path, **more: Any) -> None:
    import torch
    from jinja2 import Environment, StrictUndefined

    from t5ts.analysis.words import model_name
    from t5ts.checkpoint import save_tensors
    from t5ts.donor import EXPORT
    from t5ts.model.architecture import HFArchitecture, architecture_from
    from t5ts.model.checkpoint_file import file_sha256
    from t5ts.model.hf_encoder import check_export
    from t5ts.provenance import write_json

    rest = {name: tensor.contiguous() for name, tensor in donor.tensors.items()}
    names: dict[str, str] = {}  # transformers' names, where they differ from ours
    if (weights := donor.provenance["weights"]) is not None:
        arch = architecture_from(weights["architecture"])
        config, names, placeholder, factor = _for_transformers(arch)
        if isinstance(arch, HFArchitecture):
            check_export(arch, config, donor.part("encoder."))
        ours = [name for name in rest if name.startswith("encoder.")]
        encoder = {names.get(name, name): rest.pop(name) for name in ours}
        # transformers needs a token embedding, which a forecaster lacks. One row, at the RMS
        # of the tokens that the encoder was trained on: backbone=local reads its scale there.
        encoder[placeholder] = next(iter(encoder.values())).new_full(
            (config["vocab_size"], arch.d_model), donor.token_rms / factor, dtype=torch.float32
        )
        names[placeholder] = ""
        save_tensors(folder / "model.safetensors", encoder, {"format": "pt"})
        text = json.dumps(config, indent=1) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
    save_tensors(folder / "forecaster.safetensors", rest, {"format": "pt"})
    files = {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    records = {"config": donor.config, "provenance": donor.provenance, "result": donor.result}
    facts = {"format": "t5ts-export-1", "files": files, "names": names, **records}
    write_json(folder / EXPORT, facts)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        CARD.read_text(encoding="utf-8")
    )
    model = model_name(
        donor.config["backbone"].get("title"), (weights or {}).get("architecture", {})
    )
    card = template.render(donor=donor, model=model, counts=COUNTS, files=files, **more)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _for_transformers(arch: "Architecture") -> tuple[dict[str, Any], dict[str, str], str, float]:
    """An encoder's config.json; transformers' names of its tensors; its embedding's, and factor."""
    from t5ts.donor import PLACEHOLDER
    from t5ts.model.architecture import HFArchitecture
    from t5ts.model.hf_encoder import HFEncoder, export_config

    if isinstance(arch, HFArchitecture):
        shell = HFEncoder(arch, dropout=0.0, device="meta")
        names = {f"encoder.{ours}": theirs for ours, theirs in shell.hf_names.items()}
        placeholder, _, factor = shell.token_embedding
        return export_config(arch), names, placeholder, factor
    config = {
        **asdict(arch),
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": 1,
        **arch.activation,
        "is_encoder_decoder": False,
        "use_cache": False,
        "dropout_rate": 0.1,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    return config, {}, PLACEHOLDER, 1.0


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
