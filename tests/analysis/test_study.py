"""Collecting run directories: the real format, and what cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from analysis.studies import rewritten
from conftest import SMALL, TINY_T5
from runs import run

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis.plots import _gradient_norms
from t5ts.analysis.study import collect
from t5ts.errors import DataError

T5 = Arm(init="t5", freeze="none")


@pytest.fixture(scope="module")
def real(composed, tmp_path_factory) -> Path:
    """One real run of the small setting."""
    folder = tmp_path_factory.mktemp("real")
    run(composed(*SMALL, *TINY_T5, "freeze=staged", "freeze.unfreeze_epoch=1"), run_dir=folder)
    return folder


def test_a_real_run_is_read_and_drawn(real):
    (found,) = collect([real]).runs
    assert (found.state, found.epochs) == ("finished", 4)
    assert found.arm == "t5_efficient_tiny-random-staged"
    assert len(found.curve("val_loss")[0]) == 5
    assert "update_ratio/head" in found.probes
    losses = found.window_losses()
    assert len(losses) == found.provenance["windows"]["test"]
    assert losses.mean() == pytest.approx(found.metric("test_loss"), rel=1e-5)
    axes = _gradient_norms(real).axes[0]
    assert {"patch", "block_0", "head", "total"} <= {*axes.get_legend_handles_labels()[1]}


def test_simulated_runs_have_the_real_format(real, tmp_path):
    """What the report reads of a simulated run, a real one has too."""
    made = write_run(tmp_path / "made", T5, 0)
    for name in ("provenance.json", "result.json", "forecast_sample.json"):
        ours, theirs = (json.loads((d / name).read_text()) for d in (made, real))
        assert set(ours) <= set(theirs), name
        if name == "forecast_sample.json":
            assert set(ours["windows"][0]) == set(theirs["windows"][0])
    (a,), (b,) = collect([made]).runs, collect([real]).runs
    assert {k for k in a.evals if not k.endswith(("block_2", "block_3"))} <= set(b.evals)


def test_runs_are_found_at_any_depth_and_previous_attempts_are_not(tmp_path):
    write_run(tmp_path / "a" / "0", T5, 0)
    write_run(tmp_path / "b" / "c" / "1", T5, 1)
    write_run(tmp_path / "previous-1", T5, 2)
    assert sorted(run.seed for run in collect([tmp_path]).runs) == [0, 1]


RESULT = '{"objective": 1, "metrics": {}, "initial": {}, "scale_audit": {}, "baselines": {}}'


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "YAML"),
        (rewritten("config.yaml", "  fraction: 1.0\n", ""), "data.fraction"),
        (rewritten("config.yaml", "(debug:\n  name:) none", r"\1 overfit"), "debug=overfit"),
        (lambda run: (run / "result.json").write_text("{"), "JSON"),
        (lambda run: (run / "result.json").write_text(RESULT), "this version"),
        (rewritten("metrics.jsonl", '"epoch": 3', '"epoch" 3'), "line"),
        (rewritten("metrics.jsonl", '"val_loss": [0-9.]+', '"val_loss": "low"'), "number"),
        (lambda run: (run / "metrics.jsonl").write_text("3\n"), "JSON object"),
        (lambda run: (run / "provenance.json").write_text("[]"), "JSON list"),
        (lambda run: (run / "provenance.json").write_bytes(b"\xff\xfe{}"), "JSON"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_used(tmp_path, damage, key):
    write_run(tmp_path / "good", T5, 0)
    damage(write_run(tmp_path / "bad", T5, 1))
    study = collect([tmp_path])
    assert [run.path.name for run in study.runs] == ["good"]
    (bad,) = study.left_out
    assert key in str(bad.problem)


def test_copies_and_what_failed_before_it_began_are_left_out(tmp_path):
    write_run(tmp_path / "good", T5, 0)
    write_run(tmp_path / "copy", T5, 0, stop_after=2)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "trial.json").write_text('{"state": "failed", "reason": "no memory"}')
    study = collect([tmp_path])
    assert [run.path.name for run in study.runs[0].copies] == ["copy"]
    problems = {run.path.name: str(run.problem) for run in study.left_out}
    assert str(tmp_path / "good") in problems["copy"]
    assert "no memory" in problems["failed"]


def test_an_unfinished_last_line_is_no_fault(tmp_path):
    path = write_run(tmp_path / "run", T5, 0, stop_after=3) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "eval", "epo')
    (found,) = collect([tmp_path]).runs
    assert (found.state, found.epochs) == ("unfinished", 3)


@pytest.mark.parametrize("folder", [".", "absent"])
def test_nothing_to_read_is_a_user_error(tmp_path, folder):
    with pytest.raises(DataError):
        collect([tmp_path / folder])


def test_table_has_a_row_per_run_and_the_settings_that_vary(tmp_path):
    for seed in range(2):
        for rate in (1e-3, 1e-4):
            write_run(tmp_path / f"{seed}-{rate}", T5, seed, optim__lr=rate)
    table = collect([tmp_path]).table()
    assert table.height == 4
    assert set(table["optim.lr"]) == {1e-3, 1e-4}
    assert "horizon" not in table.columns
    assert np.isfinite(table["test_loss"].to_numpy()).all()
