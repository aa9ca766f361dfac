"""Do the notebooks run top to bottom, offline? python scripts/run_notebooks.py [NAME...].

Each notebook runs in an empty folder of its own, so that it finds nothing that an earlier run has
left, and without a network as far as W&B and the hub are concerned. The notebooks in git stay as
they are, without outputs; `--out` keeps the executed copies.

Exits with 1, and says which cell, if one fails or a picture that should be drawn is not.
"""

import argparse
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
OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


class Failed(Exception):
    """A notebook failed; the message says where."""


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
    return notebook


def main() -> int:
    """Run the notebooks that are named, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="parts of file names")
    parser.add_argument("--out", type=Path, help="keep the executed notebooks in this folder")
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
