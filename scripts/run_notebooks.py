"""Do the notebooks run top to bottom, offline? python scripts/run_notebooks.py [NAME...].

Each notebook runs in an empty folder of its own, so that it finds nothing that an earlier run has
left, and without a network as far as W&B and the hub are concerned. The notebooks in git have their
outputs, so that a code host shows the pictures: `--store` renews them, with a hash of the sources
that they came from. `--out` keeps executed copies elsewhere.

Exits with 1, and says which cell, if one fails, if a picture that should be drawn is not, or if
what is stored came from other sources or has outputs of another kind.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that one cell may take: a machine that is shared needs many times what a quiet one does.
CELL_TIMEOUT_S = 900
#: Bytes of a stored notebook: a clone should stay small.
MAX_BYTES = 300_000
OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


class Failed(Exception):
    """A notebook failed; the message names the cell."""


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder.

    Raises:
        Failed: if a cell ends in an error or takes too long, or `draw(...)`
            shows no picture.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise Failed(f"{path.name}: {error}") from error
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        if re.search(r"^draw\(", cell.source, flags=re.M) and not drawn:
            raise Failed(f"{path.name}, cell {number}: no picture from {cell.source!r}")
        for output in cell.outputs:
            if "text" in output:  # without this machine's paths and a terminal's line ends
                for found in (f"{folder}/", f"{ROOT}/", "\r"):
                    output.text = output.text.replace(found, "")
    return notebook


def sources_sha256(notebook: nbformat.NotebookNode) -> str:
    """A hash of the code cells' sources: neither outputs nor prose."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def stale(notebook: nbformat.NotebookNode) -> str:
    """Why stored outputs are stale; empty if they are not."""
    stored = notebook.metadata.get("t5ts", {}).get("sources_sha256")
    if stored is None:
        return "it has no stored outputs"
    return "" if stored == sources_sha256(notebook) else "its cells changed after they were run"


def kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """Of each cell, what kinds of output it has: a stream's name, MIME types."""
    return [
        {kind for out in cell.get("outputs", ()) for kind in out.get("data", {out.get("name"): 0})}
        for cell in notebook.cells
    ]


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook with its outputs, without clocks and ids that change each time.

    Raises:
        Failed: if it is too large.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python"},
        "t5ts": {"sources_sha256": sources_sha256(notebook)},
    }
    nbformat.write(notebook, path)
    if path.stat().st_size > MAX_BYTES:
        raise Failed(f"{path.name} has {path.stat().st_size} bytes, more than {MAX_BYTES}")


def main() -> int:
    """Run the notebooks that are named, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="parts of file names")
    parser.add_argument("--out", type=Path, help="keep the executed notebooks in this folder")
    parser.add_argument("--store", action="store_true", help="renew the outputs in notebooks/")
    options = parser.parse_args()
    paths = [
        path
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        if not options.names or any(name in path.name for name in options.names)
    ]
    if not paths:
        print(f"FAILED  no notebook named {' or '.join(options.names)}", file=sys.stderr)
        return 1
    # The kernel and what it starts take this checkout, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    os.environ |= OFFLINE
    try:
        for path in paths:
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                notebook = execute(path, Path(folder))
            stored = nbformat.read(path, as_version=4)
            if options.store:
                store(notebook, path)
            elif why := stale(stored):
                raise Failed(f"{path.name} is stale: {why}. Renew it: make notebooks ARGS=--store")
            elif kinds(stored) != kinds(notebook):
                raise Failed(f"{path.name}: outputs of another kind. make notebooks ARGS=--store")
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, options.out / path.name)
            print(f"OK  {path.name}  {time.perf_counter() - began:.0f} s", flush=True)
    except Failed as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
