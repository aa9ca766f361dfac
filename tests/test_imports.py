"""Imports point one way, and heavy libraries are imported only where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import t5ts

PACKAGE = Path(t5ts.__file__).parent
#: A module may import from tiers above its own, and in its own only from its own package.
TIERS = [
    "errors command schema draws interruption",
    "config distributed tasks provenance progress",
    "checks schedule metrics data model analysis checkpoint devices",
    "overrides optim probes tracking evaluation donor",
    "output arm datasets",
    "build",
    "run_directory train reuse console meter",
    "experiment",
    "sweep forecasting",
    "api export predict report dashboard download",
    "run __main__",
]
LEVELS = {name: level for level, tier in enumerate(TIERS) for name in tier.split()}
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
