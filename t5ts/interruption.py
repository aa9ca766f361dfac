"""Signals that ask a run to stop, and a limit to what it waits for."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, TypeVar

Done = TypeVar("Done")
log = logging.getLogger("t5ts")
#: The event that the installed handler of `stop_on_signals` sets.
_stop = threading.Event()


def _ask(number: int, _frame: FrameType | None) -> None:
    """Handle a signal: the first one requests a stop, Ctrl-C after it stops immediately.

    Schedulers and torchrun repeat SIGTERM, and then kill: more of them must not break off what the
    first one asked for, nor the message of a process that is ending.
    """
    if _stop.is_set():
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        return
    _stop.set()
    log.warning("stopping at the next step; press Ctrl-C again to stop immediately")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM request a stop at a safe point; SIGINT after it stops immediately.

    Nested uses share the outermost one's event: a signal that reaches a run when its last step is
    done also stops the sweep around it. The outermost restores the earlier handlers.
    """
    global _stop
    if not _is_main_thread():
        yield threading.Event()
    elif signal.getsignal(signal.SIGTERM) is _ask:
        yield _stop
    else:
        outer, _stop = _stop, threading.Event()
        try:
            with _handling(_ask):
                yield _stop
        finally:
            _stop = outer


def interrupt_on_signals() -> AbstractContextManager[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, for code that waits and can exit at any moment.

    Python does so only for SIGINT, and not in a shell's background job, which starts with SIGINT
    ignored.
    """
    return _handling(signal.default_int_handler)


def within(limit_s: float, work: Callable[[], Done]) -> Done:
    """Run `work` in a daemon thread, which is left to itself after `limit_s` seconds.

    For calls without a timeout of their own that reaches everything, such as a name lookup.

    Raises:
        TimeoutError: if it takes longer.
        BaseException: what `work` raises.
    """
    answer: Future[Done] = Future()

    def target() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    try:
        return answer.result(limit_s)
    except TimeoutError:
        if answer.done():  # it raised that itself
            raise
        raise TimeoutError(f"no answer within {limit_s:g} s") from None


def _is_main_thread() -> bool:
    """Signals can be caught in the main thread only."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM) if _is_main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
