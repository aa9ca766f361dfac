"""What the training loop logs and keeps: its rows, where they go, and the state for resuming."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5ts.errors import TrainingError
from t5ts.progress import ProgressBar
from t5ts.tracking import MetricsFile, Tracker


@dataclass
class FitState:
    """Everything a resumed run needs to know about its past, except tensors."""

    step: int = 0
    best_epoch: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    train_s: float = 0.0
    metrics_bytes: int = 0
    metrics_crc32: int = 0
    peak_memory_bytes: float = 0.0
    #: Steps since the last logged row: (loss, gradient norms …) each.
    pending: list[list[float]] = field(default_factory=list)
    #: Of the epoch so far: finite steps, and per column the sum and the largest value.
    epoch_count: int = 0
    epoch_sum: list[float] = field(default_factory=list)
    epoch_max: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Output:
    """Where a run's numbers go while it trains."""

    metrics: MetricsFile  # rows go here first …
    tracker: Tracker  # … and then here, unless it had them before the run was interrupted
    progress: ProgressBar
    checkpoints: Path  # folder of last.safetensors and best.safetensors
    epochs: int  # of the whole run, to be shown
    objective: str  # the metric that the progress bar shows
    record: Mapping[str, Any]  # identity, inputs and code of the run, for checkpoints to hold
    #: Called with each epoch's row, and whether it is the last (`ends_run`), once it and the
    #: checkpoint are written; what it raises ends the run (as a sweep's pruner does).
    after_epoch: Callable[[Mapping[str, Any]], None]
    _already_sent: int = 0

    def start(self, metrics_bytes: int) -> None:
        """Drop the rows after a checkpoint: they are written again, and the tracker has them."""
        dropped = self.metrics.cut(metrics_bytes)
        self._already_sent = dropped if self.tracker.resumed else 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; update the progress bar, and log evaluations."""
        self.metrics.append(row)
        if self._already_sent:
            self._already_sent -= 1
        else:
            self.tracker.log({key: value for key, value in row.items() if value is not None})
        watched = {"loss": "step/train_loss", "windows/s": "perf/windows_per_s"}
        watched[self.objective] = self.objective
        shown = {name: row[key] for name, key in watched.items() if key in row}
        self.progress.update(step=row["step"], epoch=int(row["epoch"]), **shown)
        if "val_loss" in row:
            trained = f"train_loss {row['train_loss']:.4f}  " if "train_loss" in row else ""
            self.progress.say(
                f"epoch {row['epoch']:>3}/{self.epochs}  {trained}val_loss {row['val_loss']:.4f}"
                f"  val_corr {row['val_corr']:.4f}  val_skill {row['val_skill']:+.3f}"
            )

    def not_finite(self, what: str) -> TrainingError:
        """The error for a value that is not finite, with the last checkpoint and what to do."""
        last = self.checkpoints / "last.safetensors"
        left = f"The last good checkpoint is {last}." if last.is_file() else "No checkpoint yet."
        return TrainingError(
            f"{what} is not finite. {left} Lower optim.lr or optim.encoder_lr_scale, lengthen"
            " optim.warmup_epochs, or use train.precision=fp32."
        )


class StepRows:
    """Each step's loss and gradient norms, which stay on the device until a row is logged.

    Args:
        components: Parts of the model with a gradient norm.
        state: Takes what is read back; a checkpoint keeps it.
        scaler: Of fp16; its factor is the last entry of each row.
        output: Names the checkpoint in an error.
    """

    def __init__(
        self,
        components: Sequence[str],
        state: FitState,
        scaler: torch.amp.GradScaler,
        output: Output,
    ) -> None:
        self._names = ["train_loss", *(f"grad_norm/{name}" for name in (*components, "total"))]
        self._state, self._scaler, self._output = state, scaler, output
        self._scale = scaler.get_scale()
        self._on_device: list[Tensor] = []

    def add(self, row_R: Tensor) -> None:
        """Take one step's row, as `train_step` gives it."""
        self._on_device.append(row_R)

    def read_back(self) -> None:
        """Copy the rows to the host in one transfer.

        Raises:
            TrainingError: if one of them is not finite, naming its step and columns. A GradScaler
                skips steps whose gradients overflow: they are counted, not fatal.
        """
        rows = torch.stack(self._on_device).tolist() if self._on_device else []
        self._on_device.clear()
        state = self._state
        for step, (*row, scale) in enumerate(rows, start=state.step - len(rows) + 1):
            state.skipped_steps += scale < self._scale
            self._scale = scale
            bad = [name for name, v in zip(self._names, row, strict=True) if not math.isfinite(v)]
            if bad and not (self._scaler.is_enabled() and math.isfinite(row[0])):
                raise self._output.not_finite(f"step {step}: {', '.join(bad)}")
            state.pending.append(row)
            if not bad:
                so_far = state.epoch_sum if state.epoch_count else [0.0] * len(row)
                most = state.epoch_max if state.epoch_count else row
                state.epoch_count += 1
                state.epoch_sum = [total + v for total, v in zip(so_far, row, strict=True)]
                state.epoch_max = list(map(max, most, row))

    def of_step(self) -> dict[str, Any]:
        """The logged step: mean loss since the last one, and this step's gradient norms."""
        rows, self._state.pending = self._state.pending, []
        nonfinite = sum(not all(map(math.isfinite, row)) for row in rows)
        values = [sum(row[0] for row in rows) / len(rows), *rows[-1][1:]]
        named = {f"step/{name}": v for name, v in zip(self._names, values, strict=True)}
        return named | {"nonfinite_steps": nonfinite} | self._of_scaler()

    def of_epoch(self) -> dict[str, Any]:
        """Means over the epoch's finite steps and the largest gradient norms; starts again."""
        state, row = self._state, dict[str, Any]()
        if state.epoch_count:
            columns = zip(self._names, state.epoch_sum, state.epoch_max, strict=True)
            for name, total, most in columns:
                row[name] = total / state.epoch_count
                if name != "train_loss":
                    row[name.replace("grad_norm", "grad_norm_max")] = most
        state.epoch_count = 0
        return row | self._of_scaler()

    def _of_scaler(self) -> dict[str, Any]:
        if not self._scaler.is_enabled():
            return {}
        return {"amp/scale": self._scale, "amp/skipped_steps": self._state.skipped_steps}
