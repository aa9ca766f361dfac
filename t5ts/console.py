"""What a run logs for its reader: its set-up and its result."""

import logging
import math
import shlex
from pathlib import Path
from typing import Any

import torch

from t5ts import distributed
from t5ts.analysis.results import Result
from t5ts.analysis.words import plural, run_words
from t5ts.build import Dataset, Setup, token_scale
from t5ts.config import Config
from t5ts.data.sanity import check_sanity
from t5ts.model.weights import describe

log = logging.getLogger("t5ts")

#: Channels of the other series whose counterparts are listed.
SHOWN_CHANNELS = 8
#: Lines on the terminal before the first epoch.
MOST_LINES = 8
#: Stages of the plan, and components of a stage, that its one line names.
SHOWN_STAGES = 4
SHOWN_COMPONENTS = 4


def announce(
    config: Config,
    setup: Setup,
    audit: dict[str, float],
    plan: list[dict[str, Any]],
) -> None:
    """Log before the first step what will be trained on what.

    What the reader may act on is INFO, and shown on the terminal: at most `MOST_LINES` with the
    tracker's. All else is DEBUG: it is in run.log, and shown with `hydra.verbose=t5ts`.
    """
    warnings: list[str] = []
    log.info("run        %s (%s), seed %s", run_words(config), config.arm, config.seed)
    _log_weights(config, setup, audit)
    _log_data("data", setup.data, warnings)
    if setup.ood is not None:
        _log_ood(setup, setup.ood, warnings)
    if (patience := config.train.early_stopping_epochs) is not None:
        settled = setup.optimizer.settled_step / setup.steps_per_epoch
        log.debug(
            "stopping   train.early_stopping_epochs=%s without a better %s, from epoch %g on",
            patience,
            config.objective,
            settled + patience,
        )
    for note in setup.task.notes(setup.data.series.season):
        log.debug("task       %s", note)
    _log_plan(setup, plan, warnings)
    precision = {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}
    processes = distributed.world_size()
    log.info(
        "device     %s%s, %s",
        device_name(setup.device),
        f", {processes} processes share each batch" if processes > 1 else "",
        precision[setup.autocast],
    )
    log.debug("memory     %s", memory_needed(setup))
    room = MOST_LINES - len(("run", "weights", "data", "plan", "device", "tracker"))
    room -= setup.ood is not None
    for warning in warnings[room:]:
        log.debug("WARNING    %s", warning)
    if (more := len(warnings) - room) > 0:
        warnings[room - 1] += f" (and {plural(more, 'more warning')} in run.log)"
    for warning in warnings[:room]:
        log.warning("WARNING    %s", warning)


def _log_weights(config: Config, setup: Setup, audit: dict[str, float]) -> None:
    """Where the encoder's weights come from, and at which scale the tokens meet them."""
    if setup.report is None:
        log.info("weights    no T5: backbone=%s, drawn from the seed", config.backbone.name)
    else:
        *details, verdict = describe(setup.report)
        log.info("weights    %s: %s", setup.report.source, verdict.removeprefix("verdict").strip())
        for line in details:
            log.debug(line)
    scale = token_scale(setup.model)
    if scale is not None:
        patch = config.patch
        words = [f"patches of {patch.patch_len} steps"]
        words.append(f"tokens times {scale:.4g} (patch.scale={patch.scale})")
        words.append("fresh" if patch.path is None else f"the trained embedding of {patch.path}")
        if patch.num_prototypes is not None:
            mixed = f"{plural(patch.num_prototypes, 'prototype')} of {patch.bank_size} embeddings"
            words.append(mixed)
        log.debug("interface  %s", ", ".join(words))
    log.debug(
        "scale      at step 0, RMS: %s",
        "  ".join(f"{k} {v:.3g}" for k, v in audit.items() if not k.startswith("residual_ratio")),
    )


def _log_data(word: str, of: Dataset, warnings: list[str]) -> None:
    series, splits = of.series, of.splits
    sanity = check_sanity(series, splits)
    span = f", {series.span[0]} … {series.span[1]}" if series.start else ""
    log.info(
        "%-11s%s: %s rows × %s%s, step %s, gaps %.2f%%; windows %s",
        word,
        series.name,
        len(series.values_TC),
        plural(len(series.channels), "channel"),
        span,
        series.step,
        100 * series.gap_share,
        ", ".join(f"{part.name} {len(part)}" for part in (splits.train, splits.val, splits.test)),
    )
    log.debug("           %s", sanity.line)
    for note in series.notes:
        log.debug("           %s", note)
    warnings += [f"{word}: {warning}" for warning in sanity.warnings]


def _log_ood(setup: Setup, ood: Dataset, warnings: list[str]) -> None:
    """The series that is only tested on, and which channel it has for which."""
    _log_data("ood", ood, warnings)
    pairs = list(zip(setup.data.series.channels, ood.series.channels, strict=True))
    named = [f"{ours} ← {theirs}" for ours, theirs in pairs[:SHOWN_CHANNELS]]
    if more := len(pairs) - len(named):
        named.append(f"{more} more in their order")
    log.debug("           read as: %s", ", ".join(named))
    ours, theirs = setup.data.series.step_s, ood.series.step_s
    if ours != theirs:
        warnings.append(
            f"a step of ood is {theirs:g} s and one of data {ours:g} s: the same window is another"
            " stretch of time, and seasons do not fall together"
        )


def _log_plan(setup: Setup, plan: list[dict[str, Any]], warnings: list[str]) -> None:
    """When which part trains, in one line; each component's entry is a detail."""
    never = _components([entry for entry in plan if entry["start_epoch"] is None])
    stages: dict[float, list[dict[str, Any]]] = {}
    for entry in plan:
        if entry["start_epoch"] is not None:
            stages.setdefault(entry["start_epoch"], []).append(entry)
    phases = [_stage(start, entries) for start, entries in sorted(stages.items())]
    if len(phases) > SHOWN_STAGES:
        phases[2:-1] = [f"… {len(phases) - 3} stages more …"]
    phases += [f"never {', '.join(never)}"] if never else []
    log.info(
        "plan       %s of %s; %s",
        plural(setup.epochs, "epoch"),
        plural(setup.steps_per_epoch, "step"),
        "; ".join(phases),
    )
    log.debug("           component     from epoch   peak lr     parameters")
    for entry in plan:
        start = entry["start_epoch"]
        log.debug(
            "           %-12s  %10s   %-9.3g  %11s",
            entry["component"],
            "never" if start is None else f"{start:g}",
            0.0 if start is None else entry["peak_lr"],
            f"{entry['parameters']:,}",
        )
    if never and any(stages):
        warnings.append(
            f"the run ends before the stage of {', '.join(never)}, which never trains: unfreeze"
            " earlier, lower freeze.epochs_per_stage, or train longer"
        )


def memory_needed(setup: Setup) -> str:
    """What parameters, gradients and optimizer will take, once all that ever trains does."""
    parameters, plan = setup.optimizer.parameters, setup.optimizer.plan
    sizes = {name: (p.numel(), p.nbytes) for name, p in parameters.items()}
    trained = [name for name in sizes if plan[name].start_epoch is not None]
    count, size = (sum(sizes[name][i] for name in trained) for i in (0, 1))
    everything = sum(nbytes for _, nbytes in sizes.values())
    return (
        f"parameters {everything / 1e6:.1f} MB; {count:,} are trained, whose gradients take"
        f" {size / 1e6:.1f} MB and optimizer state {2 * size / 1e6:.1f} MB; activations come on top"
    )


def _components(entries: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["component"] for entry in entries))


def _stage(start: float, entries: list[dict[str, Any]]) -> str:
    """What begins to train at an epoch, and at which learning rate."""
    rates = sorted({entry["peak_lr"] for entry in entries})
    rate = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g}…{rates[-1]:.3g}"
    names = _components(entries)
    some = ", ".join(names if len(names) <= SHOWN_COMPONENTS else [names[0], "…", names[-1]])
    return f"{some} from epoch {start:g} at lr {rate}"


def one_line(result: Result, run_dir: Path) -> str:
    """A run of a multirun: what it was, what came out, and where it is."""
    return (
        f"{result.arm}  seed {result.seed}  {result.objective_name} {result.objective:.4f}"
        f"{' (no better than a naive forecast)' if _lost_to(result) else ''}"
        f"  {result.seconds:.0f} s  {_shown(run_dir)}"
    )


def _shown(path: Path) -> str:
    """A path as one types it here."""
    path = path.absolute()
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if here in path.parents else path))


def report(result: Result, run_dir: Path) -> None:
    """Print the result table, the run directory, and the commands that come next."""
    lines = [
        "",
        f"{'':<21}{'val MSE':>9}{'val corr':>10}{'test MSE':>10}{'test MAE':>10}{'test corr':>11}",
    ]

    def corr(metrics: dict[str, float]) -> str:
        return "–" if math.isnan(metrics["corr"]) else f"{metrics['corr']:.4f}"

    def tested(test: dict[str, float]) -> str:
        return f"{test['loss']:>10.4f}{test['mae']:>10.4f}{corr(test):>11}"

    def row(name: str, val: dict[str, float], test: dict[str, float]) -> str:
        return f"{name:<21}{val['loss']:>9.4f}{corr(val):>10}{tested(test)}"

    def split(prefix: str) -> dict[str, float]:
        return {
            k.removeprefix(prefix): v for k, v in result.metrics.items() if k.startswith(prefix)
        }

    lines.append(row("model", split("val_"), split("test_")))
    lines += [
        row(name.replace("_", " "), result.baselines["val"][name], result.baselines["test"][name])
        for name in result.baselines["val"]
    ]
    if result.best_achievable_loss is not None:
        lines.append(f"{'best achievable':<21}{result.best_achievable_loss:>9.4f}")
    if shuffled := split("shuffled_"):
        lines.append(f"{'model, time shuffled':<40}{tested(shuffled)}")
    if ood := split("ood_"):
        lines += [
            f"{'':<40}{'ood MSE':>10}{'ood MAE':>10}{'ood corr':>11}",
            f"{'model':<40}{tested(ood)}",
            *(
                f"{name.replace('_', ' '):<40}{tested(metrics)}"
                for name, metrics in result.baselines["ood"].items()
            ),
        ]
    peak = result.peak_memory_bytes / 2**20
    lines.append(
        f"best epoch {result.best_epoch} by {result.objective_name} = {result.objective:.4f};"
        f" {result.seconds:.0f} s; peak memory {'–' if math.isnan(peak) else f'{peak:.0f} MiB'}"
    )
    if result.stopped_epoch is not None:
        lines.append(f"early stopping ended the run at epoch {result.stopped_epoch}")
    if result.reused_epochs:
        lines.append(
            f"{result.reused_epochs} epochs were taken from another run (reuse in provenance.json)"
        )
    if result.skipped_steps:
        lines.append(f"fp16: {result.skipped_steps} steps skipped for overflow")
    log.info("\n".join(lines))
    _warn_of_baselines(result)
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


def _warn_of_baselines(result: Result) -> None:
    """Name the naive forecasts that beat the model; a multirun's terminal has it in its line."""
    if not (better := _lost_to(result)):
        return
    hint = "train longer, or try other learning rates"
    if "mean" in better:
        hint = "look for an error of scale in the data or a learning rate that is too high"
    log.info(
        "WARNING    val_loss %.4g is no better than %s: %s.",
        result.metrics["val_loss"],
        ", ".join(f"{name.replace('_', ' ')} ({loss:.4g})" for name, loss in better.items()),
        hint,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, cpu or mps."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
