"""The standing controls, small: where pretrained weights help, the verdict says so."""

import json
from typing import Any

import pytest
from analysis.studies import edit, found, write
from runs import run

from t5ts.analysis import controls
from t5ts.analysis.sections import markdown
from t5ts.provenance import LOADED_CODE

#: experiment=text_in_disguise in 24 steps of 16 windows.
SMALLER = [
    "experiment=text_in_disguise",
    "data.num_rows=6000",
    "data.windows_per_epoch=384",
    "train.epochs=1",
    "train.eval_every_epochs=1",
    "train.batch_size=16",
    "optim.lr=3e-3",
    "optim.warmup_epochs=0.2",
    "init.keep=[]",  # the position bias is what shows in so few steps
]


@pytest.mark.slow
def test_pretraining_on_english_helps_on_english_in_disguise(composed, tmp_path):
    loss = {}
    for init in ("t5", "random"):
        result = run(composed(*SMALLER, f"init={init}"), run_dir=tmp_path / init)
        loss[init] = result.metrics["test_loss"] / result.baselines["test"]["mean"]["loss"]
    assert loss["t5"] < 0.985 < loss["random"]


@pytest.mark.slow
def test_a_donors_encoder_helps_behind_its_own_interface(composed, tmp_path):
    """A small positive control: the donor's knowledge is detected, and is not its scale."""
    small = ["backbone.d_model=32", "backbone.d_ff=64", "backbone.d_kv=8", "backbone.num_layers=2"]
    small += ["seq_len=64", "train.progress=false", "train.eval_batch_size=1024"]
    long = ["data.num_rows=16000", "data.windows_per_epoch=12000", "train.epochs=1"]
    run(composed("experiment=donor", *small, *long), run_dir=tmp_path / "donor")

    def loss_of(init: str) -> float:
        given = [f"init={init}", f"init.path={tmp_path / 'donor'}", "data.num_rows=6000"]
        few = ["data.fraction=0.5", "train.epochs=1", "data.windows_per_epoch=2048"]
        config = composed("experiment=positive_control", *small, *given, *few)
        return run(config, run_dir=tmp_path / init).metrics["test_loss"]

    losses = {init: loss_of(init) for init in ("run", "random", "matched", "shuffled")}
    assert losses["run"] < 0.9 * min(losses[init] for init in ("random", "matched", "shuffled"))


def test_the_donor_of_english_has_not_seen_the_controls_text(composed):
    donor, control = (composed(f"experiment=english_{name}").data for name in ("donor", "control"))
    first_row = control.splits[0] * control.num_rows * (1 - control.fraction)
    assert first_row > donor.num_rows
    assert (donor.seed, donor.num_channels) == (control.seed, control.num_channels)


@pytest.mark.parametrize(
    ("recorded", "used", "is_this_code"),
    [
        (LOADED_CODE, [LOADED_CODE], True),
        (LOADED_CODE, [LOADED_CODE, "older"], False),  # a run that an update interrupted
        ("older", ["older"], False),  # the report's own code is another
        ("older", [LOADED_CODE], False),
        (LOADED_CODE, [], None),
    ],
)
def test_a_report_quotes_controls_of_its_own_code_alone(
    tmp_path, monkeypatch, recorded, used, is_this_code
):
    control = {"experiment": "positive_control", "verdict": "transfers", "paired_seeds": 5}
    record = {"date": "2026-11-25", "code": recorded, "controls": [control]}
    control["change_percent"] = -31.8
    monkeypatch.setattr(controls, "RECORD", tmp_path / "controls.json")
    write(tmp_path / "study", {"t5-none": -0.1, "random-none": 0})

    def record_code(provenance: Any) -> None:
        provenance["code"] = [{"t5ts": code} for code in used]

    edit(tmp_path / "study", "*", "provenance.json", record_code)
    findings = found(tmp_path / "study")
    assert controls.last_seen(findings.study.runs) is None
    controls.RECORD.write_text(json.dumps(record))
    seen = controls.last_seen(findings.study.runs)
    assert seen["is_this_code"] is is_this_code
    text = markdown(findings)
    assert ("-31.8" in text) == bool(is_this_code)
    assert ("2026-11-25" in text) == (is_this_code is not None)
