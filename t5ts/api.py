"""t5ts from Python: what `import t5ts` offers. Heavy libraries load on the first call.

import t5ts

result = t5ts.run(["init=t5", "freeze=staged", "data=csv", "data.path=mine.csv"])
t5ts.verdict("outputs").headline            # what the report says first; also of several folders
t5ts.results("outputs")                     # a polars row per run
t5ts.load(result.run_dir).predict()         # the rows after the end of the data
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5ts.analysis.results import Result

if TYPE_CHECKING:
    import polars as pl

    from t5ts.analysis.judgement import Findings
    from t5ts.forecasting.trained import TrainedForecaster


@dataclass
class RunResult(Result):
    """A run's `Result` and its directory."""

    run_dir: Path = Path()


def run(overrides: str | Sequence[str] = (), *, run_dir: str | Path | None = None) -> RunResult:
    """Train one configuration, or resume it, or read its result where it is finished.

    Args:
        overrides: As on the command line: ["init=t5", "freeze=staged", "seed=1"].
        run_dir: Its directory; None for the one that `python -m t5ts.run` would choose.

    Raises:
        UserError: with one message, for anything that the user can fix.
    """
    from t5ts.checks import check
    from t5ts.overrides import compose_config

    config, folder = compose_config(_listed(overrides))
    check(config)
    from t5ts.experiment import run as run_config

    folder = folder if run_dir is None else Path(run_dir)
    return RunResult(**vars(run_config(config, run_dir=folder)), run_dir=folder)


def load(path: str | Path) -> "TrainedForecaster":
    """The trained model of a finished run or of an export; see `t5ts.forecasting.trained.load`."""
    from t5ts.forecasting.trained import load as load_trained

    return load_trained(path)


def results(dirs: str | Path | Sequence[str | Path]) -> "pl.DataFrame":
    """One row per run at or below some directories: arm, seed, settings, metrics, state.

    Raises:
        DataError: if a directory does not exist or none holds a run.
    """
    from t5ts.analysis import collect

    return collect(_listed(dirs)).table()


def verdict(dirs: str | Path | Sequence[str | Path]) -> "Findings":
    """What the report of these directories concludes: `headline`, `reasons`, `kind`."""
    from t5ts import analysis

    return analysis.verdict(analysis.collect(_listed(dirs)))


def _listed(given: Any) -> Sequence[Any]:
    """One or several, as several; a lone path or override would be read letter by letter."""
    return [given] if isinstance(given, str | Path) else given
