"""One run in two processes: the numbers of one, one writer, one message, nobody left waiting.

Each of two processes does all of `RUNS` and writes into `process-R.json` how each ended, with which
weights, and what else it saw.
"""

import functools
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from hydra import compose, initialize_config_dir
from runs import Command, Loud, command_line, read, rows, run, wait_for_rows

import t5ts.build
from t5ts import distributed, experiment, train
from t5ts.build import build
from t5ts.checkpoint import load_checkpoint
from t5ts.checks import check
from t5ts.config import CONF, Config, from_hydra, register
from t5ts.errors import ConfigError, Interrupted, UserError
from t5ts.metrics import RegressionSums

#: Overrides of the runs that must give the numbers of one process (without dropout).
EQUAL = {
    # 381 windows: five batches of 64 and one of 61, each in three parts of a half.
    "none": ["train.grad_accumulation=3", "train.epochs=2"],
    # Batches of 64, 64 and 1: the second process has no window in the last. Stages begin in
    # mid-epoch, block by block, with rates that warm up anew.
    "staged": [
        "freeze=staged", "freeze.unfreeze_epoch=1.34", "freeze.epochs_per_stage=0.67",
        "freeze.rewarmup_epochs=0.67", "data.windows_per_epoch=129", "train.grad_accumulation=2",
        "optim=adamw_rms",
    ],
    # All that the selected checkpoint can be measured on.
    "all": [
        "freeze=all", "train.epochs=2", "train.grad_accumulation=2", "train.eval_batch_size=7",
        "train.shuffled_test=true", "data@ood=synthetic", "ood.num_rows=500", "ood.seed=5",
    ],
}  # fmt: skip
WITHOUT_DROPOUT = "backbone.dropout=0"
STOP_AFTER = 9  # steps, in the middle of an epoch
RUNS = [
    *((name, [WITHOUT_DROPOUT, *overrides]) for name, overrides in EQUAL.items()),
    ("whole", ["train.epochs=2"]),
    *[("parts", ["train.epochs=2"])] * 3,  # the third time it is finished, and shown
    ("fp16", ["train.epochs=2", "train.log_every=1"]),
]


@functools.cache
def config_of(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = from_hydra(compose("config", overrides=[*SMALL, *TINY_T5, *overrides]))
    check(config)
    return config


def meddle(name: str, seen: dict[str, Any], patch: pytest.MonkeyPatch, *, stops: bool) -> None:
    """Make process 1 stop or overflow in the run of that name; record how each run ends."""
    real_fit = experiment.fit

    def fit(setup, *args, should_stop, **kwargs):
        steps = 0

        def stop() -> bool:
            nonlocal steps
            steps += 1
            return should_stop() or (stops and distributed.rank() == 1 and steps == STOP_AFTER)

        if name == "fp16" and distributed.rank() == 1:
            setup = replace(setup, task=Loud(setup.task.seq_len, setup.task.horizon))
        state = real_fit(setup, *args, should_stop=stop, **kwargs)
        digest = hashlib.sha256()
        for tensor in setup.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        ended = {"skipped_steps": state.skipped_steps, "weights": digest.hexdigest()}
        seen["ends"][name] = ended
        seen["dropout"].append(torch.initial_seed())
        return state

    patch.setattr(experiment, "fit", fit)
    if name == "fp16":  # on the CPU, where users are refused it
        patch.setattr(
            t5ts.build, "device_and_precision", lambda _: (torch.device("cpu"), torch.float16)
        )


def forecasts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """5 windows of 3 channels: predictions, truth and last values.

    The second channel's truth does not vary within a process's share and does over all; the
    third's never varies, though a sum of its squares would not say so.
    """
    generator = torch.Generator().manual_seed(0)
    prediction_BCH, target_BCH = torch.randn(2, 5, 3, 4, generator=generator).unbind()
    target_BCH[:3, 1], target_BCH[3:, 1] = 0.1, 0.7
    target_BCH[:, 2] = 0.3
    return prediction_BCH, target_BCH, torch.zeros_like(target_BCH)


def sum_of_shares() -> dict[str, float]:
    """Metrics of the forecasts, of which each process adds its share."""
    sums = RegressionSums(3)
    mine_B = distributed.share(torch.arange(5))
    sums.update(*(tensor[mine_B] for tensor in forecasts()))
    sums.add_other_processes()
    return sums.compute(mase_denominator_C=torch.ones(3), naive_mse=1.0)


def main(where: str) -> None:
    """In every process: all runs, whatever happened to the previous one."""
    folder = Path(where)
    torch.set_num_threads(1)
    register()
    with distributed.setup():
        seen: dict[str, Any] = {"ends": {}, "dropout": [], "outcomes": []}
        seen["metrics"] = sum_of_shares()
        for name, overrides in RUNS:
            stops = name == "parts" and "Interrupted" not in seen["outcomes"]
            with pytest.MonkeyPatch.context() as patch:
                meddle(name, seen, patch, stops=stops)
                try:
                    result = run(config_of(*overrides), run_dir=folder / name)
                    seen["outcomes"].append(result.objective)
                except (UserError, Interrupted) as error:
                    seen["outcomes"].append(type(error).__name__)
        (folder / f"process-{distributed.rank()}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder in which two processes have done the program's runs."""
    folder = tmp_path_factory.mktemp("two")
    process = Command(str(folder), cwd=folder, program=main, processes=2)
    process.finish()
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
def test_two_processes_give_the_numbers_of_one(name, two, tiny, tmp_path):
    run(tiny(WITHOUT_DROPOUT, *EQUAL[name]), run_dir=tmp_path / "one")
    one, both = rows(tmp_path / "one"), rows(two / name)
    assert len(one) == len(both) > 8
    for expected, got in zip(one, both, strict=True):
        # Losses, metrics, rates, gradient norms, distances: float32 sums of shares are those of
        # the whole batch but for rounding (1e-7 here, 1e-6 seen elsewhere), which Adam passes on.
        assert numbers(got) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-9, nan_ok=True)
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


def test_both_processes_end_with_the_same_weights_and_drop_out_other_units(two):
    first, second = seen(two)
    assert first["ends"] == second["ends"]
    assert set(first["ends"]) == {*EQUAL, "whole", "parts", "fp16"}
    assert first["outcomes"] == second["outcomes"]
    assert len(first["dropout"]) == len(second["dropout"]) > 5
    assert not set(first["dropout"]) & set(second["dropout"])


def test_interrupted_and_resumed_is_bitwise_with_dropout(two):
    """SIGTERM reached process 1 alone: both stopped after that step, and both resumed from it."""
    first, _ = seen(two)
    *_, whole, stopped, resumed, shown, _fp16 = first["outcomes"]
    assert stopped == "Interrupted"
    assert whole == resumed == shown
    assert rows(two / "parts") == rows(two / "whole")
    assert first["ends"]["parts"] == first["ends"]["whole"]


def test_metrics_are_those_of_all_windows(two):
    whole = RegressionSums(3)
    whole.update(*forecasts())
    expected = whole.compute(mase_denominator_C=torch.ones(3), naive_mse=1.0)
    assert expected["corr_constant_channels"] == 1
    for own in seen(two):
        assert own["metrics"] == pytest.approx(expected, rel=1e-12)


def test_fp16_overflow_in_one_process_is_skipped_in_both(two):
    steps = [row for row in rows(two / "fp16") if row["kind"] == "step"]
    skipped = steps[-1]["amp/skipped_steps"]
    assert skipped > 0
    assert steps[-1]["amp/scale"] == 65536 / 2**skipped
    assert [own["ends"]["fp16"]["skipped_steps"] for own in seen(two)] == [skipped, skipped]


def told_to_end_before_its_message(*arguments: str) -> None:
    """The command line; torchrun's agent, twice, is faster than a process that lost its peer."""
    real_print = distributed.print_own

    def print_own(error):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        real_print(error)

    distributed.print_own = print_own
    command_line(*arguments)


def test_kill_and_sigterm_leave_a_checkpoint_that_one_process_resumes(tiny, tmp_path):
    """The command line, as a user meets it: process 0 dies, torchrun is told to stop.

    What is left of the processes prints one line each time, also where process 0 is gone.
    """
    overrides = [WITHOUT_DROPOUT, "train.epochs=20", "freeze=staged", "freeze.unfreeze_epoch=2"]
    place = tmp_path / "work"
    place.mkdir()
    run_dir = place / "run"
    command = [*SMALL, *TINY_T5, *overrides, f"hydra.run.dir={run_dir}"]
    for rank, number, rows_first in ((0, signal.SIGKILL, 6), (None, signal.SIGTERM, 30)):
        process = Command(*command, cwd=place, processes=2, program=told_to_end_before_its_message)
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
        assert numbers(got) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-9, nan_ok=True)
    # Process 0 alone has written: no second log, lock, folder or row.
    assert [path.name for path in place.iterdir()] == ["run"]
    by_hydra = {"run.log"}
    names = {path.name for path in run_dir.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()} | by_hydra
    assert (run_dir / "run.log").read_text().count("seed 0") == 2


def on_a_full_disk(*arguments: str) -> None:
    """The command line; from the first step on process 0, which alone writes, has 5 kB a file."""
    real_fit = experiment.fit

    def fit(*args, **kwargs):
        if distributed.is_main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        return real_fit(*args, **kwargs)

    experiment.fit = fit
    command_line(*arguments)


def out_of_memory_in_the_second(*arguments: str) -> None:
    """The command line; in mid-training process 1 alone gets no more memory."""
    real_step, steps = train.train_step, count(1)

    def train_step(*args, **kwargs):
        if distributed.rank() == 1 and next(steps) == 5:
            raise MemoryError("no more")
        return real_step(*args, **kwargs)

    train.train_step = train_step
    command_line(*arguments)


#: Python imports it at each start: it writes down which threads are left at the end of a process.
AT_EXIT = """
import atexit, os
from pathlib import Path
def write():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(f"threads-{os.environ.get('RANK', 'agent')}").write_text("\\n".join(sorted(names)))
atexit.register(write)
"""


def torchrun(*arguments: str) -> None:
    """The command's entry point, in a process that has imported torch already."""
    from torch.distributed.run import main

    main(list(arguments))


def test_torchruns_own_command_line_trains_one_run(tmp_path):
    """The other tests start torchrun's agent by itself, without its command line."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AT_EXIT)
    arguments = ["--standalone", "--nproc-per-node=2", "-m", "t5ts.run", *SMALL]
    process = Command(
        *arguments, "backbone=linear", "debug=fast_dev_run", "hydra.run.dir=run",
        cwd=tmp_path, program=torchrun, PYTHONPATH=str(tmp_path / "hook"),
    )  # fmt: skip
    process.finish()
    assert read(tmp_path / "run" / "provenance.json")["processes"] == 2
    assert read(tmp_path / "run" / "result.json")["metrics"]
    assert (tmp_path / "run" / "run.log").read_text().count("seed 0") == 1
    for rank in (0, 1):  # one of gloo's that outlives Python may abort the process
        assert "gloo" not in (tmp_path / f"threads-{rank}").read_text()


LONG = " ".join([*SMALL, "backbone=linear train.epochs=50"])


@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        (command_line, "--multirun seed=0,1", "--multirun"),
        (command_line, "seed=x", "seed=x"),
        (command_line, "data=csv data.path=missing.csv", "missing.csv"),  # process 0 finds it first
        (command_line, "backbone=linear train.resume=nowhere", "nowhere"),  # process 0 alone looks
        (on_a_full_disk, LONG, "HERE"),
        (out_of_memory_in_the_second, LONG, "train.batch_size"),
    ],
)
def test_a_fault_is_one_message(program, arguments, named, tmp_path):
    """Nonsense leaves nothing; a fault in mid-training leaves the run's directory."""
    here = tmp_path / "here"
    places = [f"hydra.{mode}.dir={here}" for mode in ("run", "sweep")]
    process = Command(*arguments.split(), *places, cwd=tmp_path, program=program, processes=2)
    _, err = process.wait()
    assert process.returncode
    (message,) = messages(err)
    assert named.replace("HERE", str(here)) in message
    assert list(tmp_path.iterdir()) == [here] * (program is not command_line)


def messages(err: str) -> list[str]:
    """What the processes printed; a traceback of t5ts is a failure."""
    assert f'File "{Path(experiment.__file__).parent}/' not in err
    return [line for line in err.splitlines() if line.startswith("t5ts: ")]


def test_alone_everything_is_trivial_and_torch_is_not_imported():
    code = (
        "import sys; from t5ts import distributed as d\n"
        "with d.setup():\n"
        "    assert (d.rank(), d.world_size(), d.is_main()) == (0, 1, True)\n"
        "    assert d.main_first(lambda: 2) == d.from_main(lambda: 2) == 2\n"
        "    assert d.gather_objects(3) == [3]\n"
        "    assert d.any_of(True, False) == (True, False) and d.share('all') == 'all'\n"
        "    d.all_reduce_sum(1); d.all_reduce_max(1); d.broadcast_tensors(1)\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_number_of_processes_without_a_place_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError), distributed.setup():
        pass


@pytest.mark.parametrize(
    ("overrides", "word"), [([], "GPUs"), (["train.device=cpu", "train.batch_size=1"], "batch")]
)
def test_more_processes_than_gpus_or_windows_are_refused(overrides, word, tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "local_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=word):
        build(tiny(*overrides))
