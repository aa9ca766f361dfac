"""Being asked to stop: by Ctrl-C, by a scheduler, by whoever started this process."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("t5ts")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM ask for a stop where it loses nothing; a second one stops at once.

    The handlers of before are back afterwards, so that these may be nested.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can be caught in the main thread only
        return

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.warning("stopping at the next step; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
