"""Hydra sweeper plugins: `hydra/sweeper=t5ts`, the plain grid, and `=optuna` to compare.

Hydra imports this file at every start to find plugins, so it imports nothing
heavy. The settings and their defaults are `conf/hydra/sweeper/t5ts.yaml`.
"""

import math
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

#: Most jobs in the plain grid, which lists them all before the first one starts.
MAX_JOBS = 100_000


class PlainSweeper(BasicSweeper):
    """Hydra's grid search (plain `--multirun`): runs every job, reports failed ones at the end."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid of these task overrides; exit status 2 or 1 if a job failed.

        Before the first job's directory is created, a grid is refused if it has too many jobs, no
        jobs, a duplicate job, or none that can run.
        """
        from t5ts.config import SEARCHED
        from t5ts.errors import UserError
        from t5ts.interruption import stop_on_signals

        assert self.config is not None
        assert self.launcher is not None
        if (size := self.max_batch_size) is not None and not (isinstance(size, int) and size > 0):
            _exit(f"hydra.sweeper.max_batch_size={size}: allowed: null, or a whole number above 0.")
        jobs = self._jobs(arguments)
        varied = [i for i, lines in enumerate(zip(*jobs, strict=True)) if len({*lines}) > 1]
        keys = " ".join(jobs[0][i].lstrip("+").partition("=")[0] for i in varied)
        with open_dict(self.config):
            self.config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{SEARCHED}='{keys}'")
        sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, sweep_dir / "multirun.yaml")  # as Hydra; the report reads it
        returns: list[JobReturn] = []
        with stop_on_signals():
            for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
                returns += self.launcher.launch(batch, initial_job_idx=len(returns))
        errors = {
            " ".join([f"#{number}", *(jobs[number][i] for i in varied)]): job._return_value
            for number, job in enumerate(returns)
            if job.status == JobStatus.FAILED
        }
        print(f"next       python -m t5ts.report {shlex.quote(str(sweep_dir))}")
        bugs = [error for error in errors.values() if not isinstance(error, UserError)]
        for bug in bugs:
            traceback.print_exception(bug)
        if errors:
            _exit(
                f"{len(errors)} of {len(jobs)} jobs failed; the results of the others are in"
                f" {sweep_dir}:\n{_grouped(errors)}",
                1 if bugs else 2,
            )
        return returns

    def _jobs(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of each job."""
        from t5ts.checks import check
        from t5ts.config import from_hydra
        from t5ts.errors import UserError

        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        sweeps = [override for override in parsed if override.is_sweep_override()]
        sizes = (sum(1 for _ in islice(o.sweep_iterator(), MAX_JOBS + 1)) for o in sweeps)
        if not 0 < math.prod(sizes) <= MAX_JOBS:
            _exit(
                f"{' '.join(str(o.input_line) for o in sweeps)}: no jobs, or more than a grid's"
                f" {MAX_JOBS}; list the values, or search with hydra/sweeper=t5ts."
            )
        (jobs,) = self.split_arguments(parsed, None)
        if twice := [job for job, count in Counter(map(" ".join, jobs)).items() if count > 1]:
            _exit(f"the grid has a job twice: {'; '.join(twice)}. List each value once.")
        problems: dict[str, Exception] = {}
        for number, overrides in enumerate(jobs):
            config = loader.load_sweep_config(self.config, overrides)
            try:
                check(from_hydra(config))
                break
            except UserError as error:
                problems[f"#{number}"] = error
        else:
            _exit(f"no job can run:\n{_grouped(problems)}")
        return jobs


def _grouped(problems: Mapping[str, Exception]) -> str:
    """A paragraph per message, with the jobs it applies to."""
    jobs: dict[str, list[str]] = {}
    for job, error in problems.items():
        jobs.setdefault(str(error) or type(error).__name__, []).append(job)
    return "\n".join(f"  {', '.join(of)}: {message}" for message, of in jobs.items())


class T5tsSweeper(Sweeper):
    """Runs `t5ts.sweep.coordinator`; settings are read from the configuration, which is checked."""

    def __init__(self, **settings: Any) -> None:
        """Create nothing before `setup`."""
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep Hydra's objects."""
        del task_function
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep of these task overrides, or resume it."""
        from t5ts.errors import Interrupted, UserError
        from t5ts.sweep.coordinator import sweep  # Optuna is imported only for a sweep

        assert self.hydra_context is not None
        assert self.config is not None
        try:
            sweep(self.config, arguments, hydra_context=self.hydra_context)
        except UserError as error:
            _exit(str(error))
        except OSError as error:  # for example a full disk while writing the results
            _exit(
                f"{error}\nFix that and run the same command again: finished trials are kept"
                f" ({self.config.hydra.sweep.dir})."
            )
        except Interrupted as stop:
            _exit(str(stop), 130)


class StockSweeper(T5tsSweeper):
    """Runs our presets on hydra-optuna-sweeper, without the settings it does not know."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Create the stock sweeper from the settings it knows."""
        from t5ts.config import OBJECTIVES

        try:
            from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
        except ImportError as error:
            _exit(
                "hydra/sweeper=optuna needs hydra-optuna-sweeper: pip install"
                f" 't5ts[stock-sweeper]' ({error})"
            )
        for key, off in (("objective", None), ("best_of", None), ("seeds", 1)):
            if self.settings[key] != off:
                _exit(
                    f"hydra/sweeper=optuna has no hydra.sweeper.{key}={self.settings[key]}: use"
                    " hydra/sweeper=t5ts (objective=NAME is the run's own setting)"
                )
        kept = ("sampler", "storage", "study_name", "n_trials", "n_jobs", "max_failure_rate",
                "custom_search_space", "params", "direction")  # fmt: skip
        settings = {key: self.settings[key] for key in kept}
        best = "maximize" if OBJECTIVES.get(config.objective) == "max" else "minimize"
        settings["direction"] = settings["direction"] or best
        self.stock: Sweeper = OptunaSweeper(**settings)
        self.stock.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep with the stock sweeper."""
        return self.stock.sweep(arguments)


def _exit(why: str, status: int = 2) -> NoReturn:
    print(f"t5ts: {why}", file=sys.stderr)
    sys.exit(status)
