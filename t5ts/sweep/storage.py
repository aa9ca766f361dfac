"""Where a study is kept: a journal file by default, a database by URL for several machines."""

import fcntl
import os
import random
import re
import time
from pathlib import Path
from typing import IO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy.exc import DBAPIError, IntegrityError

from t5ts.errors import ConfigError

JOURNAL = "study.journal"
#: Of opening a database whose tables another sweep is making.
OPEN_ATTEMPTS = 10


class FlockedJournal(BaseJournalFileLock):
    """A lock that dies with its holder, and mends what a dead writer left half-written.

    Optuna's own locks are files, which a killed process leaves behind: everyone then waits out
    their grace period of 30 s. Its reader, besides, gives up on a study for ever when a record
    that was cut short is followed by another.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        # Not ".lock", which is Optuna's own name for one, and a dead holder's to its other readers.
        self._path = journal.with_name(journal.name + ".flock")
        self._held: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Wait for the lock; then cut off a last record without its line end."""
        held = self._path.open("ab")
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            _cut_unfinished_record(self._journal)
        except BaseException:
            held.close()
            raise
        self._held = held
        return True

    def release(self) -> None:
        """Let the next one write."""
        assert self._held is not None
        self._held.close()
        self._held = None


def _cut_unfinished_record(journal: Path) -> None:
    with journal.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        if end < size:
            file.truncate(end)


def open_storage(url: str | None, sweep_dir: Path) -> BaseStorage:
    """Open the study's storage, making it where there is none.

    Args:
        url: A database's URL (postgresql+psycopg://…, mysql+pymysql://…, sqlite:///…), or null for
            a journal file in the sweep's directory.
        sweep_dir: The sweep's directory.

    Raises:
        ConfigError: if the directory is not writable, or the database cannot be reached.
    """
    # Optuna announces every storage and study; what the user should know is said by t5ts.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        journal = sweep_dir / JOURNAL
        try:
            sweep_dir.mkdir(parents=True, exist_ok=True)
            journal.touch()
        except OSError as error:
            raise ConfigError(
                f"the sweep's directory {sweep_dir} cannot be written ({error.strerror}):"
                " choose another with hydra.sweep.dir=DIR."
            ) from error
        return JournalStorage(JournalFileBackend(str(journal), FlockedJournal(journal)))
    try:
        return _database(url)
    except Exception as error:  # whatever the driver raises: all of it is about this URL
        raise ConfigError(
            f"hydra.sweeper.storage={without_password(url)} cannot be opened:"
            f" {_first_line(error)}. Is the database running and the URL right? Allowed: null (a"
            " journal file), postgresql+psycopg://USER:PASSWORD@HOST/NAME, mysql+pymysql://…,"
            " sqlite:///FILE; the driver must be installed (pip install 't5ts[sweep]')."
        ) from error


def _database(url: str) -> RDBStorage:
    for attempt in range(OPEN_ATTEMPTS):
        try:
            # A connection that the server has closed meanwhile is replaced, not given to a trial.
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except DBAPIError as error:
            # Whoever comes first makes the tables; those who come at the same moment trip over it.
            is_being_made = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not is_being_made or attempt == OPEN_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def without_password(text: str) -> str:
    """A URL, or an override with one, as it may be shown and written down."""
    text = re.sub(r"([?&]password=)[^&]*", r"\1***", text)
    head, slashes, tail = text.rpartition("://")
    return head + slashes + re.sub(r"^([^:@/]*):.*@", r"\1:***@", tail)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
