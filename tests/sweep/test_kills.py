"""What is left when a sweep's processes are killed, and how the same command resumes."""

import os
import signal
import time
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from runs import read, rows, wait_for
from sweep.sweeps import SPACE, attempts, results, run_dirs, start

from t5ts.sweep.ledger import DIED, RELEASED, STOPPED, is_dead, is_released

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


def slot_of(trial: FrozenTrial) -> int:
    return trial.user_attrs["slot"]


def is_retry(trial: FrozenTrial, lost: FrozenTrial) -> bool:
    """Whether it is another attempt at a lost trial."""
    return slot_of(trial) == slot_of(lost) and trial.number > lost.number


def check_epochs(sweep_dir: Path, slots: int) -> None:
    """Every epoch of every run once."""
    folders = run_dirs(sweep_dir)
    assert sorted(folders) == list(range(slots))
    for folder in folders.values():
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == SEEDS
        for seed in SEEDS:
            epochs = [row["epoch"] for row in rows(folder / seed) if row["kind"] == "eval"]
            assert epochs == list(range(EPOCHS + 1))


def test_a_sweep_goes_on_after_kills_of_a_worker_and_of_its_coordinator(sweep, tmp_path):
    sweep_dir = tmp_path / "sweep"
    arguments = [*LONG, "hydra.sweeper.n_trials=2"]

    process = start(*arguments, "hydra.sweeper.n_jobs=2", cwd=tmp_path)
    lost = wait_for(process, lambda: begun(sweep_dir, epoch=5, seed=1))[0]
    os.kill(worker_of(lost), signal.SIGKILL)
    (again,) = wait_for(process, lambda: [t for t in begun(sweep_dir, epoch=0)
                                          if is_retry(t, lost)])  # fmt: skip
    assert again.params == lost.params
    assert attempts(sweep_dir)[lost.number].user_attrs[RELEASED] == DIED
    # The second attempt resumed where the first had stopped.
    (folder,) = (path for slot, path in run_dirs(sweep_dir).items() if slot == slot_of(lost))
    assert read(folder / "seed-0" / "provenance.json")["resumed_from"] is None
    assert read(folder / "seed-1" / "provenance.json")["resumed_from"] is not None
    process.send_signal(signal.SIGINT)
    process.finish(130)

    process = start(*arguments, cwd=tmp_path)
    before = len(attempts(sweep_dir))
    running = wait_for(process, lambda: [t for t in begun(sweep_dir, epoch=0)
                                         if t.number >= before])  # fmt: skip
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The workers end by themselves, in order: trials given back, checkpoints written.
    deadline = time.monotonic() + 30
    while any(is_dead(trial.user_attrs["owner"]) is False for trial in running):
        assert time.monotonic() < deadline, "a worker outlives its coordinator"
        time.sleep(0.05)
    for trial in running:
        assert attempts(sweep_dir)[trial.number].user_attrs[RELEASED] == STOPPED
        seeds = sorted(run_dirs(sweep_dir)[slot_of(trial)].glob("seed-*/trial.json"))
        assert {read(path)["state"] for path in seeds} == {"interrupted"}
        assert (seeds[-1].parent / "checkpoint" / "last.safetensors").exists()

    # Power failed while someone wrote to the journal, say.
    with (sweep_dir / "study.journal").open("a") as journal:
        journal.write('{"op_code": 8, "worker_id": "half a rec')

    assert sweep("sweep", *SPACE, *arguments)[0] == 0
    trials = attempts(sweep_dir)
    assert results(trials) == [0, 1]
    assert {t.state for t in trials if not is_released(t)} == {TrialState.COMPLETE}
    # Of the lost ones, and of nothing else, there was another attempt.
    assert len(trials) - 2 == sum(map(is_released, trials))
    check_epochs(sweep_dir, 2)
