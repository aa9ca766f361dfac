"""A finished run as a donor: its encoder as a checkpoint, its patch embedding for every arm."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from runs import Compose, flip, read, resumes_as_whole, run
from safetensors.torch import load_file

from t5ts.build import build_model, token_scale
from t5ts.checkpoint import load_checkpoint
from t5ts.errors import InputsChanged, UserError, WeightsError
from t5ts.export import export
from t5ts.model.freshness import Freshness, examine

#: So little that nothing in the encoder tells it from a fresh draw: that it was trained is known.
TRAINED = ["init=random", "train.epochs=2", "patch.scale=native"]


@pytest.fixture(scope="module")
def donors(composed, tmp_path_factory) -> list[Path]:
    """The same run at two seeds."""
    folders = [tmp_path_factory.mktemp("donor") for _ in range(2)]
    for seed, folder in enumerate(folders):
        run(composed(*SMALL, *TINY_T5, *TRAINED, f"seed={seed}"), run_dir=folder)
    return folders


@pytest.fixture(scope="module")
def donor(donors) -> Path:
    return donors[0]


@pytest.fixture
def copy(donor, tmp_path) -> Path:
    return Path(shutil.copytree(donor, tmp_path / "copy"))


@pytest.fixture
def arm(composed, donor) -> Compose:
    return lambda *overrides: composed(*SMALL, *TINY_T5, f"init.path={donor}", *overrides)


def best(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    stored, _ = load_checkpoint(folder / "checkpoint" / "best.safetensors")
    name = f"model/{prefix}"
    return {key.removeprefix(name): t for key, t in stored.items() if key.startswith(name)}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_runs_encoder_arrives_to_the_digit_and_its_controls_are_made_of_it(arm, donor):
    theirs = best(donor, "encoder.")
    model, report = build_model(arm("init=run"), num_channels=2)
    assert same(model.encoder.state_dict(), theirs)
    assert (report.init, report.origin, report.source) == ("run", "barely trained", str(donor))
    assert report.files["best.safetensors"] == report.weights_sha256
    for init in ("matched", "shuffled"):
        control, of = build_model(arm(f"init={init}"), num_channels=2)
        ours = control.encoder.state_dict()
        assert not same(ours, theirs)
        assert (of.init, of.origin) == (init, "control")
        assert of.checkpoint_sha256 == report.tensors_sha256
        sort = [{n: t.flatten().sort().values for n, t in x.items()} for x in (ours, theirs)]
        assert same(*sort) == (init == "shuffled")
    _, random = build_model(arm("init=random"), num_channels=2)
    assert random.origin == "random"


def test_native_scale_is_that_of_the_donors_own_trained_tokens(arm, donor):
    norm = best(donor, "patch.norm.")
    rms = (norm["weight"].square() + norm["bias"].square()).mean().sqrt().item()
    assert abs(rms - 1) > 1e-4  # the norm was trained
    fresh, _ = build_model(arm("init=run", "patch.scale=native"), num_channels=2)
    assert token_scale(fresh) == pytest.approx(rms, rel=1e-3)
    # With the donor's patch embedding too: its very tokens, and the random arm's at its own RMS.
    both = ["patch.scale=native", "patch.init=run", f"patch.path={donor}"]
    for init, expected in (("run", rms), ("random", 1.0)):
        model, _ = build_model(arm(f"init={init}", *both), num_channels=2)
        assert same(model.patch.state_dict(), best(donor, "patch."))
        assert token_scale(model) * rms == pytest.approx(expected, rel=1e-3)


def test_a_runs_encoder_survives_kill_and_resume(arm, donor, tmp_path):
    config = arm("init=run", "patch.init=run", f"patch.path={donor}", "train.epochs=2")
    resumes_as_whole(config, tmp_path)
    recorded = read(tmp_path / "parts" / "provenance.json")["weights"]
    assert (recorded["init"], recorded["origin"]) == ("run", "barely trained")  # as it is


@pytest.mark.parametrize(
    "by",
    [
        ["init=run", "init.path={}"],
        ["init=shuffled", "init.path={}"],
        ["init=random", "patch.init=run", "patch.path={}"],
    ],
    ids=["encoder", "control", "patch"],
)
def test_a_finished_run_is_shown_again_until_its_donor_changes(
    composed, copy, donors, tmp_path, by
):
    overrides = [override.format(copy) for override in by]
    config = composed(*SMALL, *TINY_T5, *overrides, "train.epochs=1")
    first = run(config, run_dir=tmp_path / "run")
    assert run(config, run_dir=tmp_path / "run") == first
    shutil.copytree(donors[1], copy, dirs_exist_ok=True)
    with pytest.raises(InputsChanged, match="weights"):
        run(config, run_dir=tmp_path / "run")
    shutil.rmtree(copy)  # nothing to compare with: shown, with a warning
    assert run(config, run_dir=tmp_path / "run") == first


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "result.json").unlink(), r"result\.json"),
        (lambda folder: (folder / "config.yaml").unlink(), r"config\.yaml"),
        (lambda folder: flip(folder / "checkpoint" / "best.safetensors"), "corrupt"),
        (lambda folder: shutil.rmtree(folder / "checkpoint"), "no checkpoint"),
        (lambda folder: (folder / "provenance.json").write_text("{}"), "scale_audit"),
    ],
)
@pytest.mark.parametrize("part", ["init", "patch"])
def test_a_donor_that_is_not_whole_is_refused(spoil, named, part, copy, tiny):
    spoil(copy)
    other = ["init=random"] if part == "patch" else []
    key = "name" if part == "init" else "init"
    config = tiny(*other, f"{part}.{key}=run", f"{part}.path={copy}")
    with pytest.raises(WeightsError, match=named) as error:
        build_model(config, num_channels=2)
    assert f"{part}.path={copy}" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["init=run", "backbone.d_ff=48"], r"\(48, 16\)|\(16, 48\)"),
        (["init=run", "backbone.num_layers=3"], "block.2"),
        (["init=random", "patch.init=run", "patch.patch_len=4"], "patch.patch_len"),
        (["init=random", "patch.init=run", "patch.channels=mixing"], "patch.channels"),
        (["init=random", "patch.init=run", "task=reconstruct", "horizon=null"], "task.mask"),
    ],
)
def test_a_donor_of_another_shape_is_refused(overrides, named, arm, donor):
    paths = [f"patch.path={donor}"] if "patch.init=run" in overrides else []
    with pytest.raises(WeightsError, match=named):
        build_model(arm(*overrides, *paths), num_channels=2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # bf16 rounds what never trains
def test_a_run_that_never_trained_its_encoder_is_no_donor(precision, tiny, tmp_path):
    frozen = ["init=random", "freeze=all", "train.epochs=1", "optim.warmup_epochs=0"]
    run(tiny(*frozen, f"train.precision={precision}"), run_dir=tmp_path)
    with pytest.raises(UserError, match="freshly initialised"):
        build_model(tiny("init=run", f"init.path={tmp_path}"), num_channels=2)


def test_a_donor_that_never_trained_its_encoder_is_noted(composed, donor, arm, tmp_path):
    def notes(path: Path) -> list[str]:
        overrides = [*SMALL, *TINY_T5, "init=run", f"init.path={path}"]
        _, report = build_model(composed(*overrides), num_channels=2)
        return [check for check in report.checks if "never trained" in check]

    assert notes(donor) == []
    run(arm("init=run", "freeze=all", "train.epochs=1"), run_dir=tmp_path)
    assert len(notes(tmp_path)) == 1
    # Norms that moved by less than bfloat16 resolves; what never trains is stored in it.
    slight = ["freeze=norms", "train.precision=bf16", "train.epochs=1", "optim.lr=1e-6"]
    run(arm("init=run", *slight), run_dir=tmp_path / "slight")
    assert notes(tmp_path / "slight") == []
    exported = load_file(export(tmp_path / "slight", tmp_path / "export") / "model.safetensors")
    assert exported["shared.weight"].dtype is torch.float32  # backbone=local reads its RMS


def test_a_trained_donor_is_no_control_however_little_structure_it_shows(arm, monkeypatch):
    def without_structure(*arguments: Any) -> Freshness:
        return replace(examine(*arguments), law_distance=9.0, has_structure=False)

    monkeypatch.setattr("t5ts.model.weights.examine", without_structure)
    monkeypatch.setattr("t5ts.model.weights._examined", {})  # what earlier tests have loaded
    _, report = build_model(arm("init=run"), num_channels=2)
    assert report.origin == "time series"
    assert not any("shuffled" in check for check in report.checks)


@pytest.mark.parametrize("init", ["random", "matched", "shuffled"])
def test_what_controls_keep_of_the_checkpoint_is_its_own(arm, donor, init):
    keep = "init.keep=[relative_attention_bias]"
    kept, report = build_model(arm(f"init={init}", keep), num_channels=2)
    plain, _ = build_model(arm(f"init={init}"), num_channels=2)
    theirs = best(donor, "encoder.")
    ours, without = (model.encoder.state_dict() for model in (kept, plain))
    for name in theirs:
        source = theirs if "relative_attention_bias" in name else without
        assert torch.equal(ours[name], source[name])
    assert report.files.keys() == {"best.safetensors"}
    for all_or_none in ("nothing_like_it", "'block|norm'"):
        with pytest.raises(WeightsError):
            build_model(arm(f"init={init}", f"init.keep=[{all_or_none}]"), num_channels=2)


def test_a_random_arm_that_keeps_a_tensor_is_shown_again(arm, tmp_path):
    config = arm("init=random", "init.keep=[relative_attention_bias]", "train.epochs=1")
    first = run(config, run_dir=tmp_path / "run")
    assert run(config, run_dir=tmp_path / "run").metrics == first.metrics


def test_the_pretrained_arm_keeps_everything_anyway(arm, donor):
    model, _ = build_model(arm("init=run", "init.keep=[relative_attention_bias]"), num_channels=2)
    assert same(model.encoder.state_dict(), best(donor, "encoder."))
