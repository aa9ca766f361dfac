"""A worker: takes a trial from the study, runs it, and records how it ended, until none is left.

The same function runs as a process of this machine (`t5ts.sweep.pool`), or as a job of any Hydra
launcher (joblib, submitit, Ray), on this machine or another.
"""

import gc
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts.analysis.words import plural
from t5ts.config import register
from t5ts.errors import (
    ConfigError,
    DataError,
    DirectoryInUse,
    InputsChanged,
    Interrupted,
    OutOfMemory,
    OutputError,
    UserError,
    WeightsError,
)
from t5ts.interruption import stop_on_signals
from t5ts.sweep.ledger import BUSY, DIED, REFUSED, STOPPED, Claim, Ledger, owner_name
from t5ts.sweep.trial import Pruned, TrialTask, Work

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


def run_trials(work: Work, _job: Any = None) -> None:
    """Run trials until every slot of every arm has a result. (Hydra's launchers pass a config.)

    Raises:
        Interrupted: after SIGINT or SIGTERM; the trial was released with its checkpoint.
        BrokenDevice: if the GPU failed; the trial was released.
        UserError: if no trial could run (no data, no weights, a full disk), or too many failed.
    """
    register()
    setup_globals()
    owner, ledgers, is_first = owner_name(), work.ledgers(), True
    with stop_on_signals() as stop:
        while True:
            if stop.is_set():
                raise Interrupted("stopped between two trials")
            _check_failures(work, ledgers, owner)
            # Of the arm that has started the fewest, so that arms advance together.
            waiting = sorted(ledgers, key=lambda ledger: ledger.states().total())
            claims = (ledger.claim(owner) for ledger in waiting)
            if claim := next(filter(None, claims), None):
                _run_trial(work, ledgers, claim)
                if is_first:
                    gc.freeze()  # imported objects stay alive: a run's collection skips them
                is_first = False
            elif all(ledger.is_finished() for ledger in ledgers):
                return
            else:
                lost = [f"{x.name}: {line}" for x in ledgers for line in x.reclaim()]
                for line in lost:
                    log.warning("%s; it will be run again", line)
                if not lost:
                    time.sleep(POLL_S)


def _check_failures(work: Work, ledgers: list[Ledger], owner: str) -> None:
    """Stop if too many trials failed, or this worker can run none of its trials."""
    failed = sum(ledger.states()[TrialState.FAIL] for ledger in ledgers)
    refused = [reason for ledger in ledgers for reason in ledger.refused_by(owner)]
    budget, rate = sum(x.n_trials for x in ledgers), work.settings.max_failure_rate
    too_many = failed + len(refused) > rate * budget
    if refused and (too_many or (len(refused) >= MAX_REFUSALS and not _any_has_run(ledgers))):
        raise DataError(
            f"{refused[-1]}\n{plural(len(refused), 'trial')} could not run for lack of data or"
            " weights and will be retried: fix that and run the same command; finished trials"
            " are kept."
        )
    if too_many:
        raise UserError(
            f"{failed} of {budget} trials failed, above hydra.sweeper.max_failure_rate={rate:g}:"
            " each one's line and trial.json give the reason. Raise the rate to continue without"
            " them, and run the same command again; finished trials are kept."
        )


def _any_has_run(ledgers: list[Ledger]) -> bool:
    """Whether some trial of the sweep has a measurement: its data and weights are available."""
    measured = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = (trial for ledger in ledgers for trial in ledger.trials())
    return any(trial.state in measured or "live" in trial.user_attrs for trial in trials)


def _run_trial(work: Work, ledgers: list[Ledger], claim: Claim) -> None:
    """Run one trial, from its parameters to its records in the study and its directory."""
    task = TrialTask(work=work, claim=claim)
    if (died := claim.before[DIED]) >= MAX_DEATHS:
        task.end("failed", f"{died} workers died in it (out of memory?): {claim.last_reason}")
        return
    try:
        with _heartbeat(claim, work.settings.heartbeat_s):
            try:
                configs = work.sample(claim)
            except (HydraException, OmegaConfBaseException, ConfigError) as error:
                task.end("failed", f"the setting cannot be composed: {error}")
                return
            for config in configs:
                returned = run_job(
                    task_function=task,
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                    hydra_context=work.hydra_context,
                )
                if returned.status != JobStatus.COMPLETED:
                    raise returned._return_value  # (Its public name also prints to the terminal.)
            task.end("complete")
    except KeyboardInterrupt:
        task.give_back(STOPPED, "stopped immediately")
        raise Interrupted("stopped immediately") from None
    except Exception as error:  # of the run, from the storage, or from Hydra before the run
        _record_failure(task, error, ledgers)


def _record_failure(task: TrialTask, error: Exception, ledgers: list[Ledger]) -> None:
    """Record why a trial has no result, and raise errors that should end the worker."""
    slot, kind = task.claim.slot, type(error).__name__
    words = f"{kind}: {error}"
    if full := disk_fault(error):
        task.give_back(STOPPED, full)
        raise UserError(
            f"{full}: free some space or repair the disk, and run the same command again; trial"
            f" {slot} resumes from its last checkpoint, finished trials are kept."
        ) from error
    is_of_cuda = isinstance(error, RuntimeError) and DEVICE_FAULT.search(str(error))
    if kind == "AcceleratorError" or is_of_cuda:
        # The GPU's state may be lost: then nothing works in this process any more.
        task.give_back(DIED, words.splitlines()[0])
        raise BrokenDevice(f"trial {slot}: {words.splitlines()[0]}") from error
    match error:
        case Pruned():
            task.end("pruned", str(error))
        case UpdateFinishedTrialError():
            log.warning("slot %s: presumed dead and given away; this attempt stops", slot)
        case Interrupted() | InputsChanged():
            task.give_back(STOPPED, str(error))
            raise error
        case DirectoryInUse():
            log.warning("slot %s will be retried later: %s", slot, error)
            task.claim.release(BUSY, str(error))
        case DataError() | WeightsError() | OutputError() | OSError():
            # The setting's fault, or the machine's? Others are tried before it is retried.
            was_refused = task.claim.before[REFUSED] > 0
            if was_refused and _any_has_run(ledgers):
                task.end("failed", str(error))
                return
            log.warning("slot %s will be retried later: %s", slot, error)
            task.give_back(REFUSED, str(error))
            if was_refused:
                raise error if isinstance(error, UserError) else DataError(str(error))
        case OutOfMemory():
            import torch  # loaded already: the trial ran

            for cause in (error, error.__cause__):  # their frames keep the trial's tensors alive
                traceback.clear_frames(None if cause is None else cause.__traceback__)
            torch.cuda.empty_cache()
            task.end("failed", str(error))
        case UserError():
            task.end("failed", str(error))
        case _:
            log.error("slot %s failed", slot, exc_info=error)
            task.end("failed", words)


def disk_fault(error: BaseException) -> str | None:
    """The message of a full or failing disk, if that caused the error."""
    cause: BaseException | None = error
    while cause is not None and not DISK_FAULT.search(str(cause)):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else str(cause).splitlines()[0]


@contextmanager
def _heartbeat(claim: Claim, every_s: float) -> Iterator[None]:
    """Send heartbeats from a thread until the trial ends."""

    def beat() -> None:
        try:
            claim.ledger.beat(claim.trial)
        except UpdateFinishedTrialError:
            pass  # given away: the run will notice at its next epoch
        except Exception as error:  # any storage error: the next heartbeat may get through
            log.warning("no heartbeat: %s", error)

    claim.ledger.beat(claim.trial)
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
