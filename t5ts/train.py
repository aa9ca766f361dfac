"""The training loop: `fit` is all of it, `train_step` one step of it."""

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5ts import distributed
from t5ts.build import Setup, component_seed
from t5ts.checkpoint import load_checkpoint, save_checkpoint
from t5ts.config import OBJECTIVES, Config, identity
from t5ts.data.windows import epoch_order
from t5ts.errors import Interrupted, ResumeError, TrainingError
from t5ts.evaluation import autocast_to, peak_memory
from t5ts.model.encoders import component_of
from t5ts.optim import PlannedOptimizer
from t5ts.probes import DistanceFromInit, GradientNorms, UpdateRatios
from t5ts.progress import ProgressBar
from t5ts.tasks import Batch
from t5ts.tracking import MetricsFile, Tracker

#: A run that has longer to go than this says so, once its speed is known.
LONG_S = 60.0


@dataclass
class FitState:
    """All of a run's past, except tensors, that its future depends on."""

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

    def add_to_epoch(self, row: list[float]) -> None:
        """Take a finite step's row."""
        if self.epoch_count == 0:
            self.epoch_sum, self.epoch_max = [0.0] * len(row), [-math.inf] * len(row)
        self.epoch_count += 1
        self.epoch_sum = [total + v for total, v in zip(self.epoch_sum, row, strict=True)]
        self.epoch_max = [max(most, v) for most, v in zip(self.epoch_max, row, strict=True)]


@dataclass(kw_only=True)
class Output:
    """Where a run's numbers go while it trains.

    Attributes:
        metrics: Rows go here first …
        tracker: … and then here, unless it was sent them before the run was interrupted.
        checkpoints: Folder of last.safetensors and best.safetensors.
        epochs: Of the whole run, to be shown.
        objective: The metric that the progress bar shows.
        record: Identity, inputs and code of the run (`t5ts.provenance`), for checkpoints to hold.
        after_epoch: Called with each epoch's row, and whether it is the last (`ends_run`), once it
            and the checkpoint are written; what it raises ends the run (a sweep prunes so).
    """

    metrics: MetricsFile
    tracker: Tracker
    progress: ProgressBar
    checkpoints: Path
    epochs: int
    objective: str
    record: Mapping[str, Any]
    after_epoch: Callable[[Mapping[str, Any]], None]
    _already_sent: int = 0

    def start(self, metrics_bytes: int) -> None:
        """Drop the rows after a checkpoint: they are written again, and the tracker has them."""
        dropped = self.metrics.cut(metrics_bytes)
        self._already_sent = dropped if self.tracker.resumed else 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row, and show what a reader watches."""
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
        """The error for a value that is not finite, with what is left and what to do."""
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
        """Copy the rows to the host at once.

        Raises:
            TrainingError: if one of them is not finite, naming its step and columns. A GradScaler
                skips steps whose gradients overflow: they are counted, not fatal.
        """
        if not self._on_device:
            return
        state = self._state
        first_step = state.step - len(self._on_device) + 1
        rows = torch.stack(self._on_device).tolist()
        self._on_device.clear()
        for step, (*row, scale) in enumerate(rows, start=first_step):
            state.skipped_steps += scale < self._scale
            self._scale = scale
            bad = [name for name, v in zip(self._names, row, strict=True) if not math.isfinite(v)]
            if bad and not (self._scaler.is_enabled() and math.isfinite(row[0])):
                raise self._output.not_finite(f"step {step}: {', '.join(bad)}")
            if not bad:
                state.add_to_epoch(row)
            state.pending.append(row)

    def of_step(self) -> dict[str, Any]:
        """The logged step: mean loss since the last one, and this step's gradient norms."""
        rows, self._state.pending = self._state.pending, []
        nonfinite = sum(not all(math.isfinite(v) for v in row) for row in rows)
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
        resume_from: A checkpoint of this run to resume from; None starts at step 0.
        should_stop: Called after each step; True ends with a checkpoint and `Interrupted`.

    Returns:
        The state at the end; best.safetensors holds the best epoch's weights.

    Raises:
        TrainingError: if a loss or gradient is not finite, naming step, group and last checkpoint.
        ResumeError: if the checkpoint is unreadable or another run's.
        Interrupted: after `should_stop`, with the checkpoint written.
    """
    train, optimizer = config.train, setup.optimizer
    _prepare(setup, config)
    distance = DistanceFromInit(optimizer.parameters, frozen=optimizer.never_trains)
    scaler = _build_scaler(setup)
    state = FitState()
    if resume_from is not None:
        state = _restore(resume_from, setup, scaler, identity(config))
    # Equal already where machines and libraries are; a bit of difference would never go away.
    distributed.broadcast_tensors(*optimizer.parameters.values())
    output.start(state.metrics_bytes)
    norms = GradientNorms(optimizer.parameters)
    rows = StepRows(norms.components, state, scaler, output)
    last_saved = shown_at = time.perf_counter()
    started = last_saved - state.train_s
    seen_windows, order_epoch, logged_rows, eval_s = 0, -1, 0, 0.0

    def save_last() -> None:
        nonlocal last_saved
        state.train_s = time.perf_counter() - started
        _save(setup, output, scaler, state)
        last_saved = time.perf_counter()

    def end_epoch(epoch: int) -> None:
        nonlocal eval_s
        begun = time.perf_counter()
        row: dict[str, Any] = {"kind": "eval", "epoch": epoch, "step": state.step}
        row |= rows.of_epoch()
        is_due = _is_evaluated(epoch, setup, config)
        if is_due:
            row |= _measured(validate, distance, output, epoch)
            eval_s = time.perf_counter() - begun
        now = time.perf_counter()
        row |= {"perf/elapsed_s": now - started, "perf/eval_s": now - begun}
        output.write(row)
        if is_due and _is_better(row[config.objective], state, config.objective):
            _keep_best(row, setup.model, output, state, identity(config))
        save_last()
        distributed.on_main(lambda: output.after_epoch(row | {"ends_run": is_over()}))

    def is_over() -> bool:
        epoch = state.step / setup.steps_per_epoch
        return epoch >= setup.epochs or stops_early(state, setup, config)

    if state.step == 0 and state.best_epoch < 0:
        end_epoch(0)  # before the first step: the early advantage is one of the questions

    while not is_over():
        epoch, batch_number = divmod(state.step, setup.steps_per_epoch)
        if is_new_epoch := epoch != order_epoch:
            order, order_epoch = _order(setup, config, epoch), epoch
        if optimizer.unfreeze(state.step) or is_new_epoch:
            _set_modes(setup.model, frozen_eval_mode=config.freeze.eval_mode)
        optimizer.set_learning_rates(state.step)
        index_B = order[batch_number * train.batch_size :][: train.batch_size]
        batches = _share_of(index_B, setup, epoch, splits=train.grad_accumulation)
        probed = state.step % train.probe_every == 0
        row_R, ratios = train_step(setup, batches, scaler, norms, probed=probed)
        rows.add(row_R)
        state.step += 1
        seen_windows += len(index_B)
        at = {"step": state.step, "epoch": state.step / setup.steps_per_epoch}
        if ratios:
            output.write({"kind": "probe"} | at | ratios)
        if state.step % train.log_every == 0:
            rows.read_back()
            now = time.perf_counter()
            rate = {"perf/windows_per_s": seen_windows / (now - shown_at)}
            output.write({"kind": "step"} | at | rows.of_step() | _rates(optimizer) | rate)
            logged_rows += 1
            if logged_rows == 2:  # the first interval has the first step's preparations in it
                step_s = train.batch_size * (now - shown_at) / seen_windows
                _log_time_left(setup, config, output, state.step, step_s, eval_s)
            seen_windows, shown_at = 0, now
        is_last_of_epoch = state.step % setup.steps_per_epoch == 0
        if is_last_of_epoch:
            rows.read_back()
            end_epoch(epoch + 1)
            seen_windows, shown_at = 0, time.perf_counter()
        stops, is_old = distributed.any_of(
            should_stop(), time.perf_counter() - last_saved > train.checkpoint_every_s
        )
        if not is_last_of_epoch and (stops or is_old):
            rows.read_back()
            save_last()
        if stops and not is_over():
            raise Interrupted(f"stopped after step {state.step}, checkpoint written")
    _log_early_stop(setup, config, output, state)
    return state


def _measured(
    validate: Callable[[], dict[str, float]],
    distance: DistanceFromInit,
    output: Output,
    epoch: int,
) -> dict[str, float]:
    """Process 0's validation metrics, so that all select and stop alike, and the distances."""
    metrics: dict[str, float] = distributed.gather_objects(validate())[0]
    if not math.isfinite(metrics["val_loss"]):
        raise output.not_finite(f"epoch {epoch}: val_loss")
    return metrics | {f"distance_from_init/{name}": v for name, v in distance.measure().items()}


def _order(setup: Setup, config: Config, epoch: int) -> Tensor:
    """The windows of an epoch in the order in which they are seen."""
    count, limit = len(setup.data.splits.train), setup.windows_per_epoch
    return epoch_order(count, seed=config.seed, epoch=epoch, limit=limit)


def _log_time_left(
    setup: Setup, config: Config, output: Output, step: int, step_s: float, eval_s: float
) -> None:
    """Log how long the rest takes at this speed, and the memory so far, if it takes long."""
    left = setup.epochs * setup.steps_per_epoch - step
    evals = left // setup.steps_per_epoch // config.train.eval_every_epochs + 1
    seconds = left * step_s + evals * eval_s
    if seconds < LONG_S:
        return
    span = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    peak = peak_memory(setup.device) / 1e6
    memory = "" if math.isnan(peak) else f"; peak memory so far {peak:.0f} MB"
    output.progress.say(
        f"time       {step_s:.3g} s a step, {eval_s:.3g} s an evaluation: at this speed"
        f" {span} to go{memory}"
    )


def _log_early_stop(setup: Setup, config: Config, output: Output, state: FitState) -> None:
    epoch = state.step // setup.steps_per_epoch
    if epoch < setup.epochs:
        since = f"no better {config.objective} than at epoch {state.best_epoch}"
        output.progress.say(f"early stopping at epoch {epoch} of {setup.epochs}: {since}")


def stops_early(state: FitState, setup: Setup, config: Config) -> bool:
    """Whether early stopping ends the run at this step.

    A function of what a checkpoint holds, so that a resumed run decides alike. The patience counts
    from the best epoch, but not before all that ever trains does: an arm that unfreezes late is
    given as long after it as any other has from its start.
    """
    patience = config.train.early_stopping_epochs
    epoch, rest = divmod(state.step, setup.steps_per_epoch)
    if patience is None or rest or not _is_evaluated(epoch, setup, config):
        return False
    since = max(state.best_epoch * setup.steps_per_epoch, setup.optimizer.settled_step)
    return state.step - since >= patience * setup.steps_per_epoch


def _is_evaluated(epoch: int, setup: Setup, config: Config) -> bool:
    return epoch % config.train.eval_every_epochs == 0 or epoch == setup.epochs


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
        (K + 3,) the loss over all processes, the gradient norms of the K components and of all
        together before clipping, and the scaler's factor afterwards; it is still on the device.
        And `update_ratio/*` by component; empty unless `probed`.
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


def _prepare(setup: Setup, config: Config) -> None:
    """What the process and the model need before the first step."""
    if setup.device.type == "cpu":
        _keep_freed_memory()
    if config.train.compile:
        setup.model.compile_blocks()
    # From here on dropout alone draws from it, differently in each process.
    torch.manual_seed(component_seed(config.seed, "dropout") + distributed.rank())


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed memory, because every step allocates the same sizes again.

    By default large blocks go back to the system and are faulted in again: 2000 to 3000 page
    faults and 4 ms of a 46 ms step (t5-small, batch 8, two threads). Elsewhere than on glibc there
    is no such function and nothing to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names and values of <malloc.h>
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


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


def _keep_best(
    row: Mapping[str, Any], model: nn.Module, output: Output, state: FitState, own: str
) -> None:
    """Write best.safetensors for the epoch of a row."""
    state.best_epoch = row["epoch"]
    state.best_metrics = {k: v for k, v in row.items() if k.startswith("val_")}
    weights = {f"model/{name}": p for name, p in model.state_dict().items()}
    about = {"identity": own, "epoch": state.best_epoch, **state.best_metrics}
    path = output.checkpoints / "best.safetensors"
    distributed.on_main(lambda: save_checkpoint(path, weights, about))


def _rates(optimizer: PlannedOptimizer) -> dict[str, float]:
    """`lr/*`: the learning rate of each component that trains."""
    return {f"lr/{component_of(name)}": lr for name, lr in optimizer.learning_rates().items()}


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    """The random generators of every process, as `_restore` looks for them."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        own["mps"] = torch.mps.get_rng_state()
    return {
        _generator_name(kind, rank): state
        for rank, states in enumerate(distributed.gather_objects(own))
        for kind, state in states.items()
    }


def _generator_name(kind: str, rank: int) -> str:
    return f"rng/{kind}" if rank == 0 else f"rng/{kind}/{rank}"


def _save(setup: Setup, output: Output, scaler: torch.amp.GradScaler, state: FitState) -> None:
    """Write last.safetensors, from process 0; the random generators are every process's."""
    state.peak_memory_bytes = max(peak_memory(setup.device), state.peak_memory_bytes)
    generators = _generator_states(setup.device)

    def write() -> None:
        state.metrics_bytes, state.metrics_crc32 = output.metrics.sync()
        moments, steps = setup.optimizer.state()
        tensors = {f"model/{name}": tensor for name, tensor in setup.model.state_dict().items()}
        tensors |= {f"optim/{name}": tensor for name, tensor in moments.items()}
        about = {
            **output.record,
            "fit": asdict(state),
            "optimizer_steps": steps,
            "scaler": scaler.state_dict(),
        }
        save_checkpoint(output.checkpoints / "last.safetensors", tensors | generators, about)

    distributed.on_main(write)


def _restore(path: Path, setup: Setup, scaler: torch.amp.GradScaler, own: str) -> FitState:
    """Put model, optimizer, scaler and generators back to where a checkpoint was written."""
    tensors, saved = load_checkpoint(path)
    if saved.get("identity") != own or "fit" not in saved:
        raise ResumeError(
            f"the checkpoint {path} belongs to another configuration (identity"
            f" {saved.get('identity')}, this run's is {own}): resume with the command"
            " that made it, or start again with train.resume=never."
        )
    state = FitState(**saved["fit"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    setup.model.load_state_dict(part("model/"))
    setup.optimizer.load_state(
        part("optim/"),
        saved["optimizer_steps"],
        step=state.step,
        skipped_steps=state.skipped_steps,
    )
    scaler.load_state_dict(saved["scaler"])
    # Written by fewer processes, it has no generator of this one, which keeps its seed.
    kinds = ("cpu", "cuda", "mps")
    cpu, cuda, mps = (tensors.get(_generator_name(kind, distributed.rank())) for kind in kinds)
    if cpu is not None:
        torch.set_rng_state(cpu)
    if cuda is not None and setup.device.type == "cuda":
        torch.cuda.set_rng_state(cuda, setup.device)
    if mps is not None and setup.device.type == "mps":
        torch.mps.set_rng_state(mps)
    return state
