"""The composition root: a checked config becomes a trained model and a run directory."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig

from t5ts import distributed
from t5ts.analysis.results import FAILURE, Result, read_metrics
from t5ts.analysis.words import run_words
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
from t5ts.config import SEARCHED, Config, identity, task_overrides
from t5ts.console import announce, device_name, report
from t5ts.data.windows import Windows
from t5ts.draws import shuffle_time
from t5ts.errors import ResumeError, TrainingError
from t5ts.evaluation import evaluate, evaluate_baselines, reset_peak_memory
from t5ts.interruption import stop_on_signals
from t5ts.model.forecaster import scale_audit
from t5ts.output import FitState, Output
from t5ts.progress import ProgressBar
from t5ts.provenance import code_and_machine, file_crc32, made_with, write_json, write_yaml
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
    Tracker,
    WandbTracker,
    run_name,
)
from t5ts.train import fit

log = logging.getLogger("t5ts")

# The libraries' objects are never garbage: each run's collection can skip them.
gc.freeze()

#: Windows whose forecasts are drawn, evenly spaced over the test windows.
SAMPLE_WINDOWS = 3
#: Windows of the scale audit, before and after training.
AUDIT_WINDOWS = 64


def run(
    config: Config,
    *,
    run_dir: Path,
    group: str | None = None,
    after_epoch: Callable[[Mapping[str, Any]], None] = lambda _row: None,
    pictures: bool = True,
) -> Result:
    """Run one configuration in its directory, resume it, or show its result if it is finished.

    Under torchrun every process calls this, and only process 0 writes and logs.

    Args:
        config: Checked.
        run_dir: Its directory; created if missing.
        group: Name of the sweep that it belongs to.
        after_epoch: Called with each epoch's row of metrics.jsonl; it may raise to end the run.
        pictures: Whether to draw the run's plots at the end.

    Raises:
        UserError: for anything the user can fix, before training if possible.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    is_main = distributed.is_main()
    log.disabled = not is_main
    held = locked(run_dir) if is_main else nullcontext()
    with disk_errors(run_dir), held, stop_on_signals() as stop:
        past = _look_back(config, run_dir) if is_main else None
        past = distributed.gather_objects(past)[0]
        if isinstance(past, Result):
            return past
        assert past is not None
        try:
            result = _run(config, run_dir, past, group, after_epoch, stop.is_set, pictures)
        except TrainingError as error:
            if is_main:
                write_json(run_dir / FAILURE, {"reason": str(error)})
            raise
        result = distributed.gather_objects(result)[0]
        assert result is not None
        return result


@dataclass
class Past:
    """Where a run starts.

    Attributes:
        checkpoint: To resume from; None starts at the beginning.
        state: What that checkpoint recorded.
    """

    checkpoint: Path | None
    state: Mapping[str, Any] | None


def _look_back(config: Config, run_dir: Path) -> Past | Result:
    """The state left by an earlier start of this run: its result, or where to resume it."""
    resume = config.train.resume
    if resume == "never":
        put_aside(run_dir)
    elif (run_dir / "result.json").is_file():
        return _show(config, run_dir)
    checkpoint = find_checkpoint(resume, run_dir)
    state = None if checkpoint is None else check_resumable(checkpoint, config)
    (run_dir / FAILURE).unlink(missing_ok=True)
    return Past(checkpoint, state)


def _show(config: Config, run_dir: Path) -> Result:
    """A finished run's result, if this command would compute the same.

    Raises:
        ResumeError: if it is corrupted, or has a different configuration or inputs.
        UserError: if the inputs cannot be read.
    """
    result, provenance = finished_result(config, run_dir)
    log.info("This run is finished; train.resume=never trains it again.")
    recorded = provenance.get("inputs")
    if recorded is None:
        log.warning("Its inputs were not recorded (older t5ts), so they were not compared.")
    else:
        present = present_inputs(config)
        check_inputs(recorded, present, run_dir)
        if present.keys() < recorded.keys():
            log.warning("Its weights are no longer in the cache, so they were not compared.")
        if (code := other_code(provenance["code"][-1])) is not None:
            log.info("It was computed by different code: %s", code)
    report(result, run_dir)
    return result


def _run(
    config: Config,
    run_dir: Path,
    past: Past,
    group: str | None,
    after_epoch: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool],
    pictures: bool,
) -> Result | None:
    """Build, train and test; the result is process 0's."""
    is_main = distributed.is_main()
    with distributed.main_first():
        setup = build(config)
    reset_peak_memory(setup.device)
    meter = Meter(setup, config.train.eval_batch_size)
    audit = _audit(setup)
    record = _record(config, setup, past, run_dir)
    reuse = Reuse(config, setup, run_dir, past.checkpoint, record)
    if is_main:
        plan = plan_table(setup, lr=config.optim.lr)
        announce(config, setup, audit, plan)
        resumed_from = past.checkpoint and str(past.checkpoint)
        more = {"resumed_from": resumed_from, "reuse": reuse.about}
        _write_beginning(config, setup, run_dir, audit, plan, record | more)

    def end_epoch(row: Mapping[str, Any]) -> None:
        reuse.publish(row["epoch"])
        after_epoch(row)

    with _tracking(config, run_dir, group) as tracker:
        # Tracker and sweep receive reused epochs just like trained ones.
        for row in reuse.install():
            tracker.log({key: value for key, value in row.items() if value is not None})
            if row["kind"] == "eval":
                after_epoch(row)
        metrics = MetricsFile(run_dir / "metrics.jsonl" if is_main else None)
        total_steps = setup.epochs * setup.steps_per_epoch
        bar = ProgressBar(total_steps=total_steps, enabled=config.train.progress and is_main)
        with closing(metrics), bar as progress:
            output = Output(
                metrics=metrics,
                tracker=tracker,
                progress=progress,
                checkpoints=run_dir / "checkpoint",
                epochs=setup.epochs,
                objective=config.objective,
                record={"identity": identity(config), **record},
                after_epoch=end_epoch,
            )
            validate = partial(meter.measure, "val")
            state = fit(
                setup,
                config,
                validate,
                output,
                resume_from=reuse.resume_from,
                should_stop=should_stop,
            )
        _load_best(setup, run_dir, state)
        in_play = _in_play(setup, meter, audit, compiled=config.train.compile)
        test_metrics, window_losses = meter.test(shuffled=config.train.shuffled_test)
        if not is_main:
            return None
        result = _result(config, setup, meter.baselines, audit, state, run_dir)
        result.metrics |= in_play | test_metrics
        result.reused_epochs = reuse.reused_epochs
        result.files = _write_files(setup, run_dir, window_losses)
        _finish(result, run_dir, tracker, pictures)
    return result


class Meter:
    """Evaluates a run's model and the untrained baselines on its splits.

    Args:
        setup: The run's objects.
        batch_size: Windows at a time.

    Attributes:
        baselines: By split (val, test, ood) and forecast: its metrics.
    """

    def __init__(self, setup: Setup, batch_size: int) -> None:
        self._setup, self._batch_size = setup, batch_size
        # Windows, and the data whose season and naive errors they are measured by.
        self._splits: dict[str, tuple[Windows, Dataset]] = {
            "val": (setup.data.splits.val, setup.data),
            "test": (setup.data.splits.test, setup.data),
        }
        if setup.ood is not None:
            self._splits["ood"] = setup.ood.splits.test, setup.ood
        self.baselines = {
            split: evaluate_baselines(
                windows,
                setup.task,
                season=own.baseline_season,
                batch_size=batch_size,
                mase_denominator_C=own.mase_denominator_C,
                computed=own.series.computed,
            )
            for split, (windows, own) in self._splits.items()
        }

    def measure(self, split: str, *, name: str | None = None, **how: Any) -> dict[str, float]:
        """Metrics of the model on a split, named `val_loss` and so on.

        Args:
            split: val, test or ood.
            name: The metrics' prefix instead of the split's name.
            how: For `evaluate`.
        """
        setup = self._setup
        windows, own = self._splits[split]
        metrics = evaluate(
            setup.model,
            windows,
            setup.task,
            batch_size=self._batch_size,
            autocast=setup.autocast,
            mase_denominator_C=own.mase_denominator_C,
            naive_mse=self.baselines[split][setup.task.naive]["loss"],
            limit=setup.eval_limit,
            **how,
        )
        return {f"{name or split}_{metric}": value for metric, value in metrics.items()}

    def test(self, *, shuffled: bool) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and each window's loss, of the selected weights on splits that selected nothing.

        Args:
            shuffled: Whether to measure them also on contexts in random order.
        """
        metrics: dict[str, float] = {}
        window_losses: dict[str, np.ndarray] = {}
        for split in [split for split in self._splits if split != "val"]:
            mine: list[torch.Tensor] = []
            metrics |= self.measure(split, window_losses=mine)
            every = distributed.gather_objects(mine)  # the shares are contiguous and in order
            window_losses[split] = torch.cat([loss_B for own in every for loss_B in own]).numpy()
        if shuffled:
            metrics |= self.measure("test", name="shuffled", transform=shuffle_time)
        return metrics, window_losses


def _audit(setup: Setup) -> dict[str, float]:
    """The scale of tokens and residual stream, on the first train windows."""
    train = setup.data.splits.train
    first_B = torch.arange(min(AUDIT_WINDOWS, len(train)))
    first = setup.task.batch(train.gather(first_B), first_B, epoch=0)
    return scale_audit(setup.model, first.inputs_BCL)


def _in_play(
    setup: Setup, meter: Meter, initial: Mapping[str, float], *, compiled: bool
) -> dict[str, float]:
    """Whether the selected weights use their encoder; nothing for a backbone without blocks.

    Returns:
        `encoder_cosine_initial` and `encoder_cosine`, as `scale_audit` measures it before training
        and with the selected weights, and `bypassed_val_loss`, the validation loss of the selected
        weights with the encoder's blocks left out. The test windows are not looked at.
    """
    if "cosine" not in initial:
        return {}
    # What is compiled sees neither hooks nor bypasses.
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        cosine = _audit(setup)["cosine"]
        with setup.model.bypassing_blocks():
            loss = meter.measure("val")["val_loss"]
    return {
        "encoder_cosine_initial": initial["cosine"],
        "encoder_cosine": cosine,
        "bypassed_val_loss": loss,
    }


def _record(config: Config, setup: Setup, past: Past, run_dir: Path) -> dict[str, Any]:
    """A run's inputs and the code versions that computed it, as its checkpoints record them.

    Raises:
        InputsChanged: if the checkpoint to resume has different inputs.
    """
    inputs = setup_inputs(config, setup)
    if past.checkpoint is None or past.state is None:
        return {"inputs": inputs, "code": [made_with()]}
    check_inputs(past.state["inputs"], inputs, past.checkpoint.parent.parent)
    if distributed.is_main():
        bring_in(past.checkpoint, run_dir)
    codes = [*past.state["code"]]
    if codes[-1:] != [made_with()]:
        codes.append(made_with())
    return {"inputs": inputs, "code": codes}


def _load_best(setup: Setup, run_dir: Path, state: FitState) -> None:
    """Load the weights selected on validation into the model.

    Raises:
        ResumeError: if best.safetensors is from a different epoch.
    """
    path = run_dir / "checkpoint" / "best.safetensors"
    best, about = load_checkpoint(path)
    if about["epoch"] != state.best_epoch:
        raise ResumeError(
            f"{path} contains the weights of epoch {about['epoch']}, but the best epoch is"
            f" {state.best_epoch}: epochs that this run repeated after a kill gave"
            " different results. Start again with train.resume=never."
        )
    setup.model.load_state_dict({name.removeprefix("model/"): t for name, t in best.items()})


def _result(
    config: Config,
    setup: Setup,
    baselines: dict[str, dict[str, dict[str, float]]],
    audit: dict[str, float],
    state: FitState,
    run_dir: Path,
) -> Result:
    """The outcome of training and validation."""
    initial = read_metrics(run_dir, "eval")[0]
    epoch = state.step // setup.steps_per_epoch
    return Result(
        identity=identity(config),
        arm=config.arm,
        data=setup.data.series.name,
        seed=config.seed,
        objective_name=config.objective,
        objective=state.best_metrics[config.objective],
        best_epoch=state.best_epoch,
        stopped_epoch=epoch if epoch < setup.epochs else None,
        metrics=dict(state.best_metrics),
        initial={key: value for key, value in initial.items() if key.startswith("val_")},
        baselines=baselines,
        baseline_season=setup.data.baseline_season,
        best_achievable_loss=setup.data.series.best_mse,
        scale_audit=audit,
        seconds=state.train_s,
        peak_memory_bytes=state.peak_memory_bytes,
        skipped_steps=state.skipped_steps,
        debug=config.debug.name,
    )


def _write_files(
    setup: Setup, run_dir: Path, window_losses: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Write the result's files; returns the checksums of those without one inside.

    Losses are per window, for tests that respect the overlap of windows (Diebold-Mariano).
    """
    files = ["config.yaml", "metrics.jsonl"]
    for split, losses_W in window_losses.items():
        files.append(f"{split}_losses.npy")
        np.save(run_dir / files[-1], losses_W)
    write_json(run_dir / "forecast_sample.json", _forecast_sample(setup))
    return {name: file_crc32(run_dir / name) for name in files}


def _finish(result: Result, run_dir: Path, tracker: Tracker, pictures: bool) -> None:
    """Write the result, draw the plots, and log the outcome."""
    unfinished = run_dir / "result.json.unfinished"
    write_json(unfinished, asdict(result))
    # result.json marks a run as finished: it appears after everything else.
    images: list[Path] = []
    if pictures:
        from t5ts.analysis.plots import draw_run  # matplotlib: half a second

        images = draw_run(run_dir, result_file=unfinished)
    summary = {"objective": result.objective, "best_epoch": result.best_epoch, **result.metrics}
    tracker.finish(summary, images)
    unfinished.replace(run_dir / "result.json")
    report(result, run_dir)


@contextmanager
def _tracking(config: Config, run_dir: Path, group: str | None) -> Iterator[Tracker]:
    """The run's tracker, which is notified if the run ends without a result."""
    tracker = _build_tracker(config, run_dir, group)
    try:
        yield tracker
    except BaseException:
        tracker.abandon()
        raise


def _build_tracker(config: Config, run_dir: Path, group: str | None) -> Tracker:
    if config.tracker.name == "none" or not distributed.is_main():
        return Tracker()
    # In a sweep, what was searched; Hydra knows it.
    overrides, keys = [], None
    if group and HydraConfig.initialized():
        hydra = HydraConfig.get()
        overrides, known = task_overrides(hydra), hydra.job.env_set.get(SEARCHED)
        keys = None if known is None else known.split()
    return WandbTracker(
        run_dir=run_dir,
        # Nested: W&B treats a dot in a key as nesting, in filters, columns and panels.
        config=asdict(config) | {"arm": run_words(config)},
        settings=config.tracker,
        group=config.tracker.group or group or config.data.name,
        job_type=config.arm,
        name=run_name(config.arm, config.seed, overrides, keys),
    )


def _write_beginning(
    config: Config,
    setup: Setup,
    run_dir: Path,
    audit: dict[str, float],
    plan: list[dict[str, Any]],
    past: Mapping[str, Any],
) -> None:
    """`config.yaml` and `provenance.json`: written before the first step."""
    write_yaml(run_dir / "config.yaml", asdict(config))
    summary = setup_summary(setup)
    if setup.report is not None:
        # The arm is proven from the tensors in the model, not from the loader's report.
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
    """A few test predictions of the first channel, in data units, for the plot."""
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
        return (values_BCX[i, 0].cpu().double() * std + mean).tolist()

    patch = setup.model.patch
    seq_len = batch.inputs_BCL.shape[-1]
    stride = getattr(patch, "stride", seq_len)
    return {
        "channel": series.channels[0],
        "unit": series.units[0],
        "patch_starts": list(range(-getattr(patch, "pad", 0), seq_len, stride)),
        "target_start": task.context_len,  # the first step of a window that may be predicted
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
