"""The progress bar of a run: a live line on a terminal, nothing without one."""

import logging
import sys
from typing import Any, Self

log = logging.getLogger("t5ts")


class ProgressBar:
    """Steps done, loss, the objective, windows/s and time left.

    Args:
        total_steps: Steps of the whole run.
        done_steps: Steps done before this process (a resumed run).
        enabled: False silences the bar; it is always silent if stderr is not a terminal.
    """

    def __init__(self, *, total_steps: int, done_steps: int = 0, enabled: bool = True) -> None:
        self._bar: Any = None
        self._numbers: dict[str, str] = {}
        if not (enabled and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TimeRemainingColumn

        texts = ("epoch {task.fields[epoch]}", "{task.completed}/{task.total} steps")
        numbers = ("{task.fields[numbers]}", "left", TimeRemainingColumn())
        columns = (texts[0], BarColumn(), texts[1], *numbers)
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.add_task("train", total=total_steps, completed=done_steps, epoch=0, numbers="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, *, step: int, epoch: int, **numbers: float) -> None:
        """Advance the bar; `numbers` stay visible until they are updated."""
        if self._bar is not None:
            self._numbers |= {name: f"{name} {value:.4g}" for name, value in numbers.items()}
            text = " · ".join(self._numbers.values())
            self._bar.update(self._bar.task_ids[0], completed=step, epoch=epoch, numbers=text)

    def say(self, line: str) -> None:
        """Log a line above the bar."""
        self.__exit__()
        log.info(line)
        self.__enter__()
