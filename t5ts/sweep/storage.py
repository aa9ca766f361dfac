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

    Args:
        path: The file.
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
            try:
                record = self._parsed(line)
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

    def _parsed(self, line: bytes) -> dict[str, Any]:
        sealed = _SEALED.fullmatch(line)
        if sealed is not None:
            if zlib.crc32(sealed[1]) != int(sealed[2], 16):
                raise ValueError("the checksum differs")
            self._has_checksums = True
        elif self._has_checksums:
            raise ValueError("no checksum")
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("not a record")
        return record

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the file; first remove a last record without its newline: its writer was killed."""
        # Not ".lock", which Optuna uses, and which its readers would take for a dead holder's.
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
    journal = sweep_dir / JOURNAL
    remove = (
        f"mv '{journal}' '{journal}.corrupt'"
        if url is None
        else "; ".join(
            f"optuna delete-study --storage '{without_password(url)}' --study-name '{name}'"
            for name in studies
        )
    )
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
        try:
            return JournalStorage(Journal(journal))
        except (OSError, ResumeError):
            raise
        except Exception as error:  # any Optuna error on invalid records
            raise ResumeError(
                f"{journal} is corrupt ({type(error).__name__}: {error})."
                f" {how_to_rebuild(None, sweep_dir)}"
            ) from error
    for attempts_left in reversed(range(OPEN_ATTEMPTS)):
        try:
            # A connection that the server has closed meanwhile is replaced.
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:  # any driver error is about this URL
            # The first process creates the tables; others at the same moment fail.
            if attempts_left and isinstance(error, DBAPIError) and _is_being_made(error):
                time.sleep(random.uniform(0.1, 0.5))
                continue
            cause = getattr(error, "orig", None) or error.__cause__ or error
            first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise ConfigError(
                f"hydra.sweeper.storage={without_password(url)} cannot be opened:"
                f" {first_line.rstrip('.')}. Is the database running and the URL right? Allowed:"
                " null (a journal file), postgresql+psycopg://USER:PASSWORD@HOST/NAME,"
                " mysql+pymysql://…, sqlite:///FILE; the driver must be installed (pip install"
                " 't5ts[sweep]')."
            ) from error
    raise AssertionError


def _is_being_made(error: DBAPIError) -> bool:
    return isinstance(error, IntegrityError) or "already exists" in str(error)
