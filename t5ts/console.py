"""What a run logs about its set-up and its result."""

import logging
import math
import shlex
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from t5ts import distributed
from t5ts.analysis.results import Result
from t5ts.analysis.words import plural, run_words
from t5ts.build import Setup, token_scale
from t5ts.config import Config
from t5ts.data.sanity import check_sanity
from t5ts.datasets import Dataset
from t5ts.evaluation import autocast_to
from t5ts.model.weights import describe
from t5ts.probes import activation_bytes

log = logging.getLogger("t5ts")

#: Lines on the terminal before the first epoch.
MOST_LINES = 8
#: Channels of the other series whose counterparts are listed.
SHOWN_CHANNELS = 8
#: What `activation_bytes` found in this process, by all that it depends on: trials are alike.
_activations: dict[str, int] = {}
#: Stages of the plan, and components of a stage, that its one line names.
SHOWN_STAGES = 4


def announce(
    config: Config, setup: Setup, audit: dict[str, float], plan: list[dict[str, Any]], how: str
) -> None:
    """Log, before the first step, what is trained and on which data.

    What the reader may act on is INFO, and shown on the terminal: at most `MOST_LINES` with the
    tracker's. The rest is DEBUG: it is in run.log, and shown with `hydra.verbose=t5ts`.
    """
    words = run_words(config, setup.report)
    log.info("run        %s (%s), seed %s%s", words, config.arm, config.seed, how)
    _log_weights(config, setup, audit)
    warnings = _log_data("data", setup.data)
    if setup.ood is not None:
        warnings += _log_data("ood", setup.ood) + _compare(setup.data, setup.ood)
    for note in setup.task.notes(setup.data.series.season):
        log.debug("task       %s", note)
    warnings += _log_plan(setup, plan)
    if (patience := config.train.early_stopping_epochs) is not None:
        log.debug(
            "stopping   train.early_stopping_epochs=%s without a better %s, from epoch %g on",
            patience,
            config.objective,
            setup.optimizer.settled_step / setup.steps_per_epoch + patience,
        )
    count = distributed.world_size()
    log.info(
        "device     %s%s, %s",
        device_name(setup.device),
        f", {count} processes share each batch" if count > 1 else "",
        {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}[
            setup.autocast
        ],
    )
    log.debug("memory     %s", memory_needed(setup, config))
    room = MOST_LINES - len(("run", "weights", "data", "plan", "device", "tracker"))
    room -= setup.ood is not None
    if (more := len(warnings) - room) > 0:
        for warning in warnings[room:]:
            log.debug("WARNING    %s", warning)
        warnings[room - 1] += f" (and {plural(more, 'more warning')} in run.log)"
    for warning in warnings[:room]:
        log.warning("WARNING    %s", warning)


def _log_weights(config: Config, setup: Setup, audit: dict[str, float]) -> None:
    """Where the encoder's weights come from, and the scale of the tokens that they get."""
    if setup.report is None:
        log.info("weights    no T5: backbone=%s, drawn from the seed", config.backbone.name)
    else:
        *details, verdict = describe(setup.report)
        log.info("weights    %s: %s", setup.report.source, verdict.removeprefix("verdict").strip())
        for line in details:
            log.debug(line)
    if (factor := token_scale(setup.model)) is not None:
        patch = config.patch
        log.debug(
            "interface  patches of %s steps, embedding %s%s, tokens times %.4g (patch.scale=%s)",
            patch.patch_len,
            "fresh" if patch.path is None else f"of {patch.path}",
            "" if patch.num_prototypes is None else f", {patch.num_prototypes} prototypes",
            factor,
            patch.scale,
        )
    scales = (f"{k} {v:.3g}" for k, v in audit.items() if not k.startswith("residual_ratio"))
    log.debug("scale      at step 0, RMS: %s", "  ".join(scales))


def _log_data(word: str, dataset: Dataset) -> list[str]:
    """Log a series; returns the warnings about it."""
    sanity = check_sanity(dataset.series, dataset.splits)
    shown, _, spread = sanity.line.partition("; variance")
    log.info("%-11s%s", word, shown)
    for note in (f"variance{spread}", *dataset.series.notes):
        log.debug("           %s", note)
    return [f"{word}: {warning}" for warning in sanity.warnings]


def _compare(data: Dataset, ood: Dataset) -> list[str]:
    """Log how the other series' channels map to the trained ones; returns warnings."""
    pairs = list(zip(data.series.channels, ood.series.channels, strict=True))
    named = [f"{ours} ← {theirs}" for ours, theirs in pairs[:SHOWN_CHANNELS]]
    named += [f"{len(pairs) - len(named)} more in their order"] if pairs[SHOWN_CHANNELS:] else []
    log.debug("           read as: %s", ", ".join(named))
    ours, theirs = data.series.step_s, ood.series.step_s
    if ours == theirs:
        return []
    return [
        f"a step of ood is {theirs:g} s and one of data {ours:g} s: the same window covers"
        " a different span of time, and seasons do not coincide"
    ]


def _log_plan(setup: Setup, plan: list[dict[str, Any]]) -> list[str]:
    """Log when which part trains; returns warnings."""

    def start_of(entry: dict[str, Any]) -> float:
        return math.inf if entry["start_epoch"] is None else float(entry["start_epoch"])

    phases, never = [], ""
    for start, group in groupby(sorted(plan, key=start_of), start_of):
        entries = list(group)
        names = list(dict.fromkeys(entry["component"] for entry in entries))
        if start == math.inf:
            never = ", ".join(names)
            continue
        rates = [f"{rate:.3g}" for rate in sorted({entry["peak_lr"] for entry in entries})]
        some = ", ".join(names if len(names) <= SHOWN_STAGES else [names[0], "…", names[-1]])
        rate = "…".join(dict.fromkeys((rates[0], rates[-1])))
        phases.append(f"{some} from epoch {start:g} at lr {rate}")
    phases += [f"never {never}"] if never else []
    if len(phases) > SHOWN_STAGES:
        log.debug("           %s", "; ".join(phases))
        phases[2:-1] = [f"… {len(phases) - 3} more …"]
    length = f"{plural(setup.epochs, 'epoch')} of {plural(setup.steps_per_epoch, 'step')}"
    log.info("plan       %s; %s", length, "; ".join(phases))
    if not (never and any(0 < start_of(entry) < math.inf for entry in plan)):
        return []
    return [
        f"the run ends before the stage of {never}, which never trains: unfreeze earlier, lower"
        " freeze.epochs_per_stage, or train longer"
    ]


def memory_needed(setup: Setup, config: Config) -> str:
    """Memory of a step when everything that ever trains does; runs a few windows to find out."""
    parameters, plan = setup.optimizer.parameters, setup.optimizer.plan
    trained = [p for name, p in parameters.items() if plan[name].start_epoch is not None]
    size = sum(p.nbytes for p in trained) / 1e6
    together = min(config.train.batch_size, setup.windows_per_epoch)
    count = -(-together // (distributed.world_size() * config.train.grad_accumulation))

    def kept_of(num_windows: int) -> int:
        first_B = torch.arange(num_windows)
        batch = setup.task.batch(setup.data.splits.train.gather(first_B), first_B, epoch=0)

        def forward() -> torch.Tensor:
            with autocast_to(setup.device, setup.autocast):
                return setup.task.loss(setup.model(batch.inputs_BCL), batch)

        return activation_bytes(setup.model, forward, trained)

    shape = count, len(setup.data.series.channels), config.seq_len
    what = (repr(setup.model), config.backbone.dropout, shape, setup.autocast)
    key = repr((*what, [line.start_epoch is None for line in plan.values()]))
    if key not in _activations:
        # Each window takes the same: a few of them tell what all take.
        two, four = (kept_of(min(few, count)) for few in (2, 4))
        _activations[key] = four + max(0, count - 4) * (four - two) // 2

    return (
        f"parameters {sum(p.nbytes for p in parameters.values()) / 1e6:.1f} MB;"
        f" {sum(p.numel() for p in trained):,} are trained, whose gradients take {size:.1f} MB and"
        f" optimizer state {2 * size:.1f} MB; activations of {plural(count, 'window')} at a time"
        f" {_activations[key] / 1e6:.1f} MB"
    )


def one_line(result: Result, run_dir: Path) -> str:
    """A run of a multirun: what it was, what came out, and where it is."""
    return (
        f"{result.arm}  seed {result.seed}  {result.objective_name} {result.objective:.4f}"
        f"{' (no better than a naive forecast)' if _lost_to(result) else ''}"
        f"  {result.seconds:.0f} s  {_shown(run_dir)}"
    )


def _shown(path: Path) -> str:
    """A path as typed in the working directory: relative to it if inside, and quoted."""
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if here in path.parents else path))


def report(result: Result, run_dir: Path) -> None:
    """Print the result table, the run directory, and the commands that come next."""

    def split(prefix: str) -> dict[str, float]:
        return {
            k.removeprefix(prefix): v for k, v in result.metrics.items() if k.startswith(prefix)
        }

    def row(name: str, val: dict[str, float] | None, test: dict[str, float]) -> str:
        cells = ["", ""] if val is None else [f"{val[key]:.4f}" for key in ("loss", "corr")]
        cells += [f"{test[key]:.4f}" for key in ("loss", "mae", "corr")]
        texts = ("–" if cell == "nan" else cell for cell in cells)
        return f"{name.replace('_', ' '):<21}" + "".join(f"{text:>10}" for text in texts)

    val, test = result.baselines["val"], result.baselines["test"]
    heads = ("val MSE", "val corr", "test MSE", "test MAE", "test corr")
    lines = ["", " " * 21 + "".join(f"{head:>10}" for head in heads)]
    lines += [row("model", split("val_"), split("test_"))]
    lines += [row(name, val[name], test[name]) for name in val]
    if result.best_achievable_loss is not None:
        lines.append(f"{'best achievable':<21}{result.best_achievable_loss:>10.4f}")
    if shuffled := split("shuffled_"):
        lines.append(row("model, time shuffled", None, shuffled))
    if ood := split("ood_"):
        lines += [row("model on ood", None, ood)]
        lines += [row(f"{name} on ood", None, x) for name, x in result.baselines["ood"].items()]
    peak = result.peak_memory_bytes / 2**20
    lines.append(
        f"best epoch {result.best_epoch} by {result.objective_name} = {result.objective:.4f};"
        f" {result.seconds:.0f} s; peak memory {'–' if math.isnan(peak) else f'{peak:.0f} MiB'}"
    )
    if result.stopped_epoch is not None:
        lines.append(f"early stopping ended the run at epoch {result.stopped_epoch}")
    if (count := result.reused_epochs) > 0:
        lines.append(f"{plural(count, 'epoch')} of another run reused (reuse in provenance.json)")
    if result.skipped_steps:
        lines.append(f"fp16: {result.skipped_steps} steps skipped for overflow")
    log.info("\n".join(lines))
    if better := _lost_to(result):  # not a warning: in a multirun the run's line has it
        hint = "train longer, or try other learning rates"
        if "mean" in better:
            hint = "look for a scaling error in the data or a learning rate that is too high"
        names = ", ".join(f"{name.replace('_', ' ')} ({x:.4g})" for name, x in better.items())
        loss = result.metrics["val_loss"]
        log.info("WARNING    val_loss %.4g is no better than %s: %s.", loss, names, hint)
    if result.debug != "none":
        log.warning("debug=%s: these numbers are no result.", result.debug)
    where = _shown(run_dir)
    log.info(
        "run directory   %s\n"
        "next            python -m t5ts.report %s\n"
        "                python -m t5ts.predict %s --out forecast.csv",
        *[where] * 3,
    )


def _lost_to(result: Result) -> dict[str, float]:
    """The naive forecasts that the model does not beat on validation, and their losses."""
    losses = {name: metrics["loss"] for name, metrics in result.baselines["val"].items()}
    return {name: loss for name, loss in losses.items() if result.metrics["val_loss"] >= loss}


def device_name(device: torch.device) -> str:
    """The GPU's name, cpu or mps."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
