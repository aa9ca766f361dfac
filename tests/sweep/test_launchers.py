"""Workers through Hydra's own launchers: the same trials, wherever they run."""

import pytest
from joblib.externals.loky import get_reusable_executor
from optuna.trial import TrialState
from runs import read
from sweep.sweeps import SPACE, attempts, results, run_dirs


@pytest.mark.parametrize(("launcher", "workers"), [("joblib", 2), ("submitit_local", 1)])
def test_workers_share_three_trials(sweep, launcher, workers, tmp_path):
    status, stdout, _ = sweep(
        "s", *SPACE, f"hydra/launcher={launcher}", f"hydra.sweeper.n_jobs={workers}",
        "hydra.sweeper.n_trials=3", "hydra/sweeper/pruner=none",
    )  # fmt: skip
    if launcher == "joblib":
        get_reusable_executor().shutdown()
    assert status == 0
    trials = attempts(tmp_path / "s")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert results(trials) == [0, 1, 2]
    owners = {trial.user_attrs["owner"] for trial in trials}
    assert len(owners) <= workers  # each worker is one process that serves many trials
    assert len({trial.params["optim.lr"] for trial in trials}) == 3
    values = {trial.user_attrs["slot"]: trial.value for trial in trials}
    for slot, folder in run_dirs(tmp_path / "s").items():
        each = [read(path)["objective"] for path in folder.glob("seed-*/result.json")]
        assert (len(each), sum(each) / 2) == (2, pytest.approx(values[slot], rel=1e-12))
    assert "all 3/3" in stdout
