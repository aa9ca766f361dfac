"""One run's directory: held by one process, gone on with, found finished, or put aside."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t5ts.analysis.results import Result, read_result
from t5ts.config import Config, identity
from t5ts.errors import DirectoryInUse, ResumeError

log = logging.getLogger("t5ts")

#: What a run writes, besides Hydra's and W&B's files.
OF_ONE_RUN = (
    "config.yaml",
    "provenance.json",
    "metrics.jsonl",
    "result.json",
    "checkpoint",
    "test_losses.npy",
    "ood_losses.npy",
    "forecast_sample.json",
    "plots",
    "wandb-run-id",
)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory: two processes in one would write over each other.

    Raises:
        DirectoryInUse: if another process holds it.
    """
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DirectoryInUse(
                f"another process is running in {run_dir}: wait for it, or give this run a"
                " directory of its own with hydra.run.dir=DIR."
            ) from error
        yield


def finished_result(config: Config, run_dir: Path) -> Result:
    """The result of a finished run.

    Raises:
        ResumeError: if it is another configuration's.
    """
    result = read_result(run_dir / "result.json")
    if result.identity != identity(config):
        raise ResumeError(
            f"{run_dir} holds the finished run of another configuration (identity"
            f" {result.identity}, this one's is {identity(config)}): give this run a directory"
            " of its own with hydra.run.dir=DIR, or put that one aside with train.resume=never."
        )
    return result


def put_aside(run_dir: Path) -> None:
    """Move an earlier run of this directory into `previous-N/`: starting anew loses nothing."""
    earlier = [run_dir / name for name in OF_ONE_RUN if (run_dir / name).exists()]
    if not earlier:
        return
    number = 1 + sum(1 for _ in run_dir.glob("previous-*"))
    folder = run_dir / f"previous-{number}"
    folder.mkdir()
    for path in earlier:
        path.rename(folder / path.name)
    log.info("An earlier run was put aside in %s", folder)


def checkpoint_to_resume(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `train.resume` names, brought into this run directory.

    Raises:
        ResumeError: if it is named and is not there.
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
            " train.resume=auto to go on with that one, or another hydra.run.dir."
        )
    # The rows written until that checkpoint are part of the run, and so is its best epoch.
    other = source.parent.parent
    for name in ("metrics.jsonl", "checkpoint/best.safetensors"):
        if not (other / name).is_file():
            raise ResumeError(f"train.resume={resume}: {other / name} is missing beside it.")
        (run_dir / name).parent.mkdir(exist_ok=True)
        shutil.copy2(other / name, run_dir / name)
    return source
