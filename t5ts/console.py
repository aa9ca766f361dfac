"""What a run logs for its reader: its set-up and its result."""

import logging
import math
from pathlib import Path
from typing import Any

import torch

from t5ts import distributed
from t5ts.analysis.results import Result
from t5ts.build import Dataset, Setup, token_scale
from t5ts.config import Config
from t5ts.data.sanity import check_sanity
from t5ts.model.weights import describe

log = logging.getLogger("t5ts")

#: Channels of the other series whose counterparts are listed.
SHOWN_CHANNELS = 8


def announce(
    config: Config,
    setup: Setup,
    audit: dict[str, float],
    plan: list[dict[str, Any]],
) -> None:
    """Log before the first step what will be trained on what."""
    log.info("run        %s, seed %s", config.arm, config.seed)
    _log_data("data", setup.data)
    if setup.ood is not None:
        _log_ood(setup, setup.ood)
    log.info("steps      %s an epoch, %s epochs", setup.steps_per_epoch, setup.epochs)
    for note in setup.task.notes(setup.data.series.season):
        log.info("task       %s", note)
    if setup.report is None:
        log.info("weights    no T5: backbone=%s, drawn from the seed", config.backbone.name)
    else:
        for line in describe(setup.report):
            log.info(line)
    scale = token_scale(setup.model)
    if config.patch.path is not None and scale is not None:
        log.info("patch      the trained embedding of %s", config.patch.path)
    if scale is not None:
        log.info("scale      patch.scale=%s: tokens times %.4g", config.patch.scale, scale)
    log.info(
        "scale      RMS at step 0: %s",
        "  ".join(f"{k} {v:.3g}" for k, v in audit.items() if not k.startswith("residual_ratio")),
    )
    precision = {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}
    processes = distributed.world_size()
    log.info(
        "device     %s%s, %s",
        device_name(setup.device),
        f", {processes} processes share each batch" if processes > 1 else "",
        precision[setup.autocast],
    )
    log.info("plan       component     from epoch   peak lr     parameters")
    for entry in plan:
        start = entry["start_epoch"]
        log.info(
            "           %-12s  %10s   %-9.3g  %11s",
            entry["component"],
            "never" if start is None else f"{start:g}",
            0.0 if start is None else entry["peak_lr"],
            f"{entry['parameters']:,}",
        )
    never = dict.fromkeys(e["component"] for e in plan if e["start_epoch"] is None)
    if never and any(entry["start_epoch"] for entry in plan):
        log.warning(
            "           WARNING: the run ends before the stage of %s, which never trains: unfreeze"
            " earlier, lower freeze.epochs_per_stage, or train longer",
            ", ".join(never),
        )


def _log_data(word: str, of: Dataset) -> None:
    sanity = check_sanity(of.series, of.splits)
    log.info("%-11s%s", word, sanity.line)
    for note in of.series.notes:
        log.info("           %s", note)
    for warning in sanity.warnings:
        log.warning("           WARNING: %s", warning)


def _log_ood(setup: Setup, ood: Dataset) -> None:
    """The series that is only tested on, and which channel it has for which."""
    _log_data("ood", ood)
    pairs = list(zip(setup.data.series.channels, ood.series.channels, strict=True))
    named = [f"{ours} ← {theirs}" for ours, theirs in pairs[:SHOWN_CHANNELS]]
    if more := len(pairs) - len(named):
        named.append(f"{more} more in their order")
    log.info("           read as: %s", ", ".join(named))
    ours, theirs = setup.data.series.step_s, ood.series.step_s
    if ours != theirs:
        log.warning(
            "           WARNING: a step of ood is %g s and one of data %g s: the same window is"
            " another stretch of time, and seasons do not fall together",
            theirs,
            ours,
        )


def report(result: Result, run_dir: Path) -> None:
    """Print the result table and where the pictures are."""
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
    if result.reused_epochs:
        lines.append(
            f"{result.reused_epochs} epochs were taken from another run (reuse in provenance.json)"
        )
    if result.skipped_steps:
        lines.append(f"fp16: {result.skipped_steps} steps skipped for overflow")
    lines += [f"{path.stem:<16}{path}" for path in sorted((run_dir / "plots").glob("*.png"))]
    lines.append(f"run directory   {run_dir}")
    log.info("\n".join(lines))
    mean = result.baselines["val"]["mean"]["loss"]
    if result.metrics["val_loss"] > mean:
        log.warning(
            "val_loss %.4g is worse than predicting the train mean (%.4g): look for an error of"
            " scale in the data or a learning rate that is too high.",
            result.metrics["val_loss"],
            mean,
        )
    if result.debug != "none":
        log.warning("debug=%s: these numbers are no result.", result.debug)


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
