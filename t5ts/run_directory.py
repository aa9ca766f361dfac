"""One run's directory: held by one process, resumed, found finished, or put aside."""

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

#: What a run writes, besides Hydra's and W&B's files, in the order in which it is put aside:
#: whatever is left if that is interrupted is refused, or put aside by the next attempt.
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
    """Make the run directory and hold it: two processes in one would write over each other.

    Raises:
        DirectoryInUse: if another process holds it.
        OSError: if it cannot be made or written.
    """
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = (run_dir / ".lock").open("a")
        except FileNotFoundError:
            if run_dir.is_dir():
                raise  # a file system that has no such files
            continue  # its last holder removed it after mkdir
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DirectoryInUse(
                    f"another process is running in {run_dir}: wait for it, or give this run a"
                    " directory of its own with hydra.run.dir=DIR."
                ) from error
            except OSError as error:  # a file system without locks
                raise OSError(error.errno, error.strerror, str(run_dir)) from error
            if _is_file(lock.fileno(), run_dir / ".lock"):
                yield
                return


def _is_file(number: int, path: Path) -> bool:
    """Whether an open file is still what its path names."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def remove_if_unused(run_dir: Path) -> None:
    """Leave no directory behind for a run that was refused before it began.

    Never touches what another process holds.
    """
    try:
        if not run_dir.is_dir():
            return
        with locked(run_dir):
            if {path.name for path in run_dir.iterdir()} <= {".hydra", "run.log", ".lock"}:
                shutil.rmtree(run_dir)
    except DirectoryInUse:
        return
    except OSError as error:
        log.warning("%s cannot be removed (%s)", run_dir, error)


@contextmanager
def disk_errors(run_dir: Path) -> Iterator[None]:
    """Turn what the operating system says of this directory into one message.

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
            f"the run directory {run_dir} cannot be written: {error}. Free space or give the right"
            " to write, and run the same command again: it resumes from the last checkpoint, if"
            " there is one. Or choose another place with hydra.run.dir=DIR."
        ) from error


def finished_result(config: Config, run_dir: Path) -> tuple[Result, dict[str, Any]]:
    """The result and the provenance of a finished run.

    Raises:
        ResumeError: if it is another configuration's, or corrupted.
    """
    try:
        result = read_result(run_dir / "result.json")
        provenance = read_json(run_dir / "provenance.json")
        check_files(run_dir, result)
    except DataError as error:
        raise ResumeError(
            f"{run_dir} holds a finished run that cannot be trusted: {error} Put it aside and"
            " train again with train.resume=never, or give this run a directory of its own with"
            " hydra.run.dir=DIR."
        ) from error
    if result.identity != identity(config):
        raise ResumeError(
            f"{run_dir} holds the finished run of another configuration (identity"
            f" {result.identity}, this one's is {identity(config)}): give this run a directory"
            " of its own with hydra.run.dir=DIR, or put that one aside with train.resume=never."
        )
    return result, provenance


def check_inputs(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to pass off one run's numbers as those of other inputs.

    Args:
        before: What the run recorded (`t5ts.build.inputs`).
        now: What this command would use.
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
            f"the run in {where} was made from other inputs than this command has:"
            f" {'; '.join(changes)}. Bring those back, or put that run aside with"
            " train.resume=never, or give this one a directory of its own with hydra.run.dir=DIR."
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
    """How the code and libraries of a run differ from those that run here; None if not at all."""
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
    log.info("An earlier run was put aside in %s", folder)


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `train.resume` names; None to start from the beginning.

    Raises:
        ResumeError: if it is named and is not there, or not to be chosen.
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
            f"train.resume={resume}, but {run_dir} has a checkpoint of its own ({own}): use"
            " train.resume=auto to resume that one, or another hydra.run.dir."
        )
    return source


def check_resumable(checkpoint: Path, config: Config) -> dict[str, Any]:
    """Prove that a run can be resumed, as far as that is possible before anything is built.

    The rows written until the checkpoint are part of the run, and so is its best epoch.

    Args:
        checkpoint: A run's last.safetensors.
        config: Of the run that is to resume it.

    Returns:
        The checkpoint's state.

    Raises:
        ResumeError: if the checkpoint, or what belongs to it, is missing, corrupted, of another
            configuration, or of other code.
    """
    from t5ts.checkpoint import read_state  # torch: not to refuse a configuration

    state = read_state(checkpoint)
    if state.get("identity") != identity(config) or "fit" not in state:
        raise ResumeError(
            f"the checkpoint {checkpoint} belongs to another configuration (identity"
            f" {state.get('identity')}, this run's is {identity(config)}): resume with the command"
            " that made it, or start again with train.resume=never."
        )
    code = other_code(state["code"][-1])
    if code is not None and not config.train.resume_on_other_code:
        raise ResumeError(
            f"the checkpoint {checkpoint} was made by other code ({code}), and one run of two codes"
            " is neither's: go back to that code, or start again with train.resume=never, or"
            " accept it with train.resume_on_other_code=true."
        )
    folder, fit = checkpoint.parent.parent, state["fit"]
    again = "Start again with train.resume=never (what is there is kept, in previous-N)."
    metrics = folder / "metrics.jsonl"
    try:
        with metrics.open("rb") as file:
            rows = file.read(fit["metrics_bytes"])
    except OSError as error:
        raise ResumeError(f"{metrics} cannot be read ({error}). {again}") from error
    if zlib.crc32(rows) != fit["metrics_crc32"] or len(rows) != fit["metrics_bytes"]:
        raise ResumeError(
            f"{metrics} is not what the checkpoint {checkpoint} left: {len(rows)} of"
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
    """Copy into this run's directory what belongs to another one's checkpoint."""
    if checkpoint.parent.parent.resolve() == run_dir.resolve():
        return
    (run_dir / "checkpoint").mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "checkpoint/best.safetensors"):
        shutil.copy2(checkpoint.parent.parent / name, run_dir / name)
