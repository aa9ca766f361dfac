"""What is left when a sweep's processes are killed, and how the same command resumes."""

import os
import signal
import time
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from runs import read, rows
from sweep.sweeps import attempts, finish, results, run_dirs, start, wait_for

from t5ts.sweep.ledger import DIED, STOPPED, Owner, is_void

#: Long enough to be killed in the middle.
EPOCHS = 30
LONG = ["hydra.sweep.dir=sweep", "hydra/sweeper/pruner=none", f"train.epochs={EPOCHS}"]


def begun(sweep_dir: Path, *, epoch: int, count: int) -> list[FrozenTrial]:
    """Attempts that are under way and have reached an epoch; none unless there are so many."""
    try:
        trials = attempts(sweep_dir)
    except KeyError:  # the study is not made yet
        return []
    under_way = [
        t
        for t in trials
        if t.state == TrialState.RUNNING and t.user_attrs.get("live", {}).get("epoch", 0) >= epoch
    ]
    return under_way if len(under_way) >= count else []


def worker_of(trial: FrozenTrial) -> int:
    """Process id of a trial's worker."""
    return int(trial.user_attrs["owner"].rsplit("/", 3)[1])


def epochs(run_dir: Path) -> list[int]:
    return [row["epoch"] for row in rows(run_dir) if row["kind"] == "eval"]


def test_a_killed_workers_trial_is_done_again_from_its_checkpoint(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    process = start(*LONG, "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3", cwd=tmp_path)
    lost, live = wait_for(process, lambda: begun(sweep_dir, epoch=5, count=2))
    os.kill(worker_of(lost), signal.SIGKILL)
    finish(process)
    trials = attempts(sweep_dir)
    assert results(trials) == [0, 1, 2]
    # The lost one, and nothing else, was done twice.
    first, *others = [t for t in trials if is_void(t)]
    assert others == []
    assert first.number == lost.number
    assert first.user_attrs["void"] == DIED
    (again,) = [t for t in trials if t.user_attrs.get("attempt_after") == lost.number]
    assert again.params == lost.params
    assert again.user_attrs["slot"] == lost.user_attrs["slot"]
    assert trials[live.number].state == TrialState.COMPLETE
    assert trials[live.number].user_attrs["owner"] == live.user_attrs["owner"]
    folders = run_dirs(sweep_dir)
    assert sorted(folders) == [0, 1, 2]
    resumed_from = [read(f / "provenance.json")["resumed_from"] for _, f in sorted(folders.items())]
    assert [slot for slot, path in enumerate(resumed_from) if path] == [lost.user_attrs["slot"]]
    # Every epoch once: the second attempt resumed where the first had stopped.
    assert all(epochs(folder) == list(range(EPOCHS + 1)) for folder in folders.values())


def test_a_sweep_goes_on_after_its_coordinator_was_killed_and_stopped(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    arguments = [*LONG, "hydra.sweeper.n_trials=2"]

    process = start(*arguments, cwd=tmp_path)
    running = wait_for(process, lambda: begun(sweep_dir, epoch=5, count=1))
    process.kill()
    process.communicate()
    # The workers end by themselves, in order: trials given back, checkpoints written.
    deadline = time.monotonic() + 30
    while any(Owner.is_dead(trial.user_attrs["owner"]) is False for trial in running):
        assert time.monotonic() < deadline, "a worker outlives its coordinator"
        time.sleep(0.05)
    ended = [attempts(sweep_dir)[trial.number] for trial in running]
    assert [trial.user_attrs["void"] for trial in ended] == [STOPPED]
    for folder in run_dirs(sweep_dir).values():
        assert read(folder / "trial.json")["state"] == "interrupted"
        assert (folder / "checkpoint" / "last.safetensors").exists()

    # Power failed while someone wrote to the journal, say.
    with (sweep_dir / "study.journal").open("a") as journal:
        journal.write('{"op_code": 8, "worker_id": "half a rec')

    process = start(*arguments, cwd=tmp_path)
    wait_for(process, lambda: begun(sweep_dir, epoch=12, count=1))
    process.send_signal(signal.SIGINT)
    finish(process, status=130)

    finish(start(*arguments, cwd=tmp_path))
    trials = attempts(sweep_dir)
    assert results(trials) == [0, 1]
    assert {t.state for t in trials if not is_void(t)} == {TrialState.COMPLETE}
    folders = run_dirs(sweep_dir)
    assert sorted(folders) == [0, 1]
    assert all(epochs(folder) == list(range(EPOCHS + 1)) for folder in folders.values())
