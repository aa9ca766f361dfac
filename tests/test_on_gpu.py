"""What holds on a CPU holds on an NVIDIA GPU: `make test-gpu`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY_T5
from data.table_files import series_table
from runs import assert_same_run, changed, read, resumes_as_whole, rows, run, run_until

import t5ts
from t5ts.errors import ResumeError

pytestmark = pytest.mark.gpu
WITHOUT_DROPOUT = ["backbone.dropout=0", "train.epochs=3"]
STAGED = ["freeze=staged", "freeze.unfreeze_epoch=1", "freeze.blocks_per_stage=1"]
BACKBONES = {
    "t5": TINY_T5,
    "shared": ["backbone=shared", "backbone.d_model=32", "backbone.num_heads=2"],
    "reconstruct": [*TINY_T5, "task=reconstruct", "horizon=null", "head=per_patch"],
}
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    """These tests are asked for by name, so that no GPU is a failure."""
    assert torch.cuda.is_available()


def losses(run_dir: Path) -> list[float]:
    return [row["val_loss"] for row in rows(run_dir) if row["kind"] == "eval"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_float32_agrees_with_the_cpu(backbone, small, tmp_path):
    for device in ("cpu", "cuda"):
        about = [f"train.device={device}", "train.precision=fp32", "train.tf32=false"]
        run(small(*BACKBONES[backbone], *WITHOUT_DROPOUT, *about), run_dir=tmp_path / device)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)
    steps = [[r for r in rows(tmp_path / d) if r["kind"] == "step"] for d in ("cpu", "cuda")]
    for one, other in zip(*steps, strict=True):
        for key in one.keys() - {"kind"}:
            assert other[key] == pytest.approx(one[key], rel=2e-2, abs=1e-6), key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_float32(precision, tiny, tmp_path):
    for name in ("fp32", precision):
        run(tiny(*WITHOUT_DROPOUT, f"train.precision={name}"), run_dir=tmp_path / name)
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "fp32"), rel=0.03)


def test_auto_is_bf16_on_the_gpu_and_recorded(tiny, run_dir):
    run(tiny("train.epochs=1"), run_dir=run_dir)
    about = read(run_dir / "provenance.json")
    assert torch.cuda.get_device_name() in json.dumps(about)
    assert "bfloat16" in json.dumps(about)
    assert read(run_dir / "result.json")["peak_memory_bytes"] > 0


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp16"])
def test_equal_and_resumed_runs_are_equal_bit_for_bit(backbone, precision, small, tmp_path):
    config = small(*BACKBONES[backbone], f"train.precision={precision}")
    resumes_as_whole(config, tmp_path)
    run(config, run_dir=tmp_path / "again")
    assert_same_run(tmp_path / "again", tmp_path / "whole")


def test_a_reused_frozen_phase_equals_a_cold_one(tiny, tmp_path):
    config = tiny(*STAGED, f"train.reuse_dir={tmp_path / 'store'}")
    later = changed(config, {"freeze.unfreeze_epoch": 2.0})
    run(config, run_dir=tmp_path / "first")
    assert run(later, run_dir=tmp_path / "warm").reused_epochs == 1
    run(changed(later, {"train.reuse_dir": None}), run_dir=tmp_path / "cold")
    assert_same_run(tmp_path / "warm", tmp_path / "cold")


def test_compiled_blocks_change_little(tiny, tmp_path):
    for name in ("false", "true"):
        run(tiny(*STAGED, *WITHOUT_DROPOUT, f"train.compile={name}"), run_dir=tmp_path / name)
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=0.02)


def test_predictions_are_the_runs_own(tmp_path):
    hours = np.arange(600)
    load = 1000 + 50 * np.sin(hours / 24 * 2 * np.pi) + np.random.default_rng(0).normal(size=600)
    series_table(load=load).write_csv(tmp_path / "load.csv")
    csv = ["data=csv", f"data.path={tmp_path / 'load.csv'}", *WITHOUT_DROPOUT]
    others = [override for override in SMALL if not override.startswith("data")]
    for precision in ("fp32", "bf16"):
        overrides = [*others, *TINY_T5, *csv, f"train.precision={precision}", "train.tf32=false"]
        run_dir = tmp_path / precision
        t5ts_run(*overrides, f"hydra.run.dir={run_dir}")
        sample = read(run_dir / "forecast_sample.json")
        forecaster = t5ts.load(run_dir)
        for window in sample["windows"]:
            frame = forecaster.predict(start=window["start"]).head(8)
            scale = forecaster.std_C[0]
            tolerance = 1e-3 if precision == "fp32" else 0.03
            expected = np.array(window["prediction"]) / scale
            np.testing.assert_allclose(frame["forecast"] / scale, expected, atol=tolerance)


def t5ts_run(*overrides: str, status: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "t5ts.run", *overrides, "train.progress=false"],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_several_workers_share_the_gpu(tmp_path):
    grid = ["optim.lr=1e-3,3e-3", "freeze.unfreeze_epoch=1,2", "hydra/sweeper=t5ts"]
    grid += ["hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=2", "freeze=staged"]
    t5ts_run("--multirun", *SMALL, *TINY_T5, *grid, f"hydra.sweep.dir={tmp_path}")
    found = sorted(tmp_path.rglob("result.json"))
    assert len(found) == 4
    for path in found:
        assert "cuda" in (path.parent / "provenance.json").read_text()


def test_too_large_a_batch_is_one_message(tmp_path):
    cap = {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.004"}
    large = [*SMALL, "backbone=t5_small", "init=random", "seq_len=128", "horizon=8"]
    out = t5ts_run(*large, "train.batch_size=512", f"hydra.run.dir={tmp_path / 'run'}",
                   status=2, **cap)  # fmt: skip
    assert "Traceback" not in out
    assert "train.batch_size" in out


def test_a_run_is_not_resumed_on_another_device(tiny, run_dir, monkeypatch):
    run_until(8, tiny(), run_dir)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResumeError, match="cuda"):
        run(tiny(), run_dir=run_dir)


def test_a_process_group_of_one_gpu_is_the_plain_run(tmp_path):
    plain = [*SMALL, *TINY_T5, "train.progress=false"]
    t5ts_run(*plain, f"hydra.run.dir={tmp_path / 'plain'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "-m"]
    command += ["t5ts.run", *plain, f"hydra.run.dir={tmp_path / 'group'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert losses(tmp_path / "group") == losses(tmp_path / "plain")
