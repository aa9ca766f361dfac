"""A worker: takes a trial from the study, runs it, and records how it ended, until none is left.

The same object runs as a process of this machine (`python -m t5ts.sweep`), or as a job of any
Hydra launcher (joblib, submitit, Ray), on this machine or another.
"""

import copy
import gc
import itertools
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts.analysis.words import plural
from t5ts.config import SEARCHED, register
from t5ts.errors import (
    ConfigError,
    DataError,
    DirectoryInUse,
    InputsChanged,
    Interrupted,
    OutputError,
    UserError,
    WeightsError,
)
from t5ts.interruption import stop_on_signals
from t5ts.sweep.ledger import BUSY, DIED, REFUSED, STOPPED, Claim, Ledger, owner_name
from t5ts.sweep.settings import SweepSettings, find_function
from t5ts.sweep.space import Space, Value, arm_name
from t5ts.sweep.storage import open_storage
from t5ts.sweep.studies import study_name
from t5ts.sweep.trial import Arm, Pruned, TrialTask, owner_of, seed_folder

log = logging.getLogger("t5ts.sweep")

#: Seconds between checks of a study in which others run the last trials.
POLL_S = 0.5
#: Number of workers that may die in one trial before it counts as failed.
MAX_DEATHS = 3
#: Trials that a worker may set aside for missing data or weights while none has been measured.
MAX_REFUSALS = 3
#: Errors that every other trial would meet too, from the system or from libraries.
DISK_FAULT = re.compile(
    r"No space left on device|disk quota exceeded|read-only file system|disk is full"
    r"|input/output error|stale file handle",
    re.IGNORECASE,
)
DEVICE_FAULT = re.compile(r"CUDA|CUBLAS|cuDNN|NCCL")


class BrokenDevice(UserError):
    """The GPU failed: a new process may be able to use it again, this one cannot."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything a worker needs; sent to other processes and machines.

    Attributes:
        config: Hydra's composition of the multirun, its `hydra` node included.
    """

    config: DictConfig
    hydra_context: HydraContext
    settings: SweepSettings
    space: Space
    sweep_dir: Path
    _composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """State to pickle, without what another process can compose just as fast."""
        return {**self.__dict__, "_composed": {}}

    def __call__(self, _job: DictConfig) -> None:
        """The task function of a Hydra launcher's job."""
        work(self)

    def compose(self, params: Mapping[str, Value], arm: Mapping[str, Value]) -> DictConfig:
        """Hydra's composition of one point, its `hydra` node included.

        Composed once for each combination of group options, which takes Hydra a third of a second;
        other parameters are set in a copy, as Hydra sets overrides.
        """
        options = {key: value for key, value in params.items() if key in self.space.choices}
        key = tuple(self.space.overrides(options, arm))
        if key not in self._composed:
            loader = self.hydra_context.config_loader
            self._composed[key] = loader.load_sweep_config(self.config, list(key))
        config = copy.deepcopy(self._composed[key])
        lines = self.space.overrides(params, arm)
        parsed = OverridesParser.create().parse_overrides(lines)
        for name, override in zip(params, parsed[len(lines) - len(params) :], strict=True):
            if name not in options:
                OmegaConf.update(config, name, override.value(), merge=True)
        form = config.hydra.job.config.override_dirname
        kept = (o.key_or_group not in form.exclude_keys for o in parsed)
        named = sorted(itertools.compress(lines, kept))
        with open_dict(config.hydra):
            config.hydra.overrides.task = lines
            config.hydra.job.override_dirname = form.item_sep.join(named).replace("=", form.kv_sep)
        return config


def open_arms(work: Work) -> list[Arm]:
    """Open the study of each arm.

    Raises:
        ConfigError: if the storage cannot be reached.
    """
    settings, space = work.settings, work.space
    storage, pruner = open_storage(settings.storage, work.sweep_dir), settings.make_pruner()
    arms = []
    for values in space.arms:
        name = study_name(settings.study_name, values)
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        grid = space.grid(values) if settings.is_grid else None
        n_trials = settings.n_trials if grid is None else min(settings.n_trials, len(grid))
        ledger = Ledger(study, n_trials=n_trials, lost_after_s=settings.lost_after_s)
        base = space.bases.get(arm_name(values))
        arms.append(Arm(values=values, ledger=ledger, grid=grid, base=base))
    return arms


def work(job: Work) -> None:
    """Run trials until every slot of every arm has a result.

    Raises:
        Interrupted: after SIGINT or SIGTERM; the trial was released with its checkpoint.
        BrokenDevice: if the GPU failed; the trial was released.
        UserError: if no trial could run (no data, no weights, a full disk), or too many failed.
    """
    register()
    setup_globals()
    owner, arms = owner_name(), open_arms(job)
    is_first = True
    with stop_on_signals() as stop:
        while True:
            if stop.is_set():
                raise Interrupted("stopped between two trials")
            _check_failures(arms, job.settings, owner)
            # Of the arm that has started the fewest, so that arms advance together.
            waiting = sorted(arms, key=lambda arm: arm.ledger.states().total())
            claims = ((arm, arm.claim(owner, job.settings)) for arm in waiting)
            if claimed := next(((arm, claim) for arm, claim in claims if claim is not None), None):
                _run_trial(job, arms, *claimed)
                if is_first:
                    gc.freeze()  # imported objects stay alive: a run's collection skips them
                is_first = False
            elif all(arm.ledger.is_finished() for arm in arms):
                return
            else:
                lost = {arm.name: arm.ledger.reclaim() for arm in arms}
                for name, lines in lost.items():
                    for line in lines:
                        log.warning("%s: %s; it will be run again", name, line)
                if not any(lost.values()):
                    time.sleep(POLL_S)


def _check_failures(arms: list[Arm], settings: SweepSettings, owner: str) -> None:
    """Stop if too many trials failed, or this worker can run none of its trials."""
    failed = sum(arm.ledger.states()[TrialState.FAIL] for arm in arms)
    refused = [reason for arm in arms for reason in arm.ledger.refused_by(owner)]
    budget = sum(arm.ledger.n_trials for arm in arms)
    too_many = failed + len(refused) > settings.max_failure_rate * budget
    if refused and (too_many or (len(refused) >= MAX_REFUSALS and not _any_has_run(arms))):
        raise DataError(
            f"{refused[-1]}\n{plural(len(refused), 'trial')} could not run for lack of data or"
            " weights and will be retried: fix that and run the same command; finished trials"
            " are kept."
        )
    if too_many:
        raise UserError(
            f"{failed} of {budget} trials failed, above"
            f" hydra.sweeper.max_failure_rate={settings.max_failure_rate:g}: each one's line and"
            " trial.json give the reason. Raise the rate to continue without them, and run the same"
            " command again; finished trials are kept."
        )


def _any_has_run(arms: list[Arm]) -> bool:
    """Whether some trial of the sweep has a measurement: its data and weights are available."""
    return any(
        t.state in (TrialState.COMPLETE, TrialState.PRUNED) or "live" in t.user_attrs
        for arm in arms
        for t in arm.ledger.trials()
    )


def _run_trial(job: Work, arms: list[Arm], arm: Arm, claim: Claim) -> None:
    """Run one trial, from its parameters to its records in the study and its directory."""
    task = TrialTask(settings=job.settings, group=job.sweep_dir.name, arm=arm, claim=claim)
    if (died := claim.before[DIED]) >= MAX_DEATHS:
        task.end("failed", f"{died} workers died in it (out of memory?): {claim.last_reason}")
        return
    try:
        with _heartbeat(arm.ledger, claim.trial, job.settings.heartbeat_s):
            try:
                point = _point(job, arm, claim)
            except (HydraException, OmegaConfBaseException, ConfigError) as error:
                task.end("failed", f"the point cannot be composed: {error}")
                return
            for config in _of_each_seed(point, job.settings.seeds):
                returned = run_job(
                    task_function=task,
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                    hydra_context=job.hydra_context,
                )
                if returned.status != JobStatus.COMPLETED:
                    raise returned._return_value  # (Its public name also prints to the terminal.)
            task.end("complete")
    except KeyboardInterrupt:
        _give_back(task, STOPPED, "stopped immediately")
        raise Interrupted("stopped immediately") from None
    except Exception as error:  # of the run, from the storage, or from Hydra before the run
        _record_failure(task, error, arms)


def _point(job: Work, arm: Arm, claim: Claim) -> DictConfig:
    """Sample the trial's parameters and compose its configuration."""
    trial = claim.trial
    job.space.suggest(trial, arm.values)
    if (path := job.settings.custom_search_space) is not None:
        try:
            find_function(path)(job.config, trial)
        except Exception as error:  # any error of the user's function
            log.error("custom_search_space=%s failed", path, exc_info=error)
            raise ConfigError(f"{path} raised {type(error).__name__}: {error}") from error
    config = job.compose(trial.params, arm.values)
    with open_dict(config):
        # The directory comes from the sweep's command, not from the point's.
        config.hydra.sweep.dir = str(job.sweep_dir)
        config.hydra.job.num = claim.slot
        config.hydra.job.id = f"{arm.name}-{claim.slot}"
        config.hydra.job.env_set[SEARCHED] = " ".join(trial.params)
        if job.settings.reuse and config.train.reuse_dir is None:
            config.train.reuse_dir = str(job.sweep_dir / ".frozen")
            config.train.reuse_max_gb = job.settings.reuse_max_gb
        subdir = config.hydra.sweep.subdir
        if arm.values:
            subdir = f"{arm.name}/{subdir}"
        first = seed_folder(config.seed) if job.settings.seeds > 1 else "."
        if owner_of(job.sweep_dir / subdir / first) not in (
            None,
            (arm.ledger.study.study_name, claim.slot),
        ):
            # The user's subdir is not unique (for example, a point drawn twice).
            subdir = f"{subdir}-{claim.slot}"
        config.hydra.sweep.subdir = subdir
    return config


def _of_each_seed(point: DictConfig, seeds: int) -> Iterator[DictConfig]:
    """A point's configuration for each of its seeds, in directories below the point's."""
    if seeds == 1:
        yield point
        return
    for seed in range(point.seed, point.seed + seeds):
        config = copy.deepcopy(point)
        with open_dict(config):
            config.seed = seed
            config.hydra.overrides.task.append(f"seed={seed}")
            config.hydra.sweep.subdir += f"/{seed_folder(seed)}"
        yield config


def _record_failure(task: TrialTask, error: Exception, arms: list[Arm]) -> None:
    """Record why a trial has no result, and raise errors that should end the worker."""
    slot = task.claim.slot
    if words := disk_fault(error):
        _give_back(task, STOPPED, words)
        raise UserError(
            f"{words}: free some space or repair the disk, and run the same command again; trial"
            f" {slot} resumes from its last checkpoint, finished trials are kept."
        ) from error
    kind = type(error).__name__
    is_of_cuda = isinstance(error, RuntimeError) and DEVICE_FAULT.search(str(error))
    if kind == "AcceleratorError" or (is_of_cuda and kind != "OutOfMemoryError"):
        # The GPU's state may be lost: then nothing works in this process any more.
        words = f"{kind}: {error}".splitlines()[0]
        _give_back(task, DIED, words)
        raise BrokenDevice(f"trial {slot}: {words}") from error
    match error:
        case Pruned():
            task.end("pruned", str(error))
        case UpdateFinishedTrialError():
            log.warning("slot %s: presumed dead and given away; this attempt stops", slot)
        case Interrupted() | InputsChanged():
            _give_back(task, STOPPED, str(error))
            raise error
        case DirectoryInUse():
            log.warning("slot %s will be retried later: %s", slot, error)
            task.arm.ledger.release(task.claim.trial._trial_id, BUSY, str(error))
        case DataError() | WeightsError() | OutputError() | OSError():
            # The point's fault, or the machine's? Others are tried before it is retried.
            was_refused = task.claim.before[REFUSED] > 0
            if was_refused and _any_has_run(arms):
                task.end("failed", str(error))
                return
            log.warning("slot %s will be retried later: %s", slot, error)
            _give_back(task, REFUSED, str(error))
            if was_refused:
                raise error if isinstance(error, UserError) else DataError(str(error))
        case UserError():
            task.end("failed", str(error))
        case _ if kind in ("OutOfMemoryError", "MemoryError"):
            import torch  # loaded already: the trial ran

            traceback.clear_frames(error.__traceback__)  # they keep the trial's tensors alive
            torch.cuda.empty_cache()
            task.end("failed", f"out of memory: {error}".splitlines()[0])
        case _:
            log.error("slot %s failed", slot, exc_info=error)
            task.end("failed", f"{kind}: {error}")


def _give_back(task: TrialTask, how: str, reason: str) -> None:
    """Release a trial for another attempt."""
    for record in (
        lambda: task.write("interrupted", reason, None),
        lambda: task.arm.ledger.release(task.claim.trial._trial_id, how, reason),
    ):
        try:
            record()
        except OSError as error:  # no disk to write to: others will notice that this worker is gone
            log.warning("slot %s: not recorded (%s)", task.claim.slot, error)


def disk_fault(error: BaseException) -> str | None:
    """The message of a full or failing disk, if that caused the error."""
    cause: BaseException | None = error
    while cause is not None:
        if DISK_FAULT.search(str(cause)):
            return str(cause).splitlines()[0]
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _heartbeat(ledger: Ledger, trial: optuna.Trial, every_s: float) -> Iterator[None]:
    """Send heartbeats from a thread until the trial ends."""

    def beat() -> None:
        try:
            ledger.beat(trial)
        except UpdateFinishedTrialError:
            pass  # given away: the run will notice at its next epoch
        except Exception as error:  # any storage error: the next heartbeat may get through
            log.warning("no heartbeat: %s", error)

    ledger.beat(trial)
    with repeated(beat, every_s=every_s):
        yield


@contextmanager
def repeated(action: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Call an action from a thread, first after `every_s` seconds, until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
