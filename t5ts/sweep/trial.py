"""One trial: trained, reported to its study by epoch, and ended there and in its directory."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from t5ts.analysis.results import Result, read_json, read_metrics
from t5ts.checks import check
from t5ts.config import OBJECTIVES, Config, from_hydra
from t5ts.provenance import write_json
from t5ts.sweep.ledger import Claim, Ledger, is_void
from t5ts.sweep.settings import COSTS, SweepSettings
from t5ts.sweep.space import Base, Value, arm_name

log = logging.getLogger("t5ts.sweep")


class Pruned(Exception):
    """The study's pruner gave this trial up."""


class Lost(Exception):
    """Another worker has this trial: this one was taken for dead."""


@dataclass(kw_only=True)
class Arm:
    """An arm and its study, as one worker sees them.

    Attributes:
        values: What makes the arm.
        grid: The grid's points by slot, if it is one.
        base: The point of another sweep that its trials start from, if there is one.
    """

    values: dict[str, Value]
    ledger: Ledger
    grid: list[dict[str, Any]] | None
    base: Base | None


class TrialTask:
    """Hydra's task function for one trial, and all that the study and the directory hear of it.

    Args:
        settings: The sweeper's.
        group: Name of the sweep.
        arm: Whose trial it is.
        claim: The trial.
        worker: This worker's number, for the displays.
    """

    def __init__(
        self, *, settings: SweepSettings, group: str, arm: Arm, claim: Claim, worker: int
    ) -> None:
        self.settings, self.group = settings, group
        self.arm, self.claim, self.worker = arm, claim, worker
        self.run_dir: Path | None = None
        self.config: Config | None = None
        self._reported = -1
        self._last_row: Mapping[str, Any] = {}

    def __call__(self, cfg: DictConfig) -> Result:
        """Train this point in the directory that Hydra made for it."""
        from t5ts.experiment import run  # torch

        self.run_dir = Path(HydraConfig.get().runtime.output_dir)
        self.config = from_hydra(cfg)
        check(self.config)
        self._say_live(epoch=0, value=None)
        self.write("running", None, None)
        return run(
            self.config,
            run_dir=self.run_dir,
            group=self.group,
            after_epoch=self.after_epoch,
        )

    def after_epoch(self, row: Mapping[str, Any]) -> None:
        """Report an epoch to the study, and stop where it is not worth going on.

        Raises:
            Pruned: if the pruner says so, not before the grace after unfreezing is over.
            Lost: if the trial was given to another worker.
        """
        assert self.config is not None
        assert self.run_dir is not None
        trial, objective = self.claim.trial, self.settings.objectives[0]
        self._last_row = row
        is_measured = objective in row
        self._say_live(epoch=row["epoch"], value=row.get(objective))
        if not self.arm.ledger.is_mine(trial):
            raise Lost("taken for dead and given to another worker; this attempt stops")
        if not (self.settings.prunes and len(self.settings.objectives) == 1):
            return
        if objective not in OBJECTIVES or not is_measured:
            return
        # Epochs of an earlier attempt, or of a frozen phase that was reused, are reported too.
        for earlier in read_metrics(self.run_dir, "eval"):
            if earlier["epoch"] > self._reported and earlier.get(objective) is not None:
                trial.report(earlier[objective], step=earlier["epoch"])
                self._reported = earlier["epoch"]
        epoch = row["epoch"]
        if epoch >= self.config.train.epochs or epoch < self._judged_from():
            return
        if trial.should_prune():
            raise Pruned(f"at epoch {epoch} with {objective} {row[objective]:.4g}")

    def _judged_from(self) -> float:
        """The first epoch at which the trial may be pruned: grace after its encoder first moves."""
        assert self.config is not None
        unfreeze_epoch = self.config.freeze.unfreeze_epoch or 0.0  # never counts as from the start
        return unfreeze_epoch + self.settings.grace_epochs

    def _say_live(self, *, epoch: int, value: float | None) -> None:
        assert self.config is not None
        self.claim.trial.set_user_attr(
            "live",
            {
                "worker": self.worker,
                "epoch": epoch,
                "epochs": self.config.train.epochs,
                "value": value,
            },
        )

    def end(self, state: str, reason: str | None, result: Result | None) -> None:
        """Tell the study how the trial ended, unless another worker was given it meanwhile."""
        try:
            self._end(state, reason, result)
        except (Lost, UpdateFinishedTrialError):
            log.warning("slot %s: given to another worker before it ended here", self.claim.slot)

    def _end(self, state: str, reason: str | None, result: Result | None) -> None:
        """The study, and the directory says the same."""
        trial, study = self.claim.trial, self.arm.ledger.study
        if reason is not None:
            trial.set_user_attr("reason", reason)
        trial.set_user_attr("epochs", self._epochs())
        values = None
        if result is not None:
            trial.set_user_attr("metrics", result.metrics | {c: getattr(result, c) for c in COSTS})
            values = [_value(result, name) for name in self.settings.objectives]
            if not all(math.isfinite(value) for value in values):
                reason = f"an objective is not finite: {', '.join(map(str, values))}"
                state, values = "failed", None
                trial.set_user_attr("reason", reason)
        self.write(state, reason, values)
        ended_as = None
        if values is None:
            ended_as = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
        if is_void(study.tell(trial, values, state=ended_as, skip_if_finished=True)):
            raise Lost
        if state in ("complete", "pruned") and not self.settings.keep_last:
            # Nobody goes on from here, and the optimizer's state is twice the weights.
            assert self.run_dir is not None
            (self.run_dir / "checkpoint" / "last.safetensors").unlink(missing_ok=True)

    def _epochs(self) -> dict[str, int]:
        """Epochs that the point asks for, that were trained, and that were reused."""
        if self.config is None or self.run_dir is None:
            return {"asked": 0, "trained": 0, "reused": 0}
        reached = int(self._last_row.get("epoch", 0))
        about = read_json(self.run_dir / "provenance.json")["reuse"] if self._last_row else None
        reused = 0 if about is None else about["epochs"]
        asked = self.config.train.epochs
        return {"asked": asked, "trained": reached - reused, "reused": reused}

    def write(self, state: str, reason: str | None, values: list[float] | None) -> None:
        """`trial.json`: what the study knows of this run, for those who read directories only."""
        if self.run_dir is None:
            return
        trial, base = self.claim.trial, self.arm.base
        write_json(
            self.run_dir / "trial.json",
            {
                "study": self.arm.ledger.study.study_name,
                "arm": arm_name(self.arm.values),
                "number": self.claim.slot,
                "state": state,
                "reason": reason,
                "params": trial.params,
                "searched_before": base and {"keys": base.searched, "trials": base.trials},
                "objectives": self.settings.objectives,
                "values": values,
                "n_trials": self.arm.ledger.n_trials,
                "reused_epochs": self._epochs()["reused"],
            },
        )


def _value(result: Result, name: str) -> float:
    if name in COSTS:
        return float(getattr(result, name))
    if name == result.objective_name:
        return result.objective
    return result.metrics[name]
