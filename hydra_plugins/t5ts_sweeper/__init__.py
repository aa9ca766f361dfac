"""Hydra's door to t5ts.sweep: `hydra/sweeper=t5ts`.

Hydra imports this file at every start, to see which plugins there are: so it imports nothing
heavy. The settings and their defaults are `conf/hydra/sweeper/t5ts.yaml`.
"""

import sys
from typing import Any

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
