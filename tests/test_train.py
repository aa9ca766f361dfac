"""Details of the loop: compiled blocks, fp16 without synchronisation, rows sent once."""

import math
import re
from functools import partial

import pytest
import torch
from runs import Loud, rows, run, run_until
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from t5ts import console, train
from t5ts.build import build, precision_name
from t5ts.config import identity
from t5ts.console import memory_needed
from t5ts.devices import device_and_precision, set_tf32
from t5ts.errors import ConfigError, Interrupted
from t5ts.output import FitState
from t5ts.probes import GradientNorms, activation_bytes


@pytest.fixture
def compilations(monkeypatch) -> CompileCounter:
    """Counts what torch.compile compiles, and compiles nothing: no C compiler is needed."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch.compiler.reset()


def test_a_compiler_that_fails_is_one_message(tiny, tmp_path, monkeypatch):
    def without_compiler(*_: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=without_compiler))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"train\.compile=.*no compiler"):
        run(tiny("train.compile=true", "debug=fast_dev_run"), run_dir=tmp_path / "run")


def test_stages_of_unfreezing_compile_nothing_again(tiny, tmp_path, compilations):
    """A block evaluates, is frozen, or trains, below others that do or not: at most 5 programs.

    The model as a whole has one for each of these 6 stages and one that evaluates, and t5_large's
    24 are more than torch compiles.
    """
    staged = ["freeze=staged", "freeze.unfreeze_epoch=1", "train.epochs=7"]
    few = ["backbone.num_layers=6", "data.windows_per_epoch=70", "backbone.dropout=0"]
    compiled = run(tiny("train.compile=true", *staged, *few), run_dir=tmp_path / "compiled")
    assert 0 < compilations.frame_count <= 5
    plain = run(tiny(*staged, *few), run_dir=tmp_path / "plain")
    assert compiled.metrics == pytest.approx(plain.metrics, rel=1e-4)


def test_gradient_norms_are_logged_as_they_are_before_clipping(small, run_dir):
    run(small("backbone=linear", "train.epochs=1", "optim.clip_norm=1e-3"), run_dir=run_dir)
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    assert min(row["step/grad_norm/total"] for row in steps) > 2e-3


@pytest.fixture
def fp16(monkeypatch) -> None:
    """fp16 on the CPU, where users are refused it, with losses that overflow at first."""
    monkeypatch.setattr(
        "t5ts.build.device_and_precision", lambda _: (torch.device("cpu"), torch.float16)
    )
    monkeypatch.setattr(
        "t5ts.build.build_task", lambda config: Loud(config.seq_len, config.horizon)
    )


@pytest.mark.usefixtures("fp16")
@pytest.mark.parametrize(("step", "optim"), [(1, "adamw"), (2, "adamw_rms"), (5, "adamw")])
def test_fp16_resumes_after_skipped_steps_bit_for_bit(step, optim, tiny, tmp_path):
    config = tiny("train.epochs=2", "train.log_every=1", f"optim={optim}")
    run(config, run_dir=tmp_path / "whole")
    run_until(step, config, tmp_path / "parts")
    skipped = rows(tmp_path / "parts")[-1]["amp/skipped_steps"]
    assert skipped == step or (step == 5 and skipped >= 2)
    run(config, run_dir=tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.usefixtures("fp16")
def test_fp16_skips_and_counts_the_steps_that_overflow(tiny, run_dir):
    """The losses overflow at the scaler's first scale, 65536."""
    result = run(tiny("train.epochs=3", "train.log_every=1"), run_dir=run_dir)
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    assert result.skipped_steps == steps[-1]["amp/skipped_steps"] > 0
    assert sum(row["nonfinite_steps"] for row in steps) == result.skipped_steps
    assert steps[-1]["amp/scale"] == 65536 / 2**result.skipped_steps
    assert result.objective < result.initial["val_loss"]


class HostReads(TorchDispatchMode):
    """Counts the values that the host asks for: on a GPU it waits for each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("fp16")
# torch's GradScaler asks once where an optimizer cannot skip a step by itself.
@pytest.mark.parametrize(("optim", "reads"), [("adamw", 0), ("adamw_rms", 1)])
def test_a_step_in_fp16_waits_for_no_number(optim, reads, tiny):
    setup = build(tiny(f"optim={optim}", "optim.clip_norm=null", "optim.lr=1e-4"))
    scaler = train._build_scaler(setup)
    norms = GradientNorms(setup.optimizer.parameters)
    first, second = (
        train._share_of(torch.arange(8 * i, 8 * i + 8), setup, 0, splits=2) for i in (0, 1)
    )
    train.train_step(setup, first, scaler, norms, probed=False)
    with HostReads() as asked:
        row_R, ratios = train.train_step(setup, second, scaler, norms, probed=False)
    assert asked.count == reads
    assert not ratios
    assert len(row_R) == len(norms.components) + 3


def test_a_long_run_says_once_how_long(tiny, tmp_path, monkeypatch, caplog):
    """Only that is logged; a short run logs none."""
    caplog.set_level("INFO", logger="t5ts")
    said = []
    for name, long_s in (("short", train.LONG_S), ("long", 0.0)):
        monkeypatch.setattr(train, "LONG_S", long_s)
        run(tiny(), run_dir=tmp_path / name)
        said.append(caplog.text.count("s a step"))
    assert said == [0, 1]
    assert rows(tmp_path / "short") == rows(tmp_path / "long")


def test_the_memory_of_a_step_is_known_before_it(tiny, monkeypatch):
    """In float32: gradients of 4 bytes, and two moments, of the parameters that the plan starts."""
    config = tiny("freeze=all")
    setup = build(config)
    trained = sum(p.numel() for n, p in setup.optimizer.parameters.items() if "encoder" not in n)
    line = memory_needed(setup, config)
    assert f"{trained:,} are trained" in line
    assert f"{4 * trained / 1e6:.1f} MB and optimizer state {8 * trained / 1e6:.1f} MB" in line
    assert not [p for p in setup.model.encoder.parameters() if p.requires_grad]
    staged = tiny("freeze=staged")
    later = memory_needed(build(staged), staged)
    assert f"{trained:,}" not in later
    data, model = setup.data.splits.train, setup.model
    batch = setup.task.batch(data.gather(torch.arange(64)), torch.arange(64), epoch=0)
    trains = [p for name, p in setup.optimizer.parameters.items() if "encoder" not in name]
    kept = activation_bytes(model, lambda: setup.task.loss(model(batch.inputs_BCL), batch), trains)
    assert float(re.findall(r"([\d.]+) MB", line)[-1]) == pytest.approx(kept / 1e6, abs=0.051)
    # What a process knows of earlier runs changes no line.
    monkeypatch.setattr(console, "_activations", {})
    assert [memory_needed(build(c), c) for c in (staged, config)] == [later, line]


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, None)])
def test_emulated_bf16_is_not_chosen(native, chosen, tiny, monkeypatch):
    """T4 and V100 have bf16 in software only, slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert device_and_precision(tiny()) == (torch.device("cuda"), chosen)


def test_tf32_is_for_gpus_and_recorded(tiny, monkeypatch):
    """On a CPU `high` would round too."""
    asked: list[bool] = []

    def no_further(_: object) -> None:
        raise Interrupted

    monkeypatch.setattr("t5ts.build.set_tf32", lambda *, on: asked.append(on))
    monkeypatch.setattr("t5ts.build.device_and_precision", lambda _: (torch.device("cuda"), None))
    monkeypatch.setattr("t5ts.datasets.load_once", no_further)
    for override in ("train.tf32=true", "train.tf32=false"):
        with pytest.raises(Interrupted):
            build(tiny(override))
    monkeypatch.undo()
    setup = build(tiny())
    assert asked == [True, False]
    assert torch.get_float32_matmul_precision() == "highest"
    assert precision_name(setup) == "torch.float32"
    assert (
        identity(tiny()) == identity(tiny("train.tf32=true")) != identity(tiny("train.tf32=false"))
    )
    try:
        set_tf32(on=True)
        assert torch.get_float32_matmul_precision() == "high"
        assert "TF32" in precision_name(setup)
    finally:
        set_tf32(on=False)


@pytest.mark.parametrize(
    ("value", "best", "better"),
    [(0.5, 0.4, True), (0.4, 0.4, False), (math.nan, 0.4, False), (0.1, math.nan, True)],
)
def test_an_undefined_objective_is_never_the_best(value, best, better):
    state = FitState(best_epoch=0, best_metrics={"val_corr": best})
    assert train._is_better(value, state, "val_corr") is better
