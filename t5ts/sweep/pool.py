"""Worker processes on this machine: started, watched, replaced when they die, stopped together."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from t5ts.errors import UserError
from t5ts.sweep.worker import Work

log = logging.getLogger("t5ts.sweep")

#: Immediate deaths of one worker in a row before the sweep gives up.
MAX_STARTS = 5
#: A worker that lived this long did work: the trial or the machine caused its death.
WORKED_S = 60.0
#: Time that workers have to write their checkpoints when the sweep is stopped.
STOP_S = 60.0


@dataclass(kw_only=True)
class Worker:
    """A process that was started.

    Attributes:
        log: Its output, after `log_start` bytes written by earlier workers.
        begun: Start time by the monotonic clock.
        starts: Starts in a row that ended immediately, including this one.
    """

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    begun: float
    starts: int = 1

    def last_words(self) -> str:
        """The final message that it wrote to its pipe, else the end of its log: it was killed."""
        assert self.process.stdout is not None
        if message := self.process.stdout.read().decode(errors="replace"):
            return message
        lines = self.log.read_bytes()[self.log_start :].decode(errors="replace").splitlines()
        return "\n".join(lines[-15:]) or f"(nothing; is the disk of {self.log} full?)"


class Pool:
    """`n_jobs` workers, each a long-lived process: imports cost seconds, once.

    Their logs go to `folder`.
    """

    def __init__(self, work: Work, folder: Path) -> None:
        self._pickled, self._folder = pickle.dumps(work), folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environments = environments(work.settings.n_jobs)
        self._workers = [self._start(number) for number in range(work.settings.n_jobs)]
        for worker in self._workers:
            self._send_work(worker)

    def _start(self, number: int) -> Worker:
        path = self._folder / f"worker-{number}.log"
        with path.open("ab") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "t5ts.sweep"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # for its final message only
                stderr=output,
                env=self._environments[number],
                # Ctrl-C reaches only the coordinator, which then stops them in order.
                start_new_session=True,
            )
        return Worker(
            number=number, process=process, log=path, log_start=log_start, begun=time.monotonic()
        )

    def _send_work(self, worker: Worker) -> None:
        """Blocks while a worker imports, if a pipe is too small for the work."""
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # it died immediately, which `watch` will see
            worker.process.stdin.write(self._pickled)
            worker.process.stdin.flush()

    def watch(self) -> bool:
        """Replace workers that died; True while any is working.

        Raises:
            UserError: if a worker found that no trial can run, or workers die at every start.
        """
        for index, worker in enumerate(self._workers):
            status = worker.process.poll()
            if status is None or status == 0:
                continue
            words = worker.last_words()
            if status == 2:
                raise UserError(words)
            has_worked = time.monotonic() - worker.begun > WORKED_S
            if worker.starts >= MAX_STARTS and not has_worked:
                raise UserError(
                    f"worker {worker.number} died {worker.starts} times in a row at start (status"
                    f" {status}; log {worker.log}):\n{words}"
                )
            log.warning(
                "worker %s died (status %s; log %s): starting another",
                worker.number,
                status,
                worker.log,
            )
            self._workers[index] = self._start(worker.number)
            self._workers[index].starts = 1 if has_worked else worker.starts + 1
            self._send_work(self._workers[index])
        return any(worker.process.poll() is None for worker in self._workers)

    def stop(self) -> None:
        """Ask all workers to write their checkpoints and exit; kill those that do not in time."""
        alive = [w.process for w in self._workers if w.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in alive:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def environments(count: int) -> list[dict[str, str]]:
    """Each worker's share of the machine: an equal number of threads, GPUs in turn."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // count))}
    gpus = visible_gpus()
    return [
        {
            **threads,
            **os.environ,
            "T5TS_WORKER": str(number),
            **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}),
        }
        for number in range(count)
    ]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, in CUDA_VISIBLE_DEVICES format."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []  # a driver that does not respond: no GPU for torch either
