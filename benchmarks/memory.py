"""Peak memory of a long series: python -m benchmarks.memory [--rows N] [--channels C] [--csv].

Question: does a 10-million-row, 8-channel float32 Parquet file load, scale and yield batches with a
peak RSS of at most 2× its raw bytes (rows · channels · 4) above the import baseline?

The file is made in a temporary folder by one process and measured in another, which imports all it
needs, notes its RSS, loads the file, builds the windows, gathers an epoch's worth of batches, and
reads its own VmHWM. Exit code 1 if the limit is passed. Expected (2 cores): ratio 1.5, 10 s.

`--csv --rows 3000000 --channels 7` tests the same for a CSV, and whether it loads in under 5 s.
Expected: ratio 1.6, 3 s on a machine with nothing else to do.

`--csv --rows 3000000 --channels 7 --train KEY=VALUE…` trains on the file as `python -m t5ts.run`
does, with the overrides given (two epochs of 4096 windows around no encoder by default), test and
pictures included. All validation and test windows are evaluated, which is most of the time:
data.splits='[0.98,0.01,0.01]' makes them fewer. The peak includes what training takes whatever the
length of the series, mostly the activations of one batch: `--rows 200000` shows how much that is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 2.0
CSV_LIMIT_S = 5.0
ROOT = str(Path(__file__).parents[1])
MAKE = "import benchmarks.memory as m, sys; m.make(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"
MEASURE = "import benchmarks.memory as m, sys; m.measure(sys.argv[1])"
TRAIN = "import benchmarks.memory as m, sys; m.train(sys.argv[1], sys.argv[2:])"
# What a run imports only when it needs it; part of the import baseline all the same.
IMPORTED_LATE = [
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "t5ts.analysis.plots",
    "t5ts.data.sources",
    "t5ts.data.tables",
    "torch._dynamo",  # by torch.optim
]
SHORT = ["backbone=linear", "data.windows_per_epoch=4096", "train.epochs=2"]


def make(path: str, rows: int, channels: int) -> None:
    """Writes a minute-bar Parquet file of noise, which does not compress."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    start = datetime.datetime(2000, 1, 1)
    end = start + datetime.timedelta(minutes=rows - 1)
    columns = {f"x{c}": rng.standard_normal(rows, dtype=np.float32) for c in range(channels)}
    times = pl.datetime_range(start, end, "1m", eager=True)
    table = pl.DataFrame({"time": times, **columns})
    if path.endswith(".csv"):
        table.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S")).write_csv(path)
    else:
        table.write_parquet(path)


def measure(path: str) -> None:
    """Loads, scales and gathers; prints the figures as one JSON line."""
    import torch

    from t5ts.data import tables  # noqa: F401 (imported by load_csv; part of the import baseline)
    from t5ts.data.sources import load_csv
    from t5ts.data.windows import build_windows, epoch_order

    baseline = status("VmRSS")
    began = time.perf_counter()
    series = load_csv(path=path)
    loaded = time.perf_counter()
    after_load = status("VmHWM")
    splits = build_windows(series, context_len=128, target_len=24)
    scaled = time.perf_counter()
    order = epoch_order(len(splits.train), seed=0, epoch=0, limit=64_000)
    for index_B in order.split(64):
        batch_BCW = splits.train.gather(index_B)
    assert torch.isfinite(batch_BCW).all()
    figures = {
        "baseline_bytes": baseline,
        "load_peak_bytes": after_load - baseline,
        "peak_bytes": status("VmHWM") - baseline,
        "load_s": round(loaded - began, 2),
        "scale_s": round(scaled - loaded, 2),
        "gather_windows_per_s": round(len(order) / (time.perf_counter() - scaled)),
    }
    print(json.dumps(figures))


def train(path: str, overrides: list[str]) -> None:
    """A whole run on the file; prints the figures as one JSON line."""
    import importlib

    from hydra import compose, initialize_config_dir

    from t5ts import datasets, experiment
    from t5ts.checks import check
    from t5ts.config import CONF, from_hydra, register

    for name in IMPORTED_LATE:
        importlib.import_module(name)

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["data=csv", f"data.path={path}", "tracker=none", "train.progress=false"]
        config = from_hydra(compose("config", overrides=[*given, *overrides]))
    check(config)
    load_s = 0.0
    load_series = datasets.load_series

    def timed(data: object) -> object:
        nonlocal load_s
        began = time.perf_counter()
        series = load_series(data)
        load_s = time.perf_counter() - began
        return series

    datasets.load_series = timed
    baseline = status("VmRSS")
    began = time.perf_counter()
    result = experiment.run(config, run_dir=Path(path).parent / "run")
    figures = {
        "baseline_bytes": baseline,
        "peak_bytes": status("VmHWM") - baseline,
        "load_s": round(load_s, 2),
        "fit_s": round(result.seconds, 1),
        "run_s": round(time.perf_counter() - began, 1),
        "val_loss": round(result.metrics["val_loss"], 4),
        "val_loss_untrained": round(result.initial["val_loss"], 4),
    }
    print(json.dumps(figures))


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs Linux: /proc/self/status")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--csv", action="store_true")
    parser.add_argument("--train", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / ("long.csv" if args.csv else "long.parquet"))
        size = (str(args.rows), str(args.channels))
        subprocess.run([sys.executable, "-c", MAKE, path, *size], check=True, cwd=ROOT)
        asked = [MEASURE, path] if args.train is None else [TRAIN, path, *(args.train or SHORT)]
        answer = subprocess.run(
            [sys.executable, "-c", *asked], check=True, cwd=ROOT, stdout=subprocess.PIPE
        )
    figures = json.loads(answer.stdout)
    raw = args.rows * args.channels * 4
    ratio = figures["peak_bytes"] / raw
    figures |= {"raw_bytes": raw, "ratio": round(ratio, 2)}
    figures |= {"ratio_limit": LIMIT} | ({"load_s_limit": CSV_LIMIT_S} if args.csv else {})
    for key, figure in figures.items():
        print(f"{key:>22}  {figure:>15,}")
    return int(ratio > LIMIT or (args.csv and figures["load_s"] > CSV_LIMIT_S))


if __name__ == "__main__":
    sys.exit(main())
