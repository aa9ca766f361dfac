"""Several machines share a study by URL: tested against a real PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState
from required import missing
from sweep.conftest import Sweep
from sweep.postgres import PASSWORD, binaries, server
from sweep.sweeps import SPACE, attempts, finish, results, run_dirs, start, wait_for
from sweep.test_ledger import open_ledger, take

from t5ts.errors import ConfigError
from t5ts.sweep.ledger import STOPPED, owner_name
from t5ts.sweep.storage import open_storage


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if binaries() is None:
        missing("postgres", "PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with server() as url:
        yield url


def test_sweeps_that_open_an_empty_database_together(url: str, tmp_path: Path) -> None:
    """First, while the database is still empty: only one of them makes the tables."""
    with ThreadPoolExecutor(6) as pool:
        storages = list(pool.map(lambda _: open_storage(url, tmp_path), range(6)))
    assert [storage.get_all_studies() for storage in storages] == [[]] * 6


def test_the_ledger_counts_on_a_database_as_on_a_journal(url: str, tmp_path: Path) -> None:
    """24 slots, 6 workers with a connection each, and one attempt in three is given back."""

    def serve(worker: int) -> list[int]:
        ledger = open_ledger(open_storage(url, tmp_path), 24)
        # As large as what a study was made for can be: more than a column of 2,048 characters.
        ledger.study.set_user_attr("t5ts:made_for", {f"key.{i}": "ä" * 100 for i in range(1000)})
        done = []
        while not ledger.is_finished():
            claim = take(ledger, owner_name())
            if claim is None:
                ledger.reclaim()
                continue
            # A stopped attempt is done by the next worker that asks, at the same point.
            if (claim.trial.number + worker) % 3 == 0:
                ledger.release(claim.trial._trial_id, STOPPED, "stopped")
                continue
            ledger.study.tell(claim.trial, float(claim.slot))
            done.append(claim.slot)
        return done

    with ThreadPoolExecutor(6) as pool:
        done = [slot for slots in pool.map(serve, range(6)) for slot in slots]
    assert sorted(done) == list(range(24))
    trials = attempts(tmp_path, url=url, study="study")
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert results(trials) == list(range(24))
    points: dict[int, float] = {}
    for trial in trials:
        if "x" in trial.params:
            assert (
                points.setdefault(trial.user_attrs["slot"], trial.params["x"]) == trial.params["x"]
            )


def test_two_sweeps_share_a_study_and_no_trial_is_doubled(
    sweep: Sweep, url: str, tmp_path: Path
) -> None:
    """Two coordinators, each with a directory of its own as on two machines."""
    command = [f"hydra.sweeper.storage={url}", "hydra.sweeper.n_trials=4"]
    process = start(*command, f"hydra.sweep.dir={tmp_path / 'one'}", cwd=tmp_path)
    wait_for(process, lambda: list(tmp_path.glob("one/*/seed-0/trial.json")))
    status, *own = sweep("two", *SPACE, *command)
    printed = [own, finish(process)]
    trials = attempts(tmp_path, url=url)
    assert (status, results(trials)) == (0, list(range(4)))
    assert {t.state for t in trials if "void" not in t.user_attrs} == {TrialState.COMPLETE}
    one, two = (run_dirs(tmp_path / name) for name in ("one", "two"))
    assert sorted([*one, *two]) == list(range(4))
    for stdout, stderr in printed:
        assert "4 trials" in stdout
        assert PASSWORD not in stdout + stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://someone:{PASSWORD}@127.0.0.1:9/sweeps",
        f"postgresql+psycopg://nowhere.invalid/sweeps?user=someone&password={PASSWORD}",
        f"postgresql+nodriver://someone:{PASSWORD}@127.0.0.1/sweeps",
        f"nodatabase://someone:{PASSWORD}@127.0.0.1/sweeps",
        f"someone:{PASSWORD}@127.0.0.1",
        "sqlite:////no/such/folder/study.db",
    ],
)
def test_a_url_that_cannot_be_opened_is_named_without_its_password(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url, tmp_path)
    assert "hydra.sweeper.storage=" in str(caught.value)
    assert PASSWORD not in str(caught.value)
