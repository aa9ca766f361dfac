"""How a command line ends, and what it does when nobody reads on (`| head`)."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process with its status.

    A reader that closes the pipe early has what it wanted: no traceback, and the status that a
    program has which the signal itself ended.
    """
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # here, and not where Python ends and could only complain
    except BrokenPipeError:
        _silence()
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _silence() -> None:
    # Python flushes stdout once more at its end, and would meet the closed pipe again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on stdout; training goes on, into run.log, when its reader has gone."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        """Fall silent on a closed pipe; report any other fault as logging does."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            _silence()
        else:
            super().handleError(record)
