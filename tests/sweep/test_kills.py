"""What is left when a sweep's processes are killed, and how the same command resumes."""

import os
import signal
import time
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from runs import read, rows
from sweep.conftest import Sweep
from sweep.sweeps import SPACE, attempts, finish, results, run_dirs, start, wait_for

from t5ts.sweep.ledger import DIED, STOPPED, Owner, is_void

#: Long enough to be killed in the middle.
EPOCHS = 20
SEEDS = ["seed-0", "seed-1"]
LONG = ["hydra.sweep.dir=sweep", "hydra/sweeper/pruner=none", f"train.epochs={EPOCHS}"]


def begun(sweep_dir: Path, *, epoch: int, seed: int = 0) -> list[FrozenTrial]:
    """Attempts that are under way and have reached an epoch of a seed."""
    try:
        trials = attempts(sweep_dir)
    except KeyError:  # the study is not made yet
        return []
    live = {t.number: t.user_attrs["live"] for t in trials if "live" in t.user_attrs}
    return [
        t
        for t in trials
        if t.state == TrialState.RUNNING
        and t.number in live
        and (live[t.number]["seed"], live[t.number]["epoch"]) >= (seed, epoch)
    ]


def worker_of(trial: FrozenTrial) -> int:
    """Process id of a trial's worker."""
    return int(trial.user_attrs["owner"].rsplit("/", 3)[1])


def check_epochs(sweep_dir: Path, slots: int) -> None:
    """Every epoch of every run once."""
    folders = run_dirs(sweep_dir)
    assert sorted(folders) == list(range(slots))
    for folder in folders.values():
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == SEEDS
        for seed in SEEDS:
            epochs = [row["epoch"] for row in rows(folder / seed) if row["kind"] == "eval"]
            assert epochs == list(range(EPOCHS + 1))


def test_a_killed_workers_trial_is_done_again_from_its_checkpoint(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    process = start(*LONG, "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2", cwd=tmp_path)
    lost = wait_for(process, lambda: begun(sweep_dir, epoch=5, seed=1))[0]
    os.kill(worker_of(lost), signal.SIGKILL)
    finish(process)
    trials = attempts(sweep_dir)
    assert results(trials) == [0, 1]
    # The lost one, and nothing else, was done twice.
    first, *others = [t for t in trials if is_void(t)]
    assert others == []
    assert first.number == lost.number
    assert first.user_attrs["void"] == DIED
    (again,) = [t for t in trials if t.user_attrs.get("attempt_after") == lost.number]
    assert again.params == lost.params
    assert again.user_attrs["slot"] == lost.user_attrs["slot"]
    assert len(trials) == 3
    # The second attempt resumed where the first had stopped.
    resumed = {
        path.parent
        for path in sweep_dir.glob("*/*/provenance.json")
        if read(path)["resumed_from"] is not None
    }
    assert resumed == {run_dirs(sweep_dir)[lost.user_attrs["slot"]] / "seed-1"}
    check_epochs(sweep_dir, 2)


def test_a_sweep_goes_on_after_its_coordinator_was_killed_and_stopped(
    sweep: Sweep, tmp_path: Path
) -> None:
    sweep_dir = tmp_path / "sweep"
    arguments = [*LONG, "hydra.sweeper.n_trials=1"]

    process = start(*arguments, cwd=tmp_path)
    running = wait_for(process, lambda: begun(sweep_dir, epoch=5))
    process.kill()
    process.communicate()
    # The workers end by themselves, in order: trials given back, checkpoints written.
    deadline = time.monotonic() + 30
    while any(Owner.is_dead(trial.user_attrs["owner"]) is False for trial in running):
        assert time.monotonic() < deadline, "a worker outlives its coordinator"
        time.sleep(0.05)
    ended = [attempts(sweep_dir)[trial.number] for trial in running]
    assert [trial.user_attrs["void"] for trial in ended] == [STOPPED]
    interrupted = sorted(sweep_dir.glob("*/*/trial.json"))
    assert {read(path)["state"] for path in interrupted} == {"interrupted"}
    assert (interrupted[-1].parent / "checkpoint" / "last.safetensors").exists()

    # Power failed while someone wrote to the journal, say.
    with (sweep_dir / "study.journal").open("a") as journal:
        journal.write('{"op_code": 8, "worker_id": "half a rec')

    process = start(*arguments, cwd=tmp_path)
    wait_for(process, lambda: begun(sweep_dir, epoch=12))
    process.send_signal(signal.SIGINT)
    finish(process, status=130)

    assert sweep("sweep", *SPACE, *arguments)[0] == 0
    trials = attempts(sweep_dir)
    assert results(trials) == [0]
    assert {t.state for t in trials if not is_void(t)} == {TrialState.COMPLETE}
    check_epochs(sweep_dir, 1)
