"""Is every trial done once, whatever is killed? python -m benchmarks.sweep_kills.

Question: 200 trials of a trivial objective over 4 workers, three of them killed (-9) at random
moments and the sweep restarted twice: are there 200 distinct finished trials, none lost, none
doubled?

The workers are processes that do what a sweep's workers do (`t5ts.sweep.ledger` on the study's
storage, a heartbeat left out), with an objective of some milliseconds instead of a training. A
killed worker is replaced, as the sweep's pool does it; a restart kills all four at one moment and
starts four new ones. Moments are drawn in time as well as in trials, so that they fall anywhere:
in the objective, between a claim's steps, in the middle of a write. Each worker writes down what it
did in its own file; the study must agree with these files.

Expected (2 quiet cores): 200 of 200, half a minute on the journal file.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.samplers import RandomSampler

from t5ts.sweep.ledger import Ledger, is_released, owner_name
from t5ts.sweep.storage import open_storage

#: An objective lasts so long at most; a claim takes about as long.
WORK_S = 0.02
#: Without progress for so long, the sweep hangs.
STALLED_S = 120.0


def open_ledger(url: str | None, folder: Path, n_trials: int) -> Ledger:
    """The study as one process sees it."""
    storage = open_storage(url, folder)
    study = optuna.create_study(storage=storage, study_name="kills", load_if_exists=True)
    return Ledger(
        study,
        n_trials=n_trials,
        lost_after_s=5.0,
        sampler_of=lambda slot: RandomSampler(seed=slot),
    )


def serve(url: str | None, folder: Path, n_trials: int, work_s: float) -> None:
    """A worker: trials until every slot has its result."""
    ledger, owner = open_ledger(url, folder, n_trials), owner_name()
    draws = random.Random(os.getpid())
    with (folder / f"done-{os.getpid()}-{time.time_ns()}").open("a") as done:
        while not ledger.is_finished():
            claim = ledger.claim(owner)
            if claim is None:
                ledger.reclaim()
                time.sleep(WORK_S)
                continue
            x = claim.trial.suggest_float("x", -1, 1)
            time.sleep(draws.uniform(0, work_s))
            done.write(json.dumps({"slot": claim.slot, "x": x}) + "\n")
            done.flush()
            ledger.study.tell(claim.trial, x * x)


class Sweep:
    """Workers, replaced when they are killed.

    Args:
        url: The database; None for a journal file.
        folder: For the journal and the workers' files.
        n_trials: Slots.
        workers: Processes at a time.
        work_s: An objective lasts so long at most.
    """

    def __init__(
        self, url: str | None, folder: Path, n_trials: int, workers: int, work_s: float
    ) -> None:
        self._arguments = (url, folder, n_trials, work_s)
        # Forked with Optuna loaded: a start costs milliseconds, so many can be killed.
        self._fork = multiprocessing.get_context("fork")
        self.workers: list[BaseProcess] = []
        self.top_up(workers)

    def top_up(self, count: int) -> None:
        """Start workers until this many are alive."""
        self.workers = [worker for worker in self.workers if worker.is_alive()]
        while len(self.workers) < count:
            worker = self._fork.Process(target=serve, args=self._arguments)
            worker.start()
            self.workers.append(worker)

    def kill(self, workers: Sequence[BaseProcess]) -> None:
        """Kill -9, immediately."""
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        for worker in workers:
            worker.join()


def run(
    url: str | None,
    folder: Path,
    *,
    n_trials: int,
    workers: int,
    kills: int,
    restarts: int,
    seed: int,
    work_s: float = WORK_S,
) -> dict[str, float]:
    """One sweep with random kills; returns counts of the outcomes.

    Raises:
        TimeoutError: if it makes no progress.
    """
    draws = random.Random(seed)
    accidents = ["kill"] * kills + ["restart"] * restarts
    draws.shuffle(accidents)
    moments = sorted(draws.sample(range(1, n_trials - workers), len(accidents)))
    began = time.perf_counter()
    ledger = open_ledger(url, folder, n_trials)
    sweep = Sweep(url, folder, n_trials, workers, work_s)
    moved, before = time.monotonic(), -1
    try:
        while (finished := ledger.finished()) < n_trials:
            if finished != before:
                moved, before = time.monotonic(), finished
            if time.monotonic() - moved > STALLED_S:
                raise TimeoutError(f"{finished} of {n_trials} after {STALLED_S:g} s of nothing")
            if moments and finished >= moments[0]:
                moments.pop(0)
                time.sleep(draws.uniform(0, 3 * WORK_S))
                alive = [worker for worker in sweep.workers if worker.is_alive()]
                is_kill = accidents.pop(0) == "kill"
                sweep.kill([draws.choice(alive)] if is_kill else alive)
                sweep.top_up(workers)
            time.sleep(WORK_S)
    finally:
        sweep.kill([worker for worker in sweep.workers if worker.is_alive()])
    return report(ledger, folder, n_trials) | {"seconds": time.perf_counter() - began}


def report(ledger: Ledger, folder: Path, n_trials: int) -> dict[str, float]:
    """Compare the study with what the workers wrote down."""
    trials = ledger.trials()
    counted = [t for t in trials if t.state.is_finished() and not is_released(t)]
    slots = Counter(t.user_attrs["slot"] for t in counted)
    written: dict[int, set[float]] = {}
    for path in folder.glob("done-*"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            written.setdefault(row["slot"], set()).add(row["x"])
    return {
        "finished": len(counted),
        "distinct": len({t.params["x"] for t in counted}),
        "lost": len(set(range(n_trials)) - set(slots)),
        "doubled": sum(count - 1 for count in slots.values()),
        # All attempts at a slot have the same parameters, and so has the study's.
        "other_params": sum(written.get(t.user_attrs["slot"]) != {t.params["x"]} for t in counted),
        "attempts": len(trials),
    }


def main() -> int:
    """Run, print, and fail unless every trial was done once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="a database's URL; a journal file by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = run(
            asked.storage,
            Path(name),
            n_trials=asked.trials,
            workers=asked.workers,
            kills=asked.kills,
            restarts=asked.restarts,
            seed=asked.seed,
        )
    print("  ".join(f"{key} {value:g}" for key, value in counts.items()))
    right = {"finished": asked.trials, "distinct": asked.trials, "lost": 0, "doubled": 0}
    return 0 if right.items() <= counts.items() and counts["other_params"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
