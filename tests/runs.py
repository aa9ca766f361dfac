"""Helpers for tests of whole runs: what a run directory says, without its clock."""

import json
from pathlib import Path
from typing import Any

from hub_server import TINY, full_model, write_checkpoint


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl less what a clock says: equal for equal runs, bit for bit."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("perf/")}
        for line in lines
    ]


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text())


def local_t5(folder: Path) -> Path:
    """A small T5 checkpoint on disk that passes the verification."""
    return write_checkpoint(folder, TINY, full_model(TINY))
