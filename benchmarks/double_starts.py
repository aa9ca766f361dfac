"""The same command started twice at the same moment: one trains, the other is refused or waits.

    python -m benchmarks.double_starts [--pairs 30] [--starts 2] [--kinds run sweep sqlite grid …]

The processes are forked from one that has torch loaded and start within microseconds, closer than
a shell can start them. Counted for each pair: how both ended, and whether anything is lost, damaged
or trained twice.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

TINY = (
    "backbone=linear data=synthetic data.num_rows=400 seq_len=32 horizon=8 patch.patch_len=8"
    " data.windows_per_epoch=64 train.epochs=3 train.batch_size=32 tracker=none train.threads=1"
)
SWEEP = "hydra/sweeper=t5ts hydra.sweeper.n_trials=3 optim.lr=interval(1e-4,1e-2)"
SQLITE = "hydra.sweeper.storage=sqlite:///study.db"


#: Exit statuses, what was printed, and what was lost or trained twice.
Outcome = tuple[list[int], list[str], str | None]


def start(command: list[str], said: Path, barrier: Any) -> None:
    """A process: wait for the other one, then run the command in the working directory."""
    from t5ts import report, run

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    kind, *arguments = command
    sys.argv = [f"t5ts.{kind}", *arguments]
    barrier.wait()
    sys.exit(report.main(arguments) if kind == "report" else run.cli())


def start_at_once(command: list[str], place: Path, starts: int) -> tuple[list[int], list[str]]:
    """Several starts at once; their exit statuses, and what they printed."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(starts)
    said = [place / f"said-{number}.txt" for number in range(starts)]
    both = [fork.Process(target=start, args=(command, path, barrier)) for path in said]
    for process in both:
        process.start()
    for process in both:
        process.join()
    return [int(process.exitcode or 0) for process in both], [path.read_text() for path in said]


def fault_of_run(folder: Path) -> str | None:
    """What is wrong with a directory in which one run should have been trained once."""
    if not (folder / "result.json").is_file():
        return "no result"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row["epoch"] for row in rows if row["kind"] == "eval"]
    if epochs != sorted(set(epochs)):
        return "trained twice"
    return "moved aside" if list(folder.glob("previous-*")) else None


def run_once(place: Path, starts: int) -> Outcome:
    """One run."""
    statuses, said = start_at_once(["run", *TINY.split(), "hydra.run.dir=it"], place, starts)
    return statuses, said, fault_of_run(place / "it")


def sweep_once(place: Path, starts: int, how: str = SWEEP) -> Outcome:
    """A study of three trials, or a grid of three jobs."""
    command = ["run", "--multirun", *TINY.split(), *how.split(), "hydra.sweep.dir=it"]
    statuses, said = start_at_once(command, place, starts)
    trials = [path.parent for path in (place / "it").glob("**/metrics.jsonl")]
    faults = [fault for trial in trials if (fault := fault_of_run(trial))]
    if len(trials) != 3:
        faults.append(f"{len(trials)} of 3 trials")
    return statuses, said, "; ".join(faults) or None


def report_once(place: Path, starts: int) -> Outcome:
    """The report on one run."""
    statuses, said = start_at_once(["report", "../study", "--out", "it"], place, starts)
    page = place / "it" / "report.html"
    whole = page.is_file() and page.read_text().rstrip().endswith("</html>")
    left = [path.name for path in (place / "it").rglob("*tmp*")]
    return statuses, said, None if whole and not left else f"damaged or left over: {left}"


KINDS: dict[str, Callable[[Path, int], Outcome]] = {
    "run": run_once,
    "sweep": sweep_once,
    "workers": partial(sweep_once, how=f"{SWEEP} hydra.sweeper.n_jobs=2"),
    "sqlite": partial(sweep_once, how=f"{SWEEP} {SQLITE}"),
    "sqlite-workers": partial(sweep_once, how=f"{SWEEP} {SQLITE} hydra.sweeper.n_jobs=2"),
    "grid": partial(sweep_once, how="optim.lr=1e-3,3e-3,1e-2"),
    "report": report_once,
}


def main() -> int:
    """Print a line per kind; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    import torch

    from t5ts import experiment  # noqa: F401 - loaded once, before the forks

    torch.set_num_threads(1)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("first").mkdir()
        os.chdir("first")
        study = ["run", *TINY.split(), "hydra.run.dir=../study/0"]
        start_at_once(study, Path.cwd(), 1)  # for the reports
        for kind in options.kinds:
            ended: Counter[str] = Counter()
            for number in range(options.pairs):
                place = Path(folder) / f"{kind}-{number}"
                place.mkdir()
                os.chdir(place)
                statuses, said, fault = KINDS[kind](place, options.starts)
                unclean = any("Traceback" in text for text in said)
                how = f"exit {min(statuses)} and {max(statuses)}"
                ended[
                    how + (", traceback" if unclean else "") + (f", {fault}" if fault else "")
                ] += 1
                if fault or unclean or min(statuses) != 0:
                    lost += 1
                    print("\n".join(said), file=sys.stderr)
            print(
                f"{kind:14s} {'; '.join(f'{how}: {count}' for how, count in ended.items())}",
                flush=True,
            )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
