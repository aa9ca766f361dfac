"""A bounded folder of immutable entries that many processes share: name → bytes.

An entry is one file, named KEY.EPOCH.SHA256: what it holds is proven by its name. It appears by a
rename and is read in one piece, so that a reader has the whole of it or none, whoever removes it
meanwhile; removing never cuts anyone off. Writers take turns by a lock that the kernel releases
when its holder dies.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("t5ts")

SUFFIX = ".prefix"
_UNFINISHED = ".unfinished"


class PrefixStore:
    """Entries by key and epoch; the least recently used go first when they exceed the bound.

    Args:
        folder: Made if missing; may be shared by processes, and by machines whose file system
            has locks (flock).
        max_bytes: Bound of all entries together.

    Raises:
        OSError: if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            pass  # a folder that cannot be written is found out here, not after an epoch

    def has(self, key: str, epoch: int) -> bool:
        """Whether there is an entry; it may be gone, or found damaged, by the time it is read."""
        return any(self._files(key, epoch))

    def read(self, key: str, epoch: int) -> bytes | None:
        """An entry's bytes, proven by their checksum; None if there is none.

        A damaged entry is said, removed and counts as none.
        """
        for path in self._files(key, epoch):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # evicted since it was listed
            except OSError as error:
                log.warning("reuse: %s cannot be read (%s) and is passed over", path, error)
                continue
            if path.name == _file_name(key, epoch, content):
                self._mark_used(path)
                return content
            log.warning("reuse: %s is damaged (its checksum differs) and was removed", path)
            self._remove(path)
        return None

    def publish(self, key: str, epoch: int, content: bytes) -> bool:
        """Add an entry, unless there is one; then evict what exceeds the bound.

        Returns:
            Whether the entry is there now: one that alone exceeds the bound is not added.

        Raises:
            OSError: if the disk is full or the folder not writable; no entry is there then.
        """
        if len(content) > self.max_bytes:
            return False
        with self._locked():
            # Only the lock's holder writes: whatever is unfinished here was left by a dead one.
            for path in self.folder.glob(f"*{_UNFINISHED}"):
                self._remove(path)
            if self.has(key, epoch):
                return True
            place = self.folder / _file_name(key, epoch, content)
            unfinished = place.with_suffix(_UNFINISHED)
            try:
                unfinished.write_bytes(content)
                unfinished.replace(place)
            finally:
                unfinished.unlink(missing_ok=True)
            self._evict(keep=place)
        return True

    def _evict(self, *, keep: Path) -> None:
        entries = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue  # a reader found it damaged and removed it
            entries.append((path != keep, -about.st_mtime_ns, about.st_size, path))
        total = 0
        for _, _, size, path in sorted(entries):  # the new one first, then the last used
            total += size
            if total > self.max_bytes:
                self._remove(path)

    def _files(self, key: str, epoch: int) -> Iterator[Path]:
        return self.folder.glob(f"{key}.{epoch:05d}.*{SUFFIX}")

    def _mark_used(self, path: Path) -> None:
        # Evicted this moment, or a folder that is read-only by now: it was read all the same.
        with suppress(OSError):
            os.utime(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("reuse: %s cannot be removed (%s)", path, error)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _file_name(key: str, epoch: int, content: bytes) -> str:
    return f"{key}.{epoch:05d}.{hashlib.sha256(content).hexdigest()}{SUFFIX}"
