"""Study storage: a journal file by default, a database by URL for several machines."""

import fcntl
import json
import os
import random
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy.exc import DBAPIError, IntegrityError

from t5ts.errors import ConfigError, ResumeError
from t5ts.provenance import without_password

JOURNAL = "study.journal"
#: A record with its checksum.
_SEALED = re.compile(rb'(.*),"crc":"([0-9a-f]{8})"\}\n')
#: Attempts at opening a database whose tables another sweep is creating.
OPEN_ATTEMPTS = 10


class Journal(BaseJournalBackend):
    """The study's records: a line of JSON each, with a checksum, under a lock.

    Optuna's own file backend has no checksums, cannot read a study in which a truncated record
    is followed by another, and its locks are files, which a killed process leaves behind
    for 30 s. This lock dies with its holder. Optuna's own lines (without a checksum) are read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = [0]  # byte offset of each record read so far, and of the next
        self._has_checksums = False

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a given number on.

        Raises:
            ResumeError: naming the line and the fix, if a record is corrupt.
        """
        first = min(log_number_from, len(self._starts) - 1)
        with self._locked() as file:
            file.seek(self._starts[first])
            lines = file.readlines()
        for number, line in enumerate(lines, first):
            sealed = _SEALED.fullmatch(line)
            self._has_checksums |= sealed is not None
            try:
                record = json.loads(line)
                if sealed and zlib.crc32(sealed[1]) != int(sealed[2], 16):
                    raise ValueError("the checksum differs")
                if not isinstance(record, dict) or not (sealed or not self._has_checksums):
                    raise ValueError("not a record, or without its checksum")
            except ValueError as error:
                raise ResumeError(
                    f"{self._path}, line {number + 1}: corrupt ({error})."
                    f" {how_to_rebuild(None, self._path.parent)}"
                ) from error
            if number + 1 == len(self._starts):
                self._starts.append(self._starts[number] + len(line))
            if number >= log_number_from:
                yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records to the disk."""
        lines = (json.dumps(record, separators=(",", ":"))[:-1].encode() for record in logs)
        sealed = b"".join(b'%b,"crc":"%08x"}\n' % (line, zlib.crc32(line)) for line in lines)
        with self._locked() as file:
            file.seek(0, os.SEEK_END)
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Lock the file; first remove a last record without its newline: its writer was killed."""
        # Not ".lock", which Optuna uses, and which its readers would take for a dead process's.
        with (
            self._path.with_name(self._path.name + ".flock").open("ab") as lock,
            self._path.open("r+b") as file,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            yield file


def how_to_rebuild(url: str | None, sweep_dir: Path, studies: Sequence[str] = ("NAME",)) -> str:
    """How to fix a corrupt study: its trials' directories contain everything that matters."""
    remove = f"mv '{sweep_dir / JOURNAL}' '{sweep_dir / JOURNAL}.corrupt'"
    if url is not None:
        delete = f"optuna delete-study --storage '{without_password(url)}' --study-name"
        remove = "; ".join(f"{delete} '{name}'" for name in studies)
    return (
        f"Each trial's result.json is authoritative: remove the study ({remove}) and run the same"
        " command again; the study is rebuilt from the trials' directories."
    )


def open_storage(url: str | None, sweep_dir: Path) -> BaseStorage:
    """Open the study's storage, creating it if there is none.

    Args:
        url: A database's URL (postgresql+psycopg://…, mysql+pymysql://…, sqlite:///…), or null for
            a journal file in the sweep's directory.
        sweep_dir: The sweep's directory.

    Raises:
        ConfigError: if the directory is not writable, or the database cannot be reached.
        ResumeError: if the journal is corrupt.
    """
    # Optuna announces every storage and study; t5ts prints what the user needs.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = sweep_dir / JOURNAL
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        if url is None:
            journal.touch()
    except OSError as error:
        raise ConfigError(
            f"the sweep's directory {sweep_dir} cannot be written ({error.strerror}):"
            " choose another with hydra.sweep.dir=DIR."
        ) from error
    if url is not None:
        return _open_database(url)
    try:
        return JournalStorage(Journal(journal))
    except (OSError, ResumeError):
        raise
    except Exception as error:  # any Optuna error on invalid records
        raise ResumeError(
            f"{journal} is corrupt ({type(error).__name__}: {error})."
            f" {how_to_rebuild(None, sweep_dir)}"
        ) from error


def _open_database(url: str) -> BaseStorage:
    attempts = 0
    while True:
        attempts += 1
        try:
            # A connection that the server has closed meanwhile is replaced.
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:  # any driver error is about this URL
            # The first process creates the tables; others at the same moment fail.
            is_conflict = isinstance(error, IntegrityError) or "already exists" in str(error)
            if attempts < OPEN_ATTEMPTS and isinstance(error, DBAPIError) and is_conflict:
                time.sleep(random.uniform(0.1, 0.5))
                continue
            cause = getattr(error, "orig", None) or error.__cause__ or error
            words = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"hydra.sweeper.storage={without_password(url)} cannot be opened: {words}. Is the"
                " database running, and its driver installed (pip install 't5ts[sweep]')? Allowed:"
                " null (a journal file), postgresql+psycopg://USER:PASSWORD@HOST/NAME,"
                " mysql+pymysql://…, sqlite:///FILE."
            ) from error
