"""Helpers for tests of whole runs: what a run directory says, without its clock."""

import json
from pathlib import Path
from typing import Any

from hub_server import TINY, full_model, write_checkpoint

HUB_ID = "google/t5-efficient-tiny"
#: The backbone's own values would want the published checkpoint; these are the tiny stand-in's.
HUB_BACKBONE = [
    "backbone=t5_efficient_tiny",
    f"backbone.d_model={TINY.d_model}",
    f"backbone.d_ff={TINY.d_ff}",
    f"backbone.d_kv={TINY.d_kv}",
    f"backbone.num_layers={TINY.num_layers}",
    f"backbone.num_heads={TINY.num_heads}",
    f"backbone.vocab_size={TINY.vocab_size}",
    "backbone.full_params=null",
]


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
