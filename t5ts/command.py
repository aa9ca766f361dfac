"""Ending a command line cleanly, even if its reader has closed the pipe (`| head`)."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TextIO


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


#: Level of the line that tells of a run of a multirun, whose other lines are in its run.log.
RESULT = logging.INFO + 5


def console_level(verbose: Any, mode: Any) -> int:
    """What the terminal shows of run.log.

    Args:
        verbose: `hydra.verbose`: true or loggers' names show everything.
        mode: `hydra.mode`: in a multirun, a line for each run.
    """
    if verbose:
        return logging.DEBUG
    return RESULT if getattr(mode, "name", mode) == "MULTIRUN" else logging.INFO


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on stdout; when its reader has gone, training continues, logged in run.log.

    A warning that run after run of a process repeats is shown once.
    """

    _warned: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Today's stdout, which is not always that of the first line."""
        return sys.stdout

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass over a warning that was shown already."""
        if record.levelno == logging.WARNING:
            if (message := record.getMessage()) in self._warned:
                return False
            self._warned.add(message)
        return bool(super().filter(record))

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
