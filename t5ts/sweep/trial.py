"""One trial: composed, trained on each seed, and recorded in its study and its directories."""

import copy
import itertools
import logging
import math
import pickle
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState

from t5ts.analysis.results import Result, read_json, read_metrics, read_result
from t5ts.checks import check
from t5ts.config import SEARCHED, Config, from_hydra
from t5ts.errors import (
    ConfigError,
    DataError,
    DirectoryInUse,
    InputsChanged,
    Interrupted,
    ResumeError,
    TrainingError,
)
from t5ts.interruption import stop_on_signals
from t5ts.provenance import write_json
from t5ts.sweep.ledger import Claim, Ledger, is_released
from t5ts.sweep.settings import COSTS, SweepSettings, find_function
from t5ts.sweep.space import Space, Value, arm_name
from t5ts.sweep.storage import open_storage

log = logging.getLogger("t5ts.sweep")

#: How a trial ends, by its trial.json's state.
ENDS = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
#: What a search cost, in an arm's results.
BUDGET = ("trials", "seeds", "settings", "complete", "pruned", "failed", "epochs")
#: Seconds between checks of a directory in which another process is still running.
WAIT_S = 0.5


class Pruned(Exception):
    """The study's pruner stopped this trial."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything a worker needs; sent to other processes and machines.

    Attributes:
        config: Hydra's composition of the multirun, its `hydra` node included.
    """

    config: DictConfig
    hydra_context: HydraContext
    settings: SweepSettings
    space: Space
    sweep_dir: Path
    _composed: dict[tuple[str, ...], bytes] = field(default_factory=dict)  # pickled

    def __getstate__(self) -> dict[str, Any]:
        """State to pickle, without what another process can compose just as fast."""
        return {**self.__dict__, "_composed": {}}

    def ledgers(self, *, create: bool = False) -> list[Ledger]:
        """Open (or create) the study of each arm.

        Raises:
            ConfigError: if the storage cannot be reached.
        """
        settings, ledgers = self.settings, []
        storage, pruner = open_storage(settings.storage, self.sweep_dir), settings.make_pruner()
        for arm in self.space.arms:
            name = f"{settings.study_name}/{arm_name(arm)}" if arm else settings.study_name
            grid = self.space.grid(arm) if settings.is_grid else None  # may refuse: before a study
            if create:
                study = optuna.create_study(
                    study_name=name, storage=storage, pruner=pruner,
                    direction=StudyDirection[settings.direction.upper()], load_if_exists=True,
                )  # fmt: skip
            else:
                study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
            n_trials = settings.n_trials if grid is None else min(settings.n_trials, len(grid))
            ledger = Ledger(
                study, n_trials=n_trials, lost_after_s=settings.lost_after_s,
                sampler_of=settings.make_sampler, grid=grid, arm=arm,
            )  # fmt: skip
            ledgers.append(ledger)
        return ledgers

    def compose(self, params: Mapping[str, Value], arm: Mapping[str, Value]) -> DictConfig:
        """Hydra's composition of one setting, its `hydra` node included.

        Composed once for each combination of group options, which takes Hydra a third of a second;
        other parameters are set in a copy, as Hydra sets overrides.
        """
        options = {key: value for key, value in params.items() if key in self.space.choices}
        key = tuple(self.space.overrides(options, arm))
        if key not in self._composed:
            loader = self.hydra_context.config_loader
            composed = loader.load_sweep_config(self.config, list(key))
            self._composed[key] = pickle.dumps(composed, pickle.HIGHEST_PROTOCOL)
        config: DictConfig = pickle.loads(self._composed[key])  # OmegaConf's copies are slow
        lines = self.space.overrides(params, arm)
        parsed = OverridesParser.create().parse_overrides(lines)
        for name, override in zip(params, parsed[len(lines) - len(params) :], strict=True):
            if name not in options:
                OmegaConf.update(config, name, override.value(), merge=True)
        form = config.hydra.job.config.override_dirname
        kept = (o.key_or_group not in form.exclude_keys for o in parsed)
        named = sorted(itertools.compress(lines, kept))
        with open_dict(config.hydra):
            config.hydra.overrides.task = lines
            config.hydra.job.override_dirname = form.item_sep.join(named).replace("=", form.kv_sep)
        return config

    def sample(self, claim: Claim) -> list[DictConfig]:
        """Sample a trial's parameters; its configuration for each of its seeds."""
        trial, ledger, settings = claim.trial, claim.ledger, self.settings
        self.space.suggest(trial, ledger.arm)
        if (path := settings.custom_search_space) is not None:
            try:
                find_function(path)(self.config, trial)
            except Exception as error:  # any error of the user's function
                frame = traceback.extract_tb(error.__traceback__)[-1]
                raise ConfigError(
                    f"hydra.sweeper.custom_search_space={path} raised {type(error).__name__}:"
                    f" {error} ({frame.filename}, line {frame.lineno})"
                ) from error
        config = self.compose(trial.params, ledger.arm)
        with open_dict(config):
            # The directory comes from the sweep's command, not from the setting's.
            config.hydra.sweep.dir = str(self.sweep_dir)
            config.hydra.job.num = claim.slot
            config.hydra.job.id = f"{ledger.name}-{claim.slot}"
            config.hydra.job.env_set[SEARCHED] = " ".join(trial.params)
            if settings.reuse and config.train.reuse_dir is None:
                config.train.reuse_dir = str(self.sweep_dir / ".frozen")
                config.train.reuse_max_gb = settings.reuse_max_gb
            subdir = config.hydra.sweep.subdir
            if ledger.arm:
                subdir = f"{ledger.name}/{subdir}"
            first = f"seed-{config.seed}" if settings.seeds > 1 else "."
            owner = trial_in(self.sweep_dir / subdir / first)
            if owner not in (None, (ledger.study.study_name, claim.slot)):
                # The user's subdir is not unique (for example, a setting drawn twice).
                subdir = f"{subdir}-{claim.slot}"
            config.hydra.sweep.subdir = subdir
        if settings.seeds == 1:
            return [config]
        configs = []
        for seed in range(config.seed, config.seed + settings.seeds):
            configs.append(copy.deepcopy(config))
            with open_dict(configs[-1]):
                configs[-1].seed = seed
                configs[-1].hydra.overrides.task.append(f"seed={seed}")
                configs[-1].hydra.sweep.subdir += f"/seed-{seed}"
        return configs


@dataclass(kw_only=True)
class TrialTask:
    """Hydra's task function for one trial's runs, and its records in the study and directories.

    It is called for each of the trial's seeds in turn (`hydra.sweeper.seeds`).

    Attributes:
        runs: Directory and configuration of each seed's run, as far as they were started.
        results: Of those that finished.
    """

    work: Work
    claim: Claim
    runs: dict[Path, Config] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    _reported: int = -1

    def __call__(self, cfg: DictConfig) -> Result:
        """Train this setting in the directory that Hydra created for it."""
        from t5ts.experiment import run  # torch

        run_dir, settings = Path(HydraConfig.get().runtime.output_dir), self.work.settings
        config = from_hydra(cfg, HydraConfig.get())
        check(config)
        with stop_on_signals() as stop:
            if self.runs and stop.is_set():
                raise Interrupted("stopped between two seeds")
            self.runs[run_dir] = config
            self.write("running")
            path = run_dir / "result.json"
            try:
                if path.exists():
                    read_result(path)
            except DataError as error:  # the trial is run again
                log.warning("%s is corrupt (%s): moved to result.json.corrupt", path, error)
                path.replace(path.with_name("result.json.corrupt"))
            wait_until = time.monotonic() + settings.lost_after_s
            options: Any = {"run_dir": run_dir, "group": self.work.sweep_dir.name}
            options |= {"after_epoch": self.after_epoch, "pictures": False}
            result: Result | None = None
            while result is None:
                try:
                    result = run(config, **options)
                except DirectoryInUse as error:
                    # The worker that this trial was taken from is still alive, on another machine.
                    if stop.is_set():
                        raise Interrupted(str(error)) from error
                    if time.monotonic() > wait_until:
                        raise
                    time.sleep(WAIT_S)
                except ResumeError as error:
                    if isinstance(error, InputsChanged) or config.train.resume == "never":
                        raise
                    log.warning("%s It is moved aside and the trial is trained again.", error)
                    config = replace(config, train=replace(config.train, resume="never"))
        if not math.isfinite(value := value_of([result], settings)):
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
        trial, settings, epoch = self.claim.trial, self.work.settings, row["epoch"]
        trial.set_user_attr("live", {"seed": self._now.seed, "epoch": epoch})
        if settings.objective not in row or len(self.runs) > 1 or not self._report():
            return
        # "never" counts as "from the start"
        unfreeze_epoch = self._now.freeze.unfreeze_epoch or 0.0
        is_in_grace = epoch < unfreeze_epoch + settings.grace_epochs
        is_last = epoch == self._now.train.epochs or row.get("ends_run")
        if not is_last and not is_in_grace and trial.should_prune():
            value = row[settings.objective]
            raise Pruned(f"at epoch {epoch} with {settings.objective} {value:.4g}")

    def _report(self) -> bool:
        """Report the first seed's epochs to the pruner, if any; resumed and reused ones too."""
        objective = self.work.settings.objective
        if not self.work.settings.prunes:
            return False
        for row in read_metrics(next(iter(self.runs)), "eval"):
            if row["epoch"] > self._reported and row.get(objective) is not None:
                self.claim.trial.report(row[objective], step=row["epoch"])
                self._reported = row["epoch"]
        return True

    def end(self, state: str, reason: str | None = None) -> None:
        """Record how the trial ended, unless another worker was given it meanwhile."""
        trial, settings, value = self.claim.trial, self.work.settings, None
        if reason is not None and settings.seeds > 1 and self.runs:
            reason = f"seed {self._now.seed}: {reason}"
        try:
            if state == "complete":
                value = value_of(self.results, settings)
                with suppress(DataError):  # the result matters; the pruner's curve is optional
                    self._report()
            if reason is not None:
                trial.set_user_attr("reason", reason)
            trial.set_user_attr("epochs", self._epochs()[0])
            self.write(state, reason, value)
            ended = trial.study.tell(trial, value, state=ENDS[state], skip_if_finished=True)
            is_ours = not is_released(ended)
        except UpdateFinishedTrialError:
            is_ours = False
        if not is_ours:
            log.warning("slot %s: given to another worker before it ended here", self.claim.slot)
        elif state != "failed" and not settings.keep_last:
            # Nothing resumes from here, and the optimizer's state is twice the size of the weights.
            for run_dir in self.runs:
                (run_dir / "checkpoint" / "last.safetensors").unlink(missing_ok=True)

    def give_back(self, how: str, reason: str) -> None:
        """Release the trial for another attempt."""
        for record in (
            lambda: self.write("interrupted", reason),
            lambda: self.claim.release(how, reason),
        ):
            try:
                record()
            except OSError as error:  # no disk to write to: others will notice the worker's end
                log.warning("slot %s: not recorded (%s)", self.claim.slot, error)

    def _epochs(self) -> tuple[dict[str, int], list[int]]:
        """Epochs requested over all seeds, trained, and reused; and those that each run reused."""
        each = [_epochs(*run) for run in self.runs.items()]
        epochs = {key: sum(run[key] for run in each) for key in ("asked", "trained", "reused")}
        epochs["asked"] = self.work.settings.seeds * each[0]["asked"] if each else 0
        return epochs, [run["reused"] for run in each]

    def write(self, state: str, reason: str | None = None, value: float | None = None) -> None:
        """`trial.json`: what the study knows about the trial, for readers of run directories only.

        Every seed's directory has a copy; the first seed's is written first, and decides.
        """
        trial, ledger, settings = self.claim.trial, self.claim.ledger, self.work.settings
        base = self.work.space.bases.get(ledger.name)
        epochs, reused = self._epochs()
        record = {
            "study": ledger.study.study_name,
            "arm": ledger.name,
            "number": self.claim.slot,
            "state": state,
            "reason": reason,
            "params": trial.params,
            "distributions": {k: distribution_to_json(d) for k, d in trial.distributions.items()},
            "searched_before": base
            and {"keys": [*base["best_params"]], **{k: base[k] for k in BUDGET if k in base}},
            "objectives": [settings.objective],
            "values": None if value is None else [value],
            "n_trials": ledger.n_trials,
            "epochs": epochs,
        }
        if self.runs and settings.seeds > 1:
            first = next(iter(self.runs.values())).seed
            record["seed_of"] = [*range(first, first + settings.seeds)]
        for run_dir, own in zip(self.runs, reused, strict=True):
            write_json(run_dir / "trial.json", record | {"reused_epochs": own})


def _epochs(run_dir: Path, config: Config) -> dict[str, int]:
    """Epochs that a run was asked for, trained, and reused."""
    try:
        reached = max((int(row["epoch"]) for row in read_metrics(run_dir, "eval")), default=0)
        reused = (read_json(run_dir / "provenance.json").get("reuse") or {"epochs": 0})["epochs"]
    except DataError:  # not started yet
        reached = reused = 0
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


def trial_in(run_dir: Path) -> tuple[str, int] | None:
    """Study and slot of the trial that a directory belongs to; None if it is free or unreadable."""
    try:
        record = read_json(run_dir / "trial.json")
        return record["study"], record["number"]
    except (DataError, KeyError):
        return None


def read_trials(sweep_dir: Path) -> dict[tuple[str, int], tuple[list[Path], dict[str, Any]]]:
    """Each trial below a sweep's directory, by study and slot.

    Returns:
        The run directories that its value is the mean of, and its trial.json (its first seed's).
    """
    found = {}
    for path in sorted(sweep_dir.rglob("trial.json")):
        folder, trial = path.parent, trial_in(path.parent)
        if trial is not None:
            record = read_json(path)
            folders = [folder.with_name(f"seed-{seed}") for seed in record.get("seed_of", ())]
            if not folders or folder == folders[0]:
                found[trial] = folders or [folder], record
    return found
