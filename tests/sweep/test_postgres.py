"""Several machines share a study by URL: tested against a real PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna import load_study
from optuna.trial import TrialState
from required import missing
from runs import wait_for
from sweep.postgres import PASSWORD, binaries, server
from sweep.sweeps import SPACE, attempts, results, run_dirs, start

from benchmarks.sweep_kills import run
from t5ts.errors import ConfigError
from t5ts.sweep.ledger import RELEASED
from t5ts.sweep.storage import open_storage


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if binaries() is None:
        missing("postgres", "PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with server() as url:
        yield url


def test_sweeps_that_open_an_empty_database_together(url, tmp_path):
    """First, while the database is still empty: only one of them makes the tables."""
    with ThreadPoolExecutor(6) as pool:
        storages = list(pool.map(lambda _: open_storage(url, tmp_path), range(6)))
    assert [storage.get_all_studies() for storage in storages] == [[]] * 6


def test_the_ledger_counts_on_a_database_as_on_a_journal(url, tmp_path):
    """Real processes, one of them killed at a random moment, and a restart of all."""
    accidents = {"kills": 1, "restarts": 1, "seed": 0, "work_s": 0.1}
    counts = run(url, tmp_path, n_trials=24, workers=4, **accidents)
    assert counts["finished"] == counts["distinct"] == 24
    assert counts["lost"] == counts["doubled"] == counts["other_params"] == 0
    study = load_study(study_name="kills", storage=open_storage(url, tmp_path))
    # As large as what a study was made for can be: more than a column of 2,048 characters.
    large = {f"key.{i}": "ä" * 100 for i in range(1000)}
    study.set_user_attr("t5ts:made_for", large)
    assert study.user_attrs == {"t5ts:made_for": large}


def test_two_sweeps_share_a_study_and_no_trial_is_doubled(sweep, url, tmp_path):
    """Two coordinators, each with a directory of its own as on two machines."""
    command = [f"hydra.sweeper.storage={url}", "hydra.sweeper.n_trials=4"]
    process = start(*command, f"hydra.sweep.dir={tmp_path / 'one'}", cwd=tmp_path)
    wait_for(process, lambda: list(tmp_path.glob("one/*/seed-0/trial.json")))
    status, *own = sweep("two", *SPACE, *command)
    printed = [own, process.finish()]
    trials = attempts(tmp_path, url=url)
    assert (status, results(trials)) == (0, list(range(4)))
    assert {t.state for t in trials if RELEASED not in t.user_attrs} == {TrialState.COMPLETE}
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
def test_a_url_that_cannot_be_opened_is_named_without_its_password(url, tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_storage(url, tmp_path)
    assert "hydra.sweeper.storage=" in str(caught.value)
    assert PASSWORD not in str(caught.value)
