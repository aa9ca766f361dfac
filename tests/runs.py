"""Helpers for tests of whole runs: what a run directory says, without its clock."""

import json
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


class Command:
    """`python -m t5ts.run` in a fork of this process, which spares importing torch again.

    Args:
        arguments: Of the command line.
        cwd: Where it runs.
        environment: Variables to set.
    """

    def __init__(self, *arguments: str, cwd: Path, **environment: str) -> None:
        self._texts = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.returncode: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(self._run(arguments, cwd, environment))

    def _run(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> int:
        from t5ts.run import cli

        os.chdir(cwd)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["t5ts.run", *arguments]
        sys.stdout, sys.stderr = self._texts
        try:
            cli()
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            for text in self._texts:
                text.flush()
        return 0

    def poll(self) -> int | None:
        """The exit status, as of `subprocess.Popen`; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._pid, number)

    def wait(self) -> tuple[str, str]:
        """What it printed, once it has ended."""
        while self.poll() is None:
            time.sleep(0.01)
        for text in self._texts:
            text.seek(0)
        out, err = (text.read() for text in self._texts)
        return out, err


def wait_for_rows(run_dir: Path, count: int, process: Command | subprocess.Popen[str]) -> None:
    """Wait until a run has written so many rows of metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert process.poll() is None
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)
