"""The training loop: `fit` is all of it."""

import ctypes
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5ts import distributed
from t5ts.checkpoint import load_checkpoint, save_checkpoint
from t5ts.data.windows import Windows, epoch_order
from t5ts.errors import Interrupted, ResumeError, TrainingError
from t5ts.evaluation import autocast_to, peak_memory
from t5ts.optim import PlannedOptimizer
from t5ts.probes import GradientNorms, UpdateRatios, distance_from_init
from t5ts.progress import ProgressBar
from t5ts.task import Task
from t5ts.tracking import MetricsFile, Tracker


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What the loop needs to know; see `conf/train` for the words."""

    seed: int
    dropout_seed: int
    epochs: int
    batch_size: int
    grad_accumulation: int
    steps_per_epoch: int
    windows_per_epoch: int
    autocast: torch.dtype | None  # None: no autocast
    compile: bool
    eval_every_epochs: int
    log_every: int
    probe_every: int
    checkpoint_every_s: float
    objective: str
    maximize: bool
    frozen_eval_mode: bool
    identity: str
    #: Inputs and code of the run (`t5ts.provenance`), for the checkpoint to hold.
    record: Mapping[str, Any]


@dataclass
class FitState:
    """Everything about a run's past, besides the tensors, that its future depends on."""

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


def fit(
    model: nn.Module,
    optimizer: PlannedOptimizer,
    task: Task,
    train: Windows,
    validate: Callable[[], dict[str, float]],
    *,
    settings: FitSettings,
    component_of: Callable[[str], str],
    initial: Mapping[str, Tensor],
    metrics: MetricsFile,
    tracker: Tracker,
    progress: ProgressBar,
    checkpoints: Path,
    resume_from: Path | None,
    should_stop: Callable[[], bool],
    after_epoch: Callable[[Mapping[str, Any]], None],
) -> FitState:
    """Train, evaluate, log and checkpoint, from the start or from a checkpoint to the end.

    Step s of epoch e sees the windows `epoch_order(e)[s·B : (s+1)·B]`; the last batch of an epoch
    may be smaller and none is dropped. Learning rates and what is frozen follow from the step.
    Of several processes each takes its share of those B windows, gradients are summed over all, and
    process 0 alone writes; dropout aside, the numbers are those of one process.

    Args:
        model: A forecaster; its parameters are `optimizer`'s.
        optimizer: The plan's optimizer, as new.
        task: Cuts windows into inputs and targets.
        train: Windows to train on.
        validate: Evaluates the model on the validation windows: `val_*` metrics.
        settings: The loop's values.
        component_of: Component of a parameter name.
        initial: Copy of every parameter before training, for the distance from it.
        metrics: Rows go here first.
        tracker: … and then here.
        progress: Shows how it goes.
        checkpoints: Folder of last.safetensors and best.safetensors.
        resume_from: A checkpoint of this run to go on from; None starts anew.
        should_stop: Asked after each step; True ends with a checkpoint and `Interrupted`.
        after_epoch: Called with each epoch's row once it and the checkpoint are written; what it
            raises ends the run (a sweep prunes so).

    Returns:
        The state at the end; best.safetensors holds the best epoch's weights.

    Raises:
        TrainingError: if a loss or gradient is not finite, naming step, group and last checkpoint.
        ResumeError: if the checkpoint is unreadable or another run's.
        Interrupted: after `should_stop`, with the checkpoint written.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        _keep_freed_memory()
    norms = GradientNorms(component_of, list(optimizer.parameters))
    columns = [
        "train_loss",
        *(f"grad_norm/{component}" for component in norms.components),
        "grad_norm/total",
    ]
    # fp16 alone needs a scaler; for the rest it is switched off and passes everything through.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.autocast == torch.float16)
    forward = torch.compile(model) if settings.compile else model
    # From here on dropout alone draws from it, differently in each process.
    torch.manual_seed(settings.dropout_seed + distributed.rank())
    state = FitState()
    if resume_from is not None:
        state = _restore(resume_from, model, optimizer, scaler, device, settings)
    # Equal already where machines and libraries are; a bit of difference would never go away.
    distributed.broadcast_tensors(*optimizer.parameters.values())
    metrics.cut(state.metrics_bytes)
    held: list[Tensor] = []  # the pending rows' device tensors: read back only when logged
    last_saved = shown_at = time.perf_counter()
    started = last_saved - state.train_s
    seen_windows, order_epoch = 0, -1

    def write(row: dict[str, Any]) -> None:
        metrics.append(row)
        tracker.log({key: value for key, value in row.items() if value is not None})

    def save_last() -> None:
        generators = _generator_states(device)

        def write_file() -> None:
            state.train_s = time.perf_counter() - started
            state.metrics_bytes, state.metrics_crc32 = metrics.sync()
            state.peak_memory_bytes = max(peak_memory(device), state.peak_memory_bytes)
            last = checkpoints / "last.safetensors"
            _save(last, model, optimizer, scaler, generators, state, settings)

        distributed.on_main(write_file)

    def read_back() -> None:
        """Bring the held rows to the host, and stop if one of them is not finite."""
        if not held:
            return
        rows = torch.stack(held).tolist()
        first_step = state.step - len(rows)
        held.clear()
        for offset, row in enumerate(rows):
            bad = [name for name, v in zip(columns, row, strict=True) if not math.isfinite(v)]
            # A GradScaler skips steps whose gradients overflow: they are counted, not fatal.
            if bad and (not scaler.is_enabled() or not math.isfinite(row[0])):
                raise TrainingError(
                    f"step {first_step + offset + 1}: {', '.join(bad)} is not finite."
                    f" {_last_good(checkpoints)} Lower optim.lr or optim.encoder_lr_scale,"
                    " lengthen optim.warmup_epochs, or use train.precision=fp32."
                )
            if not bad:
                _add_to_epoch(state, row)
            state.pending.append(row)

    def end_epoch(epoch: int) -> None:
        """Evaluate, log, and keep the checkpoints."""
        nonlocal last_saved
        begun = time.perf_counter()
        row: dict[str, Any] = {"kind": "eval", "epoch": epoch, "step": state.step}
        row |= _epoch_row(state, columns)
        is_due = epoch % settings.eval_every_epochs == 0 or epoch == settings.epochs
        if is_due:
            values = validate()
            if not math.isfinite(values["val_loss"]):
                raise TrainingError(
                    f"epoch {epoch}: val_loss is not finite. {_last_good(checkpoints)}"
                    " Lower optim.lr or optim.encoder_lr_scale, or use train.precision=fp32."
                )
            row |= values
            distances = distance_from_init(component_of, initial, optimizer.parameters)
            row |= {f"distance_from_init/{name}": value for name, value in distances.items()}
        if scaler.is_enabled():
            row |= {"amp/scale": scaler.get_scale(), "amp/skipped_steps": state.skipped_steps}
        now = time.perf_counter()
        row |= {"perf/elapsed_s": now - started, "perf/eval_s": now - begun}
        write(row)
        if is_due:
            progress.update(step=state.step, epoch=epoch, val_corr=row["val_corr"])
            progress.say(_epoch_line(row, settings.epochs))
            if _is_better(row[settings.objective], state, settings):
                state.best_epoch = epoch
                state.best_metrics = {k: v for k, v in row.items() if k.startswith("val_")}
                weights = {f"model/{name}": p for name, p in model.state_dict().items()}
                about = {"identity": settings.identity, "epoch": epoch, **state.best_metrics}
                best = checkpoints / "best.safetensors"
                distributed.on_main(lambda: save_checkpoint(best, weights, about))
        save_last()
        last_saved = time.perf_counter()
        distributed.on_main(lambda: after_epoch(row))

    if state.step == 0 and state.best_epoch < 0:
        end_epoch(0)  # before the first step: the early advantage is one of the questions

    while state.step < settings.epochs * settings.steps_per_epoch:
        epoch, batch_number = divmod(state.step, settings.steps_per_epoch)
        if epoch != order_epoch:
            order = epoch_order(
                len(train), seed=settings.seed, epoch=epoch, limit=settings.windows_per_epoch
            )
        if optimizer.unfreeze(state.step) or epoch != order_epoch:
            _set_modes(model, frozen_eval_mode=settings.frozen_eval_mode)
        order_epoch = epoch
        optimizer.set_learning_rates(state.step)
        index_B = order[batch_number * settings.batch_size :][: settings.batch_size]

        loss = torch.zeros((), device=device)
        share_B = distributed.share(index_B)
        splits = max(1, min(settings.grad_accumulation, len(share_B)))
        parts = [
            task.batch(train.gather(part_B), part_B, epoch)
            for part_B in share_B.tensor_split(splits)
            if len(part_B)
        ]
        if not parts:  # the last batch has fewer windows than there are processes
            scaler.scale(loss)  # it makes its scale at the first call
        scored = torch.zeros((), dtype=torch.int64, device=device)
        num_scored = sum((batch.num_scored for batch in parts), scored)
        distributed.all_reduce_sum(num_scored)
        num_scored = num_scored.clamp_min(1)
        for batch in parts:
            with autocast_to(device, settings.autocast):
                prediction_BCH = forward(batch.inputs_BCL)
            # A part weighs as many targets as it has, so that any split gives the same gradient.
            part_loss = task.loss(prediction_BCH, batch) * (batch.num_scored / num_scored)
            scaler.scale(part_loss).backward()
            loss += part_loss.detach()

        trainable = optimizer.trainable()
        if distributed.world_size() > 1:
            # Still scaled: what overflowed in one process overflows in the sum, and all skip.
            _sum_over_processes(loss, trainable)
        scaler.unscale_(optimizer.inner)
        norm_K = norms.measure(trainable)
        if device.type == "cuda":
            # Summed in no fixed order there, and clipping by other norms would part the weights.
            distributed.broadcast_tensors(norm_K)
        optimizer.clip(norm_K[-1])
        is_probed = state.step % settings.probe_every == 0
        ratios = UpdateRatios(component_of, trainable) if is_probed else None
        scale_before = scaler.get_scale()
        scaler.step(optimizer.inner)
        scaler.update()
        state.skipped_steps += scaler.get_scale() < scale_before
        optimizer.inner.zero_grad(set_to_none=True)

        held.append(torch.cat([loss[None], norm_K]))
        state.step += 1
        seen_windows += len(index_B)
        if ratios is not None:
            values = {f"update_ratio/{name}": value for name, value in ratios.measure().items()}
            write({"kind": "probe", "step": state.step, "epoch": epoch, **values})
        if state.step % settings.log_every == 0:
            read_back()
            row = _step_row(state, columns, component_of, optimizer)
            if scaler.is_enabled():
                row |= {"amp/scale": scaler.get_scale(), "amp/skipped_steps": state.skipped_steps}
            now = time.perf_counter()
            row |= {"epoch": epoch, "perf/windows_per_s": seen_windows / (now - shown_at)}
            seen_windows, shown_at = 0, now
            write(row)
            progress.update(
                step=state.step,
                epoch=epoch,
                loss=row["train_loss"],
                **{"windows/s": row["perf/windows_per_s"]},
            )
        is_last_of_epoch = state.step % settings.steps_per_epoch == 0
        if is_last_of_epoch:
            read_back()
            end_epoch(epoch + 1)
            seen_windows, shown_at = 0, time.perf_counter()
        stops, is_old = distributed.any_of(
            should_stop(), time.perf_counter() - last_saved > settings.checkpoint_every_s
        )
        if not is_last_of_epoch and (stops or is_old):
            read_back()
            save_last()
            last_saved = time.perf_counter()
        if stops and state.step < settings.epochs * settings.steps_per_epoch:
            raise Interrupted(f"stopped after step {state.step}, checkpoint written")

    state.train_s = time.perf_counter() - started
    state.peak_memory_bytes = max(peak_memory(device), state.peak_memory_bytes)
    return state


def _keep_freed_memory() -> None:
    """Ask glibc to keep what is freed, since every step allocates the same sizes again.

    By default large blocks go back to the system and are faulted in anew: 2000 to 3000 page
    faults and 4 ms of a 46 ms step (t5-small, batch 8, two threads). Elsewhere than on glibc there
    is no such function and nothing to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names and values of <malloc.h>
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def _sum_over_processes(loss: Tensor, trainable: Mapping[str, nn.Parameter]) -> None:
    """Sum loss and gradients over the processes; one without windows adds zeros."""
    gradients = []
    for parameter in trainable.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    distributed.all_reduce_sum(loss, *gradients)


def _set_modes(model: nn.Module, *, frozen_eval_mode: bool) -> None:
    """Training mode; with `frozen_eval_mode`, no dropout in modules that are wholly frozen."""
    model.train()
    if not frozen_eval_mode:
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _is_better(value: float, state: FitState, settings: FitSettings) -> bool:
    """Whether this epoch is the best so far; the first counts, an undefined value never does."""
    if state.best_epoch < 0:
        return True
    best = state.best_metrics[settings.objective]
    if math.isnan(value) or math.isnan(best):
        return math.isnan(best) and not math.isnan(value)
    return value > best if settings.maximize else value < best


def _add_to_epoch(state: FitState, row: list[float]) -> None:
    if state.epoch_count == 0:
        state.epoch_sum, state.epoch_max = [0.0] * len(row), [-math.inf] * len(row)
    state.epoch_count += 1
    state.epoch_sum = [total + value for total, value in zip(state.epoch_sum, row, strict=True)]
    state.epoch_max = [max(most, value) for most, value in zip(state.epoch_max, row, strict=True)]


def _epoch_row(state: FitState, columns: list[str]) -> dict[str, float]:
    """Means over the epoch's finite steps, and the largest gradient norms; then starts anew."""
    row: dict[str, float] = {}
    if state.epoch_count:
        for name, total, most in zip(columns, state.epoch_sum, state.epoch_max, strict=True):
            row[name] = total / state.epoch_count
            if name != "train_loss":
                row[name.replace("grad_norm", "grad_norm_max")] = most
    state.epoch_count = 0
    return row


def _step_row(
    state: FitState,
    columns: list[str],
    component_of: Callable[[str], str],
    optimizer: PlannedOptimizer,
) -> dict[str, Any]:
    """A logged step: mean loss since the last one, this step's gradient norms and rates."""
    rows, state.pending = state.pending, []
    row: dict[str, Any] = {"kind": "step", "step": state.step}
    row["train_loss"] = sum(r[0] for r in rows) / len(rows)
    row |= dict(zip(columns[1:], rows[-1][1:], strict=True))
    nonfinite = sum(not all(math.isfinite(v) for v in r) for r in rows)
    row["nonfinite_steps"] = nonfinite
    for name, lr in optimizer.learning_rates().items():
        row[f"lr/{component_of(name)}"] = lr
    return row


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    trained = f"train_loss {row['train_loss']:.4f}  " if "train_loss" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{epochs}  {trained}val_loss {row['val_loss']:.4f}"
        f"  val_corr {row['val_corr']:.4f}  val_skill {row['val_skill']:+.3f}"
    )


def _last_good(checkpoints: Path) -> str:
    last = checkpoints / "last.safetensors"
    return f"The last good checkpoint is {last}." if last.is_file() else "No checkpoint yet."


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    """The random generators of every process, as `_restore` looks for them."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    every = distributed.gather_objects(own)
    return {
        _generator_name(kind, rank): state
        for rank, states in enumerate(every)
        for kind, state in states.items()
    }


def _generator_name(kind: str, rank: int) -> str:
    return f"rng/{kind}" if rank == 0 else f"rng/{kind}/{rank}"


def _save(
    path: Path,
    model: nn.Module,
    optimizer: PlannedOptimizer,
    scaler: torch.amp.GradScaler,
    generators: Mapping[str, Tensor],
    state: FitState,
    settings: FitSettings,
) -> None:
    optimizer_tensors, steps = optimizer.state()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optim/{name}": tensor for name, tensor in optimizer_tensors.items()}
    save_checkpoint(
        path,
        tensors | dict(generators),
        {
            "identity": settings.identity,
            **settings.record,
            "fit": asdict(state),
            "optimizer_steps": steps,
            "scaler": scaler.state_dict(),
        },
    )


def _restore(
    path: Path,
    model: nn.Module,
    optimizer: PlannedOptimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    settings: FitSettings,
) -> FitState:
    """Put model, optimizer, scaler and generators back to where a checkpoint was written."""
    tensors, saved = load_checkpoint(path)
    if saved.get("identity") != settings.identity or "fit" not in saved:
        raise ResumeError(
            f"the checkpoint {path} belongs to another configuration (identity"
            f" {saved.get('identity')}, this run's is {settings.identity}): resume with the command"
            " that made it, or start anew with train.resume=never."
        )
    state = FitState(**saved["fit"])

    def of(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(of("model/"))
    optimizer.load_state(of("optim/"), saved["optimizer_steps"], step=state.step)
    scaler.load_state_dict(saved["scaler"])
    # Written by fewer processes, it has no generator of this one, which keeps its seed.
    own = {kind: tensors.get(_generator_name(kind, distributed.rank())) for kind in ("cpu", "cuda")}
    if own["cpu"] is not None:
        torch.set_rng_state(own["cpu"])
    if device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], device)
    return state
