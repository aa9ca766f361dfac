"""A command line's exit and its log, also when its reader has closed the pipe (`| head`)."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TextIO

#: Level of the line that tells of a run of a multirun, whose other lines are in its run.log.
RESULT = logging.INFO + 5


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit the process with its status.

    A reader that closes the pipe early is no error: no traceback, and the exit status of a program
    that the signal itself ended.
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


def console_level(verbose: Any, mode: Any) -> int:
    """What the terminal shows of run.log, by `hydra.verbose` and `hydra.mode`.

    Everything if verbose (true, or names of loggers); in a multirun, a line for each run.
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
    """run.log, opened at the first line: by then the process has locked the run directory.

    A disk that does not take a line ends the run with one message; it resumes later.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the disk's errors; report any other fault as logging does."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise error
        super().handleError(record)
