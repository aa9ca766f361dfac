"""Being asked to stop: by Ctrl-C, by a scheduler, by whoever started this process."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("t5ts")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM ask for a stop where it loses nothing; a second one stops at once.

    The handlers of before are back afterwards, so that these may be nested.
    """
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.warning("stopping at the next step; once more to stop at once")

    with _handling(ask):
        yield stop


def interrupt_on_signals() -> AbstractContextManager[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, for those who wait and can leave at any moment.

    Python does so for SIGINT alone, and not in a shell's background job, which starts with SIGINT
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
