"""The progress bar of a run: a live line on a terminal, nothing without one."""

import logging
import sys
from types import TracebackType
from typing import Any

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
        if not (enabled and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(
            "train", total=total_steps, completed=done_steps, epoch="0", numbers=""
        )
        self._numbers: dict[str, str] = {}

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, *, step: int, epoch: int, **numbers: float) -> None:
        """Advance the bar; `numbers` stay visible until they are updated."""
        if self._bar is None:
            return
        self._numbers |= {name: f"{name} {value:.4g}" for name, value in numbers.items()}
        text = " · ".join(self._numbers.values())
        self._bar.update(self._task, completed=step, epoch=str(epoch), numbers=text)

    def say(self, line: str) -> None:
        """Log a line above the bar."""
        if self._bar is not None:
            self._bar.stop()
        log.info(line)
        if self._bar is not None:
            self._bar.start()
