"""Signals that ask a run to stop: Ctrl-C, a scheduler's, the parent process's."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

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
