"""Does the built wheel work on its own? python scripts/check_wheel.py [--full].

Builds the wheel, installs it into a new virtual environment, and makes the demo's two runs, cut
short, from an empty folder: configuration, packaged data and the packaged T5 must come out of the
wheel. By default the environment
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
RUN = ["--multirun", "experiment=demo", "init=t5,random"]
RUN += ["train.epochs=2", "data.windows_per_epoch=128", "tracker=none"]
#: MB that the wheel may have; the packaged T5 is the most of it.
MAX_WHEEL_MB = 15
#: Nothing may be fetched: every address of the hub and of a proxy leads nowhere.
NO_NETWORK = dict.fromkeys(("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
WHERE = """
import json, t5ts
from t5ts.run import CONF
from t5ts.data import sources
from t5ts.model.checkpoint_file import checkpoint_folder
places = {"package": t5ts.__file__, "conf": CONF, "data": sources.__file__}
places["t5"] = checkpoint_folder("packaged:t5_tiny_en") / "model.safetensors"
print(json.dumps({name: str(place) for name, place in places.items()}))
"""


class Failed(Exception):
    """A check failed; the message names it."""


def call(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    what: str,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a command without this environment's Python variables; returns its standard output.

    Raises:
        Failed: with the end of its output, if its exit status is not 0.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | (environment or {}),
        capture_output=True,
        text=True,
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
    """Package, configuration and data must be in the environment."""
    where = json.loads(call([python, "-c", WHERE], cwd=empty, what="importing t5ts"))
    inside = environment.resolve()
    for name, place in where.items():
        if not Path(place).resolve().is_relative_to(inside):
            raise Failed(f"{name} comes from {place}, not from the wheel in {inside}")
        print(f"OK  {name:<8} {Path(place).resolve().relative_to(inside)}")


def check_runs(python: Path, empty: Path) -> None:
    """The demo's arms must succeed, with verified pretrained weights, and appear in one table."""
    began = time.perf_counter()
    sweep = empty / "demo"
    command: list[str | Path] = [python, "-m", "t5ts.run", *RUN, f"hydra.sweep.dir={sweep}"]
    call(command, cwd=empty, what=f"t5ts.run {' '.join(RUN)}", environment=NO_NETWORK)
    print(f"OK  runs     exit status 0 after {time.perf_counter() - began:.0f} s")
    results = {}
    for path in sweep.glob("*/result.json"):
        result = json.loads(path.read_text())
        weights = json.loads((path.parent / "provenance.json").read_text())["weights"]
        results[weights["init"], weights["source"]] = result["objective"]
    if set(results) != {("t5", "packaged:t5_tiny_en"), ("random", "random")}:
        raise Failed(f"an arm has no result, or the wrong weights: {sorted(results)}")
    for (init, source), objective in results.items():
        print(f"OK  result   init={init} from {source}: val_loss {objective:.4f}")
    told = call([python, "-m", "t5ts.report", sweep], cwd=empty, what="t5ts.report")
    page = (sweep / "report" / "report.html").read_text(encoding="utf-8")
    if not all(f"{init}-staged" in text for init in ("t5", "random") for text in (told, page)):
        raise Failed(f"an arm is not in the report:\n{told}")
    print("OK  report   both arms")


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
            size_mb = wheel.stat().st_size / 1e6
            if size_mb > MAX_WHEEL_MB:
                raise Failed(f"{wheel.name} has {size_mb:.1f} MB, allowed {MAX_WHEEL_MB}")
            print(f"OK  wheel    {wheel.name}, {size_mb:.1f} MB")
            python = install(wheel, folder / "environment", full=full)
            print(f"OK  install  {'with dependencies' if full else 'with borrowed packages'}")
            check_origin(python, folder / "environment", empty)
            check_runs(python, empty)
    except Failed as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    print(f"OK  all      {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
