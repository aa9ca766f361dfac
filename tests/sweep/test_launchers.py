"""Workers through Hydra's own launchers: the same trials, wherever they run."""

from pathlib import Path

import pytest
from optuna.trial import TrialState
from runs import read
from sweep.sweeps import attempts, finish, results, run_dirs, start


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_two_workers_share_three_trials(launcher: str, tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    process = start(
        f"hydra/launcher={launcher}", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3",
        "hydra/sweeper/pruner=none", f"hydra.sweep.dir={sweep_dir}", cwd=tmp_path,
    )  # fmt: skip
    stdout, _ = finish(process)
    trials = attempts(sweep_dir)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert results(trials) == [0, 1, 2]
    owners = {trial.user_attrs["owner"] for trial in trials}
    assert len(owners) <= 2  # each worker is one process that serves many trials
    assert len({trial.params["optim.lr"] for trial in trials}) == 3
    for slot, folder in run_dirs(sweep_dir).items():
        assert read(folder / "result.json")["objective"] == next(
            trial.value for trial in trials if trial.user_attrs["slot"] == slot
        )
    assert "all 3/3" in stdout
