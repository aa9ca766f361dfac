"""Ending a command line cleanly, even if its reader has closed the pipe (`| head`)."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit the process with its status.

    A reader that closes the pipe early is not an error: no traceback, and the exit status of a
    program ended by the signal itself.
    """
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # here, since at exit Python could only complain
    except BrokenPipeError:
        _silence()
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _silence() -> None:
    # Python flushes stdout again at exit, and would meet the closed pipe again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on stdout; when its reader has gone, training continues, logged in run.log."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        """Fall silent on a closed pipe; report any other fault as logging does."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            _silence()
        else:
            super().handleError(record)


class RunLog(logging.FileHandler):
    """run.log, opened at the first line: by then the process has locked the run directory."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the file can be opened."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print one warning if the log cannot be written; the run continues."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            print(f"t5ts: {self.baseFilename} cannot be written ({error})", file=sys.stderr)
