"""A command line's exit and its log, also when its reader has closed the pipe (`| head`)."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TextIO

#: Level of the one line that a multirun shows for each run; all lines are in the run's run.log.
RESULT = logging.INFO + 5


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit the process with its status.

    A reader that closes the pipe early is not an error, nor is Ctrl-C: there is no traceback, and
    the exit status is that of a program that the signal ended.
    """
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # here, because at exit Python could only print a warning
    except BrokenPipeError:
        _silence()
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("t5ts: interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
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
    """Log to stdout; if its reader has gone, training continues, logged in run.log.

    A warning that several runs of a process repeat is shown once.
    """

    _warned: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current stdout, which may not be the one that the first line went to."""
        return sys.stdout

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop a warning that was already shown."""
        if record.levelno == logging.WARNING:
            if (message := record.getMessage()) in self._warned:
                return False
            self._warned.add(message)
        return bool(super().filter(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a closed pipe; report any other error as logging does."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            _silence()
        else:
            super().handleError(record)


class RunLog(logging.FileHandler):
    """run.log, opened at the first line: by then the process has locked the run directory.

    If the disk refuses a line, the run ends with one message and can be resumed later.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the disk's errors; report any other error as logging does."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise error
        super().handleError(record)
