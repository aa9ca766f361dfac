"""The training loop: `fit` is all of it, `train_step` one step of it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5ts import distributed
from t5ts.build import Setup
from t5ts.checkpoint import generator_states, load_checkpoint, save_checkpoint, set_generators
from t5ts.config import OBJECTIVES, Config, identity
from t5ts.data.windows import epoch_order
from t5ts.draws import component_seed
from t5ts.errors import Interrupted, ResumeError
from t5ts.evaluation import autocast_to, keep_freed_memory, peak_memory
from t5ts.model.encoders import component_of
from t5ts.output import FitState, Output, StepRows
from t5ts.probes import DistanceFromInit, GradientNorms, UpdateRatios
from t5ts.tasks import Batch

#: A run with more time left than this logs it once its speed is known.
LONG_S = 60.0


def fit(
    setup: Setup,
    config: Config,
    validate: Callable[[], dict[str, float]],
    output: Output,
    *,
    resume_from: Path | None,
    should_stop: Callable[[], bool],
) -> FitState:
    """Train, evaluate, log and checkpoint, from the start or from a checkpoint to the end.

    Step s of epoch e sees the windows `epoch_order(e)[s·B : (s+1)·B]`; the last batch of an epoch
    may be smaller and none is dropped. Learning rates and what is frozen follow from the step.
    Of several processes each takes its share of those B windows, gradients are summed over all, and
    process 0 alone writes; dropout and rounding aside, the numbers are those of one process.

    Args:
        setup: The run's objects, as new.
        config: The run's values.
        validate: Evaluates the model on the validation windows: `val_*` metrics.
        output: Where the numbers go.
        resume_from: A checkpoint of this run; None starts at step 0.
        should_stop: Called after each step; True ends with a checkpoint and `Interrupted`.

    Returns:
        The state at the end; best.safetensors holds the best epoch's weights.

    Raises:
        TrainingError: if a loss or gradient is not finite, naming step, group and last checkpoint.
        ResumeError: if the checkpoint is unreadable or another run's.
        Interrupted: after `should_stop`, with the checkpoint written.
    """
    loop = _Loop(setup, config, validate, output, resume_from)
    state = loop.state
    if state.step == 0 and state.best_epoch < 0:
        loop.end_epoch()  # before the first step: the early advantage is one of the questions
    while not loop.is_over():
        loop.step()
        is_last_of_epoch = state.step % setup.steps_per_epoch == 0
        if is_last_of_epoch:
            loop.end_epoch()
        is_old = time.perf_counter() - loop.last_saved > config.train.checkpoint_every_s
        stops, is_old = distributed.any_of(should_stop(), is_old)
        if not is_last_of_epoch and (stops or is_old):
            loop.save()
        if stops and not loop.is_over():
            raise Interrupted(f"stopped after step {state.step}, checkpoint written")
    epoch = state.step // setup.steps_per_epoch
    if epoch < setup.epochs:
        since = f"no better {config.objective} than at epoch {state.best_epoch}"
        output.progress.say(f"early stopping at epoch {epoch} of {setup.epochs}: {since}")
    return state


class _Loop:
    """The parts of `fit`, and its timers, which start anew in each process."""

    def __init__(
        self,
        setup: Setup,
        config: Config,
        validate: Callable[[], dict[str, float]],
        output: Output,
        resume_from: Path | None,
    ) -> None:
        self.setup, self.config, self.validate, self.output = setup, config, validate, output
        self.identity = identity(config)
        if setup.device.type == "cpu":
            keep_freed_memory()
        if config.train.compile:
            setup.model.compile_blocks()
        # From here on dropout alone draws from it, differently in each process.
        torch.manual_seed(component_seed(config.seed, "dropout") + distributed.rank())
        parameters = setup.optimizer.parameters
        self.distance = DistanceFromInit(parameters, frozen=setup.optimizer.never_trains)
        self.scaler = _build_scaler(setup)
        self.state = FitState() if resume_from is None else self.restored(resume_from)
        # Already equal if machines and libraries are; a difference of one bit would persist.
        distributed.broadcast_tensors(*parameters.values())
        output.start(self.state.metrics_bytes)
        self.norms = GradientNorms(parameters)
        self.rows = StepRows(self.norms.components, self.state, self.scaler, output)
        self.last_saved = self.shown_at = time.perf_counter()
        self.started = self.last_saved - self.state.train_s
        self.order_epoch, self.order = -1, torch.empty(0)
        self.seen_windows, self.logged_rows, self.eval_s = 0, 0, 0.0

    def step(self) -> None:
        """One step, and the rows that are due after it."""
        setup, train, state = self.setup, self.config.train, self.state
        optimizer = setup.optimizer
        epoch, batch_number = divmod(state.step, setup.steps_per_epoch)
        if is_new_epoch := epoch != self.order_epoch:
            count, limit = len(setup.data.splits.train), setup.windows_per_epoch
            self.order = epoch_order(count, seed=self.config.seed, epoch=epoch, limit=limit)
            self.order_epoch = epoch
        if optimizer.unfreeze(state.step) or is_new_epoch:
            _set_modes(setup.model, frozen_eval_mode=self.config.freeze.eval_mode)
        optimizer.set_learning_rates(state.step)
        index_B = self.order[batch_number * train.batch_size :][: train.batch_size]
        batches = _share_of(index_B, setup, epoch, splits=train.grad_accumulation)
        probed = state.step % train.probe_every == 0
        row_R, ratios = train_step(setup, batches, self.scaler, self.norms, probed=probed)
        self.rows.add(row_R)
        state.step += 1
        self.seen_windows += len(index_B)
        at = {"step": state.step, "epoch": state.step / setup.steps_per_epoch}
        if ratios:
            self.output.write({"kind": "probe"} | at | ratios)
        if state.step % train.log_every == 0:
            self.log(at)

    def log(self, at: Mapping[str, float]) -> None:
        """Write the row of a step."""
        self.rows.read_back()
        now = time.perf_counter()
        windows_per_s = self.seen_windows / (now - self.shown_at)
        rates = self.setup.optimizer.learning_rates()
        row = {"kind": "step", **at} | self.rows.of_step()
        row |= {f"lr/{component_of(name)}": lr for name, lr in rates.items()}
        self.output.write(row | {"perf/windows_per_s": windows_per_s})
        self.logged_rows += 1
        if self.logged_rows == 2:  # the first interval includes the first step's set-up
            self.say_time_left(self.config.train.batch_size / windows_per_s)
        self.seen_windows, self.shown_at = 0, now

    def say_time_left(self, step_s: float) -> None:
        """If the rest takes long at this speed, log how long, and the peak memory so far."""
        per_epoch, every = self.setup.steps_per_epoch, self.config.train.eval_every_epochs
        left = self.setup.epochs * per_epoch - self.state.step
        seconds = left * step_s + (left // per_epoch // every + 1) * self.eval_s
        if seconds < LONG_S:
            return
        span = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
        peak = peak_memory(self.setup.device) / 1e6
        memory = "" if math.isnan(peak) else f"; peak memory so far {peak:.0f} MB"
        evaluation = f", {self.eval_s:.3g} s an evaluation" if self.eval_s else ""  # just resumed
        self.output.progress.say(
            f"time       {step_s:.3g} s a step{evaluation}: at this speed {span} to go{memory}"
        )

    def end_epoch(self) -> None:
        """Evaluate if it is due, write the epoch's row, keep the best weights, save."""
        self.rows.read_back()
        state, begun = self.state, time.perf_counter()
        epoch = state.step // self.setup.steps_per_epoch
        row: dict[str, Any] = {"kind": "eval", "epoch": epoch, "step": state.step}
        row |= self.rows.of_epoch()
        if is_due := self.is_evaluated(epoch):
            # Process 0's metrics, so that all select and stop alike.
            row |= distributed.gather_objects(self.validate())[0]
            if not math.isfinite(row["val_loss"]):
                raise self.output.not_finite(f"epoch {epoch}: val_loss")
            distances = self.distance.measure()
            row |= {f"distance_from_init/{name}": v for name, v in distances.items()}
            self.eval_s = time.perf_counter() - begun
        now = time.perf_counter()
        row |= {"perf/elapsed_s": now - self.started, "perf/eval_s": now - begun}
        self.output.write(row)
        if is_due and _is_better(row[self.config.objective], state, self.config.objective):
            state.best_epoch = epoch
            state.best_metrics = {k: v for k, v in row.items() if k.startswith("val_")}
            metadata = {"identity": self.identity, "epoch": epoch, **state.best_metrics}
            best = self.output.checkpoints / "best.safetensors"
            distributed.on_main(lambda: save_checkpoint(best, self.weights(), metadata))
        self.save()
        ends_run = self.is_over()
        distributed.on_main(lambda: self.output.after_epoch(row | {"ends_run": ends_run}))
        self.seen_windows, self.shown_at = 0, time.perf_counter()

    def is_over(self) -> bool:
        """Whether the last step is done, or early stopping ends the run at this one.

        A function of what a checkpoint holds, so that a resumed run decides the same. Patience
        counts from the best epoch, but not before everything that ever trains is training: an arm
        that unfreezes late has as long after that as another has from its start.
        """
        state, per_epoch = self.state, self.setup.steps_per_epoch
        patience = self.config.train.early_stopping_epochs
        epoch, rest = divmod(state.step, per_epoch)
        if epoch >= self.setup.epochs:
            return True
        if patience is None or rest or not self.is_evaluated(epoch):
            return False
        since = max(state.best_epoch * per_epoch, self.setup.optimizer.settled_step)
        return state.step - since >= patience * per_epoch

    def is_evaluated(self, epoch: int) -> bool:
        """Whether an epoch's end has an evaluation."""
        return epoch % self.config.train.eval_every_epochs == 0 or epoch == self.setup.epochs

    def save(self) -> None:
        """Write last.safetensors, from process 0; the random generators are every process's."""
        self.rows.read_back()
        state, device = self.state, self.setup.device
        state.train_s = time.perf_counter() - self.started
        state.peak_memory_bytes = max(peak_memory(device), state.peak_memory_bytes)
        generators = generator_states(device)

        def write() -> None:
            state.metrics_bytes, state.metrics_crc32 = self.output.metrics.sync()
            moments, steps = self.setup.optimizer.state()
            tensors = self.weights() | {f"optim/{name}": t for name, t in moments.items()}
            metadata = {"fit": asdict(state), "optimizer_steps": steps}
            metadata |= {**self.output.record, "scaler": self.scaler.state_dict()}
            last = self.output.checkpoints / "last.safetensors"
            save_checkpoint(last, tensors | generators, metadata)

        distributed.on_main(write)
        self.last_saved = time.perf_counter()

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors as checkpoints name them."""
        return {f"model/{name}": p for name, p in self.setup.model.state_dict().items()}

    def restored(self, path: Path) -> FitState:
        """Put model, optimizer, scaler and generators back to where a checkpoint was written."""
        tensors, saved = load_checkpoint(path)
        if saved.get("identity") != self.identity or "fit" not in saved:
            raise ResumeError(
                f"the checkpoint {path} belongs to another configuration (identity"
                f" {saved.get('identity')}, this run's is {self.identity}): resume with the command"
                " that made it, or start again with train.resume=never."
            )
        state = FitState(**saved["fit"])
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        self.setup.model.load_state_dict(parts["model"])
        self.setup.optimizer.load_state(
            parts.get("optim", {}),
            saved["optimizer_steps"],
            step=state.step,
            skipped_steps=state.skipped_steps,
        )
        self.scaler.load_state_dict(saved["scaler"])
        set_generators(tensors, self.setup.device)
        return state


def train_step(
    setup: Setup,
    batches: Sequence[Batch],
    scaler: torch.amp.GradScaler,
    norms: GradientNorms,
    *,
    probed: bool,
) -> tuple[Tensor, dict[str, float]]:
    """Forward, backward and one update of what trains.

    Args:
        setup: Model, optimizer and task.
        batches: This process's share of the step's windows, in parts; none if it has no window.
        scaler: Of fp16.
        norms: Measures the gradients.
        probed: Whether to measure the update's size too.

    Returns:
        (K + 3,) on the device: the loss over all processes, the gradient norms of the K components
        and of all together before clipping, and the scaler's factor afterwards; and
        `update_ratio/*` by component, empty unless `probed`.
    """
    optimizer = setup.optimizer
    loss = torch.zeros((), device=setup.device)
    num_scored = sum((b.num_scored for b in batches), loss.new_zeros((), dtype=torch.int64))
    distributed.all_reduce_sum(num_scored)
    for batch in batches:
        with autocast_to(setup.device, setup.autocast):
            prediction_BCH = setup.model(batch.inputs_BCL)
        # A part weighs as many targets as it has, so that any split gives the same gradient.
        share = batch.num_scored / num_scored.clamp_min(1)
        part_loss = setup.task.loss(prediction_BCH, batch) * share
        scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    trainable = optimizer.trainable()
    # Still scaled: what overflowed in one process overflows in the sum, and all skip the step.
    distributed.sum_gradients(loss, trainable.values())
    scaler.unscale_(optimizer.inner)
    norm_K = norms.measure(trainable)
    optimizer.clip(norm_K[-1])
    ratios = UpdateRatios(trainable) if probed else None
    scaler.step(optimizer.inner)
    scaler.update()
    optimizer.inner.zero_grad(set_to_none=True)
    # `get_scale` would wait for the device; a 1 that is scaled does not.
    row_R = torch.cat([loss[None], norm_K, scaler.scale(torch.ones_like(loss))[None]])
    measured = ratios.measure() if ratios is not None else {}
    return row_R, {f"update_ratio/{name}": value for name, value in measured.items()}


def _build_scaler(setup: Setup) -> torch.amp.GradScaler:
    """fp16's scaler; for other precisions it is switched off and passes everything through."""
    enabled = setup.autocast == torch.float16
    scaler = torch.amp.GradScaler(setup.device.type, enabled=enabled)
    scaler.scale(torch.zeros((), device=setup.device))  # it makes its factor at the first call
    return scaler


def _share_of(index_B: Tensor, setup: Setup, epoch: int, *, splits: int) -> list[Batch]:
    """This process's part of a step's windows, in at most `splits` batches."""
    share_B = distributed.share(index_B)
    if not len(share_B):
        return []  # the last batch has fewer windows than there are processes
    return [
        setup.task.batch(setup.data.splits.train.gather(part_B), part_B, epoch)
        for part_B in share_B.tensor_split(min(splits, len(share_B)))
    ]


def _set_modes(model: nn.Module, *, frozen_eval_mode: bool) -> None:
    """Training mode; with `frozen_eval_mode`, no dropout in modules that are wholly frozen."""
    model.train()
    if not frozen_eval_mode:
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _is_better(value: float, state: FitState, objective: str) -> bool:
    """Whether this epoch is the best so far; the first counts, an undefined value never does."""
    if state.best_epoch < 0:
        return True
    best = state.best_metrics[objective]
    if math.isnan(value) or math.isnan(best):
        return math.isnan(best) and not math.isnan(value)
    return value > best if OBJECTIVES[objective] == "max" else value < best
