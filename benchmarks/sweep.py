"""What a sweep saves: python -m benchmarks.sweep [--only grid,mission,workers,overhead].

Every figure is a ratio to the same trials without the feature, in the same run on the same
machine: the frozen phase shared or trained by each, bad trials pruned or not, one worker or two.
`benchmarks.sweep_kills` has the figures for killed workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from t5ts.sweep.storage import open_storage

#: Long enough epochs that training, and not a run's fixed costs, is what is measured.
COMMON = [
    "backbone=t5_tiny_en", "init=t5", "freeze=staged", "data=synthetic", "data.num_rows=3000",
    "data.splits=[0.85,0.075,0.075]", "tracker=none", "train.epochs=10", "train.batch_size=64",
    "data.windows_per_epoch=640",
]  # fmt: skip


class Replay(BaseSampler):
    """Another sweep's settings, slot for slot.

    Args:
        settings: JSON file: slot → parameters.
        seed: Unused; every sampler is given one.
    """

    def __init__(self, settings: str, seed: int) -> None:
        del seed
        self._settings = json.loads(Path(settings).read_text())

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Nothing is sampled together."""
        del study, trial
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing is sampled together."""
        del study, trial, search_space
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, dist: Any) -> Any:
        """The recorded value."""
        del study, dist
        return self._settings[str(trial.user_attrs["slot"])][param_name]


def sweep(folder: Path, *arguments: str, threads: int | None = None) -> None:
    """Run one sweep in a separate process, unless it is already done."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    environment.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "t5ts.run", "--multirun", "hydra/sweeper=t5ts"]
    done = subprocess.run(
        [*command, *COMMON, *arguments, f"hydra.sweep.dir={folder}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the sweep in {folder} failed:\n{done.stdout}\n{done.stderr}")


def trials_of(folder: Path) -> list[Any]:
    """The finished trials of a sweep's only study, by slot."""
    study = optuna.load_study(study_name="sweep", storage=open_storage(None, folder))
    finished = [t for t in study.get_trials() if t.state.is_finished()]
    return sorted(finished, key=lambda trial: trial.user_attrs["slot"])


def epochs_of(trials: Sequence[Any], what: str) -> int:
    return sum(trial.user_attrs["epochs"][what] for trial in trials)


def seconds_of(trials: Sequence[Any]) -> float:
    """From the first ask to the last tell."""
    begun = min(trial.datetime_start for trial in trials)
    return (max(trial.datetime_complete for trial in trials) - begun).total_seconds()


def results_of(folder: Path) -> dict[str, Any]:
    """Every metric of every trial by its parameters, without timings."""
    found = {}
    for path in folder.rglob("trial.json"):
        result = json.loads((path.parent / "result.json").read_text())
        rows = [
            {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")}
            for line in (path.parent / "metrics.jsonl").read_text().splitlines()
        ]
        key = json.dumps(json.loads(path.read_text())["params"], sort_keys=True)
        found[key] = (result["metrics"], result["best_epoch"], rows)
    return found


def grid(folder: Path) -> None:
    """5 encoder learning rates × unfreeze epochs 0 to 8 of 10, with and without reuse."""
    space = [
        "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none",
        "hydra.sweeper.n_trials=1000", "freeze.unfreeze_epoch=range(0,9)",
        "optim.encoder_lr_scale=0.01,0.03,0.1,0.3,1.0",
    ]  # fmt: skip
    sweep(folder / "grid-reused", *space)
    sweep(folder / "grid-cold", *space, "hydra.sweeper.reuse=false")
    reused, cold = trials_of(folder / "grid-reused"), trials_of(folder / "grid-cold")
    reused_s, cold_s = seconds_of(reused), seconds_of(cold)
    same = results_of(folder / "grid-reused") == results_of(folder / "grid-cold")
    trained, asked = epochs_of(reused, "trained"), epochs_of(cold, "trained")
    print(
        f"grid: {len(reused)} settings; epochs {trained} of {asked} ({asked / trained:.2f}x fewer);"
        f" {reused_s:.0f} s against {cold_s:.0f} s ({cold_s / reused_s:.2f}x);"
        f" all results bit-identical: {same}"
    )


def mission(folder: Path) -> None:
    """30 trials over unfreeze epoch and learning rates, pruned and reused, against neither."""
    space = [
        "hydra.sweeper.n_trials=30",
        "freeze.unfreeze_epoch=range(0,9)",
        "optim.lr=0.0003,0.001,0.003,0.01",  # few, so that frozen phases are shared
        "optim.encoder_lr_scale=tag(log,interval(1e-2,1))",
    ]  # as in conf/experiment/unfreeze_lr.yaml
    sweep(folder / "mission", *space, "hydra/sweeper/pruner=asha")
    fast = trials_of(folder / "mission")
    replayed = folder / "settings.json"
    replayed.write_text(json.dumps({t.user_attrs["slot"]: t.params for t in fast}))
    sweep(
        folder / "mission-whole",
        *space,
        "hydra.sweeper.reuse=false",
        "hydra/sweeper/pruner=none",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler._target_=benchmarks.sweep.Replay",
        f"+hydra.sweeper.sampler.settings={replayed}",
    )
    whole = trials_of(folder / "mission-whole")
    fast_s, whole_s = seconds_of(fast), seconds_of(whole)
    assert [t.params for t in whole] == [t.params for t in fast]
    best = [
        min(t.value for t in trials if t.state == optuna.trial.TrialState.COMPLETE)
        for trials in (fast, whole)
    ]
    pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in fast)
    print(
        f"mission: 30 trials, {pruned} pruned; epochs trained {epochs_of(fast, 'trained')},"
        f" reused {epochs_of(fast, 'reused')}, of {epochs_of(whole, 'trained')};"
        f" {fast_s:.0f} s against {whole_s:.0f} s ({whole_s / fast_s:.2f}x);"
        f" best val_loss {best[0]:.4f} against {best[1]:.4f} ({best[0] / best[1] - 1:+.2%})"
    )


def workers(folder: Path) -> None:
    """Trials an hour: two workers of one thread against one of one, and against one of two."""
    space = [
        "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none",
        "hydra.sweeper.reuse=false", "hydra.sweeper.n_trials=12",
        "optim.lr=tag(log,interval(1e-4,1e-2))",
    ]  # fmt: skip
    rates = {}
    for name, count, threads in (("2x1", 2, 1), ("1x1", 1, 1), ("1x2", 1, 2)):
        place = folder / f"workers-{name}"
        sweep(place, *space, f"hydra.sweeper.n_jobs={count}", threads=threads)
        trials = trials_of(place)
        rates[name] = 3600 * len(trials) / seconds_of(trials)
    print(
        f"workers: trials/h {rates['2x1']:.0f} with two workers of one thread, {rates['1x1']:.0f}"
        f" with one of one ({rates['2x1'] / rates['1x1']:.2f}x), {rates['1x2']:.0f} with one of two"
        f" threads ({rates['2x1'] / rates['1x2']:.2f}x)"
    )


def overhead(folder: Path) -> None:
    """From the ask to what a single run also does: composing, loading, building, writing."""
    space = [
        "hydra/sweeper/sampler=tpe", "hydra.sweeper.n_trials=12", "train.epochs=1",
        "freeze.unfreeze_epoch=0", "freeze.order=all_at_once", "data.windows_per_epoch=64",
        "optim.lr=tag(log,interval(1e-4,1e-2))",
    ]  # fmt: skip
    sweep(folder / "overhead", *space)
    trials = {t.user_attrs["slot"]: t for t in trials_of(folder / "overhead")}
    seconds = []
    for path in (folder / "overhead").rglob("trial.json"):
        slot = json.loads(path.read_text())["number"]
        if slot:  # the first has the imports
            ready = (path.parent / "provenance.json").stat().st_mtime
            seconds.append(ready - trials[slot].datetime_start.timestamp())
    print(
        f"overhead: from ask to the loop, worker warm: median {median(seconds):.2f} s,"
        f" largest {max(seconds):.2f} s, data, weights and baselines of the trial included"
    )


PARTS = {"grid": grid, "mission": mission, "workers": workers, "overhead": overhead}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--keep", type=Path, help="folder for the sweeps (default: temporary)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.only.split(","):
            PARTS[name](chosen.keep or Path(temporary))


if __name__ == "__main__":
    main()
