"""Time, memory and page size of the report, on simulated runs.

python -m benchmarks.report [--runs 1000] [--epochs 50]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.simulated_runs import Arm, write_run

ARMS = [
    Arm(init=init, freeze=freeze, effect=-0.03 if init == "t5" else 0.0)
    for init in ("t5", "random")
    for freeze in ("staged", "none")
]


def main() -> None:
    """Write the runs, report them in a separate process, and print the time and memory used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(options.runs):
            arm = ARMS[number % len(ARMS)]
            seed, setting = divmod(number // len(ARMS), 50)
            rate = 10 ** (-4 + setting / 25)
            write_run(root / str(number), arm, seed, epochs=options.epochs, optim__lr=rate)
        size = sum(path.stat().st_size for path in root.rglob("*.jsonl")) / 2**20
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "t5ts.report", str(root), "--out", str(root / "report")],
            check=True,
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        page = (root / "report" / "report.html").stat().st_size / 2**20
        print(f"{options.runs} runs of {options.epochs} epochs, {size:.0f} MiB of metrics.jsonl")
        print(done.stdout.strip().splitlines()[-1].split("  ")[-1], f"wall; {cpu_s:.1f} s CPU")
        print(f"peak {after.ru_maxrss / 1024:.0f} MiB; page {page:.2f} MiB")


if __name__ == "__main__":
    main()
