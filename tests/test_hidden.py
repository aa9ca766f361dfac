"""Whole runs in which steps are hidden: masked by the task, or missing in the data."""

import math
from pathlib import Path

import numpy as np
import pytest
from data.table_files import series_table
from runs import Compose, read, resumes_as_whole, rows, run

from t5ts import experiment
from t5ts.build import build
from t5ts.errors import DataError
from t5ts.meter import Meter

RECONSTRUCT = ["task=reconstruct", "horizon=null"]


def write_csv(path: Path, *, empty: slice = slice(0)) -> str:
    """Two seasonal minute-bar channels with single gaps, a long one, and a choice of rows empty."""
    rng = np.random.default_rng(0)
    t = np.arange(600)[:, None]
    values = 10 * np.sin(2 * np.pi * (t / 24 + [0.0, 0.3])) + rng.normal(size=(600, 2)) + 50
    values[rng.random(values.shape) < 0.2] = np.nan
    values[100:150, 1] = values[empty] = np.nan
    series_table(minutes=1, a=values[:, 0], b=values[:, 1]).write_csv(path)
    return str(path)


@pytest.fixture
def gappy(composed, tmp_path) -> Compose:
    """A small run on a table with gaps."""
    settings = [
        "seq_len=32", "horizon=8", "patch.patch_len=8", "train.epochs=3", "optim.lr=3e-3",
        "tracker=none", "train.log_every=2", "data=csv", "data.missing=mask", "data.season=24",
        f"data.path={write_csv(tmp_path / 'bars.csv')}",
    ]  # fmt: skip
    encoder = ["backbone=shared", "backbone.d_model=16", "backbone.num_layers=1"]
    return lambda *overrides: composed(
        *settings, *([] if "backbone=linear" in overrides else encoder), *overrides
    )


# ---------------------------------------------------------------------- data.missing=mask


def test_training_on_gaps_learns_and_scores_observed_targets_alone(gappy, run_dir):
    result = run(gappy(), run_dir=run_dir)
    assert result.metrics["val_loss"] < 0.8 * result.initial["val_loss"]
    assert all(
        math.isfinite(row["step/train_loss"]) for row in rows(run_dir) if row["kind"] == "step"
    )
    truth = read(run_dir / "forecast_sample.json")["windows"]
    assert any(value is None for window in truth for value in window["truth"])


def test_a_split_without_any_target_is_refused_before_training(gappy, tmp_path, run_dir):
    write_csv(tmp_path / "bars.csv", empty=slice(420, 480))
    with pytest.raises(DataError, match=r"data\.splits"):
        run(gappy(), run_dir=run_dir)
    assert not (run_dir / "metrics.jsonl").exists()


def test_train_targets_that_are_all_gaps_are_refused(gappy, tmp_path):
    write_csv(tmp_path / "bars.csv", empty=slice(402, 420))
    with pytest.raises(DataError, match=r"data\.fraction"):
        build(gappy("data.fraction=0.12"))
    build(gappy("data.fraction=0.5"))


def test_gradient_accumulation_weighs_parts_by_their_targets(gappy, tmp_path):
    """Parts have unequal numbers of targets; weighing them by windows would change the gradient."""
    common = ["backbone.dropout=0", "train.epochs=1", "train.batch_size=50"]
    whole = run(gappy(*common), run_dir=tmp_path / "1")
    parts = run(gappy(*common, "train.grad_accumulation=7"), run_dir=tmp_path / "7")
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-4)


# --------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize(
    ("mask", "head"), [("token", "flatten"), ("value", "flatten"), ("token", "per_patch")]
)
def test_reconstruction_runs_and_says_what_it_masks(mask, head, tiny, run_dir):
    changes = [f"task.mask={mask}", f"head={head}", "freeze=staged", "freeze.unfreeze_epoch=1"]
    draws = head == "per_patch"  # drawing takes longer than training
    result = experiment.run(tiny(*RECONSTRUCT, *changes), run_dir=run_dir, pictures=draws)
    assert result.metrics["val_loss"] < result.initial["val_loss"]
    assert list(result.baselines["val"]) == ["linear_interpolation", "last_value", "mean"]
    line = result.baselines["val"]["linear_interpolation"]["loss"]
    assert result.metrics["val_skill"] == pytest.approx(1 - result.metrics["val_loss"] / line)
    assert not any("mase" in name for name in result.metrics)
    assert result.best_achievable_loss is None
    task = read(run_dir / "provenance.json")["task"]
    assert (task["name"], task["mask"], task["ratio"]) == ("reconstruct", mask, 0.15)
    assert "5 of the 32 steps" in task["notes"][0]
    sizes = [path.stat().st_size for path in (run_dir / "plots").glob("*.png")]
    assert (len(sizes), min(sizes, default=9999) > 5000) == (3 * draws, True)
    for window in read(run_dir / "forecast_sample.json")["windows"]:
        pairs = list(zip(window["context"], window["truth"], strict=True))
        assert sum(seen is None for seen, _ in pairs) == 5
        assert all((seen is None) != (asked is None) for seen, asked in pairs)


def test_reconstruction_resumed_equals_uninterrupted(tiny, tmp_path):
    config = tiny(*RECONSTRUCT, "head=per_patch", "train.epochs=2")
    resumes_as_whole(config, tmp_path)


def test_the_train_mask_is_another_in_every_epoch_and_the_seed_pairs_it(
    tiny, monkeypatch, tmp_path
):
    import t5ts.tasks as module

    asked: list[tuple[int, int | None]] = []
    real = module.draw_masks

    def draw(*args, seed, epoch, **kwargs):
        asked.append((seed, epoch))
        return real(*args, seed=seed, epoch=epoch, **kwargs)

    monkeypatch.setattr(module, "draw_masks", draw)
    run(tiny(*RECONSTRUCT, "train.epochs=2"), run_dir=tmp_path / "run")
    seeds = {seed for seed, epoch in asked if epoch is not None}
    assert {epoch for _, epoch in asked} == {None, 0, 1}
    assert len(seeds) == 1
    assert {seed for seed, epoch in asked if epoch is None} == {0}
    meter = Meter(build(tiny(*RECONSTRUCT)), batch_size=64)
    asked.clear()
    meter.measure("val")  # the model's windows, not the baselines'
    assert set(asked) == {(0, None)}
