"""Hydra's door to t5ts.sweep: `hydra/sweeper=t5ts`; and `hydra/sweeper=optuna`, to compare.

Hydra imports this file at every start, to see which plugins there are: so it imports nothing
heavy. The settings and their defaults are `conf/hydra/sweeper/t5ts.yaml`.
"""

import sys
from typing import Any, NoReturn

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class T5tsSweeper(Sweeper):
    """Hands the sweep to `t5ts.sweep.coordinator`."""

    def __init__(self, **_settings: Any) -> None:
        """The settings are read from the configuration, where they can be checked by name."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of these task overrides, or go on with it."""
        from t5ts.errors import Interrupted, UserError
        from t5ts.sweep.coordinator import sweep  # Optuna: only when there is a sweep

        assert self.config is not None
        assert self.hydra_context is not None
        try:
            sweep(self.config, arguments, hydra_context=self.hydra_context)
        except UserError as error:
            print(f"t5ts: {error}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as stop:
            print(f"t5ts: {stop}", file=sys.stderr)
            sys.exit(130)


class StockSweeper(Sweeper):
    """Hands our presets to hydra-optuna-sweeper, which would refuse the settings that it lacks."""

    def __init__(self, **settings: Any) -> None:
        """Nothing is made before `setup`, which knows the objective."""
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the stock sweeper from what it knows of the settings."""
        from t5ts.config import OBJECTIVES

        try:
            from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
        except ImportError as error:
            _refuse(f"needs hydra-optuna-sweeper: pip install 't5ts[stock-sweeper]' ({error})")
        for key in ("objective", "best_of"):
            if self.settings[key] is not None:
                _refuse(
                    f"has no hydra.sweeper.{key}={self.settings[key]}: use hydra/sweeper=t5ts (the"
                    " run's own objective=NAME is what it looks at)"
                )
        direction = self.settings["direction"]
        if direction is None:
            is_more_better = OBJECTIVES.get(config.objective) == "max"
            direction = "maximize" if is_more_better else "minimize"
        kept = ("sampler", "storage", "study_name", "n_trials", "n_jobs", "max_failure_rate",
                "custom_search_space", "params")  # fmt: skip
        self.stock: Sweeper = OptunaSweeper(
            direction=direction, **{key: self.settings[key] for key in kept}
        )
        self.stock.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """As the stock sweeper does it."""
        return self.stock.sweep(arguments)


def _refuse(why: str) -> NoReturn:
    print(f"t5ts: hydra/sweeper=optuna {why}.", file=sys.stderr)
    sys.exit(2)
