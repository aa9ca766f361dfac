"""`python -m t5ts.run`: one run, or several with `--multirun`.

Only Hydra is imported before the configuration has been composed, so that `--help`, `--cfg job` and
typos respond immediately.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from t5ts import distributed
from t5ts.checks import check
from t5ts.command import RESULT, finish
from t5ts.config import CONF, from_hydra, register
from t5ts.errors import ConfigError, Interrupted, TrainingError, UserError
from t5ts.interruption import stop_on_signals
from t5ts.overrides import check_overrides, composition_message

if TYPE_CHECKING:
    from t5ts.api import RunResult

register()
# `--multirun` alone: Hydra's grid search; here the remaining jobs run when one fails. (After
# Hydra has loaded its plugins, which would restore its own.)
Plugins.instance()
PLAIN = {"_target_": "hydra_plugins.t5ts_sweeper.PlainSweeper"}
ConfigStore.instance().store(
    group="hydra/sweeper", name="basic", node=PLAIN | {"max_batch_size": None, "params": None}
)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one composed configuration and return the objective to Hydra."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    is_multirun = job.mode == RunMode.MULTIRUN
    group = Path(job.sweep.dir).name if is_multirun else None
    try:
        if is_multirun:
            with stop_on_signals() as stop:  # the multirun's own
                if stop.is_set():
                    raise Interrupted("stopped between two jobs")
        config = from_hydra(cfg, job)
        check(config)
        from t5ts.experiment import run  # torch takes seconds to import, so only now

        result = run(config, run_dir=run_dir, group=group, pictures=not is_multirun)
        if is_multirun:
            from t5ts.console import one_line

            logging.getLogger("t5ts").log(RESULT, one_line(result, run_dir))
        return result.objective
    except UserError as error:
        _report(error)
        _remove_if_unused(run_dir)
        if is_multirun:
            raise  # Hydra marks this job as failed and runs the others
        sys.exit(2)
    except Interrupted as stopped:
        where = f"hydra.sweep.dir={job.sweep.dir}" if is_multirun else run_dir
        distributed.print_once(f"t5ts: {stopped}; the same command resumes it ({where})")
        sys.exit(130)


def cli() -> None:
    """Run the command; errors that Hydra would show as a traceback become one message."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with ExitStack() as processes:  # left last: one message takes all of them
        try:
            processes.enter_context(distributed.setup())
            check_overrides(sys.argv[1:])
            with env_override({"HYDRA_FULL_ERROR": "1"}):  # errors come here, unprinted
                main()
        except UserError as error:
            _report(error)
            sys.exit(2)
        except Exception as error:
            if wants_traceback or not _is_command_line_error(error):
                raise
            for frame, _ in traceback.walk_tb(error.__traceback__):
                # Hydra has already created the job's directory.
                if frame.f_code.co_name == "run_job" and "output_dir" in frame.f_locals:
                    _remove_if_unused(Path(frame.f_locals["output_dir"]))
            distributed.print_once(f"t5ts: {_one_message(error)}")
            sys.exit(2)


def _report(error: UserError) -> None:
    """Print a message once, although every process under torchrun may raise the error.

    An error in one process alone is printed by that process.
    """
    if isinstance(error, ConfigError | TrainingError | distributed.RaisedByMain):
        distributed.print_once(f"t5ts: {error}")
    else:
        distributed.print_own(error)


def _remove_if_unused(run_dir: Path) -> None:
    from t5ts.run_directory import remove_if_unused

    distributed.on_main(lambda: remove_if_unused(run_dir))


def _is_command_line_error(error: Exception) -> bool:
    """Whether Hydra raised this before any t5ts code ran: then the user can fix it."""
    here = str(Path(__file__).parent)
    _cli, *frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, HydraException | OmegaConfBaseException) or not any(
        frame.filename.startswith(here) for frame in frames
    )


def _one_message(error: Exception) -> str:
    message = composition_message(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        message += "\nUse a writable directory: hydra.run.dir=DIR (--multirun: hydra.sweep.dir)."
    return message


class _CallableModule(ModuleType):
    def __call__(self, overrides: Sequence[str] = (), **options: Any) -> "RunResult":
        from t5ts.api import run

        return run(overrides, **options)


# `t5ts.run(...)` in Python and `python -m t5ts.run` are one name: importing this module replaces
# the function by the module, so the module is callable.
sys.modules[__name__].__class__ = _CallableModule


def command() -> None:
    """The console script."""
    finish(cli)


if __name__ == "__main__":
    command()
