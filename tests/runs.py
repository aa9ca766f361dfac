"""Helpers for tests of whole runs: what a run directory says, without its clock."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub_server import TINY, full_model, write_checkpoint

HUB_ID = "google/t5-efficient-tiny"
#: The backbone's own values would want the published checkpoint; these are the tiny stand-in's.
HUB_BACKBONE = [
    "backbone=t5_efficient_tiny",
    f"backbone.d_model={TINY.d_model}",
    f"backbone.d_ff={TINY.d_ff}",
    f"backbone.d_kv={TINY.d_kv}",
    f"backbone.num_layers={TINY.num_layers}",
    f"backbone.num_heads={TINY.num_heads}",
    f"backbone.vocab_size={TINY.vocab_size}",
    "backbone.full_params=null",
]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl less what a clock says: equal for equal runs, bit for bit."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("perf/")}
        for line in lines
    ]


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text())


def local_t5(folder: Path) -> Path:
    """A small T5 checkpoint on disk that passes the verification."""
    return write_checkpoint(folder, TINY, full_model(TINY))


# A process that has imported torch and run nothing: a fork of a test process could hang, since
# polars' threads do not survive it.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["t5ts.run", "t5ts.experiment"])


class Command:
    """`python -m t5ts.run` in a fork of a process that has imported torch already.

    Args:
        arguments: Of the command line.
        cwd: Where it runs.
        environment: Variables to set.
    """

    def __init__(self, *arguments: str, cwd: Path, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _FORKS.Process(
            target=_run, args=(arguments, cwd, environment, *self._texts), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status, as of `subprocess.Popen`; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> tuple[str, str]:
        """What it printed, once it has ended."""
        self._process.join()
        out, err = (path.read_text() if path.exists() else "" for path in self._texts)
        return out, err


def _run(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], out: Path, err: Path
) -> None:
    from t5ts.run import cli

    os.chdir(cwd)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["t5ts.run", *arguments]
    with out.open("w") as sys.stdout, err.open("w") as sys.stderr:  # type: ignore[assignment]
        try:
            cli()
        except Exception:
            traceback.print_exc()
            sys.exit(1)


def wait_for_rows(run_dir: Path, count: int, process: Command | subprocess.Popen[str]) -> None:
    """Wait until a run has written so many rows of metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert process.poll() is None
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)
