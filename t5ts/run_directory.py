"""One run's directory: locked by one process, resumed, found finished, or moved aside."""

import errno
import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from t5ts.analysis.results import FAILURE, Result, check_files, read_json, read_result
from t5ts.config import Config, identity
from t5ts.errors import DataError, DirectoryInUse, InputsChanged, OutputError, ResumeError
from t5ts.provenance import made_with

log = logging.getLogger("t5ts")

#: What a run writes, apart from Hydra's and W&B's files, in the order in which it is moved aside:
#: anything left if that is interrupted is refused, or moved aside by the next attempt.
OF_ONE_RUN = (
    *("result.json", "result.json.unfinished", FAILURE, "metrics.jsonl", "config.yaml"),
    *("provenance.json", "test_losses.npy", "ood_losses.npy", "forecast_sample.json", "plots"),
    *("wandb-run-id", "checkpoint"),
)
#: A full or failing disk: errors without a file name.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
#: The ways out of a directory that this run cannot use.
_AGAIN = "Start again with train.resume=never (existing files are kept in previous-N)"
_OTHERS = f"{_AGAIN}, or give this run its own directory with hydra.run.dir=DIR."

#: The checkpoint that a run resumes from, and the state that it recorded; None for a new run.
Past = tuple[Path, Mapping[str, Any]] | None


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the run directory and lock it: two processes in it would overwrite each other.

    Raises:
        DirectoryInUse: if another process has locked it.
        OSError: if it cannot be created or written.
    """
    path = run_dir / ".lock"
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = path.open("a")
        except FileNotFoundError:
            if run_dir.is_dir():
                raise  # a file system that refuses this name
            continue  # its last holder removed it after mkdir
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DirectoryInUse(
                    f"another process is running in {run_dir}: wait for it, or give this run its"
                    " own directory with hydra.run.dir=DIR."
                ) from error
            except OSError as error:  # a file system without locks
                raise OSError(error.errno, error.strerror, str(run_dir)) from error
            try:
                is_there = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:  # its last holder removed it before this lock
                is_there = False
            if is_there:
                yield
                return


def remove_if_unused(run_dir: Path) -> None:
    """Leave no directory behind for a run that was refused before it started.

    Its parents below the working directory are removed too if they are then empty. A directory
    that another process has locked is never touched.
    """
    try:
        if not run_dir.is_dir():
            return
        with locked(run_dir):
            if {path.name for path in run_dir.iterdir()} <= {".hydra", "run.log", ".lock"}:
                shutil.rmtree(run_dir)
                for parent in run_dir.resolve().parents:
                    if Path.cwd() not in parent.parents or any(parent.iterdir()):
                        break
                    parent.rmdir()
    except DirectoryInUse:
        return
    except OSError as error:
        with suppress(OSError):  # run.log may be on the same full disk, which has been reported
            log.warning("%s cannot be removed (%s)", run_dir, error)


@contextmanager
def disk_errors(run_dir: Path) -> Iterator[None]:
    """Turn the operating system's errors about this directory into one message.

    Raises:
        OutputError: naming the directory and the reason.
    """
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename)).absolute()
        is_here = place.is_relative_to(run_dir.absolute()) or place in run_dir.absolute().parents
        if error.errno not in _DISK and (error.filename is None or not is_here):
            raise
        raise OutputError(
            f"the run directory {run_dir} cannot be written: {error}. Free space or fix the"
            " permissions and run the same command again: it resumes from the last checkpoint, if"
            " there is one. Or choose another place with hydra.run.dir=DIR."
        ) from error


def look_back(config: Config, run_dir: Path) -> Past | Result:
    """What an earlier start of this run left: its result, or where to resume it.

    Raises:
        ResumeError: if it is corrupted, or has a different configuration, inputs or code.
        UserError: if the inputs cannot be read.
    """
    resume = config.train.resume
    if resume == "never":
        put_aside(run_dir)
    elif (run_dir / "result.json").is_file():
        return _finished(config, run_dir)
    checkpoint = _find_checkpoint(resume, run_dir)
    past = None if checkpoint is None else (checkpoint, check_resumable(checkpoint, config))
    (run_dir / FAILURE).unlink(missing_ok=True)
    return past


def _finished(config: Config, run_dir: Path) -> Result:
    """A finished run's result, if this command would compute the same."""
    try:
        result = read_result(run_dir / "result.json")
        provenance = read_json(run_dir / "provenance.json")
        check_files(run_dir, result)
    except DataError as error:
        raise ResumeError(
            f"{run_dir} has a result that is not to be trusted: {error} {_OTHERS}"
        ) from error
    _check_identity(f"the run in {run_dir}", result.identity, config)
    log.info("This run is finished; train.resume=never trains it again.")
    recorded = provenance.get("inputs")
    if recorded is None:
        log.warning("Its inputs were not recorded (older t5ts), so they were not compared.")
        return result
    from t5ts.build import present_inputs  # torch

    present = present_inputs(config)
    check_inputs(recorded, present, run_dir)
    if present.keys() < recorded.keys():
        log.warning("Its weights are no longer in the cache, so they were not compared.")
    if code := _difference(provenance["code"][-1], made_with()):
        log.info("It was computed by different code: %s", code)
    return result


def _check_identity(what: str, found: str | None, config: Config) -> None:
    if found != identity(config):
        raise ResumeError(
            f"{what} has a different configuration (identity {found}, this run's is"
            f" {identity(config)}): use the command that made it. {_OTHERS}"
        )


def check_inputs(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to present one run's numbers as those of different inputs (`build.setup_inputs`).

    Raises:
        InputsChanged: naming each input that differs from those of the run at `where`, and how.
    """
    changes = [
        f"{name} ({_difference(before.get(name), value)})"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changes:
        raise InputsChanged(
            f"the run in {where} used different inputs than this command: {'; '.join(changes)}."
            f" Restore those inputs. {_OTHERS}"
        )


def _difference(before: Any, now: Any) -> str:
    """Which entries of two records differ, and how; empty if none does."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        before, now = {"": before}, {"": now}
    found = []
    for name in {**before, **now}:
        texts = [str(record.get(name)) for record in (before, now)]
        if before.get(name) != now.get(name):
            short = (text if len(text) <= 40 else f"{text[:12]}…" for text in texts)
            found.append(f"{name} {' → '.join(short)}".strip())
    return ", ".join(found)


def put_aside(run_dir: Path) -> None:
    """Move an earlier run of this directory into a new `previous-N/`: nothing is lost."""
    earlier = [run_dir / name for name in OF_ONE_RUN if (run_dir / name).exists()]
    if not earlier:
        return
    first = 1 + len(list(run_dir.glob("previous-*")))
    folders = (run_dir / f"previous-{number}" for number in count(first))
    folder = next(folder for folder in folders if not folder.exists())
    folder.mkdir()
    for path in earlier:
        path.rename(folder / path.name)
    log.info("An earlier run was moved to %s", folder)


def _find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `train.resume` selects; None to start from the beginning."""
    own = run_dir / "checkpoint" / "last.safetensors"
    source = own if resume in ("auto", "never") else Path(resume).expanduser()
    if source.is_dir():
        source = source / "checkpoint" / "last.safetensors"
    if not source.is_file():
        if resume in ("auto", "never"):
            return None
        raise ResumeError(
            f"train.resume={resume}: no checkpoint at {source}. Allowed: auto, never, a run"
            " directory, or a checkpoint file in one."
        )
    if own.is_file() and source.resolve() != own.resolve():
        raise ResumeError(
            f"train.resume={resume}, but {run_dir} has its own checkpoint ({own}): use"
            " train.resume=auto to resume that one, or another hydra.run.dir."
        )
    # A link to a checkpoint of another directory: the run's other files are there.
    return source if (source.parent.parent / "metrics.jsonl").is_file() else source.resolve()


def check_resumable(checkpoint: Path, config: Config) -> dict[str, Any]:
    """Verify, before anything is built, that a run can resume a last.safetensors; its state.

    The rows written up to the checkpoint are part of the run, and so is its best epoch.

    Raises:
        ResumeError: if one of these is missing, corrupted, or of another configuration or code.
    """
    from t5ts.checkpoint import read_state  # torch

    state = read_state(checkpoint)
    own = state.get("identity") if "fit" in state else None  # else weights alone
    _check_identity(f"the checkpoint {checkpoint}", own, config)
    code = _difference(state["code"][-1], made_with())
    if code and not config.train.resume_on_other_code:
        raise ResumeError(
            f"the checkpoint {checkpoint} was written by different code ({code}), and a run must"
            " not mix versions: go back to that code, or accept it with"
            f" train.resume_on_other_code=true. {_AGAIN}."
        )
    folder, fit = checkpoint.parent.parent, state["fit"]
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            rows = file.read(fit["metrics_bytes"])
        if (folder / "provenance.json").exists():
            read_json(folder / "provenance.json")
    except (OSError, DataError) as error:
        raise ResumeError(f"a file of the run cannot be read: {error} {_AGAIN}.") from error
    best = read_state(checkpoint.with_name("best.safetensors"))
    for name, belongs in {
        "metrics.jsonl": zlib.crc32(rows) == fit["metrics_crc32"],
        "checkpoint/best.safetensors": best.get("identity") == state["identity"]
        and best["epoch"] >= fit["best_epoch"],
    }.items():
        if not belongs:
            raise ResumeError(f"{folder / name} does not match {checkpoint}. {_AGAIN}.")
    return state


def bring_in(checkpoint: Path, run_dir: Path) -> None:
    """Copy the files that belong to another run's checkpoint into this run's directory."""
    source = checkpoint.parent.parent
    if source.resolve() != run_dir.resolve():
        (run_dir / "checkpoint").mkdir(exist_ok=True)
        for name in ("metrics.jsonl", "checkpoint/best.safetensors"):
            shutil.copy2(source / name, run_dir / name)
