"""Whole runs: their files, repeatability, resuming, pairing, and no fake arms."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL, TINY_T5
from runs import local_t5, read, rows, run, run_until
from safetensors.torch import load_file

from t5ts import experiment
from t5ts.analysis import collect
from t5ts.analysis.results import Result
from t5ts.build import build
from t5ts.checkpoint import load_checkpoint
from t5ts.config import Config
from t5ts.console import report
from t5ts.data.windows import Windows
from t5ts.errors import ConfigError, OutOfMemory, ResumeError, TrainingError
from t5ts.meter import Meter
from t5ts.model.checkpoint_file import file_sha256
from t5ts.model.forecaster import scale_audit
from t5ts.model.tensors import state_digest
from t5ts.provenance import json_ready

STAGED = ["freeze=staged", "freeze.unfreeze_epoch=1", "freeze.blocks_per_stage=1"]


@pytest.fixture(scope="module")
def whole(composed, tmp_path_factory) -> tuple[Config, Path, Result]:
    """A staged run that nothing interrupts, logged at every step: config, directory, result."""
    every_step = ["train.log_every=1", "train.probe_every=1"]
    more = ["freeze.eval_mode=true", "optim=adamw_rms", "train.epochs=5"]
    config = composed(*SMALL, *TINY_T5, *STAGED, *every_step, *more)
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return config, run_dir, experiment.run(config, run_dir=run_dir)


def test_a_run_leaves_a_directory_that_explains_itself(whole):
    _, run_dir, result = whole
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "provenance.json", "metrics.jsonl", "result.json", "checkpoint"} <= names
    plots = {path.stem for path in (run_dir / "plots").glob("*.png")}
    assert plots == {"learning_curve", "forecast", "gradient_norms"}
    saved = read(run_dir / "result.json")
    evals = [row for row in rows(run_dir) if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2, 3, 4, 5]
    best = min(evals, key=lambda row: row["val_loss"])
    assert saved["objective"] == result.objective == best["val_loss"]
    assert saved["best_epoch"] == best["epoch"]
    assert saved["initial"]["val_loss"] == evals[0]["val_loss"]
    assert set(saved["baselines"]["val"]) == {"seasonal_naive", "last_value", "mean"}
    naive = saved["baselines"]["val"]["seasonal_naive"]["loss"]
    assert saved["metrics"]["val_skill"] == pytest.approx(1 - best["val_loss"] / naive)
    for name in ("mae", "mase", "corr", "corr_delta"):
        assert f"test_{name}" in saved["metrics"]
    provenance = read(run_dir / "provenance.json")
    assert provenance["weights"]["init"] == "random"
    assert provenance["data"]["sha256"]
    assert provenance["seed"] == 0
    step_rows = [row for row in rows(run_dir) if row["kind"] == "step"]
    for component in ("patch", "block_0", "block_1", "final_norm", "head", "total"):
        assert all(math.isfinite(row[f"step/grad_norm/{component}"]) for row in step_rows)
    assert all(math.isfinite(row["distance_from_init/block_1"]) for row in evals)


def test_the_result_says_whether_the_selected_weights_use_their_encoder(whole):
    config, run_dir, result = whole
    initial = read(run_dir / "provenance.json")["scale_audit"]["cosine"]
    assert result.metrics["encoder_cosine_initial"] == initial
    setup = build(config)
    tensors, _ = load_checkpoint(run_dir / "checkpoint" / "best.safetensors")
    setup.model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items()})
    meter = Meter(setup, batch_size=7)
    with setup.model.bypassing_blocks():
        bypassed = meter.measure("val")["val_loss"]
    assert result.metrics["bypassed_val_loss"] == pytest.approx(bypassed)
    assert meter.measure("val")["val_loss"] == pytest.approx(result.metrics["val_loss"])
    assert bypassed != pytest.approx(result.metrics["val_loss"], rel=1e-6)
    first = setup.data.splits.train.gather(torch.arange(experiment.AUDIT_WINDOWS))
    cosine = scale_audit(setup.model, setup.task.batch(first, torch.arange(64)).inputs_BCL)
    assert result.metrics["encoder_cosine"] == pytest.approx(cosine["cosine"])


def test_a_loss_no_better_than_a_naive_forecast_is_warned_of(whole, caplog):
    """The log's 204 and 3333 were worse than the mean, and nobody asked why."""
    _, run_dir, result = whole
    losses = {name: metrics["loss"] for name, metrics in result.baselines["val"].items()}
    for loss in (*losses.values(), 0.99 * min(losses.values())):
        caplog.clear()
        with caplog.at_level("INFO", logger="t5ts"):
            report(replace(result, metrics=result.metrics | {"val_loss": loss}), run_dir)
        named = {name for name in losses if f"{name.replace('_', ' ')} (" in caplog.text}
        assert named == {name for name in losses if losses[name] <= loss}


def test_what_the_probes_show_is_what_the_plan_says(whole):
    _, run_dir, _ = whole
    per_epoch = read(run_dir / "provenance.json")["steps_per_epoch"]
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    for row in steps:
        step = row["step"] - 1  # rows count steps done
        for block, start in (("block_1", 1), ("block_0", 2)):  # top_down, a block an epoch
            trains = step >= start * per_epoch
            assert (row[f"step/grad_norm/{block}"] > 0) == trains
            assert (f"lr/{block}" in row) == trains
    moved = [row["distance_from_init/block_0"] > 0 for row in rows(run_dir) if "val_loss" in row]
    assert moved == [False, False, False, True, True, True]
    # Gradient norms do not climb after unfreezing.
    thawed = [norm for row in steps if (norm := row["step/grad_norm/block_1"]) > 0]
    assert max(thawed[-10:]) < 5 * max(thawed[:10])


def test_equal_runs_are_equal_bit_for_bit_and_other_seeds_are_not(whole, tmp_path):
    config, run_dir, result = whole
    run(config, run_dir=tmp_path / "again")
    assert rows(tmp_path / "again") == rows(run_dir)
    other = run(replace(config, seed=1), run_dir=tmp_path / "other")
    assert other.objective != result.objective
    initial = [read(d / "provenance.json")["initial_sha256"] for d in (run_dir, tmp_path / "other")]
    assert all(initial[0][part] != initial[1][part] for part in ("patch", "encoder", "head"))


def test_arms_differ_in_the_encoders_weights_alone_which_are_the_files(small, tmp_path):
    """Same seed: bit-identical patch and head in every arm; and no fake arm, to the end."""
    path = local_t5(tmp_path / "t5")
    local = ["backbone=local", f"backbone.path={path}", "debug=fast_dev_run", "freeze=all"]
    about = {}
    for init in ("random", "t5", "matched", "shuffled"):
        torch.rand(3)  # whatever was drawn before must not matter
        run(small(*local, f"init={init}"), run_dir=tmp_path / init)
        about[init] = read(tmp_path / init / "provenance.json")
        audit = about[init]["scale_audit"]
        assert {"input", "block_0", "output", "residual_ratio/block_0"} <= set(audit)
    for part, count in {"patch": 1, "head": 1, "encoder": 4}.items():
        assert len({p["initial_sha256"][part] for p in about.values()}) == count
    weights = about["t5"]["weights"]
    assert weights["files"]["model.safetensors"] == file_sha256(path / "model.safetensors")
    for init in ("matched", "shuffled"):
        assert about[init]["weights"]["checkpoint_sha256"] == weights["tensors_sha256"]
    file = load_file(path / "model.safetensors")
    tensors, _ = load_checkpoint(tmp_path / "t5" / "checkpoint" / "best.safetensors")
    prefix = "model/encoder."
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    assert len(state) > 10
    assert weights["tensors_sha256"] == state_digest(state)
    for name, tensor in state.items():
        assert torch.equal(tensor, file[f"encoder.{name}"]), name


@pytest.mark.parametrize(
    ("steps", "politely"), [([1], True), ([12], False), ([5, 2, 9, 4, 1], False)]
)
def test_resumed_equals_uninterrupted_bit_for_bit(steps, politely, whole, tmp_path):
    """SIGTERM, kill -9, and many of both."""
    config, run_dir, result = whole
    for number, step in enumerate(steps):
        run_until(step, config, tmp_path / "parts", politely=politely != (number % 2 == 1))
    resumed = run(config, run_dir=tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(run_dir)
    assert resumed.metrics == result.metrics
    assert resumed.objective == result.objective


def test_a_finished_run_is_shown_put_aside_or_refused(small, run_dir):
    dry = ["backbone=linear", "debug=fast_dev_run"]
    first = run(small(*dry), run_dir=run_dir)
    metrics = run_dir / "metrics.jsonl"
    left, written = metrics.read_bytes(), metrics.stat().st_mtime_ns
    assert json_ready(asdict(run(small(*dry), run_dir=run_dir))) == json_ready(asdict(first))
    assert metrics.stat().st_mtime_ns == written
    with pytest.raises(ResumeError):
        run(small(*dry, "seed=1"), run_dir=run_dir)
    run(small(*dry, "train.resume=never"), run_dir=run_dir)
    assert (run_dir / "previous-1" / "metrics.jsonl").read_bytes() == left
    assert (run_dir / "result.json").is_file()


def test_a_foreign_checkpoint_is_refused_by_name(small, tmp_path):
    run_until(9, small("backbone=linear"), tmp_path / "a")
    checkpoint = tmp_path / "a" / "checkpoint" / "last.safetensors"
    with pytest.raises(ResumeError, match=str(checkpoint)):
        run(small("backbone=linear", "optim.lr=0.1"), run_dir=tmp_path / "a")


def test_a_loss_that_is_not_finite_stops_with_step_group_and_checkpoint(tiny, run_dir):
    config = tiny("optim.lr=1e30", "optim.clip_norm=null", "normalize=none")
    with pytest.raises(TrainingError) as error:
        run(config, run_dir=run_dir)
    message = str(error.value)
    assert "step 2" in message
    assert "train_loss" in message or "grad_norm/" in message
    assert str(run_dir / "checkpoint" / "last.safetensors") in message
    assert not (run_dir / "result.json").exists()
    (read_back,) = collect([run_dir]).runs  # its arm's outcome, not a run to be waited for
    assert (read_back.state, read_back.is_open) == ("failed", False)


def test_the_test_windows_are_read_once_and_after_training(tiny, run_dir, monkeypatch):
    seen: list[str] = []
    real = Windows.gather

    def gather(self, index_B):
        seen.append(self.name)
        return real(self, index_B)

    monkeypatch.setattr(Windows, "gather", gather)
    monkeypatch.setattr("t5ts.datasets._loaded", {})  # with what other tests have computed
    run(tiny(), run_dir=run_dir)
    # Before training only the baselines, which see no model, read the test windows.
    assert seen.index("train") > seen.index("test")
    assert "test" not in seen[seen.index("train") : -3]


@pytest.mark.parametrize(
    "overrides",
    [
        "t5_efficient_tiny patch=norm patch.channels=mixing",
        "t5_efficient_tiny patch=plain patch.channels=independent train.precision=bf16",
        "shared patch=norm patch.channels=independent",
        "shared patch=plain patch.channels=mixing",
        "linear patch=plain",
    ],
)
def test_every_backbone_runs_with_every_patch(overrides, small, run_dir):
    backbone, *others = overrides.split()
    sizes = [] if backbone == "linear" else ["backbone.d_model=16", "backbone.num_layers=1"]
    dry = ["patch.stride=5", "debug=fast_dev_run"]
    config = small(f"backbone={backbone}", *others, *sizes, *dry)
    assert math.isfinite(run(config, run_dir=run_dir).objective)


@pytest.mark.parametrize("freeze", ["none", "all", "norms"])
def test_every_freezing_trains_what_it_says(freeze, tiny, run_dir):
    run(tiny(f"freeze={freeze}", "train.epochs=1"), run_dir=run_dir)
    last = [row for row in rows(run_dir) if row["kind"] == "eval"][-1]
    assert (last["distance_from_init/block_1"] > 0) == (freeze != "all")
    assert last["distance_from_init/head"] > 0


def test_a_model_comes_near_the_best_achievable_loss(composed, run_dir):
    """Synthetic data says what the best possible forecast scores; a linear map gets close."""
    config = composed(
        "backbone=linear", "data=synthetic", "data.num_rows=12000", "seq_len=72", "horizon=8",
        "normalize=none", "optim.lr=3e-3", "train.epochs=15", "tracker=none",
    )  # fmt: skip
    result = run(config, run_dir=run_dir)
    ratio = result.metrics["test_loss"] / result.best_achievable_loss
    assert 0.9 < ratio < 1.15


def test_overfit_drives_the_loss_down(tiny, run_dir):
    config = tiny(
        "debug=overfit", "train.epochs=100", "backbone.dropout=0", "optim.schedule=constant",
        "train.eval_every_epochs=50",
    )  # fmt: skip
    result = run(config, run_dir=run_dir)
    assert result.metrics["val_loss"] < 0.5 * result.initial["val_loss"]
    assert result.debug == "overfit"


def test_fp16_and_cuda_without_a_gpu_are_refused(tiny, run_dir):
    for override in ("train.precision=fp16", "train.device=cuda", "train.device=mps"):
        with pytest.raises(ConfigError, match=override):
            run(tiny(override), run_dir=run_dir)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nmore"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("a bug"),
    ],
)
def test_out_of_memory_names_what_to_lower(error, tiny, run_dir, monkeypatch):
    def fit(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "fit", fit)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        run(tiny(), run_dir=run_dir)
    if str(error) == "a bug":
        assert raised.value is error
    else:
        assert isinstance(raised.value, OutOfMemory)
        assert "train.batch_size" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_golden_losses(tiny, small, tmp_path):
    """A refactor keeps these, or says why not (to renew: delete the file and run once).

    They are compared at 1e-4, since another processor's kernels round otherwise.
    """
    got = {}
    earlier = ["patch=sqrt_d", "optim.encoder_lr_scale=0.1"]  # defaults, when they were written
    shared = ["backbone=shared", "backbone.d_model=16", "backbone.num_layers=2"]
    for name, config in {
        "t5 staged": tiny(*STAGED, *earlier),
        "t5 none": tiny(*earlier),
        "shared": small(*shared, *earlier),
        "linear": small("backbone=linear", *earlier),
    }.items():
        run(config, run_dir=tmp_path / name)
        got[name] = [r["val_loss"] for r in rows(tmp_path / name) if r["kind"] == "eval"]
    golden = Path(__file__).parent / "golden.json"
    if not golden.exists():
        golden.write_text(json.dumps(got, indent=1) + "\n")
        pytest.fail(f"{golden} was missing and has been written: look at it and run again")
    expected = json.loads(golden.read_text())
    assert set(got) == set(expected)
    for name, losses in expected.items():
        assert got[name] == pytest.approx(losses, rel=1e-4), name
