"""One run in two processes: the numbers of one, one writer, one message, nobody left waiting."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from runs import Command, Compose, read, rows, run, wait_for_rows
from two_processes import EQUAL, WITHOUT_DROPOUT, forecasts, main

from t5ts import distributed, experiment
from t5ts.build import build
from t5ts.checkpoint import load_checkpoint
from t5ts.errors import ConfigError
from t5ts.metrics import RegressionSums


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done the program's runs."""
    folder = tmp_path_factory.mktemp("two")
    process = Command(str(folder), cwd=folder, program=main, processes=2)
    out, err = process.wait()
    assert process.returncode == 0, out + err
    return folder


def seen(two: Path) -> list[dict[str, Any]]:
    return [read(two / f"process-{number}.json") for number in (0, 1)]


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """A row's numbers; NaN where a metric is not defined."""
    return {
        key: math.nan if value is None else value
        for key, value in row.items()
        if not isinstance(value, str)
    }


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_give_the_numbers_of_one(
    name: str, two: Path, tiny: Compose, tmp_path: Path
) -> None:
    run(tiny(WITHOUT_DROPOUT, *EQUAL[name]), run_dir=tmp_path / "one")
    one, both = rows(tmp_path / "one"), rows(two / name)
    assert len(one) == len(both) > 8
    for expected, got in zip(one, both, strict=True):
        # Losses, metrics, rates, gradient norms, distances: float32 sums of shares are those of
        # the whole batch but for rounding (1e-7 here, 1e-6 seen elsewhere), which Adam passes on.
        assert numbers(got) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-9, nan_ok=True)
    result, of_two = read(tmp_path / "one" / "result.json"), read(two / name / "result.json")
    for part in ("metrics", "initial"):
        assert numbers(of_two[part]) == pytest.approx(numbers(result[part]), rel=1e-6, abs=1e-9)
    assert of_two["baselines"] == result["baselines"]
    assert of_two["best_epoch"] == result["best_epoch"]
    weights, _ = load_checkpoint(tmp_path / "one" / "checkpoint" / "last.safetensors")
    weights_of_two, _ = load_checkpoint(two / name / "checkpoint" / "last.safetensors")
    for key in (key for key in weights if not key.startswith("rng/")):
        torch.testing.assert_close(weights_of_two[key], weights[key], rtol=1e-5, atol=1e-6)
    moves = {"block_0" in key for key in one[-1] if key.startswith("distance_from_init")}
    assert moves == {True, False}


def test_both_processes_end_with_the_same_weights_and_drop_out_other_units(two: Path) -> None:
    first, second = seen(two)
    assert first["ends"] == second["ends"]
    assert set(first["ends"]) == {*EQUAL, "whole", "parts", "fp16"}
    assert first["outcomes"] == second["outcomes"]
    assert len(first["dropout"]) == len(second["dropout"]) > 5
    assert not set(first["dropout"]) & set(second["dropout"])


def test_interrupted_and_resumed_is_bitwise_with_dropout(two: Path) -> None:
    """SIGTERM reached process 1 alone: both stopped after that step, and both resumed from it."""
    first, _ = seen(two)
    *_, whole, stopped, resumed, shown, _fp16 = first["outcomes"]
    assert stopped == "Interrupted"
    assert whole == resumed == shown
    assert rows(two / "parts") == rows(two / "whole")
    assert first["ends"]["parts"] == first["ends"]["whole"]


def test_metrics_are_those_of_all_windows(two: Path) -> None:
    whole = RegressionSums(3)
    whole.update(*forecasts())
    expected = whole.compute(mase_denominator_C=torch.ones(3), naive_mse=1.0)
    assert expected["corr_constant_channels"] == 1
    for own in seen(two):
        assert own["metrics"] == pytest.approx(expected, rel=1e-12)


def test_fp16_overflow_in_one_process_is_skipped_in_both(two: Path) -> None:
    steps = [row for row in rows(two / "fp16") if row["kind"] == "step"]
    skipped = steps[-1]["amp/skipped_steps"]
    assert skipped > 0
    assert steps[-1]["amp/scale"] == 65536 / 2**skipped
    assert [own["ends"]["fp16"]["skipped_steps"] for own in seen(two)] == [skipped, skipped]


def test_kill_and_sigterm_leave_a_checkpoint_that_one_process_resumes(
    tiny: Compose, tmp_path: Path
) -> None:
    """The command line, as a user meets it: process 0 dies, torchrun is told to stop.

    What is left of the processes prints one line each time, also where process 0 is gone.
    """
    overrides = [WITHOUT_DROPOUT, "train.epochs=20", "freeze=staged", "freeze.unfreeze_epoch=2"]
    place = tmp_path / "work"
    place.mkdir()
    run_dir = place / "run"
    command = [*SMALL, *TINY_T5, *overrides, f"hydra.run.dir={run_dir}"]
    for rank, number, rows_first in ((0, signal.SIGKILL, 6), (None, signal.SIGTERM, 30)):
        process = Command(*command, cwd=place, processes=2)
        wait_for_rows(run_dir, rows_first, process)
        process.send_signal(number, rank=rank)
        _, err = process.wait()  # it ends: nobody waits for the one that is gone
        assert process.returncode
        assert len(messages(err)) == 1, err
        assert not (run_dir / "result.json").exists()
    result = run(tiny(*overrides), run_dir=run_dir)
    whole = run(tiny(*overrides), run_dir=tmp_path / "whole")
    assert numbers(result.metrics) == pytest.approx(numbers(whole.metrics), rel=1e-6, abs=1e-9)
    for expected, got in zip(rows(tmp_path / "whole"), rows(run_dir), strict=True):
        assert numbers(got) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-9, nan_ok=True)
    # Process 0 alone has written: no second log, lock, folder or row.
    assert [path.name for path in place.iterdir()] == ["run"]
    by_hydra = {"run.log"}
    names = {path.name for path in run_dir.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()} | by_hydra
    assert (run_dir / "run.log").read_text().count("seed 0") == 2


#: Python imports it at each start: it writes down which threads are left at the end of a process.
AT_EXIT = """
import atexit, os
from pathlib import Path
def write():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(f"threads-{os.environ.get('RANK', 'agent')}").write_text("\\n".join(sorted(names)))
atexit.register(write)
"""


def test_torchruns_own_command_line_trains_one_run(tmp_path: Path) -> None:
    """The other tests start torchrun's agent by itself, without its command line."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AT_EXIT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [*SMALL, "backbone=linear", "debug=fast_dev_run", "hydra.run.dir=run"]
    done = subprocess.run(
        [*torchrun, "-m", "t5ts.run", *arguments],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "hook")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path / "run" / "provenance.json")["processes"] == 2
    assert read(tmp_path / "run" / "result.json")["metrics"]
    assert (tmp_path / "run" / "run.log").read_text().count("seed 0") == 1
    for rank in (0, 1):  # one of gloo's that outlives Python may abort the process
        assert "gloo" not in (tmp_path / f"threads-{rank}").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--multirun", "seed=0,1"], "--multirun"), (["seed=x"], "seed=x"), (["seeds=1"], "seeds")],
)
def test_nonsense_is_refused_with_one_message(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    places = [f"hydra.{mode}.dir={tmp_path / 'here'}" for mode in ("run", "sweep")]
    process = Command(*arguments, *places, cwd=tmp_path, processes=2)
    _, err = process.wait()
    assert process.returncode
    (message,) = messages(err)
    assert named in message
    assert not list(tmp_path.iterdir())


def messages(err: str) -> list[str]:
    """What the processes printed; a traceback of t5ts is a failure."""
    assert f'File "{Path(experiment.__file__).parent}/' not in err
    return [line for line in err.splitlines() if line.startswith("t5ts: ")]


def test_alone_everything_is_trivial_and_torch_is_not_imported() -> None:
    code = (
        "import sys; from t5ts import distributed as d\n"
        "with d.setup(), d.main_first():\n"
        "    assert (d.rank(), d.world_size(), d.is_main()) == (0, 1, True)\n"
        "    assert d.gather_objects(3) == [3]\n"
        "    assert d.any_of(True, False) == (True, False) and d.share('all') == 'all'\n"
        "    d.all_reduce_sum(1); d.all_reduce_max(1); d.broadcast_tensors(1)\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_number_of_processes_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError), distributed.setup():
        pass


@pytest.mark.parametrize(
    ("overrides", "word"), [([], "GPUs"), (["train.device=cpu", "train.batch_size=1"], "batch")]
)
def test_more_processes_than_gpus_or_windows_are_refused(
    overrides: list[str], word: str, tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "local_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=word):
        build(tiny(*overrides))


def test_shares_are_even_and_leave_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for windows in (0, 1, 5, 64):
        index_B = torch.arange(windows)
        for size in (1, 2, 3, 7):
            shares = []
            for number in range(size):
                monkeypatch.setattr(distributed, "_rank", number)
                monkeypatch.setattr(distributed, "_world_size", size)
                shares.append(distributed.share(index_B))
            assert torch.equal(torch.cat(shares), index_B)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
