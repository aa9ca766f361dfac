"""Sweeps by their command line, with the workers' loop in this process: it saves imports."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, TINY_T5
from hydra.core.global_hydra import GlobalHydra

from t5ts import run
from t5ts.sweep import coordinator
from t5ts.sweep.worker import work

COMMON = ["hydra/sweeper=t5ts", *SMALL, *TINY_T5, "train.epochs=3", "train.threads=1"]
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Sweep]:
    """Run a sweep in `tmp_path/NAME` (None: where its command leads): status, stdout, stderr.

    `plain`: Hydra's grid instead of the sweeper; `sweep.drawn`: run directories that got pictures.
    """

    def in_this_process(job: Any, display: Any) -> None:
        work(job, worker=0)
        display.update()

    monkeypatch.setattr(coordinator, "_with_pool", in_this_process)
    # A run's pictures take longer than its training. (The sweep's own are drawn.)
    drawn: list[Path] = []
    monkeypatch.setattr("t5ts.analysis.plots.draw_run", lambda folder, **_: drawn.append(folder))
    monkeypatch.chdir(tmp_path)

    def go(name: str | None, *overrides: str, plain: bool = False) -> tuple[int, str, str]:
        where = [] if name is None else [f"hydra.sweep.dir={tmp_path / name}"]
        common = COMMON[1:] if plain else COMMON
        arguments = ["t5ts.run", "--multirun", *common, *where, *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        GlobalHydra.instance().clear()
        status = 0
        try:
            run.cli()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    go.drawn = drawn  # type: ignore[attr-defined]
    yield go
    GlobalHydra.instance().clear()
