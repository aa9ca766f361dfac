"""Run directories of studies whose truth is known, written in the real files' format.

For tests and for the report's speed: nothing here trains. `tests/analysis/test_study.py` compares
the format with a real run's.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

NUM_BLOCKS = 4
STEPS_PER_EPOCH = 50


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm and its truth.

    Attributes:
        effect: True log-ratio of its final loss to 0.4.
        start: Validation loss before the first step.
        rate: Share of the way to the final loss that an epoch goes.
        seed_sd: Spread of the log loss over seeds that is the arm's own (besides what all share).
        ood_effect: True log-ratio of its loss on another series to 1.3 times its test loss; None:
            not measured there.
        shuffled_effect: True log-ratio of its loss with shuffled time to its test loss, or None.
    """

    init: str
    freeze: str
    effect: float = 0.0
    start: float = 1.0
    rate: float = 0.25
    seed_sd: float = 0.01
    backbone: str = "t5_efficient_tiny"
    d_model: int = 64
    unfreeze_epoch: float | None = None
    ood_effect: float | None = None
    shuffled_effect: float | None = None

    @property
    def name(self) -> str:
        """Backbone, init and freezing."""
        return f"{self.backbone}-{self.init}-{self.freeze}"


def digest(*parts: Any) -> str:
    """A checksum that is a function of its arguments."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def config(arm: Arm, seed: int, *, epochs: int, **changes: Any) -> dict[str, Any]:
    """A resolved configuration; `changes` have dotted keys (with __ for the dot)."""
    unfreeze = {"none": 0.0, "staged": 3.0}.get(arm.freeze)
    if arm.unfreeze_epoch is not None:
        unfreeze = arm.unfreeze_epoch
    nested: dict[str, Any] = {
        "seed": seed,
        "seq_len": 128,
        "horizon": 24,
        "objective": "val_loss",
        "data": _weather("nyc_weather", "JFK"),
        "ood": None if arm.ood_effect is None else _weather("nyc_lga", "LGA"),
        "task": {"name": "forecast"},
        "backbone": {"name": arm.backbone, "dropout": 0.1, "path": None, "d_model": arm.d_model},
        "init": {"name": arm.init, "factor": 1.0, "scale_norms": False},
        "freeze": {
            "name": arm.freeze,
            "unfreeze_epoch": unfreeze,
            "order": "top_down" if arm.freeze == "staged" else "all_at_once",
            "blocks_per_stage": 2,
            "epochs_per_stage": 1.0,
            "rewarmup_epochs": 0.0,
            "always": [],
            "eval_mode": False,
        },
        "patch": {"name": "norm", "patch_len": 32, "stride": None, "channels": "independent"},
        "normalize": {"name": "instance"},
        "optim": {"name": "adamw", "lr": 1e-3, "encoder_lr_scale": 0.1, "weight_decay": 0.01},
        "train": {
            "epochs": epochs,
            "batch_size": 64,
            "precision": "auto",
            "device": "auto",
            "resume": "auto",
            "progress": True,
            "shuffled_test": arm.shuffled_effect is not None,
        },
        "tracker": {"name": "none", "mode": "auto"},
        "debug": {"name": "none", "fast_dev_run": False, "overfit_windows": None},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        node = nested
        for key in parents:
            node = node[key]
        node[last] = value
    return nested


def _weather(name: str, station: str) -> dict[str, Any]:
    load = {"_target_": "t5ts.data.sources.load_nyc_weather", "name": name, "fraction": 1.0}
    return load | {"windows_per_epoch": None, "stations": [station], "channels": None}


def plan(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What trains when: top-down in pairs of blocks when staged."""
    freeze = settings["freeze"]

    def start(block: int) -> float | None:
        first = freeze["unfreeze_epoch"]
        if first is None or freeze["order"] != "top_down":
            return first
        return first + (NUM_BLOCKS - 1 - block) // 2 * freeze["epochs_per_stage"]

    starts = {"patch": 0.0, **{f"block_{i}": start(i) for i in range(NUM_BLOCKS)}, "head": 0.0}
    return [
        {
            "component": name,
            "start_epoch": epoch,
            "start_step": None if epoch is None else round(epoch * STEPS_PER_EPOCH),
            "peak_lr": 1e-3,
            "parameters": 1000,
        }
        for name, epoch in starts.items()
    ]


def write_run(
    folder: Path,
    arm: Arm,
    seed: int,
    *,
    epochs: int = 10,
    stop_after: int | None = None,
    step_rows: int = 5,
    test_windows: int = 400,
    extra_effect: float = 0.0,
    trial: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write one run directory.

    Args:
        folder: Its directory.
        arm: The arm, with its truth.
        seed: Drives what arms share at a seed, and with the arm what they do not.
        epochs: Epochs requested.
        stop_after: Evaluated epochs of an unfinished run; None: finished.
        step_rows: Logged steps an epoch.
        test_windows: Length of test_losses.npy.
        extra_effect: Added to the arm's effect (a setting's own).
        trial: trial.json, for a sweep's run.
        changes: Of the configuration, as `config` takes them.
    """
    settings = config(arm, seed, epochs=epochs, **changes)
    shared = np.random.default_rng([seed, 1])
    own = np.random.default_rng([seed, int(digest(arm.name, changes)[:8], 16)])
    log_final = math.log(0.4) + arm.effect + extra_effect
    log_final += 0.05 * shared.normal() + arm.seed_sd * own.normal()
    final = math.exp(log_final)
    folder.mkdir(parents=True)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast
    (folder / "config.yaml").write_text(yaml.dump(settings, Dumper=dumper, sort_keys=False))
    _write(folder / "provenance.json", _provenance(arm, seed, settings))
    rows: list[dict[str, Any]] = []
    for epoch in range(1 + (epochs if stop_after is None else stop_after)):
        rows += _rows(arm, plan(settings), epoch, final, step_rows, own)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if trial is not None:
        _write(folder / "trial.json", trial)
    if stop_after is None:
        best = min((row for row in rows if row["kind"] == "eval"), key=lambda row: row["val_loss"])
        losses = _test_losses(1.1 * final, test_windows, own)
        np.save(folder / "test_losses.npy", losses.astype(np.float32))
        result = _result(arm, seed, settings, best, 1.1 * final, _evaluation(arm, 0, final, own))
        _measure_besides(folder, arm, seed, result, losses)
        _write(folder / "result.json", result)
        _write(folder / "forecast_sample.json", _forecast(own))
    return folder


def _evaluation(arm: Arm, epoch: int, final: float, rng: np.random.Generator) -> dict[str, float]:
    """Validation metrics after an epoch, on the way from the arm's start to its final loss."""
    loss = final + (arm.start - final) * (1 - arm.rate) ** epoch
    loss *= math.exp(0.003 * rng.normal())
    return {
        "val_loss": loss,
        "val_mae": 0.8 * math.sqrt(loss),
        "val_corr": 1 - loss,
        "val_corr_constant_channels": 0.0,
        "val_corr_delta": 0.9 - loss,
        "val_corr_delta_constant_channels": 0.0,
        "val_mase": math.sqrt(loss),
        "val_skill": 1 - loss / 0.51,
    }


def _rows(
    arm: Arm,
    lines: list[dict[str, Any]],
    epoch: int,
    final: float,
    step_rows: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to the evaluation after an epoch, from the last one on."""
    starts = {x["component"]: math.inf if (e := x["start_epoch"]) is None else e for x in lines}
    before, rows = epoch - 1, []
    row: dict[str, Any] = {"kind": "eval", "epoch": epoch, "step": epoch * STEPS_PER_EPOCH}

    def norms() -> dict[str, float]:
        values = {
            f"grad_norm/{name}": 0.3 * math.exp(-0.1 * before + 0.2 * rng.normal())
            if before >= start
            else 0.0
            for name, start in starts.items()
        }
        return values | {"grad_norm/total": math.sqrt(sum(v * v for v in values.values()))}

    if epoch:
        for i in range(step_rows):
            step = before * STEPS_PER_EPOCH + (i + 1) * STEPS_PER_EPOCH // step_rows
            shown = {"kind": "step", "step": step, "train_loss": final, **norms()}
            rows.append(shown | {"nonfinite_steps": 0, "lr/head": 1e-3, "epoch": before})
        rows.append({"kind": "probe", "step": step, "epoch": before, "update_ratio/block_0": 1e-3})
        mean = norms()
        row |= {"train_loss": final, **mean}
        row |= {k.replace("grad_norm", "grad_norm_max"): 1.5 * v for k, v in mean.items()}
    row |= _evaluation(arm, epoch, final, rng)
    row |= {f"distance_from_init/{k}": 0.1 * max(0.0, epoch - start) for k, start in starts.items()}
    return [*rows, row | {"perf/elapsed_s": 3.0 * epoch, "perf/eval_s": 0.2}]


def _test_losses(mean: float, windows: int, rng: np.random.Generator) -> np.ndarray:
    """(W,) losses of overlapping windows: times that all runs share, and the run's own noise."""
    over_a_day = np.ones(24) / 24
    shared = np.random.default_rng(7).normal(size=windows + 23)
    own = np.convolve(rng.normal(size=windows + 23), over_a_day, mode="valid")
    times = np.convolve(shared, over_a_day, mode="valid")
    losses = mean * np.exp(0.5 * times + 0.05 * (own - own.mean()))
    return losses * (mean / losses.mean())


def _measure_besides(
    folder: Path, arm: Arm, seed: int, result: dict[str, Any], test_losses: np.ndarray
) -> None:
    """What the selected weights are measured on besides, into the result and its files."""
    rng = np.random.default_rng([seed, int(digest(arm.name, "besides")[:8], 16)])
    noise = arm.seed_sd * rng.normal(size=2)
    metrics, baselines = result["metrics"], result["baselines"]
    test = {k.removeprefix("test_"): v for k, v in metrics.items() if k.startswith("test_")}
    if arm.ood_effect is not None:
        factor = 1.3 * math.exp(arm.ood_effect + noise[0])
        metrics |= {f"ood_{k}": v for k, v in test.items()}
        metrics["ood_loss"] = factor * test["loss"]
        baselines["ood"] = {
            name: values | {"loss": 1.2 * values["loss"]}
            for name, values in baselines["test"].items()
        }
        np.save(folder / "ood_losses.npy", (factor * test_losses).astype(np.float32))
    if arm.shuffled_effect is not None:
        metrics |= {f"shuffled_{k}": v for k, v in test.items()}
        metrics["shuffled_loss"] = test["loss"] * math.exp(arm.shuffled_effect + noise[1])


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))  # indented it would take ten times as long


def _provenance(arm: Arm, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    source = settings["init"].get("path") or settings["backbone"]["path"]
    checkpoint = encoder = digest(arm.backbone, source, "checkpoint")
    if arm.init in ("random", "matched", "shuffled"):
        encoder = digest(arm.backbone, arm.init, seed)
    output = {"random": 1.0, "matched": 0.7, "shuffled": 0.5}.get(arm.init, 0.6)
    fraction = settings["data"]["fraction"]
    return {
        "identity": digest(settings)[:10],
        "arm": arm.name,
        "seed": seed,
        "git": {"commit": "0" * 40, "changed": False},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "processor": "simulated",
        "device": "cpu",
        "precision": "torch.float32",
        "data": {
            "name": settings["data"]["name"],
            "sha256": digest(settings["data"]["name"]),
            "step_s": 3600.0,
        },
        "ood": settings["ood"]
        and {"name": settings["ood"]["name"], "sha256": digest(settings["ood"]["name"])},
        "windows": {"train": round(6000 * fraction), "val": 800, "test": 1700},
        "weights": {
            "init": arm.init,
            "source": "simulated" if arm.init != "random" else "drawn from the seed",
            "files": {"model.safetensors": digest(arm.backbone, "file")},
            "tensors_sha256": encoder,
            "checkpoint_sha256": checkpoint if arm.init in ("matched", "shuffled") else None,
            "architecture": {"d_model": arm.d_model, "num_layers": NUM_BLOCKS, "vocab_size": 100},
            "num_params_encoder": 4000,
            "checks": ["all values finite"],
        },
        "initial_sha256": {
            "patch": digest("patch", seed),
            "encoder": encoder,
            "head": digest("head", seed),
        },
        "steps_per_epoch": STEPS_PER_EPOCH,
        "scale_audit": {
            "input": 1.0,
            **{f"block_{i}": output * (1.5 + 0.4 * i) for i in range(NUM_BLOCKS)},
            "output": output,
            "residual_ratio/block_0": 0.5,
        },
        "plan": plan(settings),
        "resumed_from": None,
    }


def _result(
    arm: Arm,
    seed: int,
    settings: dict[str, Any],
    best: dict[str, Any],
    test_loss: float,
    first: dict[str, float],
) -> dict[str, Any]:
    naive = {"loss": 0.51, "mae": 0.5, "corr": 0.5, "corr_delta": 0.6, "mase": 0.95}
    test = {
        "test_loss": test_loss,
        "test_mae": 0.8 * math.sqrt(test_loss),
        "test_corr": 1 - test_loss,
        "test_corr_delta": 0.9 - test_loss,
        "test_mase": math.sqrt(test_loss),
        "test_skill": 1 - test_loss / 0.55,
    }
    return {
        "identity": digest(settings)[:10],
        "arm": arm.name,
        "data": settings["data"]["name"],
        "seed": seed,
        "objective_name": "val_loss",
        "objective": best["val_loss"],
        "best_epoch": best["epoch"],
        "metrics": {k: v for k, v in best.items() if k.startswith("val_")} | test,
        "initial": first,
        "baselines": {
            split: {
                "seasonal_naive": naive | {"loss": seasonal},
                "last_value": naive | {"loss": last},
                "mean": naive | {"loss": mean, "corr": None},
            }
            for split, seasonal, last, mean in (("val", 0.51, 0.8, 1.0), ("test", 0.55, 0.85, 1.02))
        },
        "baseline_season": 24,
        "best_achievable_loss": None,
        "scale_audit": {"output": 1.0},
        "seconds": 30.0,
        "peak_memory_bytes": 2**29,
        "skipped_steps": 0,
        "debug": "none",
    }


def _forecast(rng: np.random.Generator) -> dict[str, Any]:
    def wave(start: int, length: int, noise: float) -> list[float]:
        steps = np.arange(start, start + length)
        day = 15 + 6 * np.sin(2 * np.pi * steps / 24) + noise * rng.normal(size=length)
        return [float(v) for v in day]

    return {
        "channel": "temperature",
        "unit": "°C",
        "naive": "seasonal_naive",
        "target_start": 128,
        "patch_starts": list(range(0, 128, 32)),
        "windows": [
            {
                "start": f"2013-1{i}-05T00:00:00",
                "context": wave(i * 5, 128, 0.8),
                "truth": wave(i * 5 + 128, 24, 0.8),
                "prediction": wave(i * 5 + 128, 24, 0.2),
                "seasonal_naive": wave(i * 5 + 128, 24, 1.2),
            }
            for i in range(3)
        ],
    }
