"""Several processes that train one model, started by torchrun: who is who, and how they agree.

Process 0 decides and writes: it alone reads the command line, holds the run directory, and hands
each run to the others, which do the same steps on their share of every batch. A sweep therefore
needs nothing of its own: whatever calls `t5ts.experiment.run` in process 0 is followed by the rest.

In a plain single process every function here is trivial and torch.distributed is not imported.

Gradients are summed by `all_reduce_sum` over what trains at that step, and not by torch's DDP:
nothing has to be wrapped again when a stage unfreezes, a parameter that is frozen costs nothing,
gradient accumulation needs no special case, and the sum is the single process's gradient whatever
the sizes of the shares. The price: communication does not overlap with the backward pass.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from t5ts.errors import ConfigError, Interrupted, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

#: A process that does not answer for so long counts as lost.
TIMEOUT = timedelta(minutes=30)
#: … unless it may rightly be busy: building (downloads), or between two runs of a sweep.
PATIENCE = timedelta(days=7)
#: Elements summed at once: the copies of the gradients that this takes stay below 64 MiB each.
BUCKET_ELEMENTS = 2**24


class PeerError(UserError):
    """Another process met an error at a point where all of them wait for each other."""


class PeersLost(UserError):
    """Another process ended or fell silent; nothing more can be agreed on."""


@dataclass
class _Group:
    """This process's place among the others, once `setup` has found them."""

    rank: int
    local_rank: int
    world_size: int
    patient: Any  # torch process group with a long timeout
    broken: bool = False  # no longer at the same step as the others
    agreed: BaseException | None = None  # the last error that every process knows of


_group: _Group | None = None


def rank() -> int:
    """This process's number, from 0."""
    return 0 if _group is None else _group.rank


def local_rank() -> int:
    """Its number on this machine: which GPU is its own."""
    return 0 if _group is None else _group.local_rank


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return 1 if _group is None else _group.world_size


def is_main() -> bool:
    """Whether this process decides, writes and speaks."""
    return rank() == 0


@contextmanager
def setup() -> Iterator[None]:
    """Find the other processes that torchrun started; without torchrun, do nothing.

    Leaving it in process 0 ends the others' loop over `runs`.

    Raises:
        ConfigError: if the environment names a number of processes but not this one's place.
    """
    global _group
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1:
        yield
        return
    missing = [k for k in ("RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size} is set, but not {', '.join(missing)}: start several processes with"
            " torchrun --nproc-per-node=N -m t5ts.run …, or unset WORLD_SIZE."
        )
    import torch
    import torch.distributed as dist

    # Objects and decisions always go over gloo, tensors over the backend of their device.
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=TIMEOUT)
    here = int(os.environ["RANK"])
    _group = _Group(
        rank=here,
        local_rank=int(os.environ.get("LOCAL_RANK", here)),
        world_size=size,
        patient=dist.new_group(backend="gloo", timeout=PATIENCE),
    )
    if here != 0:
        logging.getLogger("t5ts").disabled = True  # process 0 speaks for all
    try:
        yield
        ended_well = True
    except SystemExit:
        ended_well = True  # process 0's command line has said why
        raise
    except BaseException:
        # An error before or between runs finds the others waiting for the next one.
        ended_well = here == 0
        raise
    finally:
        if ended_well and not _group.broken:
            with suppress(PeersLost):  # what was to be done is done
                if here == 0:
                    broadcast_object(None, patient=True)
                dist.destroy_process_group()
        _group = None


def require_setup() -> None:
    """Refuse to train alone where torchrun asked for several processes.

    Raises:
        ConfigError: in a process that process 0 started itself (a launcher's worker), or in a
            program that did not call `setup`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and _group is None:
        raise ConfigError(
            f"this process was started below torchrun (WORLD_SIZE={size}) but is none of its"
            " processes: with torchrun, runs must be in the process itself"
            " (hydra/launcher=basic, hydra.sweeper.n_jobs=1)."
        )


# Runs: process 0 hands them out, the others follow.


@contextmanager
def handing_out(run: Any) -> Iterator[None]:
    """In process 0: give a run to the others (any picklable object) and do it inside.

    An error that the others cannot know of leaves them in the middle of the run: nothing more can
    be handed out after it, and this process has to end.
    """
    if _group is None:
        yield
        return
    broadcast_object(run, patient=True)
    try:
        yield
    except BaseException as error:
        _group.broken |= not is_common(error)
        raise


def runs() -> Iterator[Any]:
    """In the others: what process 0 hands out, one after another, until it ends."""
    while (run := broadcast_object(None, patient=True)) is not None:
        yield run


def is_common(error: BaseException) -> bool:
    """Whether every process has met this error, and all can go on to another run."""
    if isinstance(error, PeersLost) or _group is None:
        return False
    # The loop raises user errors and stops from values that are the same in every process.
    return error is _group.agreed or isinstance(error, UserError | Interrupted)


@contextmanager
def shared_fate(*, patient: bool = False) -> Iterator[None]:
    """What one process raises inside is raised in all of them: none waits for one that is gone.

    No collective may be called inside, since a process that failed before it would not take part.

    Args:
        patient: Wait for the others as long as it takes.

    Raises:
        PeerError: if another process failed and this one did not.
    """
    if _group is None:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    report = None
    if own is not None:
        who = f"process {rank()} of {world_size()} failed: {type(own).__name__}: "
        report = str(own) if isinstance(own, UserError) else f"{who}{own}"
    reports = [text for text in gather_objects(report, patient=patient) if text is not None]
    if reports:
        _group.agreed = PeerError(reports[0]) if own is None else own
        raise _group.agreed


def on_main(work: Callable[[], None]) -> None:
    """Let process 0 do something, such as write a file; if it fails, all of them fail."""
    with shared_fate():
        if is_main():
            work()


@contextmanager
def main_first() -> Iterator[None]:
    """Process 0 does what is inside, then the others: what it fetched is there for them."""
    if not is_main():
        with shared_fate(patient=True):
            pass
    with shared_fate(patient=True):
        yield
    if is_main():
        with shared_fate(patient=True):
            pass


# Collectives: every process must call them, in the same order.


@contextmanager
def _contact() -> Iterator[Any]:
    """torch.distributed, with a lost peer as one message."""
    assert _group is not None
    lost = (
        "another process of this run ended, or did not answer; its own message, if it had time for"
        " one, says why. The same command resumes from the last checkpoint."
    )
    if _group.broken:
        raise PeersLost(lost)
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:  # gloo's errors have no class of their own
        _group.broken = True
        # "[place in its source] What happened. Advice …"
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error)).split(". ")[0]
        raise PeersLost(f"{lost} ({reason})") from error


def barrier() -> None:
    """Wait until every process is here."""
    if _group is not None:
        gather_objects(None)


def broadcast_object(value: Any, *, patient: bool = False) -> Any:
    """Process 0's object, in every process.

    Args:
        value: Picklable; the others' does not matter.
        patient: Wait for process 0 as long as it takes.
    """
    if _group is None:
        return value
    box = [value]
    with _contact() as dist:
        dist.broadcast_object_list(box, src=0, group=_group.patient if patient else None)
    return box[0]


def gather_objects(value: Any, *, patient: bool = False) -> list[Any]:
    """Every process's object, in the order of their numbers, in every process."""
    if _group is None:
        return [value]
    boxes: list[Any] = [None] * _group.world_size
    with _contact() as dist:
        dist.all_gather_object(boxes, value, group=_group.patient if patient else None)
    return boxes


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag, true if it is in any process; goes over the CPU and waits for no GPU."""
    if _group is None:
        return flags
    import torch

    together = torch.tensor(flags, dtype=torch.uint8)
    all_reduce_max(together)
    return tuple(bool(flag) for flag in together.tolist())


def share(index_B: "Tensor") -> "Tensor":
    """This process's part of a list of windows; the parts differ by one window at most.

    Args:
        index_B: (B,) the same in every process.

    Returns:
        A contiguous part, empty where there are more processes than windows.
    """
    return index_B if _group is None else index_B.tensor_split(_group.world_size)[_group.rank]


def all_reduce_sum(*tensors: "Tensor") -> None:
    """Sum each tensor over the processes, in place, in as few messages as 64 MiB allow.

    Args:
        tensors: Of one dtype and device; shapes the same in every process.
    """
    if _group is None:
        return
    import torch

    bucket: list[Tensor] = []
    size = 0
    for number, tensor in enumerate(tensors, start=1):
        bucket.append(tensor)
        size += tensor.numel()
        if size < BUCKET_ELEMENTS and number < len(tensors):
            continue
        flat = torch.cat([member.reshape(-1) for member in bucket])
        with _contact() as dist:
            dist.all_reduce(flat)
        parts = flat.split([member.numel() for member in bucket])
        torch._foreach_copy_(bucket, [p.view(m.shape) for p, m in zip(parts, bucket, strict=True)])
        bucket, size = [], 0


def sum_gradients(loss: "Tensor", parameters: "Iterable[Parameter]") -> None:
    """Sum a loss and the parameters' gradients over the processes; none counts as zeros.

    Args:
        loss: () of the gradients' dtype.
        parameters: What trains; the same in every process.
    """
    if _group is None:
        return
    import torch

    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # this process had no window
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    all_reduce_sum(loss, *gradients)


def all_reduce_max(tensor: "Tensor") -> None:
    """The largest of each entry over the processes, in place."""
    if _group is None:
        return
    with _contact() as dist:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


def broadcast_tensors(*tensors: "Tensor") -> None:
    """Process 0's values, in place, in every process."""
    if _group is None:
        return
    with _contact() as dist:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
