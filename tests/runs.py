"""Helpers for tests of whole runs: a run directory's content, without times."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TINY, full_model, write_checkpoint

from t5ts import experiment
from t5ts.analysis.results import read_result
from t5ts.checkpoint import load_checkpoint
from t5ts.config import Config
from t5ts.errors import Interrupted
from t5ts.provenance import json_ready
from t5ts.tasks import Batch, Forecast
from t5ts.tracking import MetricsFile

Compose = Callable[..., Config]
Kind = Callable[..., object]
run = partial(experiment.run, pictures=False)
HUB_ID = "google/t5-efficient-tiny"
#: The backbone's own values would want the published checkpoint; these are the tiny stand-in's.
HUB_BACKBONE = ["backbone=t5_efficient_tiny"]
for _name in ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "vocab_size"):
    HUB_BACKBONE.append(f"backbone.{_name}={getattr(TINY, _name)}")


class Killed(BaseException):
    """Simulates kill -9: nothing is written on exit."""


def die_after(monkeypatch: pytest.MonkeyPatch, step: int, *, politely: bool) -> None:
    """Make the next run stop after a step: as SIGTERM does, or as kill -9 does."""
    real, steps = experiment.fit, count(1)

    def fit(*args, should_stop, **kwargs):
        def stop() -> bool:
            is_now = next(steps) == step
            if is_now and not politely:
                raise Killed
            return is_now or should_stop()

        return real(*args, should_stop=stop, **kwargs)

    monkeypatch.setattr(experiment, "fit", fit)


@contextmanager
def killed_at_write(number: int | None, *more: tuple[type, str, Kind]) -> Iterator[list[object]]:
    """Simulate kill -9 before the number-th write that lasts, after which there are no others.

    Those writes are files that replace others, rows of metrics.jsonl, and calls of `more`.

    Yields:
        The kind of each write that was begun.
    """
    kinds: list[object] = []

    def mortal(real: Callable[..., Any], kind: Kind | None = None) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            if kind is not None:
                kinds.append(kind(*args))
            if number is not None and len(kinds) > number:
                raise Killed
            return real(*args, **options)

        return write

    with pytest.MonkeyPatch.context() as patched:
        for owner, name, kind in (
            (Path, "replace", lambda _, to: re.findall(r"seed-\d+|[^/]+$", str(to))),
            (MetricsFile, "append", lambda _, row: row["kind"]),
            (Path, "unlink", None),  # a killed process does not tidy up
            *more,
        ):
            patched.setattr(owner, name, mortal(getattr(owner, name), kind))
        yield kinds


def kill_points(kinds: list[object], *, every: bool) -> list[int]:
    """Writes to be killed at: all, or the first that follows one kind and is of another."""
    pairs = list(pairwise([None, *kinds]))
    return [n for n, pair in enumerate(pairs) if every or pairs.index(pair) == n]


#: Each kind of write in the default suite; every one with `make test-kills`.
KILLS = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.kills)], ids=["kinds", "every"]
)


def run_until(step: int, config: Config, run_dir: Path, *, politely: bool = True) -> None:
    """Run up to a step, where SIGTERM or kill -9 stops it."""
    with pytest.MonkeyPatch.context() as patched:
        die_after(patched, step, politely=politely)
        with pytest.raises(Interrupted if politely else Killed):
            run(config, run_dir=run_dir)


def resumes_as_whole(config: Config, folder: Path) -> None:
    """A run that stops after step 8 and resumes, in `parts`, equals one that does not, `whole`."""
    run(config, run_dir=folder / "whole")
    run_until(8, config, folder / "parts")
    run(config, run_dir=folder / "parts")
    assert_same_run(folder / "parts", folder / "whole")


def changed(config: Config, values: dict[str, Any]) -> Config:
    """A copy with some dotted keys set: composing again takes as long as a run."""
    copy = deepcopy(config)
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node: Any = copy
        for key in parents:
            node = getattr(node, key)
        assert hasattr(node, last), dotted
        setattr(node, last, value)
    return copy


class Loud(Forecast):
    """Losses whose gradients overflow fp16 at the scaler's first scale."""

    def loss(self, prediction_BCH: torch.Tensor, batch: Batch) -> torch.Tensor:
        return 100 * super().loss(prediction_BCH, batch)


def flip(path: Path, place: int = -20, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Simulate a full disk by a limit on a file's size: the kernel refuses the write alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def wandb_records(folder: Path) -> list[dict[str, Any]]:
    """The records of the one offline run below a folder, by W&B's own tool."""
    deadline = time.monotonic() + 60
    while True:  # its file is written after `finish` returns
        records = [json.loads(line) for line in _inspect(folder).splitlines()]
        if records and records[-1]["type"] == "exit":
            return records
        assert time.monotonic() < deadline, records


def wandb_summary(folder: Path) -> dict[str, Any]:
    """What W&B shows of the one offline run below a folder."""
    wandb_records(folder)
    return json.loads(_inspect(folder, "--summary"))


def _inspect(folder: Path, *options: str) -> str:
    """Without W&B's Python command, which takes seconds to import."""
    from wandb.util import get_core_path

    (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    command += ["--run-file", log, log.parent]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def local_t5(folder: Path) -> Path:
    """A small T5 checkpoint on disk that passes the verification."""
    return write_checkpoint(folder, TINY, full_model(TINY))


def assert_same_run(one: Path, other: Path) -> None:
    """Every row, tensor and result, without times."""
    assert rows(one) == rows(other)
    for name in ("last", "best"):
        tensors, state = load_checkpoint(one / "checkpoint" / f"{name}.safetensors")
        others, its_state = load_checkpoint(other / "checkpoint" / f"{name}.safetensors")
        assert tensors.keys() == others.keys()
        for key in tensors:
            one_T, other_T = (t[key].reshape(-1).view(torch.uint8) for t in (tensors, others))
            assert one_T.equal(other_T), key
        for its in (state, its_state):
            for clock in ("train_s", "metrics_bytes", "metrics_crc32", "peak_memory_bytes"):
                its.get("fit", {}).pop(clock, None)
        assert repr(state) == repr(its_state)  # repr, since NaN is not itself
    results = [asdict(read_result(path / "result.json")) for path in (one, other)]
    for result in results:
        for clock in ("seconds", "peak_memory_bytes", "reused_epochs", "files"):
            result.pop(clock)
    assert json_ready(results[0]) == json_ready(results[1])


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
        pictures: Whether a run draws its pictures, which takes longer than a short training.
        environment: Variables to set; those of the hub and of W&B are removed.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        program: Callable[..., object] = command_line,
        processes: int = 1,
        pictures: bool = False,
        **environment: str,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _FORKS.Process(
            target=_run,
            args=(arguments, cwd, program, processes, pictures, environment, *self._texts),
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

    def finish(self, status: int = 0) -> tuple[str, str]:
        """What it printed, once it has ended with this status, and without a traceback."""
        out, err = self.wait()
        assert self.returncode == status, out + err
        assert "Traceback" not in out + err
        return out, err


def _run(
    arguments: Sequence[str],
    cwd: Path,
    program: Callable[..., object],
    processes: int,
    pictures: bool,
    environment: Mapping[str, str],
    *texts: Path,
) -> None:
    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith(("HF_", "WANDB_"))]:
        del os.environ[name]
    os.environ.update(environment)
    if not pictures:
        import t5ts.analysis.plots

        t5ts.analysis.plots.draw_run = lambda *_args, **_kwargs: []
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


def wait_for(process: Command, holds: Callable[[], Any], pause_s: float = 0.1) -> Any:
    """Poll until something holds, while the process runs; returns it."""
    deadline = time.monotonic() + 150
    while not (found := holds()):
        assert process.returncode is None, process.wait()
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(pause_s)
    return found


def wait_for_rows(run_dir: Path, count: int, process: Command) -> None:
    """Wait until a run has written so many rows of metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    wait_for(process, lambda: metrics.exists() and metrics.read_text().count("\n") >= count, 0.01)
