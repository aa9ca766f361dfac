"""Imports point one way, and heavy libraries stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import t5ts

PACKAGE = Path(t5ts.__file__).parent
#: A module may import what has a lower number, and nothing of its own level but its own package.
LEVELS = {
    "errors": 0,
    "command": 0,
    "config": 1,
    "distributed": 1,
    "checks": 2,
    "draws": 0,
    "schedule": 2,
    "metrics": 2,
    "tasks": 1,
    "provenance": 1,
    "progress": 1,
    "data": 2,
    "model": 2,
    "analysis": 2,
    "optim": 3,
    "probes": 3,
    "checkpoint": 3,
    "tracking": 3,
    "interruption": 0,
    "run_directory": 4,
    "evaluation": 3,
    "donor": 4,
    "build": 5,
    "train": 6,
    "reuse": 6,
    "console": 6,
    "experiment": 7,
    "sweep": 8,
    "api": 9,
    "run": 10,
    "__main__": 10,
    "forecasting": 8,
    "export": 9,
    "predict": 9,
    "report": 9,
    "dashboard": 9,
    "download": 9,
}
#: Who alone may import a library, since it is slow or a matter of one room.
ROOMS = {
    # T5's encoder is t5ts's own; the others' are transformers'.
    "transformers": ("model",),
    "tokenizers": (),
    "huggingface_hub": ("model",),
    "wandb": ("tracking", "dashboard"),
    "wandb_workspaces": ("dashboard",),
    "optuna": ("sweep",),
    "matplotlib": ("analysis",),
    "jinja2": ("analysis", "export"),
    "scipy": ("analysis",),
    "statsmodels": (),
    "polars": ("data", "analysis", "forecasting", "predict", "api"),
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "t5ts":
                names |= {f"t5ts.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    for name in imported(path):
        if not name.startswith("t5ts."):
            continue
        there = name.split(".")[1]
        assert there == here or LEVELS[there] < LEVELS[here], f"{here} imports {there}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported(path):
        library = name.split(".")[0]
        assert room(path) in ROOMS.get(library, (room(path),)), f"{room(path)} imports {library}"


def test_command_line_imports_no_heavy_library() -> None:
    code = (
        "import sys, t5ts.run;"
        "print([m for m in ('torch', 'transformers', 'wandb', 'matplotlib', 'polars', 'optuna')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_t5_run_does_not_import_transformers() -> None:
    code = "import sys, t5ts.experiment; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_analysis_works_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None;"
        "import t5ts.analysis.plots, t5ts.analysis.page, t5ts.report;"
        "from t5ts.analysis import collect, verdict, write_report; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fine"
