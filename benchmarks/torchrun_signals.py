"""One of two processes is signalled: `python -m benchmarks.torchrun_signals [--real 12]`.

Runs in two processes; at a random moment one of them gets SIGTERM or SIGKILL. Right is: exit 0 with
the result of a run that nothing happened to, or another status, at most one message for SIGKILL and
one for SIGTERM, no traceback of t5ts, and the same command then gives that result, bit
for bit. Most runs are forked by torchrun's agent from a process that has torch loaded; `--real`
starts torchrun's own command line, whose processes take seconds to start.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.double_starts import TINY

EPOCHS = 30
ARGUMENTS = [
    *TINY.split(),
    f"train.epochs={EPOCHS}",
    "train.checkpoint_every_s=0.05",
    "hydra.run.dir=it",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def member() -> None:
    """A process of the run."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the agent's handler
    from t5ts.run import cli

    sys.argv = ["t5ts.run", *ARGUMENTS]
    cli()  # returns, as the agent wants it


def agent(said: Path) -> None:
    """As torchrun: its agent, with forks for the processes that it would start."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", run_id="none",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, member)()


def pid_of(rank: int, parent: int, *, real: bool) -> int | None:
    """The process of this rank, by its environment; a fork's, by the order of the starts."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in pids:
        with suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return int(pid)
    return int(pids[rank]) if len(pids) == 2 and not real else None


def start(
    *, real: bool, said: Path, number: int = 0, rank: int = 0, after_s: float = 0
) -> tuple[Any, str]:
    """Run to the end; the status (None: it hung) and when the signal came, in words."""
    if real:
        with said.open("w") as file:
            process: Any = subprocess.Popen(
                [*TORCHRUN, "-m", "t5ts.run", *ARGUMENTS], stdout=file, stderr=file
            )
        wait = process.poll
    else:
        process = multiprocessing.get_context("fork").Process(target=agent, args=(said,))
        process.start()

        def wait() -> int | None:
            process.join(0)
            return process.exitcode  # type: ignore[no-any-return]

    begun, when = time.monotonic(), "not"
    while number and wait() is None and time.monotonic() - begun < 150:
        if (pid := pid_of(rank, process.pid, real=real)) is not None:
            time.sleep(after_s)
            when = moment()
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                when = "not"
            break
        time.sleep(0.005)
    while (status := wait()) is None and time.monotonic() - begun < 150:
        time.sleep(0.02)
    if status is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        process.kill()
    return status, when


def moment() -> str:
    """How far the run in the working directory is."""
    path = Path("it") / "metrics.jsonl"
    rows = path.read_text() if path.is_file() else ""
    if not rows:
        return "before its first row"
    return "after its last epoch" if f'"eval", "epoch": {EPOCHS},' in rows else "in training"


def outcome() -> tuple[Any, Any] | None:
    """Rows and metrics of the finished run, without times; None if it is not finished."""
    folder = Path("it")
    if not (folder / "result.json").is_file():
        return None
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(x).items() if k[:5] != "perf/"} for x in lines]
    return rows, json.loads((folder / "result.json").read_text())["metrics"]


def series(count: int, place: Path, draws: random.Random, *, real: bool) -> Counter[str]:
    """Signals at random moments, each kind and rank in turn."""
    folder = place / ("real" if real else "forked")
    seen: Counter[str] = Counter()
    for index in range(-1, count):
        here = folder / str(index)
        here.mkdir(parents=True)
        os.chdir(here)
        if index < 0:
            begun = time.monotonic()
            assert start(real=real, said=here / "said.txt")[0] == 0, (here / "said.txt").read_text()
            whole_s, whole = time.monotonic() - begun, outcome()
            continue
        number = (signal.SIGTERM, signal.SIGKILL)[index % 2]
        rank = index // 2 % 2
        status, when = start(
            real=real, said=here / "said.txt", number=number, rank=rank,
            after_s=draws.uniform(0, 0.6 * whole_s),  # after its start
        )  # fmt: skip
        text, found, faults = (here / "said.txt").read_text(), outcome(), []
        if '/t5ts/run.py", line' in text or '/t5ts/experiment.py", line' in text:
            faults.append("traceback")
        said = sum(line.startswith("t5ts: ") for line in text.splitlines())
        if said > 1:
            faults.append(f"{said} messages")
        if status is None:
            faults.append("hung")
        elif found not in ((whole,) if status == 0 else (None, whole)):
            faults.append(f"status {status} and not its result")
        how = "exit 0" if status == 0 else f"{said} messages, resumed"
        if status and start(real=False, said=here / "again.txt")[0] != 0:
            faults.append("did not resume")
        if outcome() != whole:
            faults.append("other numbers")
        if status == 0 and when == "in training" and number == signal.SIGTERM:
            how = "exit 0 (look at it)"
        what = "; ".join(faults) and f"WRONG: {'; '.join(faults)}"
        line = f"{number.name} to rank {rank} {when}: {what or how}"
        print(line, flush=True)
        seen[line] += 1
        if faults:
            print(f"--- {index} {number.name} {rank} {faults}\n{text[-4000:]}", file=sys.stderr)
    return seen


def main() -> int:
    """Print the counts; the exit status is 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--forked", type=int, default=60)
    parser.add_argument("--real", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch
    import torch.distributed.nn.functional

    from t5ts import experiment  # noqa: F401 - loaded once, before the forks

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    draws, wrong = random.Random(options.seed), False
    with tempfile.TemporaryDirectory() as folder:
        for real, count in ((False, options.forked), (True, options.real)):
            if count:
                seen = series(count, Path(folder), draws, real=real)
                print("torchrun" if real else "forked", flush=True)
                for what, times in sorted(seen.items()):
                    print(f"  {times:3d}  {what}", flush=True)
                wrong |= any("WRONG" in what for what in seen)
        os.chdir("/")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
