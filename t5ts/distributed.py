"""One run in several processes, as started by torchrun: ranks, shares of a batch, and collectives.

Every process runs the same command on its share of every batch; only process 0 writes and logs. In
a plain single process every function here is trivial and torch.distributed is not imported.

Gradients are summed over what trains at that step, not by torch's DDP: nothing is wrapped again
when a stage unfreezes, a frozen parameter costs nothing, and the sum equals one process's gradient
for any sizes of the shares. The price: communication does not overlap with the backward pass.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from t5ts.errors import ConfigError, UserError
from t5ts.interruption import stop_on_signals

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Done = TypeVar("Done")
#: A process that does not respond for this long is lost; others may be waiting for a download.
TIMEOUT = timedelta(hours=2)
#: This process's number, and how many train together.
_rank, _world_size = 0, 1
#: Where the processes have met; it counts their messages. None for a single process.
_store: Any = None


class PeersLost(UserError):
    """Another process ended or does not respond."""


class RaisedByMain(UserError):
    """An error that process 0 raises too, and prints."""


def rank() -> int:
    """This process's number, from 0."""
    return _rank


def local_rank() -> int:
    """Its number on this machine, which selects its GPU."""
    return int(os.environ.get("LOCAL_RANK", _rank))


def local_world_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", _world_size))


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return _world_size


def is_main() -> bool:
    """Whether this process writes and logs."""
    return _rank == 0


@contextmanager
def setup() -> Iterator[None]:
    """Find the other processes that torchrun started; without torchrun, do nothing.

    Raises:
        ConfigError: if the environment sets a number of processes but not this one's rank.
    """
    global _rank, _world_size, _store
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

    # Imported after the group is made (torch's optimizers do), its default arguments would keep the
    # group alive, and gloo's threads with it, which may abort the exit (torch 2.13).
    import torch.distributed.nn.functional

    # Objects and flags always go over gloo, tensors over their device's backend.
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    _store, _rank, _world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        store=_store, rank=_rank, world_size=_world_size, timeout=TIMEOUT,
    )  # fmt: skip
    # When one process ends, torchrun sends SIGTERM to the others: each still prints its message.
    with stop_on_signals():
        try:
            yield
        finally:
            dist.destroy_process_group()


def print_once(message: str) -> None:
    """Print a message that every process has, from process 0 alone, to stderr; then exit.

    The others wait for its end, since torchrun kills all processes when the first one ends.
    """
    if is_main():
        print(message, file=sys.stderr)
    else:
        with suppress(PeersLost):
            gather_objects(None)


def print_own(error: UserError) -> None:
    """Print an error of this process alone to stderr; a lost peer's only if no process has printed.

    The lost one may have printed why it ended, or may have been killed.
    """
    is_first, is_lost = True, isinstance(error, PeersLost)
    if _store is not None:
        try:
            is_first = _store.add("messages", 1) == 1
        except RuntimeError:  # process 0 kept the store, and is gone
            is_first = _rank == 1
    if is_first or not is_lost:
        print(f"t5ts: {error}", file=sys.stderr, flush=True)


def on_main(work: Callable[[], None]) -> None:
    """Do something in process 0 only, such as writing a file."""
    if is_main():
        work()


# Collectives: every process must call them, in the same order.


def main_first(work: Callable[[], Done]) -> Done:
    """Do some work in process 0, and then, with its downloads in the cache, in the others.

    Raises:
        UserError, OSError: from the work of any process, in all; process 0 alone prints it.
    """
    if _world_size == 1:
        return work()
    done: Any = None
    for is_mine in (is_main(), not is_main()):
        error = None
        if is_mine:
            try:
                done = work()
            except (UserError, OSError) as raised:
                error = raised
        for first in filter(None, gather_objects(error)):
            raise (error or first) if is_main() else RaisedByMain(str(first))
    return done


def from_main(work: Callable[[], Done]) -> Done:
    """Do some work in process 0 alone; its result in every process. Raises as `main_first`."""
    done: Done = gather_objects(main_first(lambda: work() if is_main() else None))[0]
    return done


@contextmanager
def _contact() -> Iterator[Any]:
    """torch.distributed, with one clear error for a lost peer."""
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:  # gloo has no error classes
        raise PeersLost(
            "another process of this run ended or did not respond; see its own message, if there is"
            " one. The same command resumes from the last checkpoint."
        ) from error


def gather_objects(value: Any) -> list[Any]:
    """Every process's object (picklable), in the order of their numbers, in every process."""
    if _world_size == 1:
        return [value]
    boxes: list[Any] = [None] * _world_size
    with _contact() as dist:
        dist.all_gather_object(boxes, value)
    return boxes


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag, true if it is true in any process; uses the CPU and waits for no GPU."""
    if _world_size > 1:
        from torch import tensor, uint8

        together = tensor(flags, dtype=uint8)
        all_reduce_max(together)
        flags = tuple(map(bool, together.tolist()))
    return flags


def share(index_B: "Tensor") -> "Tensor":
    """This process's contiguous part (B',) of a list of windows (B,), the same in every process.

    The parts differ by one window at most; with more processes than windows some are empty.
    """
    return index_B if _world_size == 1 else index_B.tensor_split(_world_size)[_rank]


def all_reduce_sum(*tensors: "Tensor") -> None:
    """Sum each tensor over the processes, in place; shapes are the same in every process."""
    if _world_size > 1:
        with _contact() as dist:
            for pending in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                pending.wait()


def all_reduce_max(tensor: "Tensor") -> None:
    """The maximum of each entry over the processes, in place."""
    if _world_size > 1:
        with _contact() as dist:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


def sum_gradients(loss: "Tensor", parameters: "Iterable[Parameter]") -> None:
    """Sum a loss () and the gradients of what trains over the processes, in place.

    A missing gradient counts as zeros: its process had no window.
    """
    if _world_size == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = parameter.new_zeros(parameter.shape)
        gradients.append(parameter.grad)
    all_reduce_sum(loss, *gradients)


def broadcast_tensors(*tensors: "Tensor") -> None:
    """Copy process 0's values to every process, in place."""
    if _world_size > 1:
        with _contact() as dist:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)
