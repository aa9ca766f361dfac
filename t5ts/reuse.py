"""Frozen-phase reuse: runs that differ only in what acts after unfreezing train that phase once.

Until the first parameter unfreezes, such runs are the same run, bit for bit. Each publishes the
ends of these epochs in a store; a new run starts from the longest that fits. What fits is decided
by a key over everything that a frozen epoch depends on, with the default in: a setting that is not
listed in `ACTS_LATER` (or `NOT_IDENTITY`) is part of the key, so that a forgotten one costs a miss
and never a wrong hit.

An entry has no frozen tensors: they are the new run's own initial ones, whose checksum is in the
key. Rows of metrics.jsonl are copied without their clock (`perf/*`), which is another run's.
"""

import hashlib
import json
import logging
import os
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from t5ts import distributed
from t5ts.build import Setup
from t5ts.checkpoint import load_part, save_checkpoint
from t5ts.config import NOT_IDENTITY, Config, identity, values_without
from t5ts.errors import ConfigError
from t5ts.model.tensors import state_digest
from t5ts.optim import PlannedOptimizer
from t5ts.prefix_store import PrefixStore
from t5ts.provenance import LOADED_CODE, code_digest, package_versions, processor
from t5ts.schedule import ACTS_LATER, start_step

log = logging.getLogger("t5ts")

#: Environment variables that choose among kernels.
_KERNEL_VARIABLES = ("ATEN_", "CUBLAS_", "DNNL_", "MKL_", "NVIDIA_TF32", "ONEDNN_")


class Reuse:
    """What a run takes from the store, and what it gives.

    Args:
        config: The run's.
        setup: Its objects, as new.
        run_dir: Its directory.
        resume_from: The checkpoint that it goes on from, which then comes before any prefix.
        record: The run's inputs and code, as its checkpoints hold them.

    Attributes:
        resume_from: Where `fit` is to start from: the given checkpoint, or after `install` the
            prefix's. None: at the beginning.
        about: For provenance.json: None where reuse is off; else `key`, `frozen_epochs` (how many
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
        self._record = record
        self.resume_from = resume_from
        self.about: dict[str, Any] | None = None
        self._setup, self._run_dir, self._identity = setup, run_dir, identity(config)
        self._store: PrefixStore | None = None
        self._prefix: _Prefix | None = None
        if config.train.reuse_dir is None:
            self._carry_over()
            return
        if distributed.world_size() > 1:
            # Each would have to find the same entry; a run in several processes trains all.
            log.info("reuse      off: this run has several processes")
            self._carry_over()
            return
        folder = Path(config.train.reuse_dir).expanduser()
        try:
            self._store = PrefixStore(folder, max_bytes=int(config.train.reuse_max_gb * 2**30))
        except OSError as error:
            raise ConfigError(
                f"train.reuse_dir={config.train.reuse_dir} cannot be written ({error}): give a"
                " folder that can, or null to train every epoch."
            ) from error
        self._frozen_epochs = frozen_epochs(
            setup.optimizer, steps_per_epoch=setup.steps_per_epoch, epochs=setup.epochs
        )
        common = _common_material(config, setup)
        # Before the first step nothing of the plan has acted: epoch 0 is shared by every plan.
        self._materials = [common | {"plan": plan} for plan in ([], _starting_plan(setup))]
        self.about = {
            "key": self._key(self._frozen_epochs),
            "frozen_epochs": self._frozen_epochs,
            "epochs": 0,
            "trained_by": None,
        }
        if resume_from is not None:
            self._carry_over()
        elif (prefix := self._longest()) is not None:
            self._prefix = prefix
            self.about |= {"epochs": prefix.epoch, "trained_by": prefix.state["trained_by"]}
            log.info(
                "reuse      %s of %s frozen epochs are taken from %s",
                prefix.epoch,
                self._frozen_epochs,
                prefix.state["trained_by"]["run_dir"],
            )
        else:
            log.info("reuse      none of %s frozen epochs is in %s", self._frozen_epochs, folder)

    @property
    def reused_epochs(self) -> int:
        """Epochs of this run that another one trained."""
        return 0 if self.about is None else self.about["epochs"]

    def install(self) -> list[dict[str, Any]]:
        """Make the prefix this run's own past; provenance.json must already say so.

        Returns:
            The rows of metrics.jsonl that came with it.
        """
        if self._prefix is None:
            return []
        prefix, self._prefix = self._prefix, None
        folder = self._run_dir / "checkpoint"
        initial = {f"model/{name}": t for name, t in self._setup.model.state_dict().items()}
        state = prefix.state
        best = prefix.tensors_of("best/") or {
            name: t for name, t in prefix.tensors_of("last/").items() if name in initial
        }
        save_checkpoint(
            folder / "best.safetensors", initial | best, state["best"] | self._own_identity
        )
        rows: str = state["rows"]
        with (self._run_dir / "metrics.jsonl").open("w", encoding="utf-8") as file:
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        content = rows.encode()
        fit = state["last"]["fit"] | {
            "metrics_bytes": len(content),
            "metrics_crc32": zlib.crc32(content),
            "peak_memory_bytes": 0.0,
        }
        # The last file to appear is the one that a run is resumed from.
        self.resume_from = folder / "last.safetensors"
        save_checkpoint(
            self.resume_from,
            initial | prefix.tensors_of("last/"),
            state["last"] | self._own_identity | self._record | {"fit": fit},
        )
        return [json.loads(line) for line in rows.splitlines()]

    def publish(self, epoch: int) -> None:
        """Share the end of an epoch, if others may start from it and have not shared it yet.

        Called once last.safetensors of that epoch is written. A store that fails is said once and
        costs the run nothing.
        """
        if self._store is None or epoch > self._frozen_epochs:
            return
        key = self._key(epoch)
        try:
            if self._store.has(key, epoch):
                return
            if code_digest() != LOADED_CODE:
                self._stop_publishing("t5ts's source files have changed since this process began")
            elif not self._store.publish(key, epoch, self._entry(epoch)):
                self._stop_publishing("an entry exceeds train.reuse_max_gb")
        except OSError as error:
            self._stop_publishing(str(error))

    def _stop_publishing(self, why: str) -> None:
        self._store = None
        log.warning("reuse: this run shares no more epochs: %s", why)

    @property
    def _own_identity(self) -> dict[str, str]:
        return {"identity": self._identity}

    def _material(self, epoch: int) -> dict[str, Any]:
        return self._materials[epoch > 0]

    def _key(self, epoch: int) -> str:
        text = _canonical(self._material(epoch))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _longest(self) -> "_Prefix | None":
        assert self._store is not None
        if code_digest() != LOADED_CODE:
            self._stop_publishing("t5ts's source files have changed since this process began")
            return None
        for epoch in range(self._frozen_epochs, -1, -1):
            content = self._store.read(self._key(epoch), epoch)
            if content is not None:
                prefix = _unpack(epoch, content)
                assert prefix.state["material"] == _canonical(self._material(epoch))
                return prefix
        return None

    def _carry_over(self) -> None:
        """A resumed run keeps what provenance.json said of its beginning.

        What another code or machine began is no longer of this key, and is not shared.
        """
        if self.resume_from is None:
            return
        earlier = _earlier(self.resume_from.parent.parent / "provenance.json")
        if self.about is None:
            self.about = earlier and earlier | {"key": None}
            return
        if earlier is None or earlier["key"] != self.about["key"]:
            self._store = None
            self.about["key"] = None
        if earlier is not None:
            self.about |= {name: earlier[name] for name in ("epochs", "trained_by")}

    def _entry(self, epoch: int) -> bytes:
        optimizer = self._setup.optimizer
        moved = optimizer.trainable() if epoch > 0 else {}
        still = {f"model/{name}" for name in optimizer.parameters if name not in moved}
        folder = self._run_dir / "checkpoint"
        last, last_state = load_part(folder / "last.safetensors", lambda name: name not in still)
        best, best_state = load_part(folder / "best.safetensors", lambda name: name not in still)
        tensors = {f"last/{name}": tensor for name, tensor in last.items()}
        if best_state["epoch"] != epoch:  # else they are last's
            tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
        with (self._run_dir / "metrics.jsonl").open("rb") as file:
            rows = file.read(last_state["fit"]["metrics_bytes"]).decode()
        state = {
            "material": _canonical(self._material(epoch)),
            "last": last_state,
            "best": best_state,
            "rows": "".join(f"{_without_clock(line)}\n" for line in rows.splitlines()),
            "trained_by": {"run_dir": str(self._run_dir.resolve()), **self._own_identity},
        }
        return _pack(tensors, state)


def frozen_epochs(optimizer: PlannedOptimizer, *, steps_per_epoch: int, epochs: int) -> int:
    """Whole epochs before the first parameter that waits begins to train.

    Args:
        optimizer: Its plan says what starts when.
        steps_per_epoch: Turns the plan's epochs into steps, as the optimizer does.
        epochs: Of the run.

    Returns:
        0 if nothing waits (all that trains begins at step 0, nothing stays frozen); `epochs` if
        what is frozen stays so.
    """
    starts = {start_step(rule.start_epoch, steps_per_epoch) for rule in optimizer.plan.values()}
    if starts == {0}:
        return 0
    later = [start for start in starts if start]  # neither never (None) nor from the start
    return min(epochs, *(start // steps_per_epoch for start in later)) if later else epochs


def lasting_settings(config: Config) -> dict[str, Any]:
    """The resolved config, less what cannot change a number and what acts only later."""
    return values_without(config, (*NOT_IDENTITY, *ACTS_LATER))


def _common_material(config: Config, setup: Setup) -> dict[str, Any]:
    """All that a frozen epoch depends on, besides what trains in it."""
    device = setup.device
    is_gpu = device.type == "cuda"
    backends = torch.backends
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
            backends.cpu.get_cpu_capability(),
            backends.mkldnn.enabled,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.cudnn.allow_tf32,
            str(torch.get_default_dtype()),
        ],
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(_KERNEL_VARIABLES)
        },
    }


def _starting_plan(setup: Setup) -> list[dict[str, Any]]:
    """The optimizer's groups at step 0 with their values: what trains, how fast, how decayed."""
    groups = setup.optimizer.inner.param_groups
    return [{k: v for k, v in group.items() if k != "params"} for group in groups]


def _canonical(material: Mapping[str, Any]) -> str:
    return json.dumps(material, sort_keys=True, default=repr)


def _without_clock(line: str) -> str:
    row = json.loads(line)
    return json.dumps({k: v for k, v in row.items() if not k.startswith("perf/")})


def _earlier(provenance: Path) -> dict[str, Any] | None:
    """What a run's provenance.json says of its reuse; None if it says nothing."""
    try:
        about = json.loads(provenance.read_text(encoding="utf-8"))["reuse"]
    except (OSError, ValueError, KeyError):
        return None
    return about if isinstance(about, dict) else None


@dataclass(frozen=True)
class _Prefix:
    """An entry: the run's state at the end of an epoch, less the tensors that never moved."""

    epoch: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def _pack(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    text = zlib.compress(json.dumps(state).encode())  # the rows shrink to a fifth
    return save({**tensors, "state": torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def _unpack(epoch: int, content: bytes) -> _Prefix:
    tensors = load(content)
    state = json.loads(zlib.decompress(tensors.pop("state").numpy().tobytes()))
    return _Prefix(epoch, tensors, state)
