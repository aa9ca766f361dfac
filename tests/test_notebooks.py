"""The notebooks as files; `make notebooks` runs them."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "run_notebooks.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_three():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_and_fresh(path):
    """`make notebooks ARGS=--store` renews them."""
    spec = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    notebook = script.nbformat.read(path, as_version=4)
    assert script.stale(notebook) == ""
    assert any("image/png" in kinds for kinds in script.kinds(notebook))
    assert path.stat().st_size <= script.MAX_BYTES
    assert "/tmp" not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_parse_and_use_public_names_alone(path):
    import t5ts.analysis

    used = set()
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        # IPython's own lines: a command, a magic.
        tree = ast.parse("\n".join(line for line in lines if line[:1] not in ("!", "%")))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("t5ts.") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("t5ts"):
                assert node.module == "t5ts.analysis"
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "t5ts":
                assert node.attr in t5ts.__all__
    assert used
    assert used <= set(t5ts.analysis.__all__)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_commands_compose(path, composed):
    """Each run's command line is one that t5ts takes, so that a renamed key is seen here."""
    found = 0
    for cell in json.loads(path.read_text())["cells"]:
        for line in "".join(cell["source"]).splitlines():
            # Quoted: a checkout's folder may have a blank in its name.
            if not line.startswith('!"{sys.executable}" -m t5ts.run '):
                continue
            found += 1
            words = line.split(" -m t5ts.run ")[1].split(" > ")[0].split()
            own = [w for w in words if not w.startswith(("hydra", "--"))]
            # Of a sweep's values the first: compose takes no lists of choices.
            composed(*(w if "[" in w else w.split(",")[0] for w in own))
    assert found == 1
