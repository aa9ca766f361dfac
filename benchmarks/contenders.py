"""The contenders of `benchmarks.step`: one training step each, in separate processes.

`python -m benchmarks.contenders NAME …` is a worker of the referee (`benchmarks.step`): it reads
"turn" and "end" from its input and answers in JSON lines.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import t5ts.train
from benchmarks.memory import status
from t5ts.build import build, build_model, build_optimizer
from t5ts.config import Config, from_hydra, register
from t5ts.data.windows import Windows, epoch_order
from t5ts.model.forecaster import Forecaster
from t5ts.output import Output
from t5ts.probes import GradientNorms
from t5ts.progress import ProgressBar
from t5ts.run import CONF
from t5ts.schema import TrackerConfig
from t5ts.tasks import Forecast
from t5ts.tracking import MetricsFile, Tracker, WandbTracker

LOG_EVERY = 10
#: Long enough that no turn meets the end of an epoch, where evaluation and checkpoints happen.
STEPS_PER_EPOCH = 4096
CLIP_NORM = 1.0
NEVER = 10**9


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
        now = {
            "steps": self._steps,
            "seconds": time.perf_counter() - self._begun,
            "cpu_s": time.process_time() - self._cpu_begun,
            "clocked": dict(self.clocked),
        }
        self._wait(now)

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


def make_config(spec: Spec) -> Config:
    """The composed configuration: defaults, except the batch size and the device."""
    register()
    overrides = [
        "backbone=t5_small",
        f"train.batch_size={spec.batch}",
        f"train.device={spec.device}",
        f"train.checkpoint_every_s={NEVER}",
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


def make_windows(config: Config, spec: Spec) -> tuple[Forecast, Windows]:
    """The task, and windows over a random walk of one channel, as many as a long epoch needs."""
    task = Forecast(seq_len=config.seq_len, horizon=config.horizon)
    window_len = task.context_len + task.target_len
    count = STEPS_PER_EPOCH * spec.batch
    steps_T1 = torch.randn(count + window_len - 1, 1, generator=torch.Generator().manual_seed(0))
    walk_T1 = (steps_T1.cumsum(0) / 100).to(spec.device)
    rest: Any = {"name": "train", "first_row": 0}
    return task, Windows(walk_T1, window_len=window_len, num_windows=count, **rest)


def make_model(config: Config, spec: Spec) -> Forecaster:
    """The forecaster around a t5-small encoder, random init, dropout 0.1."""
    model, _ = build_model(config, num_channels=1)
    return model.to(spec.device).train()


def make_adamw(config: Config, model: nn.Module, *, fused: bool = True) -> torch.optim.AdamW:
    """The peers' optimizer: the run's AdamW in one group."""
    o = config.optim
    rest: Any = {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay, "fused": fused}
    return torch.optim.AdamW(model.parameters(), lr=o.lr, eps=o.eps, **rest)


class WholeBatches(Dataset[Tensor]):
    """Windows as a dataset that gathers a batch at once."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A batch, for torch's DataLoader."""
        return self.windows.gather(torch.tensor(indices))


def run_bare(spec: Spec, baton: Baton, folder: Path) -> None:  # noqa: ARG001 - one signature
    """Gather, forward, loss, backward, step, zero_grad: nothing else."""
    config = make_config(spec)
    (task, windows), model = make_windows(config, spec), make_model(config, spec)
    optimizer = make_adamw(config, model)
    forward = torch.compile(model) if spec.compile else model
    on_gpu = spec.device == "cuda"
    order = epoch_order(len(windows), seed=0, epoch=0)
    for index_B in order.split(spec.batch):
        batch = task.batch(windows.gather(index_B))
        with torch.autocast("cuda", dtype=torch.bfloat16) if on_gpu else nullcontext():
            prediction_BCH = forward(batch.inputs_BCL)
        task.loss(prediction_BCH, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        baton.step_done()


def run_ours(spec: Spec, baton: Baton, folder: Path) -> None:
    """`t5ts.train.fit` with everything on and the real W&B client, offline."""
    tracker = WandbTracker(
        run_dir=folder,
        config={"benchmark": "step", "batch": spec.batch},
        settings=TrackerConfig(name="wandb", mode="offline", project="t5ts-bench"),
        group="step",
        job_type="bench",
        name="step",
    )
    assert tracker._run is not None, "W&B did not start"
    train: Any = t5ts.train  # names in a module are not assignable to a type checker
    GradientNorms.measure = baton.clock("norms", GradientNorms.measure)  # type: ignore[method-assign]
    ratios: Any = train.UpdateRatios
    ratios.__init__ = baton.clock("ratios", ratios.__init__)
    ratios.measure = baton.clock("ratios", ratios.measure)
    train.StepRows.of_step = baton.clock("rows", train.StepRows.of_step)
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
    never: Any = {"log_every": NEVER, "probe_every": NEVER}
    _fit(spec, baton, folder, metrics=metrics, tracker=Tracker(), **never)


class TotalNorm(GradientNorms):
    """Of the norms, the total alone: what clipping needs in any loop."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
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
    **changes: Any,
) -> None:
    config = make_config(spec)
    train = replace(config.train, compile=spec.compile, **changes)
    (task, windows), model = make_windows(config, spec), make_model(config, spec)
    setup = build(config)
    setup.data.splits.train = windows
    setup = replace(
        setup,
        device=torch.device(spec.device),
        autocast=torch.bfloat16 if spec.device == "cuda" else None,
        task=task,
        model=model,
        optimizer=build_optimizer(
            config, model, steps_per_epoch=STEPS_PER_EPOCH, total_steps=STEPS_PER_EPOCH
        ),
        epochs=1,
        windows_per_epoch=len(windows),
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    output = Output(
        metrics=metrics,
        tracker=tracker,
        progress=ProgressBar(total_steps=STEPS_PER_EPOCH, enabled=False),
        checkpoints=folder / "checkpoint",
        epochs=1,
        objective="val_loss",
        record={},
        after_epoch=lambda _row: None,
    )

    def should_stop() -> bool:
        baton.step_done()
        return False

    t5ts.train.fit(
        setup,
        replace(config, train=train),
        # Evaluation is not part of a step, and happens only before the first turn.
        lambda: {"val_loss": 1.0, "val_corr": 0.0, "val_skill": 0.0},
        output,
        resume_from=None,
        should_stop=should_stop,
    )


def run_hf(spec: Spec, baton: Baton, folder: Path) -> None:
    """transformers.Trainer: fused AdamW, clipping, logging every 10 steps, nothing saved."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config = make_config(spec)
    task, windows = make_windows(config, spec)

    class WithLoss(nn.Module):
        """The forecaster, wrapped for HF Trainer."""

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
    task, windows = make_windows(config, spec)
    forecaster = make_model(config, spec)

    class Module(lightning.LightningModule):
        """The forecaster, wrapped for Lightning."""

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
            # Under autocast Lightning refuses to clip for a fused optimizer.
            return make_adamw(config, self.model, fused=spec.device != "cuda")

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
    return status("VmHWM")


def main() -> None:
    """Be one contender."""
    parser = argparse.ArgumentParser(description="a worker of benchmarks.step")
    parser.add_argument("name", choices=list(CONTENDERS))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    given: Any = {"batch": args.batch, "device": args.device, "compile": args.compile}
    work(args.name, Spec(turn_s=args.seconds, **given))


if __name__ == "__main__":
    main()
