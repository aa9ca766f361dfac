"""One run's directory: locked by one process, resumed, found finished, or moved aside."""

import errno
import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    "result.json",
    "result.json.unfinished",
    FAILURE,
    "metrics.jsonl",
    "config.yaml",
    "provenance.json",
    "test_losses.npy",
    "ood_losses.npy",
    "forecast_sample.json",
    "plots",
    "wandb-run-id",
    "checkpoint",
)
#: A full or failing disk: errors without a file name.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the run directory and lock it: two processes in it would overwrite each other.

    Raises:
        DirectoryInUse: if another process has locked it.
        OSError: if it cannot be created or written.
    """
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = (run_dir / ".lock").open("a")
        except FileNotFoundError:
            if run_dir.is_dir():
                raise  # a file system without such files
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
            if _is_file(lock.fileno(), run_dir / ".lock"):
                yield
                return


def _is_file(number: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def remove_if_unused(run_dir: Path) -> None:
    """Leave no directory behind for a run that was refused before it started.

    Nor its parents below the working directory, if they are empty then. Never touches a directory
    that another process has locked.
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


def finished_result(config: Config, run_dir: Path) -> tuple[Result, dict[str, Any]]:
    """The result and the provenance of a finished run.

    Raises:
        ResumeError: if it has a different configuration, or is corrupted.
    """
    try:
        result = read_result(run_dir / "result.json")
        provenance = read_json(run_dir / "provenance.json")
        check_files(run_dir, result)
    except DataError as error:
        raise ResumeError(
            f"{run_dir} contains a finished run that cannot be trusted: {error} Move it aside and"
            " train again with train.resume=never, or give this run its own directory with"
            " hydra.run.dir=DIR."
        ) from error
    if result.identity != identity(config):
        raise ResumeError(
            f"{run_dir} contains a finished run with a different configuration (identity"
            f" {result.identity}, this one's is {identity(config)}): give this run its own"
            " directory with hydra.run.dir=DIR, or move that one aside with train.resume=never."
        )
    return result, provenance


def check_inputs(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to present one run's numbers as those of different inputs.

    Args:
        before: The inputs the run recorded (`t5ts.build.inputs`).
        now: The inputs this command would use.
        where: The run's directory.

    Raises:
        InputsChanged: naming each input that differs, and how.
    """
    changes = [
        f"{name} ({_difference(before.get(name), value)})"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changes:
        raise InputsChanged(
            f"the run in {where} used different inputs than this command:"
            f" {'; '.join(changes)}. Restore those inputs, or move that run aside with"
            " train.resume=never, or give this one its own directory with hydra.run.dir=DIR."
        )


def _difference(before: Any, now: Any) -> str:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return f"{_short(before)} → {_short(now)}"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{n} {_short(before.get(n))} → {_short(now.get(n))}" for n in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def other_code(before: Mapping[str, str]) -> str | None:
    """How the code and libraries of a run differ from the current ones; None if they do not."""
    now = made_with()
    return None if before == now else _difference(before, now)


def put_aside(run_dir: Path) -> None:
    """Move an earlier run of this directory into a new `previous-N/`: nothing is lost."""
    earlier = [run_dir / name for name in OF_ONE_RUN if (run_dir / name).exists()]
    if not earlier:
        return
    first = 1 + sum(1 for _ in run_dir.glob("previous-*"))
    folders = (run_dir / f"previous-{number}" for number in count(first))
    folder = next(folder for folder in folders if not folder.exists())
    folder.mkdir()
    for path in earlier:
        path.rename(folder / path.name)
    log.info("An earlier run was moved to %s", folder)


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `train.resume` selects; None to start from the beginning.

    Raises:
        ResumeError: if it is missing, or must not be used here.
    """
    own = run_dir / "checkpoint" / "last.safetensors"
    if resume in ("auto", "never"):
        return own if own.is_file() else None
    source = Path(resume).expanduser()
    if source.is_dir():
        source = source / "checkpoint" / "last.safetensors"
    if not source.is_file():
        raise ResumeError(
            f"train.resume={resume}: no checkpoint at {source}. Allowed: auto, never, a run"
            " directory, or a checkpoint file in one."
        )
    if source.resolve() == own.resolve():
        return own
    if own.is_file():
        raise ResumeError(
            f"train.resume={resume}, but {run_dir} has its own checkpoint ({own}): use"
            " train.resume=auto to resume that one, or another hydra.run.dir."
        )
    return source


def check_resumable(checkpoint: Path, config: Config) -> dict[str, Any]:
    """Verify that a run can be resumed, as far as possible before anything is built.

    The rows written up to the checkpoint are part of the run, and so is its best epoch.

    Args:
        checkpoint: A run's last.safetensors.
        config: Of the run that resumes it.

    Returns:
        The checkpoint's state.

    Raises:
        ResumeError: if the checkpoint, or a file that belongs to it, is missing, corrupted, or from
            a different configuration or code.
    """
    from t5ts.checkpoint import read_state  # torch: not needed to refuse a configuration

    state = read_state(checkpoint)
    if state.get("identity") != identity(config) or "fit" not in state:
        raise ResumeError(
            f"the checkpoint {checkpoint} belongs to a different configuration (identity"
            f" {state.get('identity')}, this run's is {identity(config)}): resume with the command"
            " that made it, or start again with train.resume=never."
        )
    code = other_code(state["code"][-1])
    if code is not None and not config.train.resume_on_other_code:
        raise ResumeError(
            f"the checkpoint {checkpoint} was written by different code ({code}), and a run"
            " must not mix versions: go back to that code, start again with train.resume=never, or"
            " accept it with train.resume_on_other_code=true."
        )
    folder, fit = checkpoint.parent.parent, state["fit"]
    again = "Start again with train.resume=never (existing files are kept in previous-N)."
    metrics = folder / "metrics.jsonl"
    try:
        with metrics.open("rb") as file:
            rows = file.read(fit["metrics_bytes"])
    except OSError as error:
        raise ResumeError(f"{metrics} cannot be read ({error}). {again}") from error
    if zlib.crc32(rows) != fit["metrics_crc32"] or len(rows) != fit["metrics_bytes"]:
        raise ResumeError(
            f"{metrics} does not match the checkpoint {checkpoint}: {len(rows)} of"
            f" {fit['metrics_bytes']} bytes are there, or some differ. {again}"
        )
    best = checkpoint.with_name("best.safetensors")
    about = read_state(best)
    if about.get("identity") != state["identity"] or about["epoch"] < fit["best_epoch"]:
        raise ResumeError(
            f"{best} is not the best epoch's ({fit['best_epoch']}) of {checkpoint}. {again}"
        )
    if (folder / "provenance.json").exists():
        try:
            read_json(folder / "provenance.json")
        except DataError as error:
            raise ResumeError(f"{error} {again}") from error
    return state


def bring_in(checkpoint: Path, run_dir: Path) -> None:
    """Copy the files that belong to another run's checkpoint into this run's directory."""
    if checkpoint.parent.parent.resolve() == run_dir.resolve():
        return
    (run_dir / "checkpoint").mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "checkpoint/best.safetensors"):
        shutil.copy2(checkpoint.parent.parent / name, run_dir / name)
