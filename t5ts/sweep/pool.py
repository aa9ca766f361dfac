"""Worker processes on this machine: started, watched, replaced when they die, stopped together."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from t5ts.errors import Interrupted, UserError
from t5ts.sweep.trial import Work
from t5ts.sweep.worker import BrokenDevice, disk_fault, run_trials

log = logging.getLogger("t5ts.sweep")

#: Immediate deaths of one worker in a row before the sweep gives up.
MAX_STARTS = 5
#: A worker that lived this long did work: the trial or the machine caused its death.
WORKED_S = 60.0
#: Time that workers have to write their checkpoints when the sweep is stopped.
STOP_S = 60.0
COMMAND = [sys.executable, "-c", "from t5ts.sweep.pool import serve; serve()"]


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

    def send(self, pickled: bytes) -> None:
        """Send it the work; blocks while it imports, if a pipe is too small for that."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died immediately, which `Pool.watch` will see
            self.process.stdin.write(pickled)
            self.process.stdin.flush()

    def last_words(self) -> str:
        """The final message that it wrote to its pipe, else the end of its log: it was killed."""
        assert self.process.stdout is not None
        if message := self.process.stdout.read().decode(errors="replace"):
            return message
        lines = self.log.read_bytes()[self.log_start :].decode(errors="replace").splitlines()
        return "\n".join(lines[-15:]) or f"(nothing; is the disk of {self.log} full?)"


class Pool:
    """`n_jobs` workers, each a long-lived process (imports cost seconds), with logs in a folder."""

    def __init__(self, work: Work, folder: Path) -> None:
        self._pickled, self._folder = pickle.dumps(work), folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environments = environments(work.settings.n_jobs)
        self._workers = [self._start(number) for number in range(work.settings.n_jobs)]
        for worker in self._workers:
            worker.send(self._pickled)

    def _start(self, number: int) -> Worker:
        path = self._folder / f"worker-{number}.log"
        with path.open("ab") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # for its final message only
                stderr=output,
                env=self._environments[number],
                # Ctrl-C reaches only the coordinator, which then stops them in order.
                start_new_session=True,
            )
        begun = time.monotonic()
        return Worker(number=number, process=process, log=path, log_start=log_start, begun=begun)

    def watch(self) -> bool:
        """Replace workers that died; True while any is working.

        Raises:
            UserError: if a worker found that no trial can run, or workers die at every start.
        """
        for index, worker in enumerate(self._workers):
            status = worker.process.poll()
            if status is None or status == 0:
                continue
            if status == 2:
                raise UserError(worker.last_words())
            died = f"worker {worker.number} died (status {status}; log {worker.log})"
            has_worked = time.monotonic() - worker.begun > WORKED_S
            if worker.starts >= MAX_STARTS and not has_worked:
                raise UserError(f"{died} at start, {worker.starts} times: {worker.last_words()}")
            log.warning("%s: starting another", died)
            self._workers[index] = self._start(worker.number)
            self._workers[index].starts = 1 if has_worked else worker.starts + 1
            self._workers[index].send(self._pickled)
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


def serve() -> None:
    """A worker process: run the trials of the work that comes on stdin, and exit.

    It stops, with its trial's checkpoint written, when stdin is closed: a coordinator that was
    killed leaves no workers behind. Standard output is a pipe to the coordinator for the final
    message only, which must arrive even on a full disk; all else goes to the log, standard error.
    """
    to_coordinator, status, message = os.dup(1), 0, ""
    os.dup2(2, 1)

    def stop_with_coordinator() -> None:
        # Not through sys.stdin, whose lock Python needs again at exit.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        work = pickle.load(sys.stdin.buffer)
        threading.Thread(target=stop_with_coordinator, daemon=True).start()
        run_trials(work)
    except Interrupted:
        status = 130
    except UserError as error:  # the GPU may work again in another process
        status, message = 1 if isinstance(error, BrokenDevice) else 2, str(error)
    except Exception as error:
        with suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        full = disk_fault(error)
        status, message = 2 if full else 1, f"{type(error).__name__}: {error}"
        if full:
            message = f"{full}: free some space and run the same command again."
    try:
        if message:
            os.write(to_coordinator, message[:10_000].encode())
            print(f"t5ts: {message}", file=sys.stderr)
        sys.stdout.flush()
    except OSError:
        os._exit(status)  # a normal exit would flush again and change the status
    sys.exit(status)


def environments(count: int) -> list[dict[str, str]]:
    """Each worker's share of the machine: an equal number of threads, GPUs in turn."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shared = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // count)), **os.environ}
    given = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible_gpus()] or [{}]
    return [shared | given[number % len(given)] for number in range(count)]


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
