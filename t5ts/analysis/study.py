"""Collecting run directories: what ran, how far it got, and what cannot be read."""

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from t5ts.analysis.results import (
    FAILURE,
    Result,
    check_files,
    read_json,
    read_metrics,
    read_result,
)
from t5ts.analysis.statistics import Array
from t5ts.config import MEASURED_BESIDES, NOT_IDENTITY, OBJECTIVES
from t5ts.errors import DataError

T = TypeVar("T")
K = TypeVar("K")
#: Files that mark a directory as a run directory.
MARKS = frozenset({"metrics.jsonl", "provenance.json", "result.json", "trial.json"})
_NONFINITE = re.compile(rb'^\{"kind": "step".*?"nonfinite_steps": (\d+)', re.MULTILINE)
#: Settings that cannot change what a run is compared on, in addition to `NOT_IDENTITY`.
#: `claims`, `arm_requires` and `backbone.full_params` are no longer settings. `ood` is null if no
#: other series is tested on; otherwise its keys are part of the condition.
_NOT_SETTINGS = {*NOT_IDENTITY, "seed", "debug.", "train.threads", "train.device", "ood"}
_NOT_SETTINGS |= {"train.log_every", "train.probe_every", "train.eval_batch_size"}
_NOT_SETTINGS |= {"train.shuffled_test", "backbone.card", "backbone.full_params"}
_NOT_SETTINGS |= {"claims", "arm_requires", "init.allow_untrained"}
#: Settings that every t5ts config.yaml has.
_NEEDED = {"seed", "seq_len", "horizon", "objective", "data.name", "data.fraction", "train.epochs"}
_NEEDED |= {"backbone.name", "init.name", "freeze.name"}
#: What must be equal before two runs are compared at all.
_CONDITION = (
    *("data.", "ood.", "task.", "seq_len", "horizon", "objective", "init.keep", "patch.name"),
)
#: Settings of data that matter even if its checksum is known; the rest describe its origin.
_OF_DATA = ("data.fraction", "data.windows_per_epoch", "data.missing", "ood.missing")


class Run:
    """One run directory; what is wrong with it becomes its `problem`.

    Attributes:
        config: The resolved config with dotted keys.
        provenance, result: Contents of these JSON files; empty or None without the file.
        evals, probes: Columns over evaluations and update-ratio probes; NaN where a row lacks one.
        nonfinite_steps: Steps whose gradients were not finite (fp16).
        trial: trial.json of a sweep's run; empty without a sweep.
        state: finished, unfinished, or the trial's pruned, failed, interrupted, running.
        written: When its result was written, in seconds of the epoch; inf without one.
        copies: Other trials of the same configuration, seed and data, left out for this one.
        problem: Why the run is left out (then it may lack all that follows); None if it is not.
        arm, label: Backbone, init and freezing, by their options' names; that and the seed.
        objective, maximize: The validation objective at the best epoch, NaN without a result;
            whether higher is better.
        epochs, epochs_due: Evaluated so far; requested, or up to where early stopping ended it.
        is_open: Whether it may still finish.
        trial_id: Which trial it was; attempts of one trial share it.
        weights, initial: The load report of its encoder; checksums of what its parts started from.
        fingerprint: Checksums and borders of the data and the other series; None if not recorded.
        condition: Data, the other series, task and lengths as configured; see `measured_on`.
        settings: Everything else that can change a number, except the seed. In both, a key that
            is off is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.trial: dict[str, Any] = {}
        self.evals: dict[str, Array] = {}
        self.probes: dict[str, Array] = {}
        self.nonfinite_steps, self.written = 0, math.inf
        self.state = "unfinished"
        self.result: Result | None = None
        self.copies: list[Run] = []
        self.problem: str | None = None
        try:
            self._read(path)
            self._derive()
        except (DataError, OSError) as error:
            reason = None if self.config else self.trial.get("reason")
            self.problem = f"failed before it started: {reason}" if reason else str(error)

    def _read(self, path: Path) -> None:
        names = {file.name for file in path.iterdir()}
        if "trial.json" in names:
            self.trial = read_json(path / "trial.json")
            self.state = str(self.trial.get("state", self.state))
        elif FAILURE in names:
            self.trial, self.state = read_json(path / FAILURE), "failed"
        self.config = _read_config(path / "config.yaml")
        if "provenance.json" in names:
            self.provenance = read_json(path / "provenance.json")
        if "metrics.jsonl" in names:
            self.evals, self.probes = (_columns(read_metrics(path, k)) for k in ("eval", "probe"))
            # Of the many step rows only a count is kept.
            steps = _NONFINITE.findall((path / "metrics.jsonl").read_bytes())
            self.nonfinite_steps = sum(map(int, steps))
        if "result.json" in names:
            self.result = read_result(path / "result.json")
            check_files(path, self.result)
            self.state, self.written = "finished", (path / "result.json").stat().st_mtime
        if self.config.get("debug.name", "none") != "none":
            raise DataError(f"debug={self.config['debug.name']}: its numbers are not a result")
        if self.result and not math.isfinite(self.result.objective + self.metric("test_loss")):
            # Counts as an outcome of its arm, like a run that ended in an error.
            self.result, self.state = None, "failed"
            self.trial = self.trial | {"reason": "its loss is not finite"}

    def _derive(self) -> None:
        c, result, provenance = self.config, self.result, self.provenance
        self.seed = int(c["seed"])
        self.arm = f"{c['backbone.name']}-{c['init.name']}-{c['freeze.name']}"
        self.label = f"{self.arm} seed {self.seed}"
        self.objective = result.objective if result else math.nan
        self.maximize = OBJECTIVES.get(str(c["objective"])) == "max"
        self.epochs = int(self.evals["epoch"][-1]) if len(self.evals.get("epoch", ())) else 0
        stopped = result.stopped_epoch if result else None
        self.epochs_due = int(c["train.epochs"]) if stopped is None else stopped
        self.is_open = result is None and self.state not in ("failed", "pruned")
        self.trial_id = (*self.sweep, self.trial["number"]) if self.sweep else (str(self.path),)
        self.weights: dict[str, Any] = provenance.get("weights") or {}
        self.initial: dict[str, str] = provenance.get("initial_sha256") or {}
        series = provenance.get("data"), provenance.get("ood")
        prints = [facts and [facts.get("sha256"), facts.get("borders")] for facts in series]
        self.fingerprint = json.dumps(prints) if prints[0] and prints[0][0] else None
        # An older t5ts that lacks a key behaved as if it were off.
        on = {k: v for k, v in c.items() if k not in MEASURED_BESIDES or v != MEASURED_BESIDES[k]}
        condition = {k: json.dumps(v) for k, v in on.items() if k.startswith(_CONDITION)}
        self.condition = tuple(sorted(condition.items()))
        # Random weights have no donor, whatever the other arms have.
        donors = ("init.path", "init.checkpoint") if c["init.name"] == "random" else ()
        apart = (*_NOT_SETTINGS, *_CONDITION, *donors)
        self.settings = {k: v for k, v in on.items() if not k.startswith(apart)}

    @property
    def sweep(self) -> tuple[Any, ...] | None:
        """Study and arm of the sweep whose trial it was; None without one."""
        is_known = {"study", "number", "n_trials", "state"} <= self.trial.keys()
        return (self.trial["study"], self.trial.get("arm")) if is_known else None

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
        """(W,) mean squared error of each test (or ood) window, in time order; None if unknown."""
        try:
            losses = np.load(self.path / f"{split}_losses.npy", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return losses.astype(np.float64)

    def forecast_sample(self) -> dict[str, Any] | None:
        """A few forecasts with the truth; None if not recorded."""
        try:
            return read_json(self.path / "forecast_sample.json")
        except DataError:
            return None


def grouped(items: Iterable[T], key: Callable[[T], K]) -> defaultdict[K, list[T]]:
    """Items by the value of `key`, in order of first appearance."""
    groups: defaultdict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def measured_on(runs: Iterable[Run]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    """Group runs by what they were measured on: only runs of one group are compared.

    Data is known by its checksum and borders, not by its name or folder. Runs of one configuration
    stay together even if its data changed meanwhile: the checks then report it.
    """
    runs = list(runs)
    known = grouped((run for run in runs if run.fingerprint), lambda run: run.condition)
    prints = {
        condition: Counter(str(run.fingerprint) for run in group).most_common(1)[0]
        for condition, group in known.items()
    }

    def key(run: Run) -> tuple[tuple[str, str], ...]:
        of_data = ("data.", "ood.") if run.condition in prints else ()
        rest = ((k, v) for k, v in run.condition if not k.startswith(of_data) or k in _OF_DATA)
        return *rest, *([("fingerprint", prints[run.condition][0])] if of_data else [])

    return grouped(runs, key)


@dataclass(kw_only=True, eq=False)
class Study:
    """All runs under some directories: the usable ones, and `left_out` each with its `problem`."""

    dirs: list[Path]
    runs: list[Run]
    left_out: list[Run]

    @property
    def finished(self) -> list[Run]:
        """The runs with a result."""
        return [run for run in self.runs if run.result is not None]

    def table(self) -> Any:
        """A polars DataFrame with a row per usable run: identity, settings and final metrics."""
        import polars as pl

        keys = [key for key in varying([run.config for run in self.runs]) if key != "seed"]
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
            given = {key: run.config.get(key) for key in keys}
            row |= {k: json.dumps(v) if isinstance(v, list) else v for k, v in given.items()}
            rows.append(row | {name: result and run.metric(name) for name in metrics})
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def varying(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ between some settings, ascending; a key that is absent is null."""
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]


def collect(dirs: Iterable[str | Path]) -> Study:
    """Read every run directory at or below the given ones.

    What cannot be read is kept with its reason and does not stop the rest; of several runs of one
    configuration, seed and data the first to finish is used, or else the furthest.

    Raises:
        DataError: if a directory does not exist, or none contains a run.
    """
    folders = [Path(d) for d in dirs]
    if absent := next((folder for folder in folders if not folder.is_dir()), None):
        raise DataError(
            f"{absent} is not a directory: give run directories, or folders that contain them"
            " (outputs/…, multirun/…)."
        )
    paths: dict[Path, Path] = {}
    for where, below, names in chain(*map(os.walk, folders)):
        is_run = bool(MARKS.intersection(names))
        if is_run:
            paths[Path(where).resolve()] = Path(where)
        # Earlier attempts are not runs, and nothing below a run is one.
        below[:] = [f for f in below if not is_run and not f.startswith((".", "previous-"))]
    if not paths:
        raise DataError(
            f"no run found in {', '.join(map(str, folders))}: a run directory contains"
            f" {', '.join(sorted(MARKS))}. Give outputs/… or multirun/… of python -m t5ts.run."
        )
    runs = [Run(path) for path in sorted(paths.values())]
    usable = [run for run in runs if run.problem is None and "identity" in run.provenance]
    for same in grouped(usable, lambda r: (r.provenance["identity"], r.fingerprint)).values():
        used, *used.copies = sorted(same, key=lambda run: (run.written, -run.epochs))
        for run in used.copies:
            run.problem = f"the same configuration and seed as {used.path}, which is used"
    by_use = grouped(runs, lambda run: run.problem is None)
    return Study(dirs=folders, runs=by_use[True], left_out=by_use[False])


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
    flat = _flat(nested) if isinstance(nested, dict) else {}
    if missing := _NEEDED - flat.keys():
        raise DataError(f"config.yaml is missing {', '.join(sorted(missing))}: not a t5ts run")
    return flat


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        is_node = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return flat


def _columns(rows: list[dict[str, Any]]) -> dict[str, Array]:
    names = dict.fromkeys(key for row in rows for key in row if key != "kind")
    try:
        # Null is NaN.
        return {name: np.array([row.get(name) for row in rows], float) for name in names}
    except (TypeError, ValueError) as error:
        raise DataError(f"metrics.jsonl contains a value that is not a number ({error})") from error
