"""The composition root: a checked config becomes a trained model and a run directory."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig

from t5ts import distributed
from t5ts.analysis.results import FAILURE, Result, read_metrics
from t5ts.analysis.words import run_words
from t5ts.build import Setup, build, plan_table, precision_name, setup_inputs, setup_summary
from t5ts.checkpoint import load_checkpoint
from t5ts.config import SEARCHED, Config, identity, searched, task_overrides
from t5ts.console import announce, device_name, report
from t5ts.errors import ConfigError, OutOfMemory, ResumeError, TrainingError
from t5ts.evaluation import autocast_to, reset_peak_memory
from t5ts.interruption import stop_on_signals
from t5ts.meter import Meter, forecast_sample
from t5ts.model.encoders import store_in_bfloat16
from t5ts.model.forecaster import scale_audit
from t5ts.model.tensors import state_digest
from t5ts.output import FitState, Output
from t5ts.progress import ProgressBar
from t5ts.provenance import code_and_machine, file_crc32, made_with, write_json, write_yaml
from t5ts.reuse import Reuse
from t5ts.run_directory import Past, bring_in, check_inputs, disk_errors, locked, look_back
from t5ts.tracking import MetricsFile, Tracker, WandbTracker
from t5ts.train import fit

log = logging.getLogger("t5ts")

# The libraries' objects are never garbage: each run's collection can skip them.
gc.freeze()

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
    log.disabled = not distributed.is_main()
    with (
        disk_errors(run_dir),
        _torch_errors(),
        ExitStack() as resources,
        stop_on_signals() as stop,
    ):

        def start() -> Past | Result:
            resources.enter_context(locked(run_dir))
            return look_back(config, run_dir)

        past: Any = distributed.from_main(start)
        if isinstance(past, Result):
            result = past
        else:
            job = distributed.main_first(lambda: _Run(config, run_dir, past))
            distributed.on_main(job.begin)
            tracker = _build_tracker(config, job.setup, run_dir, group)
            resources.push(lambda kind, *_: tracker.abandon() if kind else None)
            state = job.train(tracker, after_epoch, stop.is_set)
            result = job.test(state, tracker, pictures=pictures)
        distributed.on_main(lambda: report(result, run_dir))
        return result


@contextmanager
def _torch_errors() -> Iterator[None]:
    """Turn the errors of allocators and of torch's compiler into one message."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        why, *more = (str(error) or type(error).__name__).splitlines()
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise ConfigError(
                "train.compile=true: torch cannot compile this model here:"
                f" {' '.join([why, *more[:1]]).strip()}. Install a C++ compiler (or set CXX to it),"
                " or use train.compile=false."
            ) from error
        is_of_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (is_of_gpu or isinstance(error, MemoryError) or "allocate memory" in str(error)):
            raise
        raise OutOfMemory(
            f"out of memory: {why} Lower train.batch_size (or raise train.grad_accumulation,"
            " which computes a batch in parts) and train.eval_batch_size,"
            " take a smaller backbone, or wait until others have left the device."
        ) from error


class _Run:
    """A run that is not finished: its objects, and what it does with them, in this order."""

    def __init__(self, config: Config, run_dir: Path, past: Past) -> None:
        self.config, self.run_dir = config, run_dir
        self.setup = setup = build(config)
        inputs, codes = setup_inputs(config, setup), [made_with()]
        self.checkpoint: Path | None = None
        if past is not None:
            self.checkpoint, state = past
            check_inputs(state["inputs"], inputs, self.checkpoint.parent.parent)
            codes = [*state["code"], *codes]
            if codes[-2] == codes[-1]:
                del codes[-1]
        # What its checkpoints record.
        self.record = {"identity": identity(config), "inputs": inputs, "code": codes}
        reset_peak_memory(setup.device)
        self.meter = Meter(setup, config.train.eval_batch_size)
        self.audit = self._scales()
        self.summary = setup_summary(setup)
        if setup.report is not None:
            # The arm is proven from the tensors in the model, not from the loader's report.
            assert self.summary["initial_sha256"]["encoder"] == setup.report.tensors_sha256
        if setup.autocast is torch.bfloat16:
            store_in_bfloat16(setup.model.encoder, setup.frozen_in_encoder)
            stored = state_digest(setup.model.encoder.state_dict())  # for `load_donor`
            self.summary["initial_sha256"]["encoder_in_bf16"] = stored
        self.reuse = Reuse(config, setup, run_dir, self.checkpoint, self.record)

    def _scales(self) -> dict[str, float]:
        """The scale of tokens and residual stream, on the first train windows."""
        train, task = self.setup.data.splits.train, self.setup.task
        first_B = torch.arange(min(AUDIT_WINDOWS, len(train)))
        batch = task.batch(train.gather(first_B), first_B, epoch=0)
        with autocast_to(self.setup.device, self.setup.autocast):
            return scale_audit(self.setup.model, batch.inputs_BCL)

    def begin(self) -> None:
        """Log what will be trained, and write `config.yaml` and `provenance.json`."""
        config, setup = self.config, self.setup
        if self.checkpoint is not None:
            bring_in(self.checkpoint, self.run_dir)
        plan = plan_table(setup, lr=config.optim.lr)
        announce(config, setup, self.audit, plan, ", resumed" if self.checkpoint else "")
        write_yaml(self.run_dir / "config.yaml", asdict(config))
        task = {"name": config.task.name, **asdict(setup.task)}
        facts = {
            "arm": config.arm,
            "seed": config.seed,
            **code_and_machine(),
            "device": device_name(setup.device),
            "precision": precision_name(setup),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            **self.summary,
            "scale_audit": self.audit,
            "plan": plan,
            "task": task | {"notes": setup.task.notes(setup.data.series.season)},
            "resumed_from": self.checkpoint and str(self.checkpoint),
            "reuse": self.reuse.about,
        }
        write_json(self.run_dir / "provenance.json", self.record | facts)

    def train(
        self,
        tracker: Tracker,
        after_epoch: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> FitState:
        """Train to the end; a loss that is not finite is also recorded as the run's outcome."""
        config, setup, is_main = self.config, self.setup, distributed.is_main()

        def end_epoch(row: Mapping[str, Any]) -> None:
            self.reuse.publish(row["epoch"])
            after_epoch(row)

        # Tracker and sweep receive reused epochs just like trained ones.
        for row in self.reuse.install():
            tracker.log({key: value for key, value in row.items() if value is not None})
            if row["kind"] == "eval":
                after_epoch(row)
        metrics = MetricsFile(self.run_dir / "metrics.jsonl" if is_main else None)
        total_steps = setup.epochs * setup.steps_per_epoch
        bar = ProgressBar(total_steps=total_steps, enabled=config.train.progress and is_main)
        with closing(metrics), bar as progress:
            output = Output(
                metrics=metrics,
                tracker=tracker,
                progress=progress,
                checkpoints=self.run_dir / "checkpoint",
                epochs=setup.epochs,
                objective=config.objective,
                record=self.record,
                after_epoch=end_epoch,
            )
            try:
                return fit(
                    setup,
                    config,
                    partial(self.meter.measure, "val"),
                    output,
                    resume_from=self.reuse.resume_from,
                    should_stop=should_stop,
                )
            except TrainingError as error:
                reason = {"reason": str(error)}
                distributed.on_main(lambda: write_json(self.run_dir / FAILURE, reason))
                raise

    def test(self, state: FitState, tracker: Tracker, *, pictures: bool) -> Result:
        """Measure the selected weights, and write the result; the same in every process.

        Raises:
            ResumeError: if best.safetensors is from a different epoch.
        """
        best, saved = load_checkpoint(self.run_dir / "checkpoint" / "best.safetensors")
        if saved["epoch"] != state.best_epoch:
            raise ResumeError(
                f"{self.run_dir}/checkpoint/best.safetensors has the weights of epoch"
                f" {saved['epoch']}, but the best epoch is {state.best_epoch}: epochs that this run"
                " repeated after a kill gave different results. Start again with"
                " train.resume=never."
            )
        weights = {name.removeprefix("model/"): tensor for name, tensor in best.items()}
        self.setup.model.load_state_dict(weights)
        in_play = self._in_play()
        tested, window_losses = self.meter.test(shuffled=self.config.train.shuffled_test)
        result = None
        if distributed.is_main():
            result = self._result(state, in_play | tested)
            result.files = self._write_files(window_losses)
            unfinished = self.run_dir / "result.json.unfinished"
            write_json(unfinished, asdict(result))
            images: list[Path] = []
            if pictures:
                from t5ts.analysis.plots import draw_run  # matplotlib: half a second

                images = draw_run(self.run_dir, result_file=unfinished)
            summary = {"objective": result.objective, "best_epoch": result.best_epoch}
            tracker.finish(summary | result.metrics, images)
            # It marks a run as finished, and appears after everything else.
            unfinished.replace(self.run_dir / "result.json")
        result = distributed.gather_objects(result)[0]
        assert result is not None
        return result

    def _in_play(self) -> dict[str, float]:
        """Whether the selected weights use their encoder; nothing for a backbone without blocks.

        Returns:
            `encoder_cosine_initial` and `encoder_cosine`, as `scale_audit` measures it before
            training and with the selected weights, and `bypassed_val_loss`, their validation loss
            with the encoder's blocks left out. The test windows are not looked at.
        """
        if "cosine" not in self.audit:
            return {}
        # Compiled blocks would ignore hooks and bypasses.
        is_compiled = self.config.train.compile
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            cosine = self._scales()["cosine"]
            with self.setup.model.bypassing_blocks():
                loss = self.meter.measure("val")["val_loss"]
        cosines = {"encoder_cosine_initial": self.audit["cosine"], "encoder_cosine": cosine}
        return cosines | {"bypassed_val_loss": loss}

    def _result(self, state: FitState, measured: Mapping[str, float]) -> Result:
        config, setup = self.config, self.setup
        initial = read_metrics(self.run_dir, "eval")[0]
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
            metrics={**state.best_metrics, **measured},
            initial={key: value for key, value in initial.items() if key.startswith("val_")},
            baselines=self.meter.baselines,
            baseline_season=setup.data.baseline_season,
            best_achievable_loss=setup.data.series.best_mse,
            scale_audit=self.audit,
            seconds=state.train_s,
            peak_memory_bytes=state.peak_memory_bytes,
            skipped_steps=state.skipped_steps,
            reused_epochs=self.reuse.reused_epochs,
            debug=config.debug.name,
        )

    def _write_files(self, window_losses: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Write the result's files; returns the checksums of those without one inside.

        Losses are per window, for tests that respect the overlap of windows (Diebold-Mariano).
        """
        files = ["config.yaml", "metrics.jsonl"]
        for split, losses_W in window_losses.items():
            files.append(f"{split}_losses.npy")
            np.save(self.run_dir / files[-1], losses_W)
        write_json(self.run_dir / "forecast_sample.json", forecast_sample(self.setup))
        return {name: file_crc32(self.run_dir / name) for name in files}


def _build_tracker(config: Config, setup: Setup, run_dir: Path, group: str | None) -> Tracker:
    if config.tracker.name == "none" or not distributed.is_main():
        return Tracker()
    name = [f"{config.arm}-s{config.seed}"]
    if group and HydraConfig.initialized():  # in a sweep, what was searched
        hydra = HydraConfig.get()
        keys = hydra.job.env_set.get(SEARCHED)
        name += searched(task_overrides(hydra), None if keys is None else keys.split())
    return WandbTracker(
        run_dir=run_dir,
        config=asdict(config) | {"arm": run_words(config, setup.report)},
        settings=config.tracker,
        group=config.tracker.group or group or config.data.name,
        job_type=config.arm,
        name=" ".join(name)[:128],  # W&B takes no more
    )
