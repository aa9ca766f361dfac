"""Entries are complete or absent: bound, eviction order, corruption, kill -9, many processes."""

import hashlib
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from t5ts.reuse import PrefixStore

KEY, OTHER = "a" * 32, "b" * 32


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def age(folder: Path, key: str, epoch: int, seconds: int) -> None:
    """Set the time at which an entry was last used, in seconds before 2001."""
    (path,) = folder.glob(f"{key}.{epoch:05d}.*")
    os.utime(path, (10**9 - seconds,) * 2)


def test_what_was_published_first_is_read_by_key_and_epoch(tmp_path):
    store = PrefixStore(tmp_path / "new" / "store", max_bytes=100)
    assert store.publish(KEY, 3, b"three")
    assert store.publish(KEY, 3, b"later")
    assert store.publish(OTHER, 3, b"other")
    assert not store.publish(KEY, 2, bytes(101))  # beyond the bound: it evicts nothing
    assert PrefixStore(store.folder, max_bytes=1).read(KEY, 3) == b"three"
    assert store.read(OTHER, 3) == b"other"
    assert store.read(KEY, 2) is None
    assert not store.has(KEY, 2)


def test_the_least_recently_used_goes_first(tmp_path):
    store = PrefixStore(tmp_path, max_bytes=300)
    for epoch in (1, 2, 3):
        store.publish(KEY, epoch, bytes(100))
        age(tmp_path, KEY, epoch, 10 - epoch)
    assert store.read(KEY, 1) == bytes(100)  # used now: 2 is the oldest use
    store.publish(KEY, 4, bytes(100))
    assert [store.has(KEY, epoch) for epoch in (1, 2, 3, 4)] == [True, False, True, True]
    store.publish(KEY, 5, bytes(250))
    assert [store.has(KEY, epoch) for epoch in (1, 3, 4, 5)] == [False, False, False, True]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:0], lambda b: b[:5] + b"?" + b[6:]]
)
def test_a_damaged_entry_is_said_removed_and_missed(damage, tmp_path, caplog):
    store = PrefixStore(tmp_path, max_bytes=1000)
    store.publish(KEY, 1, b"0123456789")
    (path,) = tmp_path.glob("*.prefix")
    path.write_bytes(damage(path.read_bytes()))
    assert store.read(KEY, 1) is None
    assert str(path) in caplog.text
    assert not path.exists()


def test_kill_9_while_publishing_leaves_no_entry(tmp_path):
    process = start(die_at_the_rename, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1  # what it was writing
    store = PrefixStore(tmp_path, max_bytes=10**6)  # its lock died with it
    assert not store.has(KEY, 1)
    assert store.publish(KEY, 1, b"whole")
    assert store.read(KEY, 1) == b"whole"
    assert len(names(tmp_path)) == 1


def die_at_the_rename(folder: Path) -> None:
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    PrefixStore(folder, max_bytes=10**6).publish(KEY, 1, b"half a promise")


def test_processes_that_publish_read_and_evict_at_once_see_whole_entries(tmp_path):
    processes = [start(churn, tmp_path, number) for number in (1, 2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    sizes = [path.stat().st_size for path in tmp_path.glob("*.prefix")]
    assert sum(sizes) <= 300_000
    assert len(sizes) == 3
    assert not list(tmp_path.glob("*.unfinished"))


def churn(folder: Path, number: int) -> None:
    store = PrefixStore(folder, max_bytes=300_000)  # room for three entries of twelve
    draw, hits = random.Random(number), 0
    for _ in range(300):
        key, epoch = draw.choice("ab") * 32, draw.randrange(6)
        content = hashlib.sha256(f"{key}{epoch}".encode()).digest() * 3000
        if draw.random() < 0.5:
            assert store.publish(key, epoch, content)
        else:
            found = store.read(key, epoch)
            assert found is None or found == content
            hits += found is not None
    assert hits > 5


def test_a_folder_that_cannot_be_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PrefixStore(tmp_path / "file", max_bytes=1)
