"""The journal file: it recovers from dead writers, and nobody waits for their locks."""

import json
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage

from t5ts.errors import ResumeError
from t5ts.provenance import without_password
from t5ts.sweep.storage import JOURNAL, open_storage


def ask(folder: Path, count: int, storage: BaseStorage | None = None) -> None:
    storage = storage or open_storage(None, folder)
    study = optuna.create_study(storage=storage, study_name="study", load_if_exists=True)
    for _ in range(count):
        study.tell(study.ask(), 1.0)


def trials(folder: Path) -> list[tuple[int, str, list[float] | None]]:
    study = optuna.load_study(study_name="study", storage=open_storage(None, folder))
    return [(t.number, t.state.name, t.values) for t in study.get_trials()]


@settings(max_examples=20)
@given(cut=st.integers(1, 400))
def test_a_journal_that_was_cut_anywhere_goes_on(tmp_path_factory, cut):
    """Whole records before the cut count; the one that was cut does not, and new ones follow."""
    folder = tmp_path_factory.mktemp("study")
    ask(folder, 3)
    journal = folder / JOURNAL
    whole = journal.read_bytes()
    first = whole.index(b"\n") + 1  # the study's own record stays
    kept = whole[: max(first, len(whole) - cut)]
    journal.write_bytes(kept)
    ask(folder, 1)
    now = journal.read_bytes()
    assert now.startswith(kept[: kept.rindex(b"\n") + 1])
    assert all(json.loads(line) for line in now.splitlines())
    # Record 4 of Optuna's journal is a trial's creation.
    created = [line for line in now.splitlines() if json.loads(line)["op_code"] == 4]
    assert len(trials(folder)) == len(created)


@settings(max_examples=40)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("study")
    ask(folder, 2)
    before = trials(folder)
    journal = folder / JOURNAL
    whole = bytearray(journal.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    journal.write_bytes(whole)
    try:
        after = trials(folder)
    except ResumeError:
        return
    # Where the last record's line end is gone it is as if that had never been written.
    lost_end = not whole.endswith(b"\n")
    assert after == before or (lost_end and after[:-1] == before[:-1])


def test_lines_of_optunas_own_are_read(tmp_path):
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    ask(tmp_path, 2, optuna.storages.JournalStorage(backend))
    ask(tmp_path, 1)
    assert len(trials(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:pw@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://me:p@w:d@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("mysql://h/db?user=a&password=pw&x=1", "mysql://h/db?user=a&password=***&x=1"),
        ("hydra.sweeper.storage=mysql://a:pw@h/d", "hydra.sweeper.storage=mysql://a:***@h/d"),
        ("sqlite:///file.db", "sqlite:///file.db"),
    ],
)
def test_passwords_are_hidden(text, shown):
    assert without_password(text) == shown
