"""A worker: asks the study for a trial, does it, tells how it ended, until none is left.

The same object runs as a process of this machine (`python -m t5ts.sweep`), or as a job of any
Hydra launcher (joblib, submitit, Ray), on this machine or another.
"""

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hydra.utils
import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts import distributed
from t5ts.analysis.results import Result, read_json, read_metrics
from t5ts.checks import check
from t5ts.config import OBJECTIVES, Config, from_hydra, register
from t5ts.errors import DataError, Interrupted, UserError, WeightsError
from t5ts.provenance import write_json
from t5ts.schedule import ACTS_LATER
from t5ts.sweep.ledger import STOPPED, Claim, Ledger, Owner, is_void
from t5ts.sweep.settings import COSTS, SweepSettings
from t5ts.sweep.space import Space, Value, arm_name
from t5ts.sweep.storage import open_storage

log = logging.getLogger("t5ts.sweep")

#: Between two looks at a study in which others do the last trials.
POLL_S = 0.5
#: Workers that may die in one trial before it counts as failed.
MAX_DEATHS = 3


class Pruned(Exception):
    """The study's pruner gave this trial up."""


class Lost(Exception):
    """Another worker has this trial: this one was taken for dead."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a worker must know; travels to other processes and machines.

    Attributes:
        config: Hydra's composition of the multirun, its `hydra` node included.
        studies: Name of each arm's study, in the order of `space.arms`.
    """

    config: DictConfig
    hydra_context: HydraContext
    settings: SweepSettings
    space: Space
    studies: tuple[str, ...]
    sweep_dir: Path

    def __call__(self, _job: DictConfig) -> int:
        """As the task function of a Hydra launcher's job: the trials done."""
        return work(self, worker=int(HydraConfig.get().job.num))

    def choices(self) -> dict[str, str]:
        """Option of each config group, before anything is sampled."""
        return {str(k): str(v) for k, v in self.config.hydra.runtime.choices.items()}

    def compose(self, overrides: list[str]) -> DictConfig:
        """Hydra's composition of one point, its `hydra` node included."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def grid(self, arm: Mapping[str, Value]) -> list[dict[str, Any]] | None:
        """The grid's points by slot, if it is one."""
        if not self.settings.is_grid:
            return None
        points = self.space.grid(arm=arm, choices=self.choices())
        return sharing_order(points) if self.settings.reuse else points


@dataclass(kw_only=True)
class _Arm:
    """An arm and its study, as one worker sees them."""

    values: dict[str, Value]
    ledger: Ledger
    grid: list[dict[str, Any]] | None


def sharing_order(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A grid's points, so ordered that a frozen phase is there before others ask for it.

    Of the points that share a frozen phase the one with the longest comes first, and the others
    from the shortest up: while the first trains the phase, a second worker does those that need
    none of it.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        shared = json.dumps({k: v for k, v in point.items() if k not in ACTS_LATER})
        groups.setdefault(shared, []).append(point)
    ordered = []
    for group in groups.values():
        rising = sorted(group, key=lambda point: point.get("freeze.unfreeze_epoch") or 0)
        ordered += [rising[-1], *rising[:-1]]
    return ordered


def open_arms(work: Work) -> list[_Arm]:
    """Open the study of each arm.

    Raises:
        ConfigError: if the storage cannot be reached.
    """
    storage = open_storage(work.settings.storage, work.sweep_dir)
    arms = []
    for values, name in zip(work.space.arms, work.studies, strict=True):
        study = optuna.load_study(
            study_name=name, storage=storage, pruner=work.settings.make_pruner()
        )
        grid = work.grid(values)
        n_trials = (
            work.settings.n_trials if grid is None else min(work.settings.n_trials, len(grid))
        )
        ledger = Ledger(study, n_trials=n_trials, lost_after_s=work.settings.lost_after_s)
        arms.append(_Arm(values=values, ledger=ledger, grid=grid))
    return arms


def work(job: Work, *, worker: int) -> int:
    """Do trials until every slot of every arm has its result.

    Args:
        job: The sweep.
        worker: This worker's number, for the displays.

    Returns:
        Trials done by this worker.

    Raises:
        Interrupted: after SIGINT or SIGTERM; the trial was handed back with its checkpoint.
        UserError: if no trial could be done (data or weights that cannot be had), or too many
            failed.
    """
    register()
    setup_globals()
    owner = Owner()
    arms = open_arms(job)
    done = 0
    with _stop_between_trials() as stopped:
        while True:
            if stopped():
                raise Interrupted("stopped between two trials")
            _check_failures(arms, job.settings)
            claimed = _claim(job, arms, owner)
            if claimed is not None:
                _do(job, *claimed, worker=worker)
                done += 1
                continue
            if all(arm.ledger.is_finished() for arm in arms):
                return done
            for arm in arms:
                for line in arm.ledger.reclaim():
                    log.warning("%s: %s; it will be done again", arm_name(arm.values), line)
            time.sleep(POLL_S)


def _claim(job: Work, arms: list[_Arm], owner: Owner) -> tuple[_Arm, Claim] | None:
    """A trial of the arm that has begun the fewest, so that arms grow side by side."""
    for arm in sorted(arms, key=lambda arm: arm.ledger.started()):
        grid = arm.grid
        claim = arm.ledger.claim(
            owner,
            sampler_of=job.settings.make_sampler,
            point_of=lambda slot, grid=grid: None if grid is None else grid[slot],  # type: ignore[misc]
        )
        if claim is not None:
            return arm, claim
    return None


def _check_failures(arms: list[_Arm], settings: SweepSettings) -> None:
    failed = sum(arm.ledger.progress().failed for arm in arms)
    budget = sum(arm.ledger.n_trials for arm in arms)
    if failed > settings.max_failure_rate * budget:
        raise UserError(
            f"{failed} of {budget} trials failed, above"
            f" hydra.sweeper.max_failure_rate={settings.max_failure_rate:g}: the reasons are in the"
            " table and in each trial's trial.json. Mend them, or raise the rate, and run the same"
            " command again; what is done stays done."
        )


def _do(job: Work, arm: _Arm, claim: Claim, *, worker: int) -> None:
    """One trial, from its parameters to its end in the study and in its directory."""
    trial, ledger = claim.trial, arm.ledger
    if claim.deaths >= MAX_DEATHS:
        reason = f"{claim.deaths} workers died in it (out of memory?)"
        trial.set_user_attr("reason", reason)
        ledger.study.tell(trial, state=TrialState.FAIL)
        return
    task = _Task(job=job, arm=arm, claim=claim, worker=worker)
    with _heartbeat(ledger, trial, job.settings.heartbeat_s):
        try:
            config = _point(job, arm, claim)
        except HydraException as error:
            task.end("failed", f"the point cannot be composed: {error}", None)
            return
        returned = run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=job.hydra_context,
        )
        outcome = returned._return_value
        if returned.status == JobStatus.COMPLETED:
            assert isinstance(outcome, Result)
            task.end("complete", None, outcome)
            return
    _tell_failure(task, outcome)


def _point(job: Work, arm: _Arm, claim: Claim) -> DictConfig:
    """Sample the trial's parameters and compose its configuration."""
    trial = claim.trial
    job.space.suggest(trial, arm=arm.values, choices=job.choices())
    if job.settings.custom_search_space is not None:
        hydra.utils.get_method(job.settings.custom_search_space)(job.config, trial)
    config = job.compose(job.space.overrides(trial.params, arm.values))
    with open_dict(config):
        config.hydra.job.num = claim.slot
        config.hydra.job.id = f"{arm_name(arm.values)}-{claim.slot}"
        if job.settings.reuse and config.train.reuse_dir is None:
            config.train.reuse_dir = str(job.sweep_dir / ".frozen")
            config.train.reuse_max_gb = job.settings.reuse_max_gb
        if arm.values:
            config.hydra.sweep.subdir = f"{arm_name(arm.values)}/{config.hydra.sweep.subdir}"
    return config


def _tell_failure(task: "_Task", error: BaseException) -> None:
    """Record why a trial has no result, and raise what should end the worker."""
    ledger, trial = task.arm.ledger, task.claim.trial
    match error:
        case Pruned():
            task.end("pruned", str(error), None)
        case Lost() | UpdateFinishedTrialError():
            log.warning("slot %s: %s", task.claim.slot, error)
        case Interrupted():
            task.write("interrupted", str(error), None)
            ledger.hand_back(trial._trial_id, STOPPED, str(error))
            raise error
        case DataError() | WeightsError() | distributed.PeersLost():
            # No other point would fare better: stop, and let the trial be done once it is mended.
            task.write("interrupted", str(error), None)
            ledger.hand_back(trial._trial_id, STOPPED, str(error))
            raise error
        case UserError():
            task.end("failed", str(error), None)
        case _ if type(error).__name__ == "OutOfMemoryError":
            import torch  # loaded already: the trial ran

            torch.cuda.empty_cache()
            task.end("failed", "out of memory: " + str(error).splitlines()[0], None)
        case _:
            log.error("slot %s failed", task.claim.slot, exc_info=error)
            task.end("failed", f"{type(error).__name__}: {error}", None)


class _Task:
    """Hydra's task function for one trial."""

    def __init__(self, *, job: Work, arm: _Arm, claim: Claim, worker: int) -> None:
        self.job, self.arm, self.claim, self.worker = job, arm, claim, worker
        self.run_dir: Path | None = None
        self.config: Config | None = None
        self._reported = -1
        self._last_row: Mapping[str, Any] = {}

    def __call__(self, cfg: DictConfig) -> Result:
        """Train this point in the directory that Hydra made for it."""
        from t5ts.experiment import run  # torch

        self.run_dir = Path(HydraConfig.get().runtime.output_dir)
        self.config = from_hydra(cfg)
        check(self.config)
        self._say_live(epoch=0, value=None)
        self.write("running", None, None)
        return run(
            self.config,
            run_dir=self.run_dir,
            group=self.job.sweep_dir.name,
            after_epoch=self.after_epoch,
        )

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Report an epoch to the study, and stop where it is not worth going on.

        Raises:
            Pruned: if the pruner says so, not before the grace after unfreezing is over.
            Lost: if the trial was given to another worker.
        """
        assert self.config is not None
        assert self.run_dir is not None
        trial, objective = self.claim.trial, self.job.settings.objectives[0]
        self._last_row = row
        is_measured = objective in row
        self._say_live(epoch=row["epoch"], value=row.get(objective))
        if not self.arm.ledger.is_mine(trial):
            raise Lost("taken for dead and given to another worker; this attempt stops")
        if not (self.job.settings.prunes and len(self.job.settings.objectives) == 1):
            return
        if objective not in OBJECTIVES or not is_measured:
            return
        # Epochs of an earlier attempt, or of a frozen phase that was reused, are reported too.
        for earlier in read_metrics(self.run_dir, "eval"):
            if earlier["epoch"] > self._reported and earlier.get(objective) is not None:
                trial.report(earlier[objective], step=earlier["epoch"])
                self._reported = earlier["epoch"]
        epoch = row["epoch"]
        if epoch >= self.config.train.epochs or epoch < self._judged_from():
            return
        if trial.should_prune():
            raise Pruned(f"at epoch {epoch} with {objective} {row[objective]:.4g}")

    def _judged_from(self) -> float:
        """The first epoch at which the trial may be pruned: grace after its encoder first moves."""
        assert self.config is not None
        unfreeze_epoch = self.config.freeze.unfreeze_epoch or 0.0  # never counts as from the start
        return unfreeze_epoch + self.job.settings.grace_epochs

    def _say_live(self, *, epoch: int, value: float | None) -> None:
        assert self.config is not None
        self.claim.trial.set_user_attr(
            "live",
            {
                "worker": self.worker,
                "epoch": epoch,
                "epochs": self.config.train.epochs,
                "value": value,
            },
        )

    def end(self, state: str, reason: str | None, result: Result | None) -> None:
        """Tell the study how the trial ended, unless another worker was given it meanwhile."""
        try:
            self._end(state, reason, result)
        except (Lost, UpdateFinishedTrialError):
            log.warning("slot %s: given to another worker before it ended here", self.claim.slot)

    def _end(self, state: str, reason: str | None, result: Result | None) -> None:
        """The study, and the directory says the same."""
        trial, study = self.claim.trial, self.arm.ledger.study
        if reason is not None:
            trial.set_user_attr("reason", reason)
        trial.set_user_attr("epochs", self._epochs())
        values = None
        if result is not None:
            trial.set_user_attr("metrics", result.metrics | {c: getattr(result, c) for c in COSTS})
            values = [_value(result, name) for name in self.job.settings.objectives]
            if any(value != value for value in values):
                state, values = "failed", None
                reason = "an objective is not defined (NaN)"
                trial.set_user_attr("reason", reason)
        self.write(state, reason, values)
        ended_as = None
        if values is None:
            ended_as = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
        if is_void(study.tell(trial, values, state=ended_as, skip_if_finished=True)):
            raise Lost
        if state in ("complete", "pruned") and not self.job.settings.keep_last:
            # Nobody goes on from here, and the optimizer's state is twice the weights.
            assert self.run_dir is not None
            (self.run_dir / "checkpoint" / "last.safetensors").unlink(missing_ok=True)

    def _epochs(self) -> dict[str, int]:
        """Epochs that the point asks for, that were trained, and that were reused."""
        if self.config is None or self.run_dir is None:
            return {"asked": 0, "trained": 0, "reused": 0}
        reached = int(self._last_row.get("epoch", 0))
        about = read_json(self.run_dir / "provenance.json")["reuse"] if self._last_row else None
        reused = 0 if about is None else about["epochs"]
        asked = self.config.train.epochs
        return {"asked": asked, "trained": reached - reused, "reused": reused}

    def write(self, state: str, reason: str | None, values: list[float] | None) -> None:
        """`trial.json`: what the study knows of this run, for those who read directories only."""
        if self.run_dir is None:
            return
        trial = self.claim.trial
        write_json(
            self.run_dir / "trial.json",
            {
                "study": self.arm.ledger.study.study_name,
                "arm": arm_name(self.arm.values),
                "number": self.claim.slot,
                "state": state,
                "reason": reason,
                "params": trial.params,
                "objectives": self.job.settings.objectives,
                "values": values,
                "n_trials": self.arm.ledger.n_trials,
                "reused_epochs": self._epochs()["reused"],
            },
        )


def _value(result: Result, name: str) -> float:
    if name in COSTS:
        return float(getattr(result, name))
    if name == result.objective_name:
        return result.objective
    return result.metrics[name]


@contextlib.contextmanager
def _heartbeat(ledger: Ledger, trial: optuna.Trial, every_s: float) -> Iterator[None]:
    """Say from a thread, until the trial ends, that this worker lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            try:
                if ledger.is_mine(trial):
                    ledger.beat(trial)
            except Exception as error:  # whatever a storage raises: the next beat may get through
                log.warning("no heartbeat: %s", error)

    ledger.beat(trial)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _stop_between_trials() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM between two trials; while one runs, it has its own handlers."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
