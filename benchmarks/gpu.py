"""What a GPU does with t5ts: python -m benchmarks.gpu.

Question: on this GPU, how fast is a step against named peers, with bf16 and with compiled blocks;
how far are bf16 and TF32 losses from float32's; are two equal runs equal bit for bit; does a killed
run resume to the same numbers; and what do four workers on one GPU gain, with and without MPS?

One command, at most `--minutes` (8): what no longer fits is reported; `--only` picks parts. The
last lines are Markdown tables to be pasted into LOG.md. `--cpu-smoke` runs every part on a CPU with
tiny sizes, to show that the program works; its figures mean nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, Spec
from benchmarks.step import NAMES, flops_per_window, matmul_peak, measure
from t5ts.checkpoint import load_checkpoint
from t5ts.model.tensors import state_digest

ROOT = Path(__file__).parents[1]
PARTS = {
    "equality": "Two equal runs; killed and resumed",
    "precision": "Precision",
    "steps": "Steps (t5-small, 4 tokens, bf16 on a GPU)",
    "workers": "Several workers on one device",
}
KILL_AFTER_EPOCHS = 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    device: str
    batches: Sequence[int]
    compiled: Sequence[bool]
    contenders: Sequence[str]
    rounds: int
    turn_s: float
    workers: int
    overrides: Sequence[str]  # of the runs


ON_GPU = Sizes(
    device="cuda",
    batches=(64, 512, 4096),
    compiled=(False, True),
    contenders=("ours", "bare", "hf", "lightning"),
    rounds=3,
    turn_s=1.0,
    workers=4,
    overrides=(
        "backbone=t5_small", "data.windows_per_epoch=16384", "train.batch_size=256",
        "train.epochs=4", "train.log_every=8",
    ),
)  # fmt: skip
SMOKE = Sizes(
    device="cpu",
    batches=(2,),
    compiled=(False,),
    contenders=("ours", "bare"),
    rounds=1,
    turn_s=0.1,
    workers=2,
    overrides=(
        "data=synthetic", "data.num_rows=600", "seq_len=32", "horizon=8", "patch.patch_len=8",
        "backbone=t5_efficient_tiny", "backbone.d_model=16", "backbone.d_ff=32", "backbone.d_kv=8",
        "backbone.num_layers=2", "backbone.num_heads=2", "backbone.vocab_size=100",
        "train.epochs=3", "train.log_every=2", "train.threads=1",
    ),
)  # fmt: skip


class Runs:
    """Starts t5ts runs as a user does, each in its own directory below one folder."""

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self._sizes, self._folder = sizes, folder

    def start(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        """Start a run; its directory is `folder(name)`."""
        fixed = ["tracker=none", f"train.device={self._sizes.device}", "train.progress=false"]
        place = f"hydra.run.dir={self.folder(name)}"
        return subprocess.Popen(
            [sys.executable, "-m", "t5ts.run", *self._sizes.overrides, *fixed, place, *overrides],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *processes: subprocess.Popen[str]) -> None:
        """Wait for runs; the log of one that failed is shown."""
        for process in processes:
            out, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"a run failed:\n{out[-4000:]}")

    def folder(self, name: str) -> Path:
        """A run's directory."""
        return self._folder / name

    def rows(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Rows of its metrics.jsonl."""
        path = self.folder(name) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def numbers(self, name: str) -> tuple[list[dict[str, Any]], str]:
        """All rows without their clock, and the digest of the last weights and optimizer state."""
        rows = [row for kind in ("eval", "step", "probe") for row in self.rows(name, kind)]
        still = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
        tensors, _ = load_checkpoint(self.folder(name) / "checkpoint" / "last.safetensors")
        return still, state_digest(tensors)


def step_table(sizes: Sizes, peak_flops: float | None, left_s: Callable[[], float]) -> list[str]:
    """Steps of each contender, one line per batch size and compile setting."""
    titles = " | ".join(f"{NAMES[name]}, windows/s" for name in sizes.contenders)
    lines = [f"| batch | compile | {titles} | ours/bare | share of bf16 peak |"]
    lines.append("| --- " * (4 + len(sizes.contenders)) + "|")
    for compiled in sizes.compiled:
        for batch in sizes.batches:
            about = f"| {batch} | {'on' if compiled else 'off'} |"
            if left_s() < 90:
                lines.append(f"{about} not measured: out of time |")
                continue
            spec = Spec(batch=batch, device=sizes.device, compile=compiled, turn_s=sizes.turn_s)
            try:
                outcome = measure(spec, rounds=sizes.rounds, contenders=sizes.contenders)
            except SystemExit as died:
                print(died)
                lines.append(f"{about} not measured: a contender died (above) |")
                continue
            rates = " | ".join(f"{outcome.rate(name):.0f}" for name in sizes.contenders)
            share = "–"
            if peak_flops is not None:
                share = f"{outcome.rate('ours') * flops_per_window(spec) / peak_flops:.1%}"
            lines.append(f"{about} {rates} | {outcome.ratio('ours', 'bare'):.2f} | {share} |")
    return lines


def precision_table(runs: Runs) -> list[str]:
    """val_loss by epoch in bf16, in float32 with TF32 products, and in float32."""
    choices = {
        "fp32": ("train.precision=fp32", "train.tf32=false"),
        "fp32 + TF32": ("train.precision=fp32", "train.tf32=true"),
        "bf16": ("train.precision=bf16",),
    }
    lines = ["| precision | val_loss by epoch | best against fp32 | windows/s |"]
    lines.append("| --- | --- | --- | --- |")
    best: dict[str, float] = {}
    for number, (name, overrides) in enumerate(choices.items()):
        runs.finish(runs.start(f"precision-{number}", *overrides))
        losses = [row["val_loss"] for row in runs.rows(f"precision-{number}", "eval")]
        best[name] = min(losses)
        by_epoch = " ".join(f"{loss:.5f}" for loss in losses)
        change = best[name] / best["fp32"] - 1
        lines.append(
            f"| {name} | {by_epoch} | {change:+.3%} | {rate(runs, f'precision-{number}'):.0f} |"
        )
    return lines


def rate(runs: Runs, name: str) -> float:
    """Median windows/s of a run's logged steps."""
    return statistics.median(row["perf/windows_per_s"] for row in runs.rows(name, "step"))


def equality_lines(runs: Runs) -> list[str]:
    """Two equal runs, and one that is killed and resumed, compared bit for bit."""
    runs.finish(*(runs.start(name) for name in ("one", "two")))
    process = runs.start("killed")
    while len(runs.rows("killed", "eval")) <= KILL_AFTER_EPOCHS and process.poll() is None:
        time.sleep(0.02)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    runs.finish(runs.start("killed"))
    whole = runs.numbers("one")
    twice = "equal bit for bit" if runs.numbers("two") == whole else "DIFFERENT"
    resumed = "equal bit for bit" if runs.numbers("killed") == whole else "DIFFERENT"
    when = f"after epoch {KILL_AFTER_EPOCHS}" if was_running else "too late, after its end"
    return [
        f"- two equal runs: {twice}",
        f"- killed {when} and resumed, against uninterrupted: {resumed}",
    ]


def worker_table(sizes: Sizes, runs: Runs, folder: Path, left_s: Callable[[], float]) -> list[str]:
    """One run alone, and several at once on one GPU, with and without MPS."""
    lines = ["| workers | MPS | windows/s together | against one |", "| --- | --- | --- | --- |"]
    alone = 0.0
    for number, with_mps in ((1, False), (sizes.workers, False), (sizes.workers, True)):
        about = f"| {number} | {'on' if with_mps else 'off'} |"
        if left_s() < 45:
            lines.append(f"{about} not measured: out of time | |")
            continue
        with mps(folder) if with_mps else contextlib.nullcontext({}) as environment:
            if environment is None:
                lines.append(f"{about} not measured: there is no nvidia-cuda-mps-control | |")
                continue
            names = [f"worker-{number}-{with_mps}-{i}" for i in range(number)]
            started = [runs.start(n, f"seed={i}", **environment) for i, n in enumerate(names)]
            runs.finish(*started)
        together = sum(rate(runs, name) for name in names)
        alone = alone or together
        lines.append(f"{about} {together:.0f} | {together / alone:.2f} |")
    return lines


@contextlib.contextmanager
def mps(folder: Path) -> Iterator[dict[str, str] | None]:
    """An MPS server of our own; its clients' environment, or None where MPS is not installed."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        yield None
        return
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    environment = {name: str(folder / name.lower()) for name in names}
    for path in environment.values():
        Path(path).mkdir()
    whole = {**os.environ, **environment}
    subprocess.run([control, "-d"], env=whole, check=True)
    try:
        yield environment
    finally:
        subprocess.run([control], input="quit\n", env=whole, text=True, check=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print the tables; the exit status is 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="leave out what takes longer")
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny, on a CPU: does it work?")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument(
        "--compiled",
        nargs="+",
        type=int,
        choices=[0, 1],
        default=[0, 1],
        help="steps with compiled blocks (1) or without (0)",
    )
    args = parser.parse_args(arguments)
    begun = time.monotonic()
    if not (args.cpu_smoke or torch.cuda.is_available()):
        print("no GPU: torch sees none here. --cpu-smoke runs every part on the CPU, tiny.")
        return 2
    sizes = SMOKE if args.cpu_smoke else ON_GPU
    sizes = replace(sizes, compiled=[c for c in sizes.compiled if c in args.compiled])
    assert set(sizes.contenders) <= set(CONTENDERS)

    def left_s() -> float:
        return 60 * args.minutes - (time.monotonic() - begun)

    if args.cpu_smoke:
        print("no GPU: --cpu-smoke, tiny sizes on a CPU; these figures mean nothing.")
        device, peak = "CPU", None
    else:
        device, peak = torch.cuda.get_device_name(), matmul_peak()
    with tempfile.TemporaryDirectory(prefix="t5ts-gpu-") as name:
        folder = Path(name)
        runs = Runs(sizes, folder)
        print(f"\n{device}, torch {torch.__version__}, CUDA {torch.version.cuda}", end="")
        print("" if peak is None else f", bf16 matmul {peak / 1e12:.0f} Tflop/s")
        sections: dict[str, Callable[[], list[str]]] = {
            "equality": lambda: equality_lines(runs),
            "precision": lambda: precision_table(runs),
            "steps": lambda: step_table(sizes, peak, left_s),
            "workers": lambda: worker_table(sizes, runs, folder, left_s),
        }
        for part in args.only:  # printed at once: a later one may be cut short
            print(f"\n### {PARTS[part]}\n", *sections[part](), sep="\n", flush=True)
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
