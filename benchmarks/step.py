"""Speed of a training step against named peers: python -m benchmarks.step.

Question: what does `t5ts.train.fit` with everything on (gradient norms per block, clipping, update
ratios, metrics.jsonl, W&B offline) cost over a bare loop, and how does it stand beside HF Trainer
and Lightning? Targets at t5-small's shape, 4 tokens, one channel: ours/bare at least 0.95, ours/HF
at least 1.0, ours/Lightning at least 1.4 at batch 8, probes and tracking at most 3 % of a step.

Each contender is a process of its own that trains the same Forecaster on the same windows with a
fused AdamW. They take turns: one trains for some steps while the others wait between two steps, so
that whatever else the machine does falls on all of them. A turn is a multiple of 10 steps, since
all but the bare loop log every 10. Ratios are medians over rounds of the ratio within a round.

The peers are given their best: their DataLoader gathers whole batches, as ours does. "quiet" is our
loop without its instruments: no tracker, no metrics file, no logged rows, no update ratios, and of
the gradient norms only the total that clipping needs. What the instruments cost is shown twice:
"A/B" is the median of 1 - ours/quiet, and "clocked" is the host time inside them (of the norms,
what exceeds quiet's total) as a share of the time of all of our turns; the second is far less
noisy. W&B's own process works beside them and is in neither.

Expected (2 cores, fp32): 8 minutes; a ratio moves by 3 % from run to run on a shared machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import t5ts.train
from t5ts.build import build_model, build_optimizer
from t5ts.config import Config, from_hydra, register
from t5ts.data.windows import Windows, epoch_order
from t5ts.model.encoders import component_of
from t5ts.model.forecaster import Forecaster
from t5ts.probes import GradientNorms
from t5ts.progress import ProgressBar
from t5ts.run import CONF
from t5ts.task import Forecast
from t5ts.tracking import MetricsFile, NullTracker, Tracker, WandbTracker

ROOT = Path(__file__).parents[1]
LOG_EVERY = 10
#: Long enough that no turn meets the end of an epoch, where evaluation and checkpoints happen.
STEPS_PER_EPOCH = 4096
CLIP_NORM = 1.0
NEVER = 10**9
TARGETS = {"bare": 0.95, "hf": 1.0, "lightning": 1.4}
TARGET_SHARE = 0.03
NAMES = {
    "bare": "bare loop",
    "ours": "ours",
    "quiet": "ours, quiet",
    "hf": "HF Trainer",
    "lightning": "Lightning",
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a contender trains: the same for all of them."""

    batch: int
    device: str
    compile: bool
    turn_s: float


class Finished(Exception):
    """The last turn is over."""


class Baton:
    """A contender's side of taking turns; it calls `step_done` after each step.

    Args:
        spec: How long a turn is, and on what device.
        answers: Where to report.
    """

    def __init__(self, spec: Spec, answers: IO[str]) -> None:
        self._spec = spec
        self._answers = answers
        self._begun: float | None = None
        self._cpu_begun = 0.0
        self._steps = 0
        #: Host seconds inside the instruments since the turn began, by name.
        self.clocked: dict[str, float] = {}

    def step_done(self) -> None:
        """Go on while the turn lasts, else report and wait for the next one.

        Raises:
            Finished: when there is no next one.
        """
        if self._begun is None:  # the first step: set up and warm
            self._wait({"ready": True})
            return
        self._steps += 1
        if self._steps % LOG_EVERY or time.perf_counter() - self._begun < self._spec.turn_s:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._begun
        cpu_s = time.process_time() - self._cpu_begun
        clocked = dict(self.clocked)
        self._wait({"steps": self._steps, "seconds": seconds, "cpu_s": cpu_s, "clocked": clocked})

    def _wait(self, answer: Mapping[str, Any]) -> None:
        self._synchronize()
        print(json.dumps(answer), file=self._answers, flush=True)
        if sys.stdin.readline().strip() != "turn":
            raise Finished
        self._steps = 0
        self.clocked.clear()
        self._cpu_begun = time.process_time()
        self._begun = time.perf_counter()

    def _synchronize(self) -> None:
        if self._spec.device == "cuda":
            torch.cuda.synchronize()

    def clock(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added up under a name."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.perf_counter() - begun
                self.clocked[name] = self.clocked.get(name, 0.0) + passed

        return timed


# --- what all contenders share ---------------------------------------------------------------


def make_config(spec: Spec) -> Config:
    """The composed configuration: defaults, but for the batch and the device."""
    register()
    overrides = [
        "backbone=t5_small",
        f"train.batch_size={spec.batch}",
        f"train.log_every={LOG_EVERY}",
        f"optim.clip_norm={CLIP_NORM}",
        # One constant rate for all parameters, since every contender can have that: with rates of
        # their own the weights take different paths, and a step's time was seen to differ by it.
        "optim.lr=1e-4",
        "optim.encoder_lr_scale=1.0",
        "optim.warmup_epochs=0",
        "optim.schedule=constant",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = from_hydra(compose("config", overrides=overrides))
    assert (config.seq_len, config.patch.patch_len) == (128, 32)
    return config


def make_task(config: Config) -> Forecast:
    """Forecasting, as in a run."""
    return Forecast(seq_len=config.seq_len, horizon=config.horizon)


def make_windows(config: Config, spec: Spec) -> Windows:
    """Windows over a random walk of one channel, as many as one long epoch needs."""
    task = make_task(config)
    window_len = task.context_len + task.target_len
    count = STEPS_PER_EPOCH * spec.batch
    steps_T1 = torch.randn(count + window_len - 1, 1, generator=torch.Generator().manual_seed(0))
    walk_T1 = steps_T1.cumsum(0) / 100
    return Windows(
        walk_T1.to(spec.device),
        name="train",
        window_len=window_len,
        first_row=0,
        num_windows=count,
    )


def make_model(config: Config, spec: Spec) -> Forecaster:
    """The forecaster around a t5-small encoder, random init, dropout 0.1."""
    model, _ = build_model(config, num_channels=1)
    return model.to(spec.device).train()


def make_adamw(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """The peers' optimizer: the run's AdamW in one group."""
    o = config.optim
    return torch.optim.AdamW(
        model.parameters(),
        lr=o.lr,
        betas=(o.beta1, o.beta2),
        eps=o.eps,
        weight_decay=o.weight_decay,
        fused=True,
    )


def autocast_dtype(spec: Spec) -> torch.dtype | None:
    """bf16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if spec.device == "cuda" else None


class WholeBatches(Dataset[Tensor]):
    """Windows as a dataset that gathers a batch at once."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A batch, as torch's DataLoader asks for it."""
        return self.windows.gather(torch.tensor(indices))


# --- the contenders --------------------------------------------------------------------------


def run_bare(spec: Spec, baton: Baton, folder: Path) -> None:  # noqa: ARG001 - one signature
    """Gather, forward, loss, backward, step, zero_grad: nothing else."""
    config = make_config(spec)
    task, windows, model = make_task(config), make_windows(config, spec), make_model(config, spec)
    optimizer = make_adamw(config, model)
    forward = torch.compile(model) if spec.compile else model
    dtype = autocast_dtype(spec)
    order = epoch_order(len(windows), seed=0, epoch=0)
    for index_B in order.split(spec.batch):
        batch = task.batch(windows.gather(index_B))
        with _autocast(spec, dtype):
            prediction_BCH = forward(batch.inputs_BCL)
        task.loss(prediction_BCH, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        baton.step_done()


def _autocast(spec: Spec, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(spec.device, dtype=dtype)


def run_ours(spec: Spec, baton: Baton, folder: Path) -> None:
    """`t5ts.train.fit` with everything on and the real W&B client, offline."""
    tracker = WandbTracker(
        run_dir=folder,
        config={"benchmark": "step", "batch": spec.batch},
        project="t5ts-bench",
        entity=None,
        group=None,
        job_type="bench",
        name="step",
        tags=[],
        mode="offline",
        run_id="step",
    )
    assert tracker._run is not None, "W&B did not start"
    train: Any = t5ts.train  # names in a module are not assignable to a type checker
    GradientNorms.measure = baton.clock("norms", GradientNorms.measure)  # type: ignore[method-assign]
    ratios: Any = train.UpdateRatios
    ratios.__init__ = baton.clock("ratios", ratios.__init__)
    ratios.measure = baton.clock("ratios", ratios.measure)
    train._step_row = baton.clock("rows", train._step_row)
    metrics: Any = MetricsFile(folder / "metrics.jsonl")
    metrics.append = baton.clock("metrics.jsonl", metrics.append)
    logged: Any = tracker
    logged.log = baton.clock("W&B", logged.log)
    try:
        _fit(spec, baton, folder, metrics=metrics, tracker=logged)
    finally:
        tracker.finish({}, [])


def run_quiet(spec: Spec, baton: Baton, folder: Path) -> None:
    """`t5ts.train.fit` without its instruments."""
    train: Any = t5ts.train
    train.GradientNorms = TotalNorm
    TotalNorm.measure = baton.clock("norms", TotalNorm.measure)  # type: ignore[method-assign]
    metrics: Any = MetricsFile(folder / "metrics.jsonl")
    metrics.append = lambda row: None  # noqa: ARG005 - the method's own name
    _fit(
        spec,
        baton,
        folder,
        metrics=metrics,
        tracker=NullTracker(),
        log_every=NEVER,
        probe_every=NEVER,
    )


class TotalNorm(GradientNorms):
    """Of the norms, the total alone: what clipping needs in any loop."""

    def __init__(self, component_of: Callable[[str], str], names: Sequence[str]) -> None:
        super().__init__(component_of, names)
        self.components = []

    def measure(self, trainable: Mapping[str, nn.Parameter]) -> Tensor:
        """The total, (1,)."""
        grads = [p.grad for p in trainable.values() if p.grad is not None]
        return nn.utils.get_total_norm(grads, foreach=True)[None]


def _fit(
    spec: Spec,
    baton: Baton,
    folder: Path,
    *,
    metrics: MetricsFile,
    tracker: Tracker,
    log_every: int = LOG_EVERY,
    probe_every: int | None = None,
) -> None:
    config = make_config(spec)
    windows, model = make_windows(config, spec), make_model(config, spec)
    optimizer = build_optimizer(
        config, model, steps_per_epoch=STEPS_PER_EPOCH, total_steps=STEPS_PER_EPOCH
    )

    def should_stop() -> bool:
        baton.step_done()
        return False

    t5ts.train.fit(
        model,
        optimizer,
        make_task(config),
        windows,
        # Evaluation is no part of a step, and happens before the first turn only.
        lambda: {"val_loss": 1.0, "val_corr": 0.0, "val_skill": 0.0},
        settings=t5ts.train.FitSettings(
            seed=0,
            dropout_seed=0,
            epochs=1,
            batch_size=spec.batch,
            grad_accumulation=1,
            steps_per_epoch=STEPS_PER_EPOCH,
            windows_per_epoch=len(windows),
            autocast=autocast_dtype(spec),
            compile=spec.compile,
            eval_every_epochs=1,
            log_every=log_every,
            probe_every=probe_every or config.train.probe_every,
            checkpoint_every_s=float(NEVER),
            objective="val_loss",
            maximize=False,
            frozen_eval_mode=False,
            identity="bench",
        ),
        component_of=component_of,
        initial={name: p.detach().clone() for name, p in model.named_parameters()},
        metrics=metrics,
        tracker=tracker,
        progress=ProgressBar(total_steps=STEPS_PER_EPOCH, enabled=False),
        checkpoints=folder / "checkpoint",
        resume_from=None,
        should_stop=should_stop,
        after_epoch=lambda _row: None,
    )


def run_hf(spec: Spec, baton: Baton, folder: Path) -> None:
    """transformers.Trainer: fused AdamW, clipping, logging every 10 steps, nothing saved."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config = make_config(spec)
    task, windows = make_task(config), make_windows(config, spec)

    class WithLoss(nn.Module):
        """The forecaster, in the shape that Trainer wants."""

        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(config, spec)

        def forward(self, windows: Tensor) -> dict[str, Tensor]:
            batch = task.batch(windows)
            return {"loss": task.loss(self.model(batch.inputs_BCL), batch)}

    class Turns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            baton.step_done()

    o = config.optim
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=spec.batch,
        num_train_epochs=1,
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch_fused",
        learning_rate=o.lr,
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_epsilon=o.eps,
        weight_decay=o.weight_decay,
        lr_scheduler_type="constant",
        logging_steps=LOG_EVERY,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=spec.device == "cpu",
        bf16=spec.device == "cuda",
        torch_compile=spec.compile,
    )
    Trainer(
        model=WithLoss(),
        args=arguments,
        train_dataset=WholeBatches(windows),
        data_collator=lambda windows_BCW: {"windows": windows_BCW},
        callbacks=[Turns()],
    ).train()


def run_lightning(spec: Spec, baton: Baton, folder: Path) -> None:
    """lightning.Trainer: clipping, logging every 10 steps to CSV, nothing else on."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    config = make_config(spec)
    task, windows = make_task(config), make_windows(config, spec)
    forecaster = make_model(config, spec)

    class Module(lightning.LightningModule):
        """The forecaster, in the shape that Lightning wants."""

        def __init__(self) -> None:
            super().__init__()
            self.model = forecaster
            self.compiled = [torch.compile(forecaster) if spec.compile else forecaster]

        def training_step(self, windows_BCW: Tensor, _: int) -> Tensor:
            batch = task.batch(windows_BCW)
            loss = task.loss(self.compiled[0](batch.inputs_BCL), batch)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_adamw(config, self.model)

        def on_train_batch_end(self, *_: Any) -> None:
            baton.step_done()

    trainer = lightning.Trainer(
        accelerator="gpu" if spec.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if spec.device == "cuda" else "32-true",
        max_epochs=1,
        gradient_clip_val=CLIP_NORM,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger(str(folder)),
    )
    loader = DataLoader(
        WholeBatches(windows), batch_size=spec.batch, shuffle=True, collate_fn=lambda b: b
    )
    trainer.fit(Module(), loader)


CONTENDERS: dict[str, Callable[[Spec, Baton, Path], None]] = {
    "bare": run_bare,
    "ours": run_ours,
    "quiet": run_quiet,
    "hf": run_hf,
    "lightning": run_lightning,
}


def work(name: str, spec: Spec) -> None:
    """A contender's process: train in turns, and report peak memory at the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print does not belong among the answers
    with tempfile.TemporaryDirectory() as folder:
        try:
            CONTENDERS[name](spec, Baton(spec, answers), Path(folder))
            raise SystemExit(f"{name}: the epoch ended before the last turn; lower --seconds")
        except Finished:
            pass
    print(json.dumps({"peak_bytes": peak_memory(spec)}), file=answers, flush=True)


def peak_memory(spec: Spec) -> int:
    """Peak bytes of the GPU's allocator, or of this process (VmHWM)."""
    if spec.device == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs Linux: /proc/self/status")


# --- the referee -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What a contender did in one turn."""

    steps: int
    seconds: float
    cpu_s: float
    clocked: dict[str, float]


class Worker:
    """A contender's process, seen from the referee."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.step", "--worker", name]
        command += ["--batches", str(spec.batch), "--device", spec.device]
        command += ["--seconds", str(spec.turn_s), *(["--compile"] if spec.compile else [])]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next thing it says; its own log is shown if it has died instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.name} died:\n{self._log.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> Turn:
        """Let it train for a turn."""
        self._say("turn")
        return Turn(**self.answer())

    def finish(self) -> int:
        """End it; returns its peak memory in bytes."""
        self._say("end")
        peak: int = self.answer()["peak_bytes"]
        self._process.wait()
        return peak

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What was measured at one batch size."""

    spec: Spec
    turns: dict[str, list[Turn]]
    peaks: dict[str, int]

    def rates(self, name: str) -> list[float]:
        """Windows/s of each round."""
        return [t.steps * self.spec.batch / t.seconds for t in self.turns[name]]

    def rate(self, name: str) -> float:
        """Median windows/s."""
        return statistics.median(self.rates(name))

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of the ratio of two contenders' windows/s."""
        pairs = zip(self.rates(name), self.rates(other), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def cpu_ms(self, name: str) -> float:
        """Median over rounds of the CPU milliseconds of a step, all threads together."""
        return statistics.median(1e3 * turn.cpu_s / turn.steps for turn in self.turns[name])

    def clocked_ms(self, name: str) -> dict[str, float]:
        """Milliseconds a step inside each of a contender's instruments."""
        turns = self.turns[name]
        steps = sum(turn.steps for turn in turns)
        parts = dict.fromkeys(part for turn in turns for part in turn.clocked)
        return {
            part: 1e3 * sum(turn.clocked.get(part, 0.0) for turn in turns) / steps for part in parts
        }

    def step_ms(self) -> float:
        """Milliseconds of our step, mean over all turns."""
        ours = self.turns["ours"]
        return 1e3 * sum(t.seconds for t in ours) / sum(t.steps for t in ours)


def measure(spec: Spec, *, rounds: int, contenders: Sequence[str]) -> Outcome:
    """Start the contenders, let them warm up, and let them take turns."""
    workers = [Worker(name, spec) for name in contenders]
    try:
        for worker in workers:
            worker.answer()  # ready
        for worker in workers:
            worker.turn()  # warm-up, not counted
        turns: dict[str, list[Turn]] = {worker.name: [] for worker in workers}
        for round_number in range(rounds):
            first = round_number % len(workers)
            for worker in workers[first:] + workers[:first]:
                turns[worker.name].append(worker.turn())
        return Outcome(spec, turns, {worker.name: worker.finish() for worker in workers})
    finally:
        for worker in workers:
            worker.kill()


def report(outcome: Outcome, peak_flops: float | None) -> None:
    """Print one batch size's figures, and whether each target is met."""
    spec = outcome.spec
    names = [name for name in NAMES if name in outcome.turns]
    flags = ", compile" if spec.compile else ""
    print(f"\nbatch {spec.batch}, {spec.device}{flags}")
    titles = f"{'windows/s':>10}{'spread':>9}{'CPU ms/step':>13}{'peak MiB':>10}{'ours/it':>9}"
    print(f"  {'':<12}{titles}  target")
    for name in names:
        rates = outcome.rates(name)
        spread = (max(rates) - min(rates)) / outcome.rate(name)
        line = f"  {NAMES[name]:<12}{outcome.rate(name):>10.1f}{spread:>9.1%}"
        line += f"{outcome.cpu_ms(name):>13.1f}{outcome.peaks[name] / 2**20:>10.0f}"
        if name != "ours":
            ratio = outcome.ratio("ours", name)
            line += f"{ratio:>9.3f}  {_verdict(name, ratio, spec)}"
        if peak_flops is not None:
            share = outcome.rate(name) * flops_per_window(spec) / peak_flops
            line += f"  {share:.1%} of the bf16 peak"
        print(line)
    if "quiet" not in outcome.turns:
        return
    clocked, step_ms = outcome.clocked_ms("ours"), outcome.step_ms()
    total_norm_ms = outcome.clocked_ms("quiet")["norms"]
    clocked["norms"] -= total_norm_ms
    share = sum(clocked.values()) / step_ms
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in clocked.items())
    met = "met" if share <= TARGET_SHARE else "MISSED"
    print(f"  probes and tracking: clocked {share:.1%} of {step_ms:.1f} ms (ms: {parts},")
    print(f"  norms without the total that clipping needs, which takes {total_norm_ms:.3f} ms);")
    print(f"  A/B {1 - outcome.ratio('ours', 'quiet'):.1%}; target 3 % {met}")


def _verdict(name: str, ratio: float, spec: Spec) -> str:
    if name not in TARGETS or (name == "lightning" and spec.batch != 8):
        return "–"
    target = TARGETS[name]
    return f"≥ {target:g} {'met' if ratio >= target else 'MISSED'}"


def flops_per_window(spec: Spec) -> float:
    """Forward and backward: 6 flop per matrix entry and token."""
    config = make_config(spec)
    model, _ = build_model(config, num_channels=1)
    parameters = sum(p.numel() for p in model.encoder.parameters() if p.ndim >= 2)
    return 6.0 * parameters * (config.seq_len / config.patch.patch_len)


def matmul_peak(size: int = 8192, repeats: int = 20) -> float:
    """Measured flop/s of a large bf16 matmul on the GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun) / repeats)
    return 2.0 * size**3 / min(seconds)


def main() -> None:
    """Measure each batch size (and on a GPU with and without compile) and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", help="8 64 256; on a GPU 64 512 4096")
    parser.add_argument("--seconds", type=float, default=2.0, help="shortest turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="CPU: compile too (a GPU does both)")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=CONTENDERS)
    parser.add_argument("--worker", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    batches = args.batches or ([64, 512, 4096] if on_gpu else [8, 64, 256])

    def spec(batch: int, compiled: bool) -> Spec:
        return Spec(batch=batch, device=args.device, compile=compiled, turn_s=args.seconds)

    if args.worker is not None:
        work(args.worker, spec(batches[0], args.compile))
        return
    contenders = list(dict.fromkeys(["ours", *args.contenders]))
    peak_flops = matmul_peak() if on_gpu else None
    print(f"t5-small, 4 tokens, {'bf16' if on_gpu else 'fp32'}; tracker: W&B offline (real client)")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    if peak_flops is not None:
        print(f"{torch.cuda.get_device_name()}: bf16 matmul {peak_flops / 1e12:.0f} Tflop/s")
    for batch in batches:
        for compiled in [False, True] if on_gpu else [args.compile]:
            outcome = measure(spec(batch, compiled), rounds=args.rounds, contenders=contenders)
            report(outcome, peak_flops)


if __name__ == "__main__":
    main()
