"""One trial: trained, reported to its study each epoch, and closed there and in its directories."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts.analysis.results import Result, read_json, read_metrics, read_result
from t5ts.checks import check
from t5ts.config import Config, from_hydra
from t5ts.errors import (
    DataError,
    DirectoryInUse,
    InputsChanged,
    Interrupted,
    ResumeError,
    TrainingError,
)
from t5ts.interruption import stop_on_signals
from t5ts.provenance import write_json
from t5ts.sweep.ledger import Claim, Ledger, is_void
from t5ts.sweep.settings import COSTS, SweepSettings
from t5ts.sweep.space import Value, arm_name

log = logging.getLogger("t5ts.sweep")

#: What a search cost, in an arm's results.
BUDGET = ("trials", "seeds", "settings", "complete", "pruned", "failed", "epochs")
#: Seconds between checks of a directory in which another process is still running.
WAIT_S = 0.5


class Pruned(Exception):
    """The study's pruner stopped this trial."""


@dataclass(kw_only=True)
class Arm:
    """An arm and its study, as one process sees them.

    Attributes:
        values: The settings that define the arm.
        grid: The grid's points by slot, if it is one.
        base: The best point of another sweep that its trials start from, if any.
    """

    values: dict[str, Value]
    ledger: Ledger
    grid: list[dict[str, Any]] | None
    base: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What it is called, in directories too."""
        return arm_name(self.values)

    def claim(self, owner: str, settings: SweepSettings) -> Claim | None:
        """Take a trial for a process; None if none is free."""
        return self.ledger.claim(
            owner,
            sampler_of=settings.make_sampler,
            point_of=lambda slot: None if self.grid is None else self.grid[slot],
        )


@dataclass(kw_only=True)
class TrialTask:
    """Hydra's task function for one trial's runs, and its records in the study and directories.

    It is called for each of the trial's seeds in turn (`hydra.sweeper.seeds`).

    Attributes:
        group: Name of the sweep.
        runs: Directory and configuration of each seed's run, as far as they were started.
        results: Of those that finished.
    """

    settings: SweepSettings
    group: str
    arm: Arm
    claim: Claim
    runs: dict[Path, Config] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    _reported: int = -1

    def __call__(self, cfg: DictConfig) -> Result:
        """Train this point in the directory that Hydra created for it."""
        from t5ts.experiment import run  # torch

        run_dir = Path(HydraConfig.get().runtime.output_dir)
        config = from_hydra(cfg)
        check(config)
        assert owner_of(run_dir) in (None, (self.arm.ledger.study.study_name, self.claim.slot))
        with stop_on_signals() as stop:
            if self.runs and stop.is_set():
                raise Interrupted("stopped between two seeds")
            self.runs[run_dir] = config
            self.write("running", None, None)
            _put_corrupt_result_aside(run_dir)
            wait_until = time.monotonic() + self.settings.lost_after_s
            while True:
                try:
                    result = run(
                        config,
                        run_dir=run_dir,
                        group=self.group,
                        after_epoch=self.after_epoch,
                        pictures=False,
                    )
                    break
                except DirectoryInUse as error:
                    # The worker that this trial was taken from is still alive, on another machine.
                    if stop.is_set():
                        raise Interrupted(str(error)) from error
                    if time.monotonic() > wait_until:
                        raise
                    time.sleep(WAIT_S)
                except InputsChanged:
                    raise
                except ResumeError as error:
                    if config.train.resume == "never":
                        raise
                    log.warning("%s It is moved aside and the trial is trained again.", error)
                    config = replace(config, train=replace(config.train, resume="never"))
        if not math.isfinite(value := value_of([result], self.settings)):
            raise TrainingError(f"the objective is not finite: {value}")
        self.results.append(result)
        return result

    @property
    def _now(self) -> Config:
        """The configuration of the run that is under way."""
        return next(reversed(self.runs.values()))

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Report an epoch to the study, and stop if the pruner decides so.

        Raises:
            Pruned: but not during the grace period after unfreezing.
            UpdateFinishedTrialError: if this worker was presumed dead and the trial given away.
        """
        trial, objective, epoch = self.claim.trial, self.settings.objective, row["epoch"]
        trial.set_user_attr("live", {"seed": self._now.seed, "epoch": epoch})
        if objective not in row or len(self.runs) > 1 or not self._report():
            return
        # "never" counts as "from the start"
        unfreeze_epoch = self._now.freeze.unfreeze_epoch or 0.0
        is_in_grace = epoch < unfreeze_epoch + self.settings.grace_epochs
        is_last = epoch == self._now.train.epochs or row.get("ends_run")
        if not is_last and not is_in_grace and trial.should_prune():
            raise Pruned(f"at epoch {epoch} with {objective} {row[objective]:.4g}")

    def _report(self) -> bool:
        """Report every epoch of the first seed's run so far to the pruner, if there is one.

        Epochs of an earlier attempt, or of a reused frozen phase, are also reported. Other seeds'
        are not: the first is the same for all trials.
        """
        objective = self.settings.objective
        if not self.settings.prunes:
            return False
        for row in read_metrics(next(iter(self.runs)), "eval"):
            if row["epoch"] > self._reported and row.get(objective) is not None:
                self.claim.trial.report(row[objective], step=row["epoch"])
                self._reported = row["epoch"]
        return True

    def end(self, state: str, reason: str | None = None) -> None:
        """Record how the trial ended, unless another worker was given it meanwhile."""
        trial, value = self.claim.trial, None
        if reason is not None and self.settings.seeds > 1 and self.runs:
            reason = f"seed {self._now.seed}: {reason}"
        try:
            if state == "complete":
                value = value_of(self.results, self.settings)
                with suppress(DataError):  # the result matters; the pruner's curve is optional
                    self._report()
            if reason is not None:
                trial.set_user_attr("reason", reason)
            trial.set_user_attr("epochs", self._epochs(_epochs(*run) for run in self.runs.items()))
            self.write(state, reason, value)
            ended_as = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(state)
            told = trial.study.tell(trial, value, state=ended_as, skip_if_finished=True)
            is_ours = not is_void(told)
        except UpdateFinishedTrialError:
            is_ours = False
        if not is_ours:
            log.warning("slot %s: given to another worker before it ended here", self.claim.slot)
        elif state in ("complete", "pruned") and not self.settings.keep_last:
            # Nothing resumes from here, and the optimizer's state is twice the size of the weights.
            for run_dir in self.runs:
                (run_dir / "checkpoint" / "last.safetensors").unlink(missing_ok=True)

    def _epochs(self, of_runs: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Epochs requested by the point over all its seeds, trained, and reused."""
        each = list(of_runs)
        asked = self.settings.seeds * each[0]["asked"] if each else 0
        return {"asked": asked} | {k: sum(one[k] for one in each) for k in ("trained", "reused")}

    def write(self, state: str, reason: str | None, value: float | None) -> None:
        """`trial.json`: what the study knows of the trial, for readers of run directories only.

        Every seed's directory has a copy; the first seed's is written first, and decides.
        """
        trial, base = self.claim.trial, self.arm.base
        distributions = {k: distribution_to_json(d) for k, d in trial.distributions.items()}
        each = [_epochs(*run) for run in self.runs.items()]
        for run_dir, epochs in zip(self.runs, each, strict=True):
            record = {
                "study": self.arm.ledger.study.study_name,
                "arm": self.arm.name,
                "number": self.claim.slot,
                "state": state,
                "reason": reason,
                "params": trial.params,
                "distributions": distributions,
                "searched_before": base
                and {"keys": [*base["best_params"]], **{k: base[k] for k in BUDGET if k in base}},
                "objectives": [self.settings.objective],
                "values": None if value is None else [value],
                "n_trials": self.arm.ledger.n_trials,
                "epochs": self._epochs(each),
                "reused_epochs": epochs["reused"],
            }
            if self.settings.seeds > 1:
                first = next(iter(self.runs.values())).seed
                record["seed_of"] = [*range(first, first + self.settings.seeds)]
            write_json(run_dir / "trial.json", record)


def _epochs(run_dir: Path, config: Config) -> dict[str, int]:
    """Epochs that a run was asked for, trained, and reused."""
    try:
        reached = max((int(row["epoch"]) for row in read_metrics(run_dir, "eval")), default=0)
        about = read_json(run_dir / "provenance.json").get("reuse")
    except DataError:  # not started yet
        reached, about = 0, None
    reused = 0 if about is None else about["epochs"]
    return {"asked": config.train.epochs, "trained": max(0, reached - reused), "reused": reused}


def value_of(results: Iterable[Result], settings: SweepSettings) -> float:
    """The objective's value: the mean over the results of a trial's seeds."""
    name = settings.objective
    return fmean(
        result.objective
        if name == result.objective_name
        else float(getattr(result, name) if name in COSTS else result.metrics[name])
        for result in results
    )


def owner_of(run_dir: Path) -> tuple[str, int] | None:
    """Study and slot of the trial that a directory belongs to; None if it is free or unreadable."""
    try:
        record = read_json(run_dir / "trial.json")
        return record["study"], record["number"]
    except (DataError, KeyError):
        return None


def seed_folder(seed: int) -> str:
    """Name of a seed's run directory below its trial's, where a trial has several seeds."""
    return f"seed-{seed}"


def read_trials(sweep_dir: Path) -> dict[tuple[str, int], tuple[list[Path], dict[str, Any]]]:
    """Each trial below a sweep's directory, by study and slot.

    Returns:
        The run directories that its value is the mean of, and its trial.json (its first seed's).
    """
    found = {}
    for path in sorted(sweep_dir.rglob("trial.json")):
        folder, whose = path.parent, owner_of(path.parent)
        if whose is not None:
            record = read_json(path)
            seeds = record.get("seed_of")
            folders = [folder.with_name(seed_folder(seed)) for seed in seeds] if seeds else [folder]
            if folder == folders[0]:
                found[whose] = (folders, record)
    return found


def _put_corrupt_result_aside(run_dir: Path) -> None:
    """Make a trial whose result.json cannot be read run again."""
    path = run_dir / "result.json"
    try:
        if path.exists():
            read_result(path)
    except (DataError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is corrupt (%s): moved to result.json.corrupt", path, error)
        path.replace(path.with_name("result.json.corrupt"))
