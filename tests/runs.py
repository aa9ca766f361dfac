"""Helpers for tests of whole runs: what a run directory says, without its clock."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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
_FORKS.set_forkserver_preload(
    # The first is a third of a short run's time: torch's optimizers import it.
    ["torch._dynamo", "matplotlib.pyplot", "t5ts.run", "t5ts.experiment", "t5ts.analysis.plots"]
)


def command_line(*arguments: str) -> None:
    """What `python -m t5ts.run` does."""
    from t5ts.run import cli

    if "LOCAL_RANK" in os.environ:
        Path("/proc/self/comm").write_text(f"rank-{os.environ['LOCAL_RANK']}")
    sys.argv = ["t5ts.run", *arguments]
    cli()


class Command:
    """`python -m t5ts.run` in a fork of a process that has imported torch already.

    Args:
        arguments: Of the command line.
        cwd: Where it runs.
        program: Something else to call with the arguments.
        processes: If several, each calls the program, as under torchrun.
        environment: Variables to set; those of the hub and of W&B are removed.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        program: Callable[..., object] = command_line,
        processes: int = 1,
        **environment: str,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _FORKS.Process(
            target=_run,
            args=(arguments, cwd, program, processes, environment, *self._texts),
            daemon=processes == 1,  # else it may have no children
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int, *, rank: int | None = None) -> None:
        """Send a signal, or to one of several processes alone."""
        pid = self._process.pid
        assert pid is not None
        if rank is not None:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            names = {Path(f"/proc/{child}/comm").read_text(): int(child) for child in children}
            pid = names[f"rank-{rank}\n"]
        os.kill(pid, number)

    def wait(self) -> tuple[str, str]:
        """What it printed, once it has ended; one that hangs is a failure, not a hanging test."""
        self._process.join(timeout=150)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=30)
        out, err = (path.read_text() if path.exists() else "" for path in self._texts)
        return out, err


def _run(
    arguments: Sequence[str],
    cwd: Path,
    program: Callable[..., object],
    processes: int,
    environment: Mapping[str, str],
    *texts: Path,
) -> None:
    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith(("HF_", "WANDB_"))]:
        del os.environ[name]
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    try:
        _torchrun(program, processes, arguments) if processes > 1 else program(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _torchrun(program: Callable[..., object], processes: int, arguments: Sequence[str]) -> None:
    """As torchrun: its agent, with forks for the processes that it would start."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, start_method="fork", run_id="none",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, program)(*arguments)


def wait_for_rows(run_dir: Path, count: int, process: Command) -> None:
    """Wait until a run has written so many rows of metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert process.returncode is None
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)
