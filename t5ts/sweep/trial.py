"""One trial: trained, reported to its study each epoch, and closed there and in its directory."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts.analysis.results import Result, read_json, read_metrics, read_result
from t5ts.checks import check
from t5ts.config import OBJECTIVES, Config, from_hydra
from t5ts.errors import (
    ConfigError,
    DataError,
    DirectoryInUse,
    InputsChanged,
    Interrupted,
    ResumeError,
)
from t5ts.interruption import stop_on_signals
from t5ts.provenance import write_json
from t5ts.sweep.ledger import Claim, Ledger, is_void
from t5ts.sweep.settings import COSTS, SweepSettings
from t5ts.sweep.space import Base, Value, arm_name

log = logging.getLogger("t5ts.sweep")

#: Seconds between checks of a directory in which another process is still running.
WAIT_S = 0.5


class Pruned(Exception):
    """The study's pruner stopped this trial."""


class Lost(Exception):
    """Another worker has this trial: this one was presumed dead."""


@dataclass(kw_only=True)
class Arm:
    """An arm and its study, as one worker sees them.

    Attributes:
        values: The settings that define the arm.
        grid: The grid's points by slot, if it is one.
        base: The point of another sweep that its trials start from, if any.
    """

    values: dict[str, Value]
    ledger: Ledger
    grid: list[dict[str, Any]] | None
    base: Base | None

    def point_of(self, slot: int) -> dict[str, Any] | None:
        """A slot's parameters in a grid."""
        return None if self.grid is None else self.grid[slot]


@dataclass(kw_only=True)
class TrialTask:
    """Hydra's task function for one trial, and its records in the study and directory.

    Attributes:
        settings: The sweeper's.
        group: Name of the sweep.
        arm: The trial's arm.
        claim: The trial.
        worker: This worker's number, for the displays.
    """

    settings: SweepSettings
    group: str
    arm: Arm
    claim: Claim
    worker: int
    run_dir: Path | None = None
    config: Config | None = None
    _reported: int = -1

    def __call__(self, cfg: DictConfig) -> Result:
        """Train this point in the directory that Hydra created for it."""
        from t5ts.experiment import run  # torch

        run_dir = Path(HydraConfig.get().runtime.output_dir)
        config = from_hydra(cfg)
        check(config)
        whose = owner_of(run_dir)
        if whose is not None and whose != (self.arm.ledger.study.study_name, self.claim.slot):
            raise ConfigError(
                f"{run_dir} is the directory of trial {whose[1]} of {whose[0]}: give each trial its"
                " own by using ${hydra.job.num} in hydra.sweep.subdir."
            )
        self.run_dir, self.config = run_dir, config
        self._show(epoch=0, value=None)
        self.write("running", None, None)
        _put_corrupt_result_aside(run_dir)
        wait_until = time.monotonic() + self.settings.lost_after_s
        with stop_on_signals() as stop:
            while True:
                try:
                    return run(
                        config,
                        run_dir=run_dir,
                        group=self.group,
                        after_epoch=self.after_epoch,
                        pictures=False,
                    )
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

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Report an epoch to the study, and stop if the pruner decides so.

        Raises:
            Pruned: but not during the grace period after unfreezing.
            Lost: if the trial was given to another worker.
        """
        assert self.config is not None
        trial, objective, epoch = self.claim.trial, self.settings.objective[0], row["epoch"]
        self._show(epoch=epoch, value=row.get(objective))
        if not self.arm.ledger.is_mine(trial):
            raise Lost("presumed dead and given to another worker; this attempt stops")
        if objective not in row or not self.settings.prunes or objective not in OBJECTIVES:
            return
        self._report()
        unfreeze_epoch = (
            self.config.freeze.unfreeze_epoch or 0.0
        )  # "never" counts as "from the start"
        is_in_grace = epoch < unfreeze_epoch + self.settings.grace_epochs
        is_last = epoch == self.config.train.epochs or row.get("ends_run")
        if not is_last and not is_in_grace and trial.should_prune():
            raise Pruned(f"at epoch {epoch} with {objective} {row[objective]:.4g}")

    def _report(self) -> None:
        """Report every epoch of the run so far to the pruner.

        Epochs of an earlier attempt, or of a reused frozen phase, are also reported.
        """
        objective = self.settings.objective[0]
        assert self.run_dir is not None
        for row in read_metrics(self.run_dir, "eval"):
            if row["epoch"] > self._reported and row.get(objective) is not None:
                self.claim.trial.report(row[objective], step=row["epoch"])
                self._reported = row["epoch"]

    def _show(self, *, epoch: int, value: float | None) -> None:
        """Update the values for the coordinator's display."""
        assert self.config is not None
        live = {"worker": self.worker, "epoch": epoch, "epochs": self.config.train.epochs}
        self.claim.trial.set_user_attr("live", {**live, "value": value})

    def end(self, state: str, reason: str | None, result: Result | None) -> None:
        """Record how the trial ended, unless another worker was given it meanwhile."""
        try:
            self._end(state, reason, result)
        except (Lost, UpdateFinishedTrialError):
            log.warning("slot %s: given to another worker before it ended here", self.claim.slot)

    def _end(self, state: str, reason: str | None, result: Result | None) -> None:
        """Record the end in the study and in the directory."""
        trial, study, values = self.claim.trial, self.arm.ledger.study, None
        if result is not None:
            if self.settings.prunes and self.settings.objective[0] in OBJECTIVES:
                try:
                    self._report()
                except DataError as error:  # the result matters; the pruner's curve is optional
                    log.warning("not reported to the pruner: %s", error)
            trial.set_user_attr("metrics", result.metrics | {c: getattr(result, c) for c in COSTS})
            values = values_of(result, self.settings)
            if not all(math.isfinite(value) for value in values):
                reason = f"an objective is not finite: {', '.join(map(str, values))}"
                state, values = "failed", None
        if reason is not None:
            trial.set_user_attr("reason", reason)
        trial.set_user_attr("epochs", self._epochs())
        self.write(state, reason, values)
        ended_as = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(state)
        if is_void(study.tell(trial, values, state=ended_as, skip_if_finished=True)):
            raise Lost
        if state in ("complete", "pruned") and not self.settings.keep_last:
            # Nothing resumes from here, and the optimizer's state is twice the size of the weights.
            assert self.run_dir is not None
            (self.run_dir / "checkpoint" / "last.safetensors").unlink(missing_ok=True)

    def _epochs(self) -> dict[str, int]:
        """Epochs requested by the point, trained, and reused."""
        if self.config is None or self.run_dir is None:
            return {"asked": 0, "trained": 0, "reused": 0}
        try:
            reached = max((int(r["epoch"]) for r in read_metrics(self.run_dir, "eval")), default=0)
            about = read_json(self.run_dir / "provenance.json").get("reuse")
        except DataError:  # not started yet
            reached, about = 0, None
        reused = 0 if about is None else about["epochs"]
        asked = self.config.train.epochs
        return {"asked": asked, "trained": max(0, reached - reused), "reused": reused}

    def write(self, state: str, reason: str | None, values: list[float] | None) -> None:
        """`trial.json`: what the study knows about this run, for readers of directories only."""
        if self.run_dir is None:
            return
        trial, base, epochs = self.claim.trial, self.arm.base, self._epochs()
        distributions = {k: distribution_to_json(d) for k, d in trial.distributions.items()}
        write_json(
            self.run_dir / "trial.json",
            {
                "study": self.arm.ledger.study.study_name,
                "arm": arm_name(self.arm.values),
                "number": self.claim.slot,
                "state": state,
                "reason": reason,
                "params": trial.params,
                "distributions": distributions,
                "searched_before": base and {"keys": base.searched, **base.budget},
                "objectives": self.settings.objective,
                "values": values,
                "n_trials": self.arm.ledger.n_trials,
                "epochs": epochs,
                "reused_epochs": epochs["reused"],
            },
        )


def values_of(result: Result, settings: SweepSettings) -> list[float]:
    """The objectives' values, from a run's result.json."""
    figures = {
        **result.metrics,
        **{name: float(getattr(result, name)) for name in COSTS},
        result.objective_name: result.objective,
    }
    return [figures[name] for name in settings.objective]


def owner_of(run_dir: Path) -> tuple[str, int] | None:
    """Study and slot of the trial that a directory belongs to; None if it is free or unreadable."""
    try:
        record = read_json(run_dir / "trial.json")
        return record["study"], record["number"]
    except (DataError, KeyError):
        return None


def read_trials(sweep_dir: Path) -> dict[tuple[str, int], tuple[Path, dict[str, Any]]]:
    """Directory and trial.json of each trial below a sweep's directory, by study and slot."""
    found = {}
    for path in sorted(sweep_dir.rglob("trial.json")):
        whose = owner_of(path.parent)
        if whose is not None:
            found[whose] = (path.parent, read_json(path))
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
