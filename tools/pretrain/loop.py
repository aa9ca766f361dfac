"""The pretraining loop: batches by step, AdamW with RMS-scaled steps, cosine, resumable.

A step's rows, masks, dropout and learning rate are functions of the step and the seed alone, so a
checkpoint needs the weights, the optimizer's state and the step, and a resumed run is bitwise the
uninterrupted one on a CPU with the same number of threads.
"""

import json
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.checkpoint import load_checkpoint, save_checkpoint
from t5ts.errors import Interrupted, ResumeError, TrainingError
from t5ts.optim import PlannedOptimizer
from t5ts.progress import ProgressBar
from t5ts.schedule import Rule
from t5ts.schema import OptimConfig
from tools.pretrain.rows import Rows

log = logging.getLogger("t5ts")

LAST = "last.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop needs to know.

    Attributes:
        total_steps: Length of the cosine; may differ in a resumed run (see `fit`).
        batch_size: Rows in a step.
        autocast: bfloat16, or None for float32.
        identity: What a checkpoint must agree with to be resumed: vocabulary, rows, shape, seed.
    """

    seed: int
    total_steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    min_lr_ratio: float
    weight_decay: float
    clip_norm: float
    beta2: float
    autocast: torch.dtype | None
    log_every: int
    eval_every: int
    checkpoint_every_s: float
    identity: str


def precision(device: torch.device, chosen: str) -> torch.dtype | None:
    """The autocast type for a choice of auto, fp32 or bf16.

    auto is bf16 where the hardware multiplies it: a GPU, or a CPU with AMX tiles (4 times faster
    there than float32; without them 2 to 3 times slower).
    """
    if chosen == "auto":
        tiles = device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())
        gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = "bf16" if tiles or gpu else "fp32"
    return torch.bfloat16 if chosen == "bf16" else None


def fit(
    model: nn.Module,
    train: Rows,
    held_out: Sequence[tuple[Tensor, Tensor]],
    *,
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
    stop_step: int | None = None,
) -> dict[str, Any]:
    """Train to `settings.total_steps`, resuming from `folder`'s checkpoint if there is one.

    A resumed run may be given other settings of the update rule than it began with (more steps,
    say): they hold from there on, and every such leg is recorded in the state.

    Args:
        model: A T5ForConditionalGeneration (or what has its signature), freshly initialised.
        train: Rows to train on.
        held_out: Fixed batches for the held-out loss.
        folder: Takes `last.safetensors` and `metrics.jsonl`.
        stop_step: Leave off cleanly at this step (to be resumed); None goes to the end.

    Returns:
        The final state: step, tokens seen, seconds, last losses, legs.

    Raises:
        ResumeError: if the checkpoint is corrupted or of another run.
        TrainingError: if a loss or gradient is not finite.
        Interrupted: after SIGINT or SIGTERM; the checkpoint is then written.
    """
    model.to(device)
    optimizer = _optimizer(model, settings)
    leg = {k: v for k, v in asdict(settings).items() if k not in ("identity", "autocast")}
    leg["autocast"] = str(settings.autocast)
    state: dict[str, Any] = {
        "step": 0, "input_tokens": 0, "target_tokens": 0, "seconds": 0.0, "metrics_bytes": 0,
        "legs": [], "pending": [], "identity": settings.identity,
    }  # fmt: skip
    path = folder / LAST
    if path.exists():
        state |= _restore(path, model, optimizer, settings.identity)
        log.info("resuming from step %d of %s", state["step"], path)
    if not state["legs"] or state["legs"][-1]["settings"] != leg:
        state["legs"].append({"from_step": state["step"], "settings": leg})
    folder.mkdir(parents=True, exist_ok=True)
    metrics = _open_metrics(folder / METRICS, state["metrics_bytes"])
    end = settings.total_steps if stop_step is None else min(stop_step, settings.total_steps)
    started, saved = time.monotonic(), time.monotonic()
    window_started, window_tokens = started, 0
    earlier_s = state["seconds"]

    def write(row: dict[str, Any]) -> None:
        metrics.write(json.dumps({"step": state["step"], **row}) + "\n")
        metrics.flush()
        state["metrics_bytes"] = metrics.tell()

    def save() -> None:
        state["seconds"] = earlier_s + time.monotonic() - started
        _save(path, model, optimizer, state)

    if state["step"] == 0:
        write({"held_out_loss": mean_loss(model, held_out, device, settings.autocast)})
    bar = ProgressBar(total_steps=settings.total_steps, done_steps=state["step"])
    with metrics, bar, _signals() as stop_asked:
        while state["step"] < end:
            step = state["step"]
            source_BL, target_BT = (
                part.to(device, non_blocking=True)
                for part in train.batch(step, batch_size=settings.batch_size)
            )
            torch.manual_seed(_dropout_seed(settings.seed, step))
            optimizer.set_learning_rates(step)
            model.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast is not None):
                loss = model(input_ids=source_BL, labels=target_BT).loss
            loss.backward()
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise TrainingError(
                    f"loss {loss.item():g} or gradient norm {norm.item():g} at step {step} is not "
                    f"finite; the last good checkpoint is {path}. Lower --lr and resume."
                )
            optimizer.clip(norm)
            optimizer.inner.step()
            model.zero_grad(set_to_none=True)
            state["step"] += 1
            state["input_tokens"] += source_BL.numel()
            state["target_tokens"] += target_BT.numel()
            state["pending"].append([loss.item(), norm.item()])
            window_tokens += source_BL.numel()
            if state["step"] % settings.log_every == 0:
                now = time.monotonic()
                rate = window_tokens / (now - window_started)
                window_started, window_tokens = now, 0
                losses, norms = zip(*state["pending"], strict=True)
                state["pending"] = []
                row = {
                    "train_loss": sum(losses) / len(losses),
                    "grad_norm": sum(norms) / len(norms),
                    "lr": next(iter(optimizer.learning_rates().values())),
                    "input_tokens": state["input_tokens"],
                }
                write({**row, "tokens_per_s": rate})
                left_s = (settings.total_steps - state["step"]) * settings.batch_size
                left_s *= source_BL.shape[1] / rate
                epoch = state["step"] * settings.batch_size // len(train.rows)
                bar.update(step=state["step"], epoch=epoch, loss=row["train_loss"], tokens_s=rate)
                log.info(
                    "step %d/%d · loss %.3f · norm %.2f · lr %.2g · %.0f tokens/s · %.0f min left",
                    state["step"], settings.total_steps, row["train_loss"], row["grad_norm"],
                    row["lr"], rate, left_s / 60,
                )  # fmt: skip
            if state["step"] % settings.eval_every == 0 or state["step"] == settings.total_steps:
                state["held_out_loss"] = mean_loss(model, held_out, device, settings.autocast)
                write({"held_out_loss": state["held_out_loss"]})
                bar.say(f"step {state['step']} · held-out loss {state['held_out_loss']:.4f}")
                window_started, window_tokens = time.monotonic(), 0
            if stop_asked or time.monotonic() - saved > settings.checkpoint_every_s:
                save()
                saved = time.monotonic()
            if stop_asked:
                raise Interrupted(f"stopped at step {state['step']}")
        save()
    return state


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: torch.dtype | None,
) -> float:
    """Mean cross-entropy per target token over all batches, in nats, in evaluation mode."""
    model.eval()
    total, count = 0.0, 0
    for source_BL, target_BT in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast is not None):
            loss = model(input_ids=source_BL.to(device), labels=target_BT.to(device)).loss
        total += float(loss) * target_BT.numel()
        count += target_BT.numel()
    return total / count


def _optimizer(model: nn.Module, settings: LoopSettings) -> PlannedOptimizer:
    return PlannedOptimizer(
        model.named_parameters(),
        rules=[Rule(pattern="", start_epoch=0.0, lr_scale=1.0)],
        settings=OptimConfig(
            name="pretrain",
            algorithm="adamw_rms",
            lr=settings.lr,
            warmup_epochs=settings.warmup_steps,
            min_lr_ratio=settings.min_lr_ratio,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            beta2=settings.beta2,
        ),
        steps_per_epoch=1,
        total_steps=settings.total_steps,
    )


def _dropout_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _save(path: Path, model: nn.Module, optimizer: PlannedOptimizer, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in model.named_parameters()}
    moments, counts = optimizer.state()
    tensors |= {f"optimizer/{name}": tensor for name, tensor in moments.items()}
    save_checkpoint(path, tensors, {**state, "optimizer_steps": counts})


def _restore(
    path: Path, model: nn.Module, optimizer: PlannedOptimizer, identity: str
) -> dict[str, Any]:
    tensors, state = load_checkpoint(path)
    if state["identity"] != identity:
        raise ResumeError(
            f"{path} belongs to another run ({state['identity']}, this is {identity}): the "
            "vocabulary, the rows, the shape or the seed differ. Use another --run folder."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    moments = {
        name.removeprefix("optimizer/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("optimizer/")
    }
    optimizer.load_state(moments, state.pop("optimizer_steps"), step=state["step"])
    return state


def _open_metrics(path: Path, length: int) -> Any:
    """The metrics file, cut back to where the checkpoint left it."""
    path.touch()
    file = path.open("r+", encoding="utf-8")
    file.truncate(length)
    file.seek(length)
    return file


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that a SIGINT or SIGTERM puts itself into."""
    asked: list[int] = []
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, lambda received, _: asked.append(received))
        except ValueError:  # not in the main thread: the caller handles signals
            continue
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
