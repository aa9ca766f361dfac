"""Imports point one way, and heavy libraries are imported only where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import t5ts

PACKAGE = Path(t5ts.__file__).parent
#: A module may import from lower numbers, and at its own level only from its own package.
LEVELS = {
    "errors": 0,
    "command": 0,
    "schema": 0,
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
    "checkpoint": 2,
    "tracking": 3,
    "interruption": 0,
    "run_directory": 6,
    "evaluation": 3,
    "output": 4,
    "donor": 3,
    "arm": 4,
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
    """Every module that a file imports, at any depth."""
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


def test_imports_point_one_way_and_heavy_libraries_stay_in_their_rooms():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imported(path):
            library, *rest = name.split(".")
            assert here in ROOMS.get(library, (here,)), f"{path} imports {library}"
            if library == "t5ts" and rest:
                checked += 1
                assert rest[0] == here or LEVELS[rest[0]] < LEVELS[here], f"{path} imports {name}"
    assert checked > 300


HEAVY = ("torch", "transformers", "wandb", "matplotlib", "polars", "optuna")


@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import t5ts.run", HEAVY),
        ("import t5ts.experiment", ("transformers", "wandb", "matplotlib", "optuna")),
        # It works where there is no torch.
        (
            "sys.modules['torch'] = None; import t5ts.analysis.plots, t5ts.analysis.page,"
            " t5ts.report; from t5ts.analysis import collect, verdict, write_report",
            ("transformers", "wandb", "optuna"),
        ),
    ],
    ids=["command line", "run", "analysis"],
)
def test_what_importing_leaves_out(code, kept_out):
    code = f"import sys; {code}; print([m for m in {kept_out} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
