"""Early stopping: when, equal over arms, and the same however often the run is killed."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, TINY_T5
from runs import (
    KILLS,
    Compose,
    Killed,
    assert_same_run,
    die_after,
    kill_points,
    killed_at_write,
    read,
    rows,
    run,
)

from t5ts.analysis.results import Result
from t5ts.config import Config
from t5ts.errors import Interrupted
from t5ts.meter import Meter

#: A rate at which validation gets worse at once; at 0.3 it does later.
FAST = [*SMALL, *TINY_T5, "train.epochs=8", "optim.lr=1", "optim.encoder_lr_scale=1"]
FAST += ["optim.schedule=constant", "patch=sqrt_d"]
#: The second of the two stages starts at epoch 2.5.
LATE = "freeze=staged freeze.unfreeze_epoch=1.5 freeze.blocks_per_stage=1"
PATIENCE = 2


@pytest.fixture
def fast(composed) -> Compose:
    return lambda words, *more: composed(*FAST, *words.split(), *more)


def stopping(config: Config, patience: int | None = PATIENCE) -> Config:
    return replace(config, train=replace(config.train, early_stopping_epochs=patience))


@pytest.mark.parametrize(
    ("words", "settled"),
    [
        ("freeze=none", 0),
        ("freeze=none optim.lr=0.3", 0),
        ("freeze=none objective=val_corr", 0),
        ("freeze=none train.eval_every_epochs=3", 0),
        ("freeze=all", 0),
        (LATE, 2.5),
        (f"{LATE} freeze.rewarmup_epochs=1", 3.5),
        (f"{LATE} freeze.order=all_at_once", 1.5),
        (f"{LATE} freeze.epochs_per_stage=9", 1.5),  # its second stage never starts
    ],
)
def test_a_stopped_run_is_the_beginning_of_the_whole_one(words, settled, fast, tmp_path):
    """The oracle: the first epoch of the full run at which patience had run out."""
    config = fast(words)
    run(config, run_dir=tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    sign = 1 if config.objective == "val_corr" else -1
    best, best_epoch, end = -float("inf"), 0, None  # None where this machine's losses never stop it
    for row in whole:
        if config.objective in row:
            if sign * row[config.objective] > best:
                best, best_epoch = sign * row[config.objective], row["epoch"]
            if row["epoch"] - max(best_epoch, settled) >= PATIENCE:
                end = row["epoch"]
                break
    result = run(stopping(config), run_dir=tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == [
        row for row in whole if end is None or row["epoch"] <= end
    ]
    assert (result.stopped_epoch, result.best_epoch) == (end, best_epoch)
    assert result.objective == sign * best
    assert read(tmp_path / "stopped" / "result.json")["stopped_epoch"] == end


def test_a_run_that_goes_on_improving_is_not_stopped(small, tmp_path):
    config = small("backbone=linear")
    whole = run(config, run_dir=tmp_path / "whole")
    patient = run(stopping(config), run_dir=tmp_path / "patient")
    assert whole.stopped_epoch is patient.stopped_epoch is None
    assert rows(tmp_path / "whole") == rows(tmp_path / "patient")


@pytest.fixture(scope="module")
def whole(composed, tmp_path_factory) -> tuple[Config, Path, Result]:
    """A run that early stopping ends: config, directory, result."""
    config = stopping(composed(*FAST, *LATE.split()))
    run_dir = tmp_path_factory.mktemp("whole")
    return config, run_dir, run(config, run_dir=run_dir)


@pytest.mark.parametrize("place", ["before", "at", "told", "tested"])
def test_a_stop_that_is_asked_for_around_the_early_one_changes_nothing(
    place, whole, tmp_path, monkeypatch
):
    """Interrupted one step before the early stop, at it, while its row is sent, and after it."""
    config, run_dir, result = whole
    per_epoch = read(run_dir / "provenance.json")["steps_per_epoch"]
    last = result.stopped_epoch * per_epoch
    seen: list[Mapping[str, Any]] = []

    def after_epoch(row: Mapping[str, Any]) -> None:
        seen.append(row)
        if place == "told" and row["epoch"] == result.stopped_epoch:
            raise Interrupted

    def no_test(*_: Any, **__: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        if place in ("before", "at"):
            die_after(patched, last - (place == "before"), politely=True)
        if place == "tested":
            patched.setattr(Meter, "test", no_test)
        # A signal at the very end finds nothing to interrupt.
        with nullcontext() if place == "at" else pytest.raises(Interrupted):
            run(config, run_dir=tmp_path / "parts", after_epoch=after_epoch)
    if place != "before":
        assert [row["ends_run"] for row in seen] == [False] * result.stopped_epoch + [True]
        die_after(monkeypatch, 1, politely=False)  # not one step more
    assert not any("ends_run" in row for row in rows(tmp_path / "parts"))
    run(config, run_dir=tmp_path / "parts")
    assert_same_run(run_dir, tmp_path / "parts")


@KILLS
def test_a_kill_at_any_write_changes_nothing(every, fast, tmp_path):
    rarely = ["train.log_every=99", "train.probe_every=99"]
    config, run_dir = stopping(fast(LATE, *rarely), 1), tmp_path / "whole"
    with killed_at_write(None) as kinds:
        assert run(config, run_dir=run_dir).stopped_epoch == 4
    points = kill_points(kinds, every=every)
    assert len(points) > (15 if every else 11)
    for number in points:
        parts = tmp_path / str(number)
        with pytest.raises(Killed), killed_at_write(number):
            run(config, run_dir=parts)
        run(config, run_dir=parts)
        assert_same_run(run_dir, parts)


def test_a_reused_phase_is_not_longer_than_the_run(fast, tmp_path):
    """A run that never unfreezes may stop within epochs that a later-unfreezing run shared."""
    store = f"train.reuse_dir={tmp_path / 'store'}"
    late = stopping(fast("freeze=staged freeze.unfreeze_epoch=7", "optim.lr=0.3", store))
    frozen = stopping(fast("freeze=all", "optim.lr=0.3", store))
    run(late, run_dir=tmp_path / "late")
    warm = run(frozen, run_dir=tmp_path / "warm")
    assert 0 < warm.reused_epochs < warm.stopped_epoch < 7
    run(stopping(fast("freeze=all", "optim.lr=0.3")), run_dir=tmp_path / "cold")
    assert_same_run(tmp_path / "warm", tmp_path / "cold")
