"""A run directory: its owner, the inputs of its numbers, and whether it is intact."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from data.table_files import series_table
from runs import changed, flip, largest_file, local_t5, read, rows, run, run_until

from t5ts import experiment, provenance, run_directory
from t5ts.analysis.results import read_json
from t5ts.analysis.study import collect
from t5ts.config import Config
from t5ts.data.windows import Windows
from t5ts.datasets import load_once
from t5ts.errors import DataError, DirectoryInUse, InputsChanged, OutputError, ResumeError
from t5ts.progress import ProgressBar
from t5ts.provenance import replacing, write_json, write_text
from t5ts.run_directory import locked, put_aside, remove_if_unused
from t5ts.tracking import Tracker


@pytest.fixture(scope="module")
def base(composed) -> Config:
    """A linear model on a CSV, composed once; each test gives it its own file."""
    no_data = [line for line in SMALL if not line.startswith("data")]
    return composed(
        "backbone=linear", *no_data, "train.epochs=2", "data=csv", "data.path=x",
        "data.channels=[a]", "data.season=24",
    )  # fmt: skip


def write(path: Path, values: list[float]) -> None:
    series_table(a=values).write_csv(path)


VALUES: list[float] = np.random.default_rng(0).normal(size=600).round(3).tolist()


@pytest.fixture
def csv(tmp_path) -> Path:
    path = tmp_path / "series.csv"
    write(path, VALUES)
    return path


@pytest.fixture
def config(base, csv) -> Config:
    return changed(base, {"data.path": str(csv)})


@pytest.fixture(scope="module")
def halves(base, tmp_path_factory) -> tuple[Config, Path, Path]:
    """A configuration, a run that was interrupted, and a finished one."""
    folder = tmp_path_factory.mktemp("halves")
    write(folder / "series.csv", VALUES)
    config = changed(base, {"data.path": str(folder / "series.csv")})
    run_until(8, config, folder / "half")  # in the second epoch: each has 6 steps
    run(config, run_dir=folder / "whole")
    return config, folder / "half", folder / "whole"


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- inputs ---

EDITS = {"a value": [0.5, *VALUES[1:]], "more rows": [*VALUES, *VALUES[:30]]}


@pytest.mark.parametrize("edited", EDITS.values(), ids=EDITS)
def test_other_data_is_refused_and_the_old_data_is_welcome(edited, config, csv, run_dir):
    run_until(8, config, run_dir)
    left = snapshot(run_dir)
    write(csv, edited)
    with pytest.raises(InputsChanged, match="data"):
        run(config, run_dir=run_dir)
    assert snapshot(run_dir) == left
    write(csv, VALUES)
    result = run(config, run_dir=run_dir)
    write(csv, edited)
    with pytest.raises(InputsChanged, match=r"data .*sha256.*train\.resume=never.*hydra\.run\.dir"):
        run(config, run_dir=run_dir)
    write(csv, VALUES)
    assert run(config, run_dir=run_dir).metrics == result.metrics
    write(csv, edited)
    anew = run(changed(config, {"train.resume": "never"}), run_dir=run_dir)
    assert anew.baselines != result.baselines


def test_other_weights_and_another_other_series_are_refused(small, csv, tmp_path, run_dir, config):
    """Else a resumed run's provenance would name weights that its numbers do not come from."""
    path = local_t5(tmp_path / "t5")
    local = small("backbone=local", f"backbone.path={path}", "init=t5", "train.epochs=1")
    run_until(2, local, run_dir)
    named = read(run_dir / "provenance.json")["weights"]["files"]
    kept = (path / "model.safetensors").read_bytes()
    for finished in (False, True):
        flip(path / "model.safetensors", -3)
        with pytest.raises(InputsChanged, match=r"weights .*model\.safetensors"):
            run(local, run_dir=run_dir)
        if not finished:
            (path / "model.safetensors").write_bytes(kept)
            run(local, run_dir=run_dir)
    assert read(run_dir / "provenance.json")["inputs"]["weights"] == named
    other = deepcopy(config.data)
    other.path = str(shutil.copy(csv, tmp_path / "other.csv"))
    shifted = changed(config, {"ood": other})
    run(shifted, run_dir=tmp_path / "shifted")
    write(tmp_path / "other.csv", EDITS["a value"])
    with pytest.raises(InputsChanged, match="ood"):
        run(shifted, run_dir=tmp_path / "shifted")


@pytest.mark.parametrize("finished", [0, 1])
def test_another_precision_is_refused(finished, halves, run_dir, monkeypatch):
    """device=auto has one identity on a CPU and on a GPU."""
    config, *parts = halves
    shutil.copytree(parts[finished], run_dir)
    monkeypatch.setattr(
        "t5ts.build.device_and_precision", lambda _: (torch.device("cpu"), torch.bfloat16)
    )
    with pytest.raises(InputsChanged, match=r"precision .torch\.float32 → torch\.bfloat16"):
        run(config, run_dir=run_dir)


def test_other_code_is_told_when_shown_and_refused_when_resumed(
    halves, tmp_path, monkeypatch, caplog
):
    config, half, whole = halves
    for part in (half, whole):
        shutil.copytree(part, tmp_path / part.name)
    now = {"t5ts": "f" * 64, "torch": "9", "numpy": "3"}
    for module in (experiment, run_directory):
        monkeypatch.setattr(module, "made_with", lambda: now)
    with caplog.at_level("INFO", logger="t5ts"):
        run(config, run_dir=tmp_path / "whole")
    assert caplog.text.count("different code") == 1
    with pytest.raises(ResumeError, match=r"torch .* → 9.*train\.resume_on_other_code=true"):
        run(config, run_dir=tmp_path / "half")
    run(changed(config, {"train.resume_on_other_code": True}), run_dir=tmp_path / "half")
    first, last = read(tmp_path / "half" / "provenance.json")["code"]
    assert first != last == now
    values = read_json(tmp_path / "whole" / "provenance.json")
    del values["inputs"], values["code"]  # as an older t5ts wrote it
    write_json(tmp_path / "whole" / "provenance.json", values)
    run(config, run_dir=tmp_path / "whole")
    assert caplog.text.count("not recorded") == 1


# --- damage ---

#: File, and what happens to it; each is found before the first step.
DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("checkpoint/last.safetensors", lambda p: flip(p, 100)),
    ("checkpoint/last.safetensors", lambda p: flip(p)),
    ("checkpoint/best.safetensors", lambda p: flip(p)),
    ("checkpoint/best.safetensors", Path.unlink),
    ("metrics.jsonl", Path.unlink),
    ("metrics.jsonl", lambda p: p.write_bytes(p.read_bytes()[:-100])),
    ("metrics.jsonl", lambda p: p.write_bytes(p.read_bytes()[:-200] + bytes(200))),
    ("provenance.json", lambda p: flip(p, 30)),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damage_is_found_before_training_and_the_advice_works(
    name, damage, halves, run_dir, monkeypatch, tmp_path
):
    config, half, whole = halves
    shutil.copytree(half, run_dir)
    damage(run_dir / name)
    left = snapshot(run_dir)
    elsewhere = changed(config, {"train.resume": str(run_dir)})
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "build", lambda _: pytest.fail("it should not come so far"))
        for wanted, place in ((config, run_dir), (elsewhere, tmp_path / "other")):
            with pytest.raises(ResumeError, match=r"train\.resume=never"):
                run(wanted, run_dir=place)
        assert snapshot(run_dir) == left
        assert set(snapshot(tmp_path / "other")) <= {".lock"}
    run(changed(config, {"train.resume": "never"}), run_dir=run_dir)
    kept = snapshot(run_dir / "previous-1")
    assert kept == {name: left[name] for name in kept}
    assert set(left) - set(kept) == {".lock"}
    assert rows(run_dir) == rows(whole)


@pytest.mark.parametrize(
    "name", ["result.json", "provenance.json", "config.yaml", "metrics.jsonl", "test_losses.npy"]
)
def test_a_damaged_finished_run_is_not_shown(name, halves, run_dir):
    config, _, whole = halves
    shutil.copytree(whole, run_dir)
    assert collect([run_dir]).runs
    flip(run_dir / name, -40, 1)
    assert not collect([run_dir]).runs  # nor does the report read it
    with pytest.raises(ResumeError, match=rf"{name}.*train\.resume=never"):
        run(config, run_dir=run_dir)


def test_no_flipped_bit_of_a_record_is_read(tmp_path):
    """Nor one in the name of the checksum's own key; a record of an older t5ts has none."""
    path = tmp_path / "record.json"
    record = {"a": 1.5e-7, "b": [1, None, "é"], "c": {"crc": True}, "d": "0123abcd"}
    write_json(path, record)
    for place in range(8 * path.stat().st_size):
        flip(path, place // 8, place % 8)
        with suppress(DataError):
            assert read_json(path) == record, path.read_bytes()  # 1E-7 is 1e-7
        flip(path, place // 8, place % 8)
    for older in (record, {}):
        path.write_text(json.dumps(older))
        assert read_json(path) == older


def test_a_named_checkpoint_that_is_missing_is_no_new_run(config, run_dir):
    for named in (run_dir, run_dir / "elsewhere"):
        with pytest.raises(ResumeError, match=str(named)):
            run(changed(config, {"train.resume": str(named)}), run_dir=run_dir)


@pytest.mark.parametrize(
    ("link", "target", "named"),
    [
        ("linked", "", "linked"),
        ("linked/checkpoint", "checkpoint", "linked"),
        ("linked", "checkpoint", "linked/last.safetensors"),
        ("links/epoch-1", "checkpoint/last.safetensors", "links/epoch-1"),
    ],
)
def test_a_named_checkpoint_may_be_a_link(link, target, named, halves, tmp_path, run_dir):
    config, half, whole = halves
    place = tmp_path / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(half / target)
    if link == "linked/checkpoint":  # the large files are on another disk
        shutil.copy2(half / "metrics.jsonl", tmp_path / "linked")
    run(changed(config, {"train.resume": str(tmp_path / named)}), run_dir=run_dir)
    assert read(run_dir / "provenance.json")["resumed_from"]  # a new run would have the same rows
    assert rows(run_dir) == rows(whole)


# --- who holds it ---


def test_what_another_process_holds_is_left_alone(config, run_dir):
    with locked(run_dir):
        (run_dir / "run.log").write_text("a line")
        left = snapshot(run_dir)
        with pytest.raises(DirectoryInUse):
            run(config, run_dir=run_dir)
        remove_if_unused(run_dir)
        assert snapshot(run_dir) == left
    remove_if_unused(run_dir)
    assert not run_dir.exists()
    remove_if_unused(run_dir)
    with locked(run_dir):  # and after its removal it is held as if it were new
        assert (run_dir / ".lock").is_file()


def test_a_refused_run_leaves_no_empty_parents(tmp_path, monkeypatch):
    here, folders = tmp_path / "here", ("outputs/data/run", "kept/run", "../elsewhere/run")
    for folder in folders:
        (here / folder).mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "kept" / "note").touch()
    for folder in folders:
        remove_if_unused(Path(folder))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["elsewhere", "here", "here/kept", "here/kept/note"]


def test_a_lock_whose_file_was_removed_holds_nothing(run_dir, monkeypatch):
    """Another process removes the directory between this one's open and its lock."""
    real = run_directory.fcntl.flock
    calls = []

    def flock(*arguments: Any) -> None:
        if not calls:
            shutil.rmtree(run_dir)
        calls.append(arguments)
        real(*arguments)

    monkeypatch.setattr(run_directory.fcntl, "flock", flock)
    with locked(run_dir):
        assert (run_dir / ".lock").is_file()
    assert len(calls) == 2


def test_put_aside_never_meets_an_earlier_folder(run_dir):
    for name in ("previous-2", "previous-3"):
        (run_dir / name).mkdir(parents=True)
    for attempt in "012":
        (run_dir / "metrics.jsonl").write_text(attempt)
        put_aside(run_dir)
    kept = [path.read_text() for path in run_dir.glob("previous-*/metrics.jsonl")]
    assert sorted(kept) == ["0", "1", "2"]


# --- the disk ---


def test_a_full_disk_is_one_message_and_the_run_resumes(config, run_dir, tmp_path):
    whole = run(config, run_dir=tmp_path / "whole")
    for limit in (100, 2000, (tmp_path / "whole" / "metrics.jsonl").stat().st_size - 100):
        with largest_file(limit), pytest.raises(OutputError, match="File too large"):
            run(config, run_dir=run_dir)
        assert not list(run_dir.rglob("*.tmp"))
    assert run(config, run_dir=run_dir).metrics == whole.metrics
    assert rows(run_dir) == rows(tmp_path / "whole")


def test_a_directory_that_is_removed_or_cannot_be_made(config, run_dir):
    def remove(row: Any) -> None:
        if row["epoch"] == 1:
            shutil.rmtree(run_dir)

    with pytest.raises(OutputError, match=str(run_dir)):
        run(config, run_dir=run_dir, after_epoch=remove)
    assert not run_dir.exists()
    for place in ("/proc/none/run", str(Path(config.data.path) / "run")):
        with pytest.raises(OutputError, match=place):
            run(config, run_dir=Path(place))


# --- figures of the process ---


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not known")
def test_the_peak_of_memory_is_the_runs_own(config, tmp_path):
    ballast = np.ones(60_000_000)  # 480 MB before the run are none of its own
    low = run(config, run_dir=tmp_path / "a").peak_memory_bytes
    del ballast
    high = run(config, run_dir=tmp_path / "b").peak_memory_bytes
    ballast = np.ones(60_000_000)
    del ballast
    after = run(config, run_dir=tmp_path / "c").peak_memory_bytes
    assert low > after + 400e6
    assert after == pytest.approx(high, abs=100e6)


def test_what_a_data_set_needs_is_computed_once(config, csv, tmp_path, monkeypatch):
    read_test: list[str] = []
    real = Windows.gather

    def gather(self: Windows, index_B: torch.Tensor) -> torch.Tensor:
        read_test.append(self.name)
        return real(self, index_B)

    monkeypatch.setattr(Windows, "gather", gather)
    first = run(config, run_dir=tmp_path / "a")
    values = load_once(config.data).values_TC.copy()
    reads = read_test.count("test")
    read_test.clear()
    second = run(changed(config, {"optim.lr": 1e-4}), run_dir=tmp_path / "b")
    assert read_test.count("test") < reads  # the baselines' reads are gone
    assert second.baselines == first.baselines
    assert second.baselines is not first.baselines
    assert np.array_equal(load_once(config.data).values_TC, values)  # scaled once
    write(csv, EDITS["a value"])
    assert run(config, run_dir=tmp_path / "c").baselines != first.baselines


def test_epochs_are_logged_on_a_terminal_too(monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    caplog.set_level(logging.INFO, logger="t5ts")
    with ProgressBar(total_steps=10) as bar:
        for epoch in (1, 2):
            bar.update(step=epoch, epoch=epoch, loss=1.0)
            bar.say(f"epoch {epoch}")
    assert caplog.messages == ["epoch 1", "epoch 2"]


@pytest.mark.parametrize("place", ["meter.evaluate", "experiment.forecast_sample"])
def test_the_tracker_is_ended_wherever_a_run_fails(place, config, run_dir, monkeypatch):
    ended: list[int] = []

    class Watched(Tracker):
        def abandon(self) -> None:
            ended.append(1)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("here")

    monkeypatch.setattr(experiment, "_build_tracker", lambda *_: Watched())
    monkeypatch.setattr(f"t5ts.{place}", fail)
    with pytest.raises(RuntimeError, match="here"):
        run(config, run_dir=run_dir)
    assert ended == [1]


def test_the_codes_digest_sees_every_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("a = 1")
    found = [provenance.code_digest(), provenance.code_digest()]
    (tmp_path / "a.py").write_text("a = 2")
    found.append(provenance.code_digest())
    (tmp_path / "b.py").touch()
    found.append(provenance.code_digest())
    assert [found.index(digest) for digest in found] == [0, 0, 2, 3]


def test_several_processes_may_write_one_file(tmp_path):
    """As two commands that end one sweep draw its pictures."""
    path = tmp_path / "result.json"
    with replacing(path) as ours:
        ours.write_text("ours")
        child = os.fork()
        if child == 0:
            write_text(path, "theirs")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]
