"""Sweeps as a user starts them: processes, and their directories afterwards."""

import os
import signal
from pathlib import Path

from conftest import SMALL, TINY_T5
from optuna import load_study
from optuna.trial import FrozenTrial
from runs import Command, command_line, read

from t5ts.config import CONF
from t5ts.sweep.ledger import is_released
from t5ts.sweep.storage import open_storage

ROOT = CONF.parent
#: What every sweep of the tests has.
COMMON = ["hydra/sweeper=t5ts", *SMALL, *TINY_T5, "train.epochs=3", "train.threads=1"]
#: Short trials of one searched number on two seeds.
SPACE = [
    "hydra.sweeper.study_name=small",
    "hydra.sweeper.seeds=2",
    "optim.lr=tag(log,interval(1e-4,1e-2))",  # the last of a key counts
    "freeze=staged",
    "freeze.unfreeze_epoch=1",
    "train.epochs=2",
]


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | changes


def _background(*arguments: str) -> None:
    """What a shell's `python -m t5ts.run … &` does: SIGINT is ignored at its start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command_line("--multirun", *COMMON, *SPACE, *arguments)


def start(*overrides: str, cwd: Path) -> Command:
    """A sweep in its own process; an override wins over SPACE's of the same key."""
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return Command(*overrides, cwd=cwd, program=_background, **threads)


def attempts(sweep_dir: Path, *, url: str | None = None, study: str = "small") -> list[FrozenTrial]:
    """Every attempt in the study."""
    storage = open_storage(url, sweep_dir)
    return load_study(study_name=study, storage=storage).get_trials(deepcopy=False)


def results(trials: list[FrozenTrial]) -> list[int]:
    """Slots of the finished attempts that count."""
    return sorted(
        t.user_attrs["slot"] for t in trials if t.state.is_finished() and not is_released(t)
    )


def run_dirs(sweep_dir: Path) -> dict[int, Path]:
    """Directory of each slot, above those of its seeds; two of one slot would be a mistake."""
    found: dict[int, Path] = {}
    for path in (*sweep_dir.glob("*/trial.json"), *sweep_dir.glob("*/seed-*/trial.json")):
        record = read(path)
        folder = path.parent.parent if "seed_of" in record else path.parent
        assert found.setdefault(record["number"], folder) == folder
    return found


def states(folder: Path) -> list[str]:
    """How each slot of a study called `sweep` ended, by slot; at most one attempt counts."""
    ends: dict[int, list[str]] = {}
    for attempt in attempts(folder, study="sweep"):
        of_slot = ends.setdefault(attempt.user_attrs.get("slot", -1), [])
        if attempt.state.is_finished() and not is_released(attempt):
            of_slot.append(attempt.state.name.lower())
    assert all(len(of_slot) <= 1 for of_slot in ends.values())
    return ["".join(of_slot) or "open" for _, of_slot in sorted(ends.items())]
