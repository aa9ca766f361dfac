"""Workers through Hydra's own launchers: the same trials, wherever they run."""

from pathlib import Path

import pytest
from optuna.trial import TrialState
from runs import read, rows
from sweep.sweeps import attempts, finish, results, run_dirs, start


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_two_workers_share_four_trials(launcher: str, tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    process = start(
        f"hydra/launcher={launcher}", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4",
        "hydra/sweeper/pruner=none", f"hydra.sweep.dir={sweep_dir}", cwd=tmp_path,
    )  # fmt: skip
    stdout, _ = finish(process)
    trials = attempts(sweep_dir)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert results(trials) == [0, 1, 2, 3]
    owners = {trial.user_attrs["owner"] for trial in trials}
    assert len(owners) <= 2  # each worker is one process that serves many trials
    assert len({trial.params["optim.lr"] for trial in trials}) == 4
    for slot, folder in run_dirs(sweep_dir).items():
        assert folder.name.startswith(f"{slot}-")
        assert read(folder / "result.json")["objective"] == next(
            trial.value for trial in trials if trial.user_attrs["slot"] == slot
        )
    assert "all 4/4" in stdout


def test_each_trial_takes_all_processes_below_torchrun(tmp_path: Path) -> None:
    """Process 0 has the study; a trial that it prunes ends in both, which then do the next."""
    sweep_dir = tmp_path / "sweep"
    process = start(
        f"hydra.sweep.dir={sweep_dir}", "hydra.sweeper.n_trials=4", "freeze.unfreeze_epoch=0,1",
        "optim.lr=1e-3", "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none",
        # Gives up whatever it may: from one epoch after unfreezing, but not in the last.
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "+hydra.sweeper.pruner.upper=-1", cwd=tmp_path,
        below=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    )  # fmt: skip
    stdout, _ = finish(process)
    assert "all 4/4" in stdout
    folders = run_dirs(sweep_dir)
    assert sorted(folders) == [0, 1, 2, 3]
    ends = {(read(f / "trial.json")["state"], rows(f)[-1]["epoch"]) for f in folders.values()}
    assert ends == {("pruned", 1), ("complete", 2)}
    for folder in folders.values():
        assert read(folder / "provenance.json")["processes"] == 2
