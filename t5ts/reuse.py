"""Frozen-phase reuse: runs that differ only after unfreezing train the frozen phase once.

Until the first parameter unfreezes, such runs are identical, bit for bit. Each publishes its state
at the ends of these epochs in a store; a new run starts from the longest one with its key, which is
over everything that a frozen epoch depends on: a setting not listed in `ACTS_LATER` or
`NOT_IDENTITY` is part of it, so a forgotten one costs a miss and never a wrong hit.

An entry has no frozen tensors: they are the new run's own initial ones, whose checksum is in the
key. Rows of metrics.jsonl are copied without their timings (`perf/*`), which are another run's.
"""

import fcntl
import hashlib
import json
import logging
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from t5ts import distributed
from t5ts.analysis.results import read_json
from t5ts.build import Setup
from t5ts.checkpoint import load_part, save_checkpoint
from t5ts.config import NOT_IDENTITY, Config, values_without
from t5ts.errors import ConfigError, DataError
from t5ts.model.tensors import state_digest
from t5ts.provenance import LOADED_CODE, code_digest, package_versions, processor, replacing
from t5ts.schedule import ACTS_LATER, start_step

log = logging.getLogger("t5ts")

SUFFIX = ".prefix"
_UNFINISHED = ".unfinished"
#: Why a run then shares nothing: its key and entries would not describe the code that ran.
EDITED = "t5ts's source files have changed since this process started"
#: Environment variables that select kernels.
_KERNEL_VARIABLES = ("ATEN_", "CUBLAS_", "DNNL_", "MKL_", "NVIDIA_TF32", "ONEDNN_")


class Reuse:
    """A run's use of the store: the prefix it reuses, and the epochs it shares.

    Args:
        config, run_dir: The run's.
        setup: Its objects, before any step.
        resume_from: The checkpoint that it resumes, which takes precedence over any prefix.
        record: Inputs and code, for its checkpoints.

    Attributes:
        resume_from: Where `fit` starts: at the given checkpoint, or after `install` the prefix's.
        about: For provenance.json: None if reuse is off; else `key`, `frozen_epochs` (how many
            epochs this run shares), `epochs` (how many it did not train itself) and `trained_by`.

    Raises:
        ConfigError: if `train.reuse_dir` cannot be written.
    """

    def __init__(
        self,
        config: Config,
        setup: Setup,
        run_dir: Path,
        resume_from: Path | None,
        record: Mapping[str, Any],
    ) -> None:
        self._setup, self._run_dir, self._record = setup, run_dir, record
        #: Tensors and state of the entry that this run starts from, until it is installed.
        self._prefix: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.resume_from = resume_from
        # A resumed run keeps what provenance.json recorded about its start.
        earlier = None if resume_from is None else _recorded(resume_from.parent.parent)
        self.about: dict[str, Any] | None = earlier and earlier | {"key": None}
        self._store = _open_store(config)
        if self._store is None:
            return
        self._frozen_epochs = frozen_epochs(setup, config.train.early_stopping_epochs)
        # What trains at step 0, how fast, how decayed. (Before the first step the freezing
        # schedule has no effect: all schedules share epoch 0.)
        groups = setup.optimizer.inner.param_groups
        starting = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        common = _common_material(config, setup)
        self._keys = []
        for plan in ([], starting):
            text = json.dumps(common | {"plan": plan}, sort_keys=True, default=repr)
            self._keys.append(hashlib.sha256(text.encode()).hexdigest()[:32])
        key = self._keys[self._frozen_epochs > 0]
        past = earlier or {"epochs": 0, "trained_by": None, "key": None}
        self.about = past | {"key": key, "frozen_epochs": self._frozen_epochs}
        if resume_from is None:
            self._find_longest()
        elif past["key"] != key:
            # A run started by other code or on another machine does not match this key.
            self._store, self.about["key"] = None, None

    @property
    def reused_epochs(self) -> int:
        """Epochs of this run that another run trained."""
        return 0 if self.about is None else self.about["epochs"]

    def install(self) -> list[dict[str, Any]]:
        """Install the prefix as this run's past (see provenance.json); returns its rows."""
        if self._prefix is None:
            return []
        (tensors, state), self._prefix = self._prefix, None
        folder = self._run_dir / "checkpoint"
        initial = {f"model/{name}": t for name, t in self._setup.model.state_dict().items()}
        last, best = (
            {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
            for part in ("last/", "best/")
        )
        best = best or {n: t for n, t in last.items() if n in initial}
        best_state = state["best"] | {"identity": self._record["identity"]}
        save_checkpoint(folder / "best.safetensors", initial | best, best_state)
        rows = state["rows"].encode()
        with (self._run_dir / "metrics.jsonl").open("wb") as file:
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        fit = state["last"]["fit"] | {
            "metrics_bytes": len(rows),
            "metrics_crc32": zlib.crc32(rows),
            "peak_memory_bytes": 0.0,
        }
        last_state = state["last"] | self._record | {"fit": fit}
        # The file that a run is resumed from is written last.
        self.resume_from = folder / "last.safetensors"
        save_checkpoint(self.resume_from, initial | last, last_state)
        return [json.loads(line) for line in rows.splitlines()]

    def publish(self, epoch: int) -> None:
        """Share the end of an epoch (from last.safetensors), if others may start from it.

        If the store fails, or t5ts's source files no longer match the running code, the run logs
        one warning and shares no more.
        """
        if self._store is None or epoch > self._frozen_epochs:
            return
        key, why = self._keys[epoch > 0], ""
        try:
            if self._store.has(key, epoch):
                return
            if code_digest() != LOADED_CODE:
                why = EDITED
            elif not self._store.publish(key, epoch, self._entry(epoch)):
                why = "an entry exceeds train.reuse_max_gb"
        except OSError as error:
            why = str(error)
        if why:
            self._store = None
            log.warning("reuse: this run stops sharing epochs: %s", why)

    def _find_longest(self) -> None:
        assert self._store is not None
        assert self.about is not None
        if code_digest() != LOADED_CODE:
            self._store = None
            log.warning("reuse: this run reuses and shares no epochs: %s", EDITED)
            return
        for epoch in range(self._frozen_epochs, -1, -1):
            content = self._store.read(self._keys[epoch > 0], epoch)
            if content is not None:
                tensors = load(content)
                state = json.loads(zlib.decompress(tensors.pop("state").numpy().tobytes()))
                self._prefix = tensors, state
                self.about |= {"epochs": epoch, "trained_by": state["trained_by"]}
                break
        of = f"{self.about['epochs']} of {self._frozen_epochs} frozen epochs"
        log.debug("reuse      %s taken from %s", of, self.about["trained_by"] or self._store.folder)

    def _entry(self, epoch: int) -> bytes:
        """The end of an epoch as this run's files have it, without the frozen tensors."""
        optimizer = self._setup.optimizer
        moved = optimizer.trainable() if epoch > 0 else {}
        still = {f"model/{name}" for name in optimizer.parameters if name not in moved}
        states: dict[str, dict[str, Any]] = {}
        tensors: dict[str, Tensor] = {}
        for part in ("last", "best"):
            path = self._run_dir / "checkpoint" / f"{part}.safetensors"
            own, states[part] = load_part(path, lambda name: name not in still)
            if part == "last" or states["best"]["epoch"] != epoch:  # else they are in last
                tensors |= {f"{part}/{name}": tensor for name, tensor in own.items()}
        with (self._run_dir / "metrics.jsonl").open("rb") as file:
            rows = map(json.loads, file.read(states["last"]["fit"]["metrics_bytes"]).splitlines())
        timeless = ({k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows)
        content = {
            **states,
            "rows": "".join(json.dumps(row) + "\n" for row in timeless),
            "trained_by": {
                "run_dir": str(self._run_dir.resolve()),
                "identity": self._record["identity"],
            },
        }
        text = zlib.compress(json.dumps(content).encode())  # the rows shrink to a fifth
        return save({**tensors, "state": torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def _open_store(config: Config) -> "PrefixStore | None":
    folder, max_gb = config.train.reuse_dir, config.train.reuse_max_gb
    if folder is None:
        return None
    if distributed.world_size() > 1:
        # Each process would have to find the same entry; such a run trains every epoch.
        log.debug("reuse      off: this run has several processes")
        return None
    try:
        return PrefixStore(Path(folder).expanduser(), max_bytes=int(max_gb * 2**30))
    except OSError as error:
        raise ConfigError(
            f"train.reuse_dir={folder} cannot be written ({error}): use a writable folder, or null"
            " to train every epoch."
        ) from error


def frozen_epochs(setup: Setup, patience: int | None = None) -> int:
    """Whole epochs before the first frozen parameter starts to train; all if none ever does.

    0 if everything trains from step 0. With early stopping (patience in epochs) a run that never
    unfreezes may end sooner, and must not start beyond its own end.
    """
    per_epoch, optimizer, epochs = setup.steps_per_epoch, setup.optimizer, setup.epochs
    if patience is not None:
        epochs = min(epochs, -(-optimizer.settled_step // per_epoch) + patience - 1)
    starts = {start_step(rule.start_epoch, per_epoch) for rule in optimizer.plan.values()}
    later = [start // per_epoch for start in starts if start]  # neither 0 nor None (never)
    return 0 if starts == {0} else min([epochs, *later])


def lasting_settings(config: Config) -> dict[str, Any]:
    """The resolved config, without keys that change no number or act only later."""
    return values_without(config, (*NOT_IDENTITY, *ACTS_LATER))


def _common_material(config: Config, setup: Setup) -> dict[str, Any]:
    """Everything a frozen epoch depends on, except what trains in it."""
    device, backends, cudnn = setup.device, torch.backends, torch.backends.cudnn
    is_gpu = device.type == "cuda"
    environment = {k: v for k, v in os.environ.items() if k.startswith(_KERNEL_VARIABLES)}
    return {
        "settings": lasting_settings(config),
        "epochs": setup.epochs,
        "steps_per_epoch": setup.steps_per_epoch,
        "data": setup.data.series.fingerprint(),
        "initial": state_digest(setup.model.state_dict()),
        "code": LOADED_CODE,
        "versions": {"python": platform.python_version(), **package_versions()},
        "torch": [torch.__version__, torch.version.git_version],
        "device": [device.type, torch.cuda.get_device_name(device) if is_gpu else processor()],
        "precision": str(setup.autocast),
        "threads": torch.get_num_threads(),
        "kernels": [
            *(backends.cpu.get_cpu_capability(), backends.mkldnn.enabled),
            *(torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
            *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
            str(torch.get_default_dtype()),
        ],
        "environment": environment,
    }


def _recorded(run_dir: Path) -> dict[str, Any] | None:
    """What a run's provenance.json says about reuse; None if nothing."""
    try:
        record = read_json(run_dir / "provenance.json").get("reuse")
    except DataError:
        return None
    return record if isinstance(record, dict) else None


class PrefixStore:
    """A bounded folder of immutable entries that many processes share, by key and epoch.

    An entry is one file, named KEY.EPOCH.SHA256: its name proves its content. It appears by a
    rename and is read in one piece, so a reader gets all of it or nothing. Writers take turns with
    a lock that the kernel releases when its holder dies. The least recently used are evicted first.

    Args:
        folder: Created if missing; shared by processes whose file system supports locks (flock).
        max_bytes: Bound on the total size of the entries.

    Raises:
        OSError: if the folder cannot be created or written.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            pass  # an unwritable folder is detected here, not after an epoch

    def has(self, key: str, epoch: int) -> bool:
        """Whether there is an entry; it may be gone, or corrupt, by the time it is read."""
        return any(self._files(key, epoch))

    def read(self, key: str, epoch: int) -> bytes | None:
        """An entry's bytes; None if there is none, or it was corrupt and has been deleted."""
        for path in self._files(key, epoch):
            try:
                content = path.read_bytes()
            except OSError:
                continue  # evicted since it was listed, or not ours to read
            if path.name == _file_name(key, epoch, content):
                with suppress(OSError):  # just evicted, or the folder is read-only now
                    os.utime(path)
                return content
            log.warning("reuse: %s is corrupt (its checksum differs) and is deleted", path)
            path.unlink(missing_ok=True)
        return None

    def publish(self, key: str, epoch: int, content: bytes) -> bool:
        """Add an entry unless it exists, and evict those beyond the bound; whether it is there now.

        Raises:
            OSError: if the disk is full or the folder is not writable; no entry is added.
        """
        if len(content) > self.max_bytes:
            return False
        with self._locked():
            # Only the lock's holder writes: any unfinished file here was left by a dead one.
            for path in self.folder.glob(f"*{_UNFINISHED}"):
                path.unlink(missing_ok=True)
            if self.has(key, epoch):
                return True
            place = self.folder / _file_name(key, epoch, content)
            with replacing(place, _UNFINISHED) as unfinished:
                unfinished.write_bytes(content)
            used = {}
            for path in self.folder.glob(f"*{SUFFIX}"):
                with suppress(FileNotFoundError):  # a reader found it corrupt and removed it
                    used[path] = path.stat()
            total = 0
            # The new one first, then the last used.
            for path in sorted(used, key=lambda path: (path != place, -used[path].st_mtime_ns)):
                total += used[path].st_size
                if total > self.max_bytes:
                    path.unlink(missing_ok=True)
        return True

    def _files(self, key: str, epoch: int) -> Iterator[Path]:
        return self.folder.glob(f"{key}.{epoch:05d}.*{SUFFIX}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _file_name(key: str, epoch: int, content: bytes) -> str:
    return f"{key}.{epoch:05d}.{hashlib.sha256(content).hexdigest()}{SUFFIX}"
