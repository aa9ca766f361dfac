"""Worker processes: each one's share of the machine, and what their deaths mean."""

import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep.sweeps import environment

from t5ts.errors import UserError
from t5ts.sweep import pool
from t5ts.sweep.pool import COMMAND, MAX_STARTS, WORKED_S, Pool, Worker, environments, visible_gpus


@pytest.fixture
def machine(monkeypatch) -> pytest.MonkeyPatch:
    """Eight cores, nothing set, no GPU."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return monkeypatch


@pytest.mark.parametrize(
    ("workers", "given", "threads"),
    [(1, None, 8), (2, None, 4), (3, None, 2), (20, None, 1), (8, "3", 3)],
)
def test_threads_are_shared_unless_given(machine, workers, given, threads):
    if given is not None:
        machine.setenv("OMP_NUM_THREADS", given)
    found = environments(workers)
    assert {e["OMP_NUM_THREADS"] for e in found} == {str(threads)}
    assert len(found) == workers
    assert not any("CUDA_VISIBLE_DEVICES" in e for e in found)


@pytest.mark.parametrize(
    ("visible", "given"), [("5, GPU-abc", ["5", "GPU-abc", "5"]), ("", ["", "", ""])]
)
def test_gpus_are_given_in_turn_and_only_those_that_are_ours(machine, visible, given):
    machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(3)] == given


@pytest.mark.parametrize(
    ("program", "found"), [("echo 0; echo 1", ["0", "1"]), ("echo broken driver; exit 9", [])]
)
def test_gpus_are_asked_of_the_driver(machine, tmp_path, program, found):
    assert visible_gpus() == []  # no driver
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{program}\n")
    command.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert visible_gpus() == found


def test_a_workers_last_lines_are_its_own(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("of an earlier worker\n" + "\n".join(f"line {n}" for n in range(40)))
    killed = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    worker = Worker(number=0, process=killed, log=log, log_start=21, begun=0.0)
    assert worker.last_words().splitlines() == [f"line {n}" for n in range(25, 40)]


def test_a_workers_last_message_needs_no_disk():
    """The worker's log is on a full disk: the sweep's message is not empty."""
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=full,
            env=environment(),
        )  # fmt: skip
        process.stdin.write(pickle.dumps(None))  # no work at all: an error like any other
        process.stdin.flush()
        assert process.wait(timeout=120) == 1
    worker = Worker(number=0, process=process, log=Path(), log_start=0, begun=0.0)
    assert "AttributeError" in worker.last_words()


@pytest.mark.parametrize(("lives_s", "gives_up"), [(1.0, True), (WORKED_S + 1, False)])
def test_a_worker_is_replaced_unless_it_dies_at_every_start(machine, tmp_path, lives_s, gives_up):
    now = 0.0
    machine.setattr(pool.time, "monotonic", lambda: now)
    machine.setattr(
        pool, "COMMAND", [sys.executable, "-S", "-c", "raise SystemExit('out of luck')"]
    )
    work: Any = SimpleNamespace(settings=SimpleNamespace(n_jobs=1))
    workers = Pool(work, tmp_path)
    with pytest.raises(UserError, match="out of luck") if gives_up else nullcontext():
        for _start in range(MAX_STARTS + 1):
            workers._workers[0].process.wait()
            now += lives_s
            workers.watch()
    assert _start == MAX_STARTS - gives_up
