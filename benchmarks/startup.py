"""How long until something happens? python -m benchmarks.startup.

Question: how many seconds pass from a command to its answer (`--help`, `--cfg job`: under 1 s), and
from the command of a default run (t5-small, random init, packaged data, W&B offline) to the first
batch computed (under 6 s)? And where do they go?

What is timed, from before the process is started:

- "first batch": until the model has returned its first batch inside `fit`, with everything set up:
  data, weights, baselines, run directory, tracker. It is a validation batch, since a run evaluates
  before its first step; the batch of the scale audit, which comes earlier, does not count.
- "first step": until the first training batch has been through forward, backward and step, in a
  dry run (`debug=fast_dev_run`): the evaluation before it is one batch there, and checkpoints of
  the start are written as always.

Both are `t5ts.run.main` on a command line, with the functions it calls timed, left at that moment.
Medians of several runs, after one of each that warms the disk cache. The last table is
`python -X importtime`: the time of each distribution's own modules, without what they import.

Expected (2 quiet cores): 2 minutes.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
TARGET_ANSWER_S = 1.0
TARGET_BATCH_S = 6.0
RUN = ["backbone=t5_small", "init=random", "data=nyc_weather", "tracker=wandb"]


class Marks:
    """Splits the time since the command into named parts."""

    def __init__(self, begun: float) -> None:
        self._last = begun
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """What passed since the last mark belongs to this part."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def watch(self, module: Any, name: str, part: str) -> None:
        """Replace a module's function by one that marks its part."""
        function = getattr(module, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark("the rest")
            try:
                return function(*args, **kwargs)
            finally:
                self.mark(part)

        setattr(module, name, marked)


def drive(begun: float, answer: Path, stop: str, overrides: Sequence[str]) -> None:
    """Run t5ts with its parts timed until the first batch or step; in a separate process.

    Args:
        begun: `time.time()` before the process was started.
        answer: Where to write the parts, in seconds.
        stop: "batch" or "step".
        overrides: t5ts.run's command line.
    """
    marks = Marks(begun)
    marks.mark("start Python")
    import t5ts.run

    marks.mark("import Hydra")
    import torch  # noqa: F401 - for its time

    marks.mark("import torch")
    from t5ts import arm, build, datasets, experiment, meter, train
    from t5ts.model.forecaster import Forecaster

    marks.mark("import t5ts and the rest")
    marks.watch(datasets, "load_series", "load the data")
    marks.watch(datasets, "build_windows", "build the windows")
    marks.watch(arm, "encoder_state", "draw the encoder's weights")
    marks.watch(build, "build_model", "build the model")
    marks.watch(build, "build_optimizer", "build the optimizer")
    marks.watch(meter, "evaluate_baselines", "baselines")
    marks.watch(experiment, "scale_audit", "scale audit")
    marks.watch(experiment._Run, "begin", "digests and provenance.json")
    marks.watch(experiment, "_build_tracker", "start W&B")
    marks.watch(train, "save_checkpoint", "write checkpoints")
    if stop == "step":
        marks.watch(meter, "evaluate", "evaluate one batch")
    fit, forward = experiment.fit, Forecaster.forward

    def leave(part: str) -> NoReturn:
        marks.mark(part)
        answer.write_text(json.dumps(marks.parts))
        raise SystemExit(0)

    def forward_and_leave(self: Forecaster, x_BCL: Any) -> Any:
        forward(self, x_BCL)
        leave("first batch")

    def fit_to_first(*args: Any, **kwargs: Any) -> Any:
        marks.mark("the rest")
        if stop == "batch":
            Forecaster.forward = forward_and_leave  # type: ignore[method-assign]
        return fit(*args, **{**kwargs, "should_stop": lambda: leave("first step")})

    seams: Any = experiment
    seams.fit = fit_to_first
    sys.argv[1:] = overrides
    t5ts.run.main()


def time_run(stop: str) -> dict[str, float]:
    """Parts of one run's start, in seconds; "total" is their sum."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = folder / "answer.json"
        overrides = [*RUN, f"hydra.run.dir={folder / 'run'}"]
        overrides += ["debug=fast_dev_run"] if stop == "step" else []
        command = [sys.executable, "-m", "benchmarks.startup", "--drive"]
        command += [repr(time.time()), str(answer), stop, *overrides]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        if not answer.is_file():
            raise SystemExit(f"the run did not come to its first {stop}:\n{done.stderr[-3000:]}")
        parts: dict[str, float] = json.loads(answer.read_text())
    return {**parts, "total": sum(parts.values())}


def time_answer(flags: Sequence[str]) -> float:
    """Seconds of a whole command that only answers."""
    command = [sys.executable, "-m", "t5ts.run", *flags]
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    return time.perf_counter() - begun


def imports(code: str) -> dict[str, float]:
    """Seconds of each distribution's own modules when some code is run."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    sums: dict[str, float] = {}
    for line in done.stderr.splitlines():
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line)
        if not found:
            continue
        top = found[2].split(".")[0]
        top = "standard library" if top.lstrip("_") in STANDARD or top in STANDARD else top
        sums[top] = sums.get(top, 0.0) + int(found[1]) / 1e6
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


STANDARD = sys.stdlib_module_names


def repeat(measure: Callable[[], Any], runs: int) -> list[Any]:
    """Measurements after one that only warms up."""
    measure()
    return [measure() for _ in range(runs)]


def show(label: str, seconds: Sequence[float], target: float | None) -> None:
    """Print a median with its extremes, and whether the target is met."""
    median = statistics.median(seconds)
    line = f"{label:<24}{median:>7.2f} s   ({min(seconds):.2f} to {max(seconds):.2f})"
    if target is not None:
        line += f"   target < {target:g} s {'met' if median < target else 'MISSED'}"
    print(line, flush=True)


def show_parts(title: str, runs: Sequence[dict[str, float]]) -> None:
    """Print the median of each part."""
    print(f"\n{title}")
    for part in runs[0]:
        print(f"  {part:<30}{statistics.median(run.get(part, 0.0) for run in runs):>7.2f} s")


def main() -> None:
    """Measure and print everything."""
    if sys.argv[1:2] == ["--drive"]:
        begun, answer, stop, *overrides = sys.argv[2:]
        drive(float(begun), Path(answer), stop, overrides)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    for flags in (["--help"], ["--cfg", "job"]):
        answers = repeat(partial(time_answer, flags), runs)
        show(" ".join(flags), answers, TARGET_ANSWER_S)
    to_batch = repeat(partial(time_run, "batch"), runs)
    show("first batch", [run["total"] for run in to_batch], TARGET_BATCH_S)
    to_step = repeat(partial(time_run, "step"), runs)
    show("first step (dry run)", [run["total"] for run in to_step], None)
    show_parts("to the first batch", to_batch)
    show_parts("to the first step", to_step)
    for title, code in (("--help", "import t5ts.run"), ("a run", "import t5ts.experiment, wandb")):
        print(f"\nimports of {title} (-X importtime, which itself costs time)")
        for name, seconds in list(imports(code).items())[:10]:
            print(f"  {name:<30}{seconds:>7.2f} s")


if __name__ == "__main__":
    main()
