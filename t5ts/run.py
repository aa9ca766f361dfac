"""`python -m t5ts.run`: one run, or with `--multirun` several.

Only Hydra is imported before the configuration has been composed, so that `--help`,
`--cfg job` and a typo answer at once.
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from t5ts import distributed
from t5ts.checks import check, check_overrides
from t5ts.command import finish
from t5ts.config import CONF, from_hydra, register
from t5ts.errors import Interrupted, UserError

register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one composed configuration and return the objective to Hydra."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    group = None
    if hydra_config.mode == RunMode.MULTIRUN:
        group = Path(hydra_config.sweep.dir).name
    try:
        config = from_hydra(cfg)
        check(config)
        from t5ts.experiment import run  # torch: seconds, so only now

        return run(config, run_dir=run_dir, group=group).objective
    except UserError as error:
        from t5ts.run_directory import remove_if_unused

        print(f"t5ts: {error}", file=sys.stderr)
        remove_if_unused(run_dir)
        sys.exit(2)
    except Interrupted as stop:
        print(f"t5ts: {stop}; the same command goes on from there ({run_dir})", file=sys.stderr)
        sys.exit(130)


def cli() -> None:
    """The process: what Hydra would meet with a traceback is refused before it.

    Of several that torchrun started, process 0 alone has a command line; the others do what it
    hands out, and say nothing.
    """
    try:
        with distributed.setup():
            if distributed.is_main():
                check_overrides(sys.argv[1:])
                main()
            else:
                from t5ts.experiment import follow  # torch, which setup has imported already

                follow()
    except distributed.PeersLost:
        sys.exit(2)  # in the others: process 0, or the one that failed, has said why
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    finish(cli)
