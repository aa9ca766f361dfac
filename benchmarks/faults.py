"""Does a run directory survive what happens to it? python -m benchmarks.faults.

Questions, each answered by counts:

- kills: runs are killed (-9) at random moments and started again until they finish. Are their rows
  and metrics equal to those of an uninterrupted run, bit for bit?
- flips: single bits of a run's files are flipped, and files are cut. Is each either refused with
  one message (ResumeError, DataError), or without effect on any value?
- starts: the same command is started twice, 0.2 to 1 s apart. Does the first finish, and is the
  second refused?

Expected: `wrong 0` in every line. Two minutes on 2 quiet cores.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from t5ts.analysis.results import read_json, read_result
from t5ts.checkpoint import load_checkpoint
from t5ts.checks import check
from t5ts.config import CONF, Config, from_hydra, register
from t5ts.errors import DataError, ResumeError
from t5ts.experiment import run
from t5ts.run_directory import check_resumable

SETTING = [
    "backbone=t5_efficient_tiny", "backbone.d_model=16", "backbone.d_ff=32", "backbone.d_kv=8",
    "backbone.num_layers=2", "backbone.num_heads=2", "backbone.vocab_size=100", "freeze=staged",
    "freeze.unfreeze_epoch=1", "freeze.blocks_per_stage=1", "data=synthetic", "data.num_rows=600",
    "seq_len=32", "horizon=8", "patch.patch_len=8", "train.epochs=6", "train.log_every=1",
    "train.checkpoint_every_s=0.05", "tracker=none", "train.threads=1", "train.progress=false",
]  # fmt: skip


def train(config: Config, run_dir: Path) -> None:
    """A silent run in a separate process."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run(config, run_dir=run_dir)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without timings."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k[:5] != "perf/"} for x in lines]


def kills(config: Config, folder: Path, count: int, draws: random.Random) -> Counter[str]:
    """Runs until `count` kills have been survived."""
    fork = multiprocessing.get_context("fork")  # torch is loaded once, for all

    def start(run_dir: Path, seconds: float | None) -> int | None:
        process = fork.Process(target=train, args=(config, run_dir))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    began = time.perf_counter()
    assert start(folder / "whole", None) == 0
    whole_s = time.perf_counter() - began
    expected = rows(folder / "whole"), read_result(folder / "whole" / "result.json").metrics
    seen: Counter[str] = Counter()
    while seen["kills"] < count:
        run_dir = folder / f"killed-{seen['runs']}"
        seen["runs"] += 1
        while (code := start(run_dir, draws.uniform(0, whole_s))) == -9:
            seen["kills"] += 1
        same = code == 0 and expected == (
            rows(run_dir),
            read_result(run_dir / "result.json").metrics,
        )
        seen["equal" if same else "wrong"] += 1
    return seen


def flips(config: Config, run_dir: Path, draws: random.Random) -> dict[str, Counter[str]]:
    """Corruption of each kind of file, and its reader's message."""
    checkpoint = run_dir / "checkpoint" / "last.safetensors"
    header = 8 + int.from_bytes(checkpoint.read_bytes()[:8], "little")

    def load() -> Any:
        tensors, state = load_checkpoint(checkpoint)
        return repr(state), {k: t.numpy().tobytes() for k, t in tensors.items()}

    readers: dict[str, tuple[Path, Callable[[], Any]]] = {
        "last.safetensors": (checkpoint, load),
        "metrics.jsonl": (
            run_dir / "metrics.jsonl",
            lambda: repr(check_resumable(checkpoint, config)),
        ),
        "result.json": (
            run_dir / "result.json",
            lambda: repr(read_result(run_dir / "result.json")),
        ),
        "provenance.json": (
            run_dir / "provenance.json",
            lambda: repr(sorted(read_json(run_dir / "provenance.json").items())),
        ),
    }
    counts = {}
    for name, (path, read) in readers.items():
        content, expected = path.read_bytes(), read()
        bits = range(8 * len(content))
        chosen = set(draws.sample(bits, min(1000, len(bits))))
        if path == checkpoint:
            chosen |= set(draws.sample(range(8 * header), 1000))
        damaged = [
            content[: bit // 8]
            + bytes([content[bit // 8] ^ (1 << bit % 8)])
            + content[bit // 8 + 1 :]
            for bit in sorted(chosen)
        ]
        damaged += [content[:n] for n in draws.sample(range(len(content)), 200)]
        damaged += [content[:n] + bytes(len(content) - n) for n in (0, 1, len(content) - 200)]
        seen: Counter[str] = Counter()
        for bytes_ in damaged:
            path.write_bytes(bytes_)
            try:
                seen["no effect" if read() == expected else "wrong"] += 1
            except (ResumeError, DataError):
                seen["refused"] += 1
            except Exception as error:  # what a user would see as a traceback
                seen[f"wrong: {type(error).__name__}"] += 1
        path.write_bytes(content)
        counts[name] = seen
    return counts


def starts(folder: Path, count: int) -> Counter[str]:
    """The same command twice, from 0.2 to 1 s apart."""
    seen: Counter[str] = Counter()
    for number in range(count):
        run_dir = folder / f"twice-{number}"
        command = [sys.executable, "-m", "t5ts.run", *SETTING, f"hydra.run.dir={run_dir}"]
        command.append("train.epochs=40")
        pair = []
        for _ in range(2):
            pair.append(subprocess.Popen(command, stdout=-3, stderr=-3, cwd=CONF.parent))
            time.sleep(0.2 + 0.8 * number / max(1, count - 1))
        codes = sorted(process.wait() for process in pair)
        is_right = codes == [0, 2] and (run_dir / "result.json").is_file()
        seen["one result, one refusal" if is_right else f"wrong: {codes}"] += 1
    return seen


def main() -> None:
    """Run the series and print their counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draws = random.Random(options.seed)
    torch.set_num_threads(1)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = from_hydra(compose("config", overrides=SETTING))
    check(config)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print("kills   ", dict(kills(config, folder, options.kills, draws)), flush=True)
        for name, seen in flips(config, folder / "whole", draws).items():
            print(f"flips    {name}: {dict(seen)}", flush=True)
        print("starts  ", dict(starts(folder, options.starts)), flush=True)


if __name__ == "__main__":
    main()
