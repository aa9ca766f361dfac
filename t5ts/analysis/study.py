"""Collecting run directories: what ran, how far it got, and what cannot be read."""

import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t5ts.analysis.results import (
    FAILURE,
    Result,
    check_files,
    read_json,
    read_metrics,
    read_result,
)
from t5ts.config import MEASURED_BESIDES, NOT_IDENTITY
from t5ts.errors import DataError

Array = npt.NDArray[np.float64]
#: Files that mark a directory as a run directory.
MARKS = frozenset({"metrics.jsonl", "provenance.json", "result.json", "trial.json"})
_NONFINITE = re.compile(rb'^\{"kind": "step".*?"nonfinite_steps": (\d+)', re.MULTILINE)
#: Settings that cannot change what a run is compared on, besides those that change no number.
_NOT_SETTINGS = (
    *NOT_IDENTITY,
    "claims",  # what arm_requires was called until 2026-11-25
    "backbone.full_params",  # a setting until 2026-11-26
    "seed",
    "debug.",
    "train.log_every",
    "train.probe_every",
    "train.threads",
    "train.device",
    "train.eval_batch_size",
    "train.shuffled_test",
    "ood",  # null where no other series is tested on; else its keys are in the condition
)
#: Settings that every t5ts config.yaml has.
_NEEDED = (
    "seed",
    "seq_len",
    "horizon",
    "objective",
    "data.name",
    "data.fraction",
    "backbone.name",
    "init.name",
    "freeze.name",
    "train.epochs",
)
#: What must be equal before two runs are compared at all.
_CONDITION = (
    "data.",
    "ood.",
    "task.",
    "seq_len",
    "horizon",
    "objective",
    "init.keep",
    "patch.name",
)
#: Settings of data that matter even if its checksum is known; the rest describe its origin.
_OF_DATA = ("data.fraction", "data.windows_per_epoch", "data.missing", "ood.missing")


@dataclass(kw_only=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path: The directory.
        config: The resolved config with dotted keys.
        provenance: provenance.json; empty if there is none.
        evals: Columns over the evaluations (epoch, step, val_loss …); NaN where a row lacks one.
        probes: Columns over the update-ratio probes.
        nonfinite_steps: Steps whose gradients were not finite (fp16).
        result: result.json of a finished run.
        trial: trial.json of a sweep's run; empty without a sweep.
        state: finished, unfinished, or the trial's pruned, failed, interrupted, running.
        written: When its result was written, in seconds of the epoch; inf without one.
        copies: Other trials of the same configuration, seed and data, left out for this one.
        problem: Why the run is left out; None if it is not.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    evals: dict[str, Array] = field(default_factory=dict)
    probes: dict[str, Array] = field(default_factory=dict)
    nonfinite_steps: int = 0
    result: Result | None = None
    trial: dict[str, Any] = field(default_factory=dict)
    state: str = "unfinished"
    written: float = math.inf
    copies: list["Run"] = field(default_factory=list)
    problem: str | None = None

    @property
    def seed(self) -> int:
        """The seed that drives everything drawn."""
        return int(self.config["seed"])

    @property
    def arm(self) -> str:
        """Backbone, init and freezing, by their options' names."""
        c = self.config
        return f"{c['backbone.name']}-{c['init.name']}-{c['freeze.name']}"

    @property
    def epochs_due(self) -> int:
        """Epochs of the whole run: those asked for, or up to where early stopping ended it."""
        if self.result is None or self.result.stopped_epoch is None:
            return int(self.config["train.epochs"])
        return self.result.stopped_epoch

    @property
    def epochs(self) -> int:
        """Epochs evaluated so far."""
        return int(self.evals["epoch"][-1]) if len(self.evals.get("epoch", ())) else 0

    @cached_property
    def condition(self) -> tuple[tuple[str, str], ...]:
        """Data, the other series, task and lengths as configured; see `measured_on`."""
        return tuple(
            sorted(
                (k, json.dumps(v))
                for k, v in self.config.items()
                if k.startswith(_CONDITION) and not _is_off(k, v)
            )
        )

    @cached_property
    def fingerprint(self) -> str | None:
        """Checksums and borders of the data and the other series; None if not recorded."""
        series = [self.provenance.get(name) for name in ("data", "ood")]
        if not series[0] or not series[0].get("sha256"):
            return None
        return json.dumps([s and [s.get("sha256"), s.get("borders")] for s in series])

    @property
    def is_open(self) -> bool:
        """Whether it may still finish."""
        return self.result is None and self.state not in ("failed", "pruned")

    @property
    def trial_id(self) -> tuple[str, ...]:
        """Which trial it was; attempts of one trial share it."""
        known = "study" in self.trial and "number" in self.trial
        names = ("study", "arm", "number") if known else ()
        return tuple(str(self.trial.get(name)) for name in names) or (str(self.path),)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything else that can change a number, except the seed; a disabled key is left out."""
        apart: tuple[str, ...] = (*_NOT_SETTINGS, *_CONDITION)
        if self.config["init.name"] == "random":
            apart += ("init.path", "init.checkpoint")  # whose donor the other arms have
        return {
            k: v for k, v in self.config.items() if not k.startswith(apart) and not _is_off(k, v)
        }

    def metric(self, name: str) -> float:
        """A final metric (val_ at the best epoch, others of the same weights); NaN if unknown."""
        return math.nan if self.result is None else self.result.metrics.get(name, math.nan)

    def curve(self, name: str) -> tuple[Array, Array]:
        """Epochs and values of an evaluated metric."""
        if name not in self.evals:
            return np.empty(0), np.empty(0)
        known = np.isfinite(self.evals[name])
        return self.evals["epoch"][known], self.evals[name][known]

    def window_losses(self, split: str = "test") -> Array | None:
        """(W,) mean squared error of each window, in time order; None if not recorded.

        Args:
            split: test, or ood for the other series' test windows.
        """
        path = self.path / f"{split}_losses.npy"
        try:
            return np.load(path, allow_pickle=False).astype(np.float64)
        except (OSError, ValueError):
            return None

    def forecast_sample(self) -> dict[str, Any] | None:
        """A few forecasts with the truth; None if not recorded."""
        try:
            return read_json(self.path / "forecast_sample.json")
        except DataError:
            return None


def _is_off(key: str, value: Any) -> bool:
    """Whether an older t5ts without this key did the same."""
    return key in MEASURED_BESIDES and value == MEASURED_BESIDES[key]


def measured_on(runs: Iterable[Run]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    """Group runs by what they were measured on: only runs of one group are compared.

    Data is known by its checksum and borders, not by its name or folder. Runs of one configuration
    stay together even if its data changed meanwhile: the checks then report it.
    """
    runs = list(runs)
    prints: dict[tuple[tuple[str, str], ...], Counter[str]] = defaultdict(Counter)
    for run in runs:
        if run.fingerprint is not None:
            prints[run.condition][run.fingerprint] += 1
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        key = run.condition
        if key in prints:
            rest = (
                item
                for item in key
                if not item[0].startswith(("data.", "ood.")) or item[0] in _OF_DATA
            )
            key = (*rest, ("fingerprint", prints[key].most_common(1)[0][0]))
        groups[key].append(run)
    return groups


@dataclass(kw_only=True, eq=False)
class Study:
    """All runs under some directories.

    Attributes:
        dirs: The directories that were passed.
        runs: The runs that can be used, finished or not, in the order of their paths.
        left_out: The runs that cannot, each with its `problem`.
        read_s: Seconds that reading took.
    """

    dirs: list[Path]
    runs: list[Run]
    left_out: list[Run]
    read_s: float

    @property
    def finished(self) -> list[Run]:
        """The runs with a result."""
        return [run for run in self.runs if run.result is not None]

    def table(self) -> Any:
        """A polars DataFrame with a row per usable run: identity, settings and final metrics."""
        import polars as pl

        keys = varying([run.config for run in self.runs])
        metrics = sorted({name for run in self.runs if run.result for name in run.result.metrics})
        rows = []
        for run in self.runs:
            result = run.result
            row = {
                "path": str(run.path),
                "identity": run.provenance.get("identity"),
                "arm": run.arm,
                "data": run.config.get("data.name"),
                "seed": run.seed,
                "state": run.state,
                "epochs": run.epochs,
                "best_epoch": result and result.best_epoch,
                "seconds": result and result.seconds,
                "objective": result and result.objective,
            }
            row |= {k: _scalar(run.config.get(k)) for k in keys if k != "seed"}
            row |= {name: result and run.metric(name) for name in metrics}
            rows.append(row)
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def varying(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ between some settings, ascending; a key that is absent is null."""
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def collect(dirs: Iterable[str | Path]) -> Study:
    """Read every run directory at or below the given ones.

    What cannot be read is kept with its reason and does not stop the rest; of several runs of one
    configuration the first that finished is used.

    Raises:
        DataError: if a directory does not exist, or none contains a run.
    """
    begun = time.perf_counter()
    folders = [Path(d) for d in dirs]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a directory: give run directories, or folders that contain them"
                " (outputs/…, multirun/…)."
            )
    paths = sorted({path.resolve(): path for f in folders for path in find_runs(f)}.values())
    if not paths:
        raise DataError(
            f"no run found in {', '.join(map(str, folders))}: a run directory contains"
            f" {', '.join(sorted(MARKS))}. Give outputs/… or multirun/… of python -m t5ts.run."
        )
    runs = [read_run(path) for path in paths]
    _leave_out_copies(runs)
    return Study(
        dirs=folders,
        runs=[run for run in runs if run.problem is None],
        left_out=[run for run in runs if run.problem is not None],
        read_s=time.perf_counter() - begun,
    )


def find_runs(folder: Path) -> list[Path]:
    """Every run directory at or below a folder; earlier attempts (`previous-N`) are not runs."""
    found = []
    for where, folders, files in os.walk(folder):
        if MARKS.intersection(files):
            found.append(Path(where))
            folders.clear()
        else:
            folders[:] = [f for f in folders if not f.startswith((".", "previous-"))]
    return found


def read_run(path: Path) -> Run:
    """Read one run directory; what is wrong with it becomes its `problem`."""
    run = Run(path=path)
    try:
        if (path / "trial.json").is_file():
            run.trial = read_json(path / "trial.json")
            run.state = str(run.trial.get("state", run.state))
        elif (path / FAILURE).is_file():
            run.trial, run.state = read_json(path / FAILURE), "failed"
        run.config = _read_config(path / "config.yaml")
        if (path / "provenance.json").is_file():
            run.provenance = read_json(path / "provenance.json")
        if (path / "metrics.jsonl").is_file():
            _read_metrics(run)
        if (path / "result.json").is_file():
            run.result = read_result(path / "result.json")
            check_files(path, run.result)
            run.state = "finished"
            run.written = (path / "result.json").stat().st_mtime
    except (DataError, OSError) as error:
        run.problem = str(error)
        if not run.config and run.trial.get("reason"):
            run.problem = f"failed before it started: {run.trial['reason']}"
        return run
    if run.config.get("debug.name", "none") != "none":
        run.problem = f"debug={run.config['debug.name']}: its numbers are not a result"
    elif run.result is not None and not math.isfinite(
        run.result.objective + run.metric("test_loss")
    ):
        # Counts as an outcome of its arm, like a run that ended in an error.
        run.result, run.state = None, "failed"
        run.trial = run.trial | {"reason": "its loss is not finite"}
    return run


def _read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml with dotted keys."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        nested = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError as error:
        raise DataError("no config.yaml: the run ended before it started") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"config.yaml is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(nested, dict):
        raise DataError("config.yaml is empty or contains no settings")
    flat = dict(_flat(nested, ""))
    if missing := [key for key in _NEEDED if key not in flat]:
        raise DataError(f"config.yaml is missing {', '.join(missing)}: not a t5ts run")
    return flat


def _flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_metrics(run: Run) -> None:
    """Evaluations and probes of metrics.jsonl; of the many step rows only counts are kept."""
    evals, probes = (read_metrics(run.path, kind) for kind in ("eval", "probe"))
    try:
        run.evals, run.probes = _columns(evals), _columns(probes)
    except (TypeError, ValueError) as error:
        raise DataError(f"metrics.jsonl contains a value that is not a number ({error})") from error
    steps = _NONFINITE.findall((run.path / "metrics.jsonl").read_bytes())
    run.nonfinite_steps = sum(int(number) for number in steps)


def _columns(rows: list[dict[str, Any]]) -> dict[str, Array]:
    names = dict.fromkeys(key for row in rows for key in row if key != "kind")
    return {
        name: np.array([math.nan if row.get(name) is None else row[name] for row in rows], float)
        for name in names
    }


def _leave_out_copies(runs: list[Run]) -> None:
    """Of runs with one configuration, seed and data the first finished is used, or the furthest."""
    same: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.problem is None and "identity" in run.provenance:
            same[run.provenance["identity"], run.fingerprint].append(run)
    for members in same.values():
        used, *others = sorted(members, key=lambda r: (r.written, -r.epochs))
        used.copies = others
        for run in others:
            run.problem = f"the same configuration and seed as {used.path}, which is used"
