"""Does the built wheel work on its own? python scripts/check_wheel.py [--full].

Builds the wheel, installs it into a new virtual environment, and makes a short run from an empty
folder: configuration and packaged data must come out of the wheel. By default the environment
borrows this interpreter's third-party packages through a .pth file and takes t5ts from the wheel
alone (half a minute, no network). `--full` installs the dependencies with pip instead, under
constraints.txt where there is one (minutes, needs an index): then the dependencies that the wheel
declares are checked too.

Exits with 1, and says what failed, if anything does.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The demo, cut short; it unfreezes after its first epoch, so that it needs two.
RUN = ["experiment=demo", "train.epochs=2", "data.windows_per_epoch=128", "tracker=none"]
WHERE = """
import json, t5ts
from t5ts.run import CONF
from t5ts.data import sources
print(json.dumps({"package": t5ts.__file__, "conf": str(CONF), "data": sources.__file__}))
"""


class Failed(Exception):
    """A check failed; the message says which."""


def call(command: Sequence[str | Path], *, cwd: Path, what: str) -> str:
    """Run a command without this environment's Python variables; returns its standard output.

    Raises:
        Failed: with the end of its output, if its exit status is not 0.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise Failed(f"{what} failed with exit status {done.returncode}:\n{said}")
    return done.stdout


def build(folder: Path) -> Path:
    """Build the wheel into a folder."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
    ]
    call([*command, ROOT], cwd=folder, what="building the wheel")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Failed(f"one wheel was expected in {folder}: {[w.name for w in wheels]}")
    return wheels[0]


def install(wheel: Path, environment: Path, *, full: bool) -> Path:
    """Make a virtual environment with the wheel in it; returns its Python."""
    folder = environment.parent
    call([sys.executable, "-m", "venv", environment], cwd=folder, what="making the environment")
    python = environment / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    if full:
        constraints = ROOT / "constraints.txt"
        pinned: list[str | Path] = ["-c", constraints] if constraints.is_file() else []
        call([*pip, *pinned, wheel], cwd=folder, what="installing the wheel")
        return python
    call([*pip, "--no-deps", wheel], cwd=folder, what="installing the wheel")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = environment / "lib" / version / "site-packages"
    # A folder named in a .pth file is searched last, and the .pth files in it are not read: what
    # makes this checkout importable (an editable install) stays outside.
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(folders) + "\n")
    return python


def check_origin(python: Path, environment: Path, empty: Path) -> None:
    """Package, configuration and data must lie in the environment."""
    where = json.loads(call([python, "-c", WHERE], cwd=empty, what="importing t5ts"))
    inside = environment.resolve()
    for name, place in where.items():
        if not Path(place).resolve().is_relative_to(inside):
            raise Failed(f"{name} comes from {place}, not from the wheel in {inside}")
        print(f"OK  {name:<8} {Path(place).resolve().relative_to(inside)}")


def check_run(python: Path, empty: Path) -> None:
    """A short run must end well and leave a result."""
    began = time.perf_counter()
    run = empty / "run"
    command: list[str | Path] = [python, "-m", "t5ts.run", *RUN, f"hydra.run.dir={run}"]
    call(command, cwd=empty, what=f"t5ts.run {' '.join(RUN)}")
    print(f"OK  run      exit status 0 after {time.perf_counter() - began:.0f} s")
    result = run / "result.json"
    if not result.is_file():
        raise Failed(f"the run left no result.json, but {sorted(p.name for p in run.iterdir())}")
    values = json.loads(result.read_text())
    print(f"OK  result   {values['objective_name']} = {values['objective']:.4f}")


def main() -> int:
    """Build, install, run; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="install the dependencies with pip")
    full = parser.parse_args().full
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            empty = folder / "empty"
            empty.mkdir()
            wheel = build(folder)
            print(f"OK  wheel    {wheel.name}, {wheel.stat().st_size / 2**10:.0f} KiB")
            python = install(wheel, folder / "environment", full=full)
            print(f"OK  install  {'with dependencies' if full else 'beside borrowed packages'}")
            check_origin(python, folder / "environment", empty)
            check_run(python, empty)
    except Failed as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    print(f"OK  all      {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
