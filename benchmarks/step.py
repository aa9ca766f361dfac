"""Speed of a training step vs. named peers: python -m benchmarks.step.

Question: what does `t5ts.train.fit` with everything on (gradient norms per block, clipping, update
ratios, metrics.jsonl, W&B offline) cost over a bare loop, and how does it stand beside HF Trainer
and Lightning? Targets at t5-small's shape, 4 tokens, one channel: ours/bare at least 0.95, ours/HF
at least 1.0, ours/Lightning at least 1.4 at batch 8, probes and tracking at most 3 % of a step.

Each contender is a separate process that trains the same Forecaster on the same windows with a
fused AdamW. They take turns: one trains for some steps while the others wait between two steps, so
that whatever else the machine does falls on all of them. A turn is a multiple of 10 steps, since
all but the bare loop log every 10. Ratios are medians over rounds of the ratio within a round.

The peers are given their best: their DataLoader gathers whole batches, as ours does. "quiet" is our
loop without its instruments: no tracker, no metrics file, no logged rows, no update ratios, and of
the gradient norms only the total that clipping needs. What the instruments cost is shown twice:
"A/B" is the median of 1 - ours/quiet, and "clocked" is the host time inside them (of the norms,
what exceeds quiet's total) as a share of the time of all of our turns; the second is far less
noisy. W&B's own process runs alongside and is in neither.

Expected (2 cores, fp32): 8 minutes; a ratio moves by 3 % from run to run on a shared machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, Spec, make_config
from t5ts.build import build_model

ROOT = Path(__file__).parents[1]
TARGETS = {"bare": 0.95, "hf": 1.0, "lightning": 1.4}
TARGET_SHARE = 0.03
NAMES = {
    "bare": "bare loop",
    "ours": "ours",
    "quiet": "ours, quiet",
    "hf": "HF Trainer",
    "lightning": "Lightning",
}


@dataclass(frozen=True)
class Turn:
    """What a contender did in one turn."""

    steps: int
    seconds: float
    cpu_s: float
    clocked: dict[str, float]


class Worker:
    """A contender's process, seen from the referee."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.contenders", name]
        command += ["--batch", str(spec.batch), "--device", spec.device]
        command += ["--seconds", str(spec.turn_s), *(["--compile"] if spec.compile else [])]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Its next message; its log is shown if it has died instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.name} died:\n{self._log.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> Turn:
        """Let it train for a turn."""
        self._say("turn")
        return Turn(**self.answer())

    def finish(self) -> int:
        """End it; returns its peak memory in bytes."""
        self._say("end")
        peak: int = self.answer()["peak_bytes"]
        self._process.wait()
        return peak

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What was measured at one batch size."""

    spec: Spec
    turns: dict[str, list[Turn]]
    peaks: dict[str, int]

    def rates(self, name: str) -> list[float]:
        """Windows/s of each round."""
        return [t.steps * self.spec.batch / t.seconds for t in self.turns[name]]

    def rate(self, name: str) -> float:
        """Median windows/s."""
        return statistics.median(self.rates(name))

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of the ratio of two contenders' windows/s."""
        pairs = zip(self.rates(name), self.rates(other), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def cpu_ms(self, name: str) -> float:
        """Median over rounds of the CPU milliseconds of a step, all threads together."""
        return statistics.median(1e3 * turn.cpu_s / turn.steps for turn in self.turns[name])

    def clocked_ms(self, name: str) -> dict[str, float]:
        """Milliseconds a step inside each of a contender's instruments."""
        turns = self.turns[name]
        steps = sum(turn.steps for turn in turns)
        parts = dict.fromkeys(part for turn in turns for part in turn.clocked)
        return {
            part: 1e3 * sum(turn.clocked.get(part, 0.0) for turn in turns) / steps for part in parts
        }

    def step_ms(self) -> float:
        """Milliseconds of our step, mean over all turns."""
        ours = self.turns["ours"]
        return 1e3 * sum(t.seconds for t in ours) / sum(t.steps for t in ours)


def measure(spec: Spec, *, rounds: int, contenders: Sequence[str]) -> Outcome:
    """Start the contenders, let them warm up, and let them take turns."""
    workers = [Worker(name, spec) for name in contenders]
    try:
        for worker in workers:
            worker.answer()  # ready
        for worker in workers:
            worker.turn()  # warm-up, not counted
        turns: dict[str, list[Turn]] = {worker.name: [] for worker in workers}
        for round_number in range(rounds):
            first = round_number % len(workers)
            for worker in workers[first:] + workers[:first]:
                turns[worker.name].append(worker.turn())
        return Outcome(spec, turns, {worker.name: worker.finish() for worker in workers})
    finally:
        for worker in workers:
            worker.kill()


def report(outcome: Outcome, peak_flops: float | None) -> None:
    """Print one batch size's figures, and whether each target is met."""
    spec = outcome.spec
    names = [name for name in NAMES if name in outcome.turns]
    flags = ", compile" if spec.compile else ""
    print(f"\nbatch {spec.batch}, {spec.device}{flags}")
    titles = f"{'windows/s':>10}{'spread':>9}{'CPU ms/step':>13}{'peak MiB':>10}{'ours/it':>9}"
    print(f"  {'':<12}{titles}  target")
    for name in names:
        rates = outcome.rates(name)
        spread = (max(rates) - min(rates)) / outcome.rate(name)
        line = f"  {NAMES[name]:<12}{outcome.rate(name):>10.1f}{spread:>9.1%}"
        line += f"{outcome.cpu_ms(name):>13.1f}{outcome.peaks[name] / 2**20:>10.0f}"
        if name != "ours":
            ratio = outcome.ratio("ours", name)
            line += f"{ratio:>9.3f}  {_verdict(name, ratio, spec)}"
        if peak_flops is not None:
            share = outcome.rate(name) * flops_per_window(spec) / peak_flops
            line += f"  {share:.1%} of the bf16 peak"
        print(line)
    if "quiet" not in outcome.turns:
        return
    clocked, step_ms = outcome.clocked_ms("ours"), outcome.step_ms()
    total_norm_ms = outcome.clocked_ms("quiet")["norms"]
    clocked["norms"] -= total_norm_ms
    share = sum(clocked.values()) / step_ms
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in clocked.items())
    met = "met" if share <= TARGET_SHARE else "MISSED"
    print(f"  probes and tracking: clocked {share:.1%} of {step_ms:.1f} ms (ms: {parts},")
    print(f"  norms without the total that clipping needs, which takes {total_norm_ms:.3f} ms);")
    print(f"  A/B {1 - outcome.ratio('ours', 'quiet'):.1%}; target 3 % {met}")


def _verdict(name: str, ratio: float, spec: Spec) -> str:
    if name not in TARGETS or (name == "lightning" and spec.batch != 8):
        return "–"
    target = TARGETS[name]
    return f"≥ {target:g} {'met' if ratio >= target else 'MISSED'}"


def flops_per_window(spec: Spec) -> float:
    """Forward and backward: 6 flop per matrix entry and token."""
    config = make_config(spec)
    model, _ = build_model(config, num_channels=1)
    parameters = sum(p.numel() for p in model.encoder.parameters() if p.ndim >= 2)
    return 6.0 * parameters * (config.seq_len / config.patch.patch_len)


def matmul_peak(size: int = 8192, repeats: int = 20) -> float:
    """Measured flop/s of a large bf16 matmul on the GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun) / repeats)
    return 2.0 * size**3 / min(seconds)


def main() -> None:
    """Measure each batch size (and on a GPU with and without compile) and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", help="8 64 256; on a GPU 64 512 4096")
    parser.add_argument("--seconds", type=float, default=2.0, help="shortest turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="CPU: compile too (a GPU does both)")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=CONTENDERS)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    batches = args.batches or ([64, 512, 4096] if on_gpu else [8, 64, 256])

    def spec(batch: int, compiled: bool) -> Spec:
        return Spec(batch=batch, device=args.device, compile=compiled, turn_s=args.seconds)

    contenders = list(dict.fromkeys(["ours", *args.contenders]))
    peak_flops = matmul_peak() if on_gpu else None
    print(f"t5-small, 4 tokens, {'bf16' if on_gpu else 'fp32'}; tracker: W&B offline (real client)")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    if peak_flops is not None:
        print(f"{torch.cuda.get_device_name()}: bf16 matmul {peak_flops / 1e12:.0f} Tflop/s")
    for batch in batches:
        for compiled in [False, True] if on_gpu else [args.compile]:
            outcome = measure(spec(batch, compiled), rounds=args.rounds, contenders=contenders)
            report(outcome, peak_flops)


if __name__ == "__main__":
    main()
