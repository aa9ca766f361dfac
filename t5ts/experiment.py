"""The composition root: a checked config becomes a trained model and a run directory."""

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from t5ts import distributed
from t5ts.analysis.results import FAILURE, Result, read_metrics
from t5ts.build import (
    Dataset,
    Setup,
    build,
    plan_table,
    precision_name,
    present_inputs,
    setup_inputs,
    setup_summary,
)
from t5ts.checkpoint import load_checkpoint
from t5ts.config import Config, identity
from t5ts.console import announce, device_name, report
from t5ts.data.windows import Windows
from t5ts.draws import shuffle_time
from t5ts.errors import Interrupted, ResumeError, TrainingError, UserError
from t5ts.evaluation import evaluate, evaluate_baselines, reset_peak_memory
from t5ts.interruption import stop_on_signals
from t5ts.model.forecaster import scale_audit
from t5ts.progress import ProgressBar
from t5ts.provenance import code_and_machine, file_crc32, made_with, write_json, write_text
from t5ts.reuse import Reuse
from t5ts.run_directory import (
    bring_in,
    check_inputs,
    check_resumable,
    disk_errors,
    find_checkpoint,
    finished_result,
    locked,
    other_code,
    put_aside,
)
from t5ts.tracking import (
    MetricsFile,
    NoMetricsFile,
    NullTracker,
    Tracker,
    WandbTracker,
    run_name,
)
from t5ts.train import FitState, Output, fit

log = logging.getLogger("t5ts")

#: Windows whose forecasts are drawn, evenly spaced over the test windows.
SAMPLE_WINDOWS = 3
#: Windows of the step-0 scale audit.
AUDIT_WINDOWS = 64


def run(
    config: Config,
    *,
    run_dir: Path,
    group: str | None = None,
    after_epoch: Callable[[Mapping[str, Any]], None] = lambda _row: None,
    pictures: bool = True,
) -> Result:
    """Run one configuration in its directory, or resume it, or show it where it is finished.

    Below torchrun, process 0 calls this and the others `follow`.

    Args:
        config: Checked.
        run_dir: Its directory; made if missing.
        group: Name of the sweep that it belongs to.
        after_epoch: Called with each epoch's row of metrics.jsonl; it may raise to end the run.
        pictures: Whether to draw the run's pictures at its end.

    Raises:
        UserError: for whatever the user can fix, before anything is trained wherever possible.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    distributed.require_setup()
    with disk_errors(run_dir), locked(run_dir), stop_on_signals() as stop:
        resume = config.train.resume
        if resume == "never":
            put_aside(run_dir)
        elif (run_dir / "result.json").is_file():
            return _show(config, run_dir)
        resume_from = find_checkpoint(resume, run_dir)
        before = None if resume_from is None else check_resumable(resume_from, config)
        (run_dir / FAILURE).unlink(missing_ok=True)
        try:
            with distributed.handing_out((config, run_dir.absolute(), resume_from)):
                result = _run(
                    config, run_dir, group, resume_from, before, stop, after_epoch, pictures
                )
        except TrainingError as error:
            write_json(run_dir / FAILURE, {"reason": str(error)})
            raise
        assert result is not None
        return result


def _show(config: Config, run_dir: Path) -> Result:
    """A finished run's result, if it is what this command would compute.

    Raises:
        ResumeError: if it is corrupted, or has another configuration or other inputs.
        UserError: if the inputs cannot be read.
    """
    result, provenance = finished_result(config, run_dir)
    log.info("This run is finished; train.resume=never trains it again.")
    recorded = provenance.get("inputs")
    if recorded is None:
        log.warning("Its inputs were not recorded by the older t5ts that made it: not compared.")
    else:
        present = present_inputs(config)
        check_inputs(recorded, present, run_dir)
        if present.keys() < recorded.keys():
            log.warning("Its weights are not in the cache any more: not compared.")
        if (code := other_code(provenance["code"][-1])) is not None:
            log.info("It was made by other code: %s", code)
    report(result, run_dir)
    return result


def follow() -> None:
    """In the processes beside process 0: take part in each of its runs until it ends."""
    for config, run_dir, resume_from in distributed.runs():
        try:
            with stop_on_signals() as stop:
                _run(config, run_dir, None, resume_from, None, stop, lambda _row: None)
        except Exception as error:
            if not distributed.is_common(error):
                raise
            if not isinstance(error, UserError | Interrupted):
                traceback.print_exc()  # process 0 has the message alone


def _run(
    config: Config,
    run_dir: Path,
    group: str | None,
    resume_from: Path | None,
    before: Mapping[str, Any] | None,
    stop: threading.Event,
    after_epoch: Callable[[Mapping[str, Any]], None],
    pictures: bool = False,
) -> Result | None:
    """Build, train, measure; the result is process 0's, which alone writes, to return.

    Args:
        before: What the checkpoint to resume from recorded of its run; known to process 0.
    """
    with distributed.main_first():
        setup = build(config)
    task = setup.task
    reset_peak_memory(setup.device)
    batch_size = config.train.eval_batch_size
    # Windows, and whose season and whose naive errors they are measured by.
    data, ood = setup.data, setup.ood
    splits: dict[str, tuple[Windows, Dataset]] = {
        "val": (data.splits.val, data),
        "test": (data.splits.test, data),
        **({} if ood is None else {"ood": (ood.splits.test, ood)}),
    }
    baselines = {
        split: evaluate_baselines(
            windows,
            task,
            season=own.baseline_season,
            batch_size=batch_size,
            mase_denominator_C=own.mase_denominator_C,
            computed=own.series.computed,
        )
        for split, (windows, own) in splits.items()
    }

    def measure(split: str, *, name: str | None = None, **how: Any) -> dict[str, float]:
        windows, own = splits[split]
        metrics = evaluate(
            setup.model,
            windows,
            task,
            batch_size=batch_size,
            autocast=setup.autocast,
            mase_denominator_C=own.mase_denominator_C,
            naive_mse=baselines[split][task.naive]["loss"],
            limit=setup.eval_limit,
            **how,
        )
        return {f"{name or split}_{metric}": value for metric, value in metrics.items()}

    first_B = torch.arange(min(AUDIT_WINDOWS, len(setup.data.splits.train)))
    first = task.batch(setup.data.splits.train.gather(first_B), first_B, epoch=0)
    audit = scale_audit(setup.model, first.inputs_BCL)
    plan = plan_table(setup, lr=config.optim.lr)
    codes = [] if before is None else [*before["code"]]
    if codes[-1:] != [made_with()]:
        codes.append(made_with())
    record: dict[str, Any] = {"inputs": setup_inputs(config, setup), "code": codes}
    tracker: Tracker = NullTracker()
    metrics: MetricsFile = NoMetricsFile()
    try:
        with distributed.shared_fate():
            if before is not None:
                assert resume_from is not None
                check_inputs(before["inputs"], record["inputs"], resume_from.parent.parent)
                bring_in(resume_from, run_dir)
            reuse = Reuse(config, setup, run_dir, resume_from, record)
            if distributed.is_main():
                announce(config, setup, audit, plan)
                more = {"resumed_from": resume_from and str(resume_from), "reuse": reuse.about}
                _write_beginning(config, setup, run_dir, audit, plan, record | more)
                tracker = _build_tracker(config, run_dir, group)
                # Tracker and sweep hear of reused epochs as of trained ones.
                for row in reuse.install():
                    tracker.log({key: value for key, value in row.items() if value is not None})
                    if row["kind"] == "eval":
                        after_epoch(row)
                metrics = MetricsFile(run_dir / "metrics.jsonl")

        def end_epoch(row: Mapping[str, Any]) -> None:
            reuse.publish(row["epoch"])
            after_epoch(row)

        with ProgressBar(
            total_steps=setup.epochs * setup.steps_per_epoch,
            enabled=config.train.progress and distributed.is_main(),
        ) as progress:
            output = Output(
                metrics=metrics,
                tracker=tracker,
                progress=progress,
                checkpoints=run_dir / "checkpoint",
                epochs=setup.epochs,
                record={"identity": identity(config), **record},
                after_epoch=end_epoch,
            )
            state = fit(
                setup,
                config,
                lambda: measure("val"),
                output,
                resume_from=reuse.resume_from,
                should_stop=stop.is_set,
            )

        # Test windows are read once, here, for the checkpoint that validation selected; those of
        # another series too, which had no say in the selection.
        selected = run_dir / "checkpoint" / "best.safetensors"
        best, about = load_checkpoint(selected)
        if about["epoch"] != state.best_epoch:
            raise ResumeError(
                f"{selected} holds the weights of epoch {about['epoch']}, but the best epoch is"
                f" {state.best_epoch}: epochs that this run repeated after a kill came out"
                " otherwise than before. Start again with train.resume=never."
            )
        setup.model.load_state_dict({name.removeprefix("model/"): t for name, t in best.items()})
        last_metrics: dict[str, float] = {}
        window_losses: dict[str, np.ndarray] = {}
        for split in [split for split in splits if split != "val"]:
            shares: list[torch.Tensor] = []
            last_metrics |= measure(split, window_losses=shares)
            parts = distributed.gather_objects(shares)  # the shares follow one another
            window_losses[split] = torch.cat([loss_B for part in parts for loss_B in part]).numpy()
        if config.train.shuffled_test:
            last_metrics |= measure("test", name="shuffled", transform=shuffle_time)
        if not distributed.is_main():
            return None
        files = ["config.yaml", "metrics.jsonl"]
        # Per window, for tests that respect the overlap of windows (Diebold-Mariano).
        for split, losses_W in window_losses.items():
            files.append(f"{split}_losses.npy")
            np.save(run_dir / files[-1], losses_W)
        write_json(run_dir / "forecast_sample.json", _forecast_sample(setup))
        result = Result(
            identity=identity(config),
            arm=config.arm,
            data=setup.data.series.name,
            seed=config.seed,
            objective_name=config.objective,
            objective=state.best_metrics[config.objective],
            best_epoch=state.best_epoch,
            metrics=state.best_metrics | last_metrics,
            initial={k: v for k, v in read_metrics(run_dir, "eval")[0].items() if k[:4] == "val_"},
            baselines=baselines,
            baseline_season=setup.data.baseline_season,
            best_achievable_loss=setup.data.series.best_mse,
            scale_audit=audit,
            seconds=state.train_s,
            peak_memory_bytes=state.peak_memory_bytes,
            skipped_steps=state.skipped_steps,
            debug=config.debug.name,
            reused_epochs=reuse.reused_epochs,
            files={name: file_crc32(run_dir / name) for name in files},
        )
        return _finish(result, state, run_dir, tracker, pictures)
    except BaseException:
        tracker.abandon()
        raise
    finally:
        metrics.close()


def _finish(
    result: Result, state: FitState, run_dir: Path, tracker: Tracker, pictures: bool
) -> Result:
    """Write the result, draw the pictures, and say what came out."""
    unfinished = run_dir / "result.json.unfinished"
    write_json(unfinished, asdict(result))
    # result.json is what says that a run is finished: it appears when everything else stands.
    images: list[Path] = []
    if pictures:
        from t5ts.analysis.plots import draw_run  # matplotlib: half a second

        images = draw_run(run_dir, result_file=unfinished)
    tracker.finish(
        {"objective": result.objective, "best_epoch": state.best_epoch, **result.metrics}, images
    )
    unfinished.replace(run_dir / "result.json")
    report(result, run_dir)
    return result


def _build_tracker(config: Config, run_dir: Path, group: str | None) -> Tracker:
    if config.tracker.name == "none":
        return NullTracker()
    # In a sweep, what was searched; Hydra knows it.
    overrides = HydraConfig.get().overrides.task if group and HydraConfig.initialized() else []
    return WandbTracker(
        run_dir=run_dir,
        # Nested: W&B reads a dot in a key as a step down, in filters, columns and panels.
        config=asdict(config),
        settings=config.tracker,
        group=config.tracker.group or group or config.data.name,
        job_type=config.arm,
        name=run_name(config.arm, config.seed, overrides),
    )


def _write_beginning(
    config: Config,
    setup: Setup,
    run_dir: Path,
    audit: dict[str, float],
    plan: list[dict[str, Any]],
    past: Mapping[str, Any],
) -> None:
    """`config.yaml` and `provenance.json`: written before the first step, whatever comes."""
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    summary = setup_summary(setup)
    if setup.report is not None:
        # The arm is proven from the tensors in the model, not from what the loader said.
        assert summary["initial_sha256"]["encoder"] == setup.report.tensors_sha256
    write_json(
        run_dir / "provenance.json",
        {
            "identity": identity(config),
            "arm": config.arm,
            "seed": config.seed,
            **code_and_machine(),
            "device": device_name(setup.device),
            "precision": precision_name(setup),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            **summary,
            "scale_audit": audit,
            "plan": plan,
            "task": {
                "name": config.task.name,
                **asdict(setup.task),
                "notes": setup.task.notes(setup.data.series.season),
            },
            **past,
        },
    )


def _forecast_sample(setup: Setup) -> dict[str, Any]:
    """A few test predictions of the first channel, in data units, for the picture."""
    series, task, test = setup.data.series, setup.task, setup.data.splits.test
    # From the middle of equal parts: neither the first nor the last window, which are special.
    count = min(SAMPLE_WINDOWS, len(test))
    index_B = (torch.arange(count) * 2 + 1) * len(test) // (2 * count)
    batch = task.batch(test.gather(index_B), index_B)
    setup.model.eval()
    with torch.no_grad():
        prediction_BCH = setup.model(batch.inputs_BCL)
    naive_BCH = task.baselines(batch, season=setup.data.baseline_season)[task.naive]
    mean, std = float(setup.data.splits.mean_C[0]), float(setup.data.splits.std_C[0])

    def in_data_units(values_BCX: torch.Tensor, i: int) -> list[float]:
        return (values_BCX[i, 0].double().cpu() * std + mean).tolist()

    patch = setup.model.patch
    seq_len = batch.inputs_BCL.shape[-1]
    stride = getattr(patch, "stride", seq_len)
    return {
        "channel": series.channels[0],
        "unit": series.units[0],
        "patch_starts": list(range(-getattr(patch, "pad", 0), seq_len, stride)),
        "target_start": task.context_len,  # of a window's steps, the first that may be asked for
        "naive": task.naive,
        "windows": [
            {
                "start": series.time_of(test.first_row + int(index_B[i]) + task.context_len),
                "context": in_data_units(batch.inputs_BCL, i),
                "truth": in_data_units(batch.target_BCH, i),
                "prediction": in_data_units(prediction_BCH, i),
                task.naive: in_data_units(naive_BCH, i),
            }
            for i in range(count)
        ],
    }
