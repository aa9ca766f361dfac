"""Signals that ask a run to stop: Ctrl-C, a scheduler's, the parent process's."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("t5ts")


class _Ask:
    """A signal handler: the first signal requests a stop, the second stops immediately."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()
        log.warning("stopping at the next step; press Ctrl-C again to stop immediately")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM request a stop at a safe point; a second one stops immediately.

    Nested uses share the outermost one's event: a signal that reaches a run when its last step is
    done also stops the sweep around it. The outermost restores the earlier handlers.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can be caught in the main thread only
        return
    outer = signal.getsignal(signal.SIGTERM)
    if isinstance(outer, _Ask):
        yield outer.stop
        return
    ask = _Ask()
    with _handling(ask):
        yield ask.stop


def interrupt_on_signals() -> AbstractContextManager[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, for code that waits and can exit at any moment.

    Python does so only for SIGINT, and not in a shell's background job, which starts with SIGINT
    ignored.
    """
    return _handling(signal.default_int_handler)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can be caught in the main thread only
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
