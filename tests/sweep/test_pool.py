"""Each worker's share of the machine."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from sweep.sweeps import environment

from t5ts.errors import UserError
from t5ts.sweep import pool
from t5ts.sweep.pool import Pool, _environment, _last_words, visible_gpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, nothing set, no GPU."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "T5TS_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(pool.shutil, "which", lambda _: None)
    return monkeypatch


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_threads_are_shared_fairly(workers: int, threads: int) -> None:
    found = [_environment(number, workers) for number in range(workers)]
    assert {e["OMP_NUM_THREADS"] for e in found} == {str(threads)}
    assert [e["T5TS_WORKER"] for e in found] == [str(n) for n in range(workers)]
    assert not any("CUDA_VISIBLE_DEVICES" in e for e in found)


def test_a_number_of_threads_that_the_user_gave_stays(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "3")
    assert _environment(0, 8)["OMP_NUM_THREADS"] == "3"


def test_gpus_are_given_in_turn_and_only_those_that_are_ours(
    machine: pytest.MonkeyPatch,
) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    given = [_environment(number, 5)["CUDA_VISIBLE_DEVICES"] for number in range(5)]
    assert given == ["5", "GPU-abc", "5", "GPU-abc", "5"]


def test_no_gpu_is_no_gpu(machine: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == []
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert _environment(0, 1)["CUDA_VISIBLE_DEVICES"] == ""  # as the user said


@pytest.mark.parametrize(
    ("program", "found"), [("echo 0; echo 1", ["0", "1"]), ("echo broken driver; exit 9", [])]
)
def test_gpus_are_asked_of_the_driver(
    machine: pytest.MonkeyPatch, tmp_path: Path, program: str, found: list[str]
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{program}\n")
    command.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    machine.setattr(pool.shutil, "which", lambda _: str(command))
    assert visible_gpus() == found


def test_a_workers_last_words_are_its_message_or_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("step 1\nt5ts: old\nstep 2\nt5ts: no such file\nput it there\n")
    assert _last_words(log) == "no such file\nput it there"
    log.write_text("\n".join(f"line {n}" for n in range(40)))
    assert _last_words(log).splitlines() == [f"line {n}" for n in range(25, 40)]


def test_what_an_earlier_worker_said_is_not_this_ones_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("t5ts: no such file\n")
    begun = log.stat().st_size
    with log.open("a") as file:
        file.write("Traceback\nMemoryError\n")
    assert _last_words(log, since=begun) == "Traceback\nMemoryError"


def test_a_workers_last_message_needs_no_disk() -> None:
    """Its log is on a full one: the sweep's message is not empty."""
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "t5ts.sweep"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=full, env={**environment(), "T5TS_WORKER": "0"},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(None))  # no work at all: an error like any other
        process.stdin.flush()
        assert process.wait(timeout=60) == 1
    worker = pool._Process(number=0, process=process, log=Path(), log_start=0, begun=0.0)
    assert "AttributeError" in worker.report()["message"]


class Dying:
    """Worker processes that end as soon as they are looked at, with a report or without."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        *,
        lives_s: float,
        program: str = "raise SystemExit(1)",
    ) -> None:
        self.now, self.starts, self.program = 0.0, 0, program
        monkeypatch.setattr(pool.time, "monotonic", lambda: self.now)
        self.pool = object.__new__(Pool)
        self.pool._start = self.start  # type: ignore[method-assign]
        self.lives_s, self.folder = lives_s, folder
        self.pool._workers = [self.start(0)]

    def start(self, number: int) -> pool._Process:
        self.starts += 1
        process = subprocess.Popen([sys.executable, "-c", self.program], stdout=subprocess.PIPE)
        process.wait()
        log = self.folder / "worker.log"
        log.write_text("out of luck\n")
        return pool._Process(number=number, process=process, log=log, log_start=0, begun=self.now)

    def watch(self) -> None:
        self.now += self.lives_s
        self.pool.watch()


def test_a_worker_that_dies_at_every_start_ends_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dying = Dying(monkeypatch, tmp_path, lives_s=1.0)
    for _ in range(pool.MAX_STARTS - 1):
        dying.watch()
    with pytest.raises(UserError, match="out of luck"):
        dying.watch()
    assert dying.starts == pool.MAX_STARTS


BROKEN = """
import json
print(json.dumps({{"message": "CUDA error", "trials_done": {}}}))
raise SystemExit(3)
"""


def test_a_gpu_that_stays_broken_ends_the_sweep_however_long_each_worker_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dying = Dying(monkeypatch, tmp_path, lives_s=pool.WORKED_S + 1.0, program=BROKEN.format(0))
    for _ in range(pool.MAX_STARTS - 1):
        dying.watch()
    with pytest.raises(UserError, match="CUDA error"):
        dying.watch()


def test_a_gpu_that_fails_now_and_then_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dying = Dying(monkeypatch, tmp_path, lives_s=1.0, program=BROKEN.format(1))
    for _ in range(pool.MAX_STARTS + 1):
        dying.watch()
    assert dying.starts == pool.MAX_STARTS + 2


def test_deaths_after_work_do_not_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = Dying(monkeypatch, tmp_path, lives_s=pool.WORKED_S + 1.0)
    for _ in range(3 * pool.MAX_STARTS):
        dying.watch()
    assert dying.starts == 3 * pool.MAX_STARTS + 1
