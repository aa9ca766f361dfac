"""Collecting run directories: the real format, and what cannot be read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis.study import collect
from t5ts.config import Config
from t5ts.errors import DataError
from t5ts.experiment import run

T5 = Arm(init="t5", freeze="none")


@pytest.fixture(scope="module")
def real(composed: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real run of the small setting."""
    from conftest import SMALL, TINY_T5

    folder = tmp_path_factory.mktemp("real")
    run(composed(*SMALL, *TINY_T5, "freeze=staged", "freeze.unfreeze_epoch=1"), run_dir=folder)
    return folder


def test_a_real_run_is_read(real: Path) -> None:
    (found,) = collect([real]).runs
    assert found.state == "finished"
    assert found.arm == "t5_efficient_tiny-random-staged"
    assert found.epochs == 4
    assert found.metric("test_loss") == found.result.metrics["test_loss"]  # type: ignore[union-attr]
    assert len(found.curve("val_loss")[0]) == 5
    assert "update_ratio/head" in found.probes


def test_window_losses_average_to_the_test_loss(real: Path) -> None:
    (found,) = collect([real]).runs
    losses = found.window_losses()
    assert losses is not None
    assert len(losses) == found.provenance["windows"]["test"]
    assert losses.mean() == pytest.approx(found.metric("test_loss"), rel=1e-5)


def test_simulated_runs_have_the_real_format(real: Path, tmp_path: Path) -> None:
    """What the report reads of a simulated run, a real one has too."""
    made = write_run(tmp_path / "made", T5, 0)
    for name in ("provenance.json", "result.json", "forecast_sample.json"):
        ours, theirs = (json.loads((d / name).read_text()) for d in (made, real))
        assert set(ours) <= set(theirs), name
        if name == "forecast_sample.json":
            assert set(ours["windows"][0]) == set(theirs["windows"][0])
    (a,), (b,) = collect([made]).runs, collect([real]).runs
    assert {k for k in a.evals if not k.endswith(("block_2", "block_3"))} <= set(b.evals)


def test_runs_are_found_at_any_depth_and_previous_attempts_are_not(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "0", T5, 0)
    write_run(tmp_path / "b" / "c" / "1", T5, 1)
    write_run(tmp_path / "previous-1", T5, 2)
    assert sorted(run.seed for run in collect([tmp_path]).runs) == [0, 1]


def test_what_cannot_be_read_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    write_run(tmp_path / "good", T5, 0)
    (write_run(tmp_path / "no_config", T5, 1) / "config.yaml").unlink()
    (write_run(tmp_path / "bad_yaml", T5, 2) / "config.yaml").write_text("a: [")
    (write_run(tmp_path / "bad_json", T5, 3) / "result.json").write_text("{")
    lines = write_run(tmp_path / "bad_line", T5, 4) / "metrics.jsonl"
    lines.write_text(lines.read_text().replace('"epoch": 3', '"epoch" 3', 1))
    lists = write_run(tmp_path / "lists", T5, 7)
    (lists / "provenance.json").write_text("[]")
    (write_run(tmp_path / "bytes", T5, 8) / "provenance.json").write_bytes(b"\xff\xfe{}")
    words = write_run(tmp_path / "words", T5, 9) / "metrics.jsonl"
    words.write_text(
        re.sub(r'"val_loss": [0-9.]+', '"val_loss": "low"', words.read_text(), count=1)
    )
    (write_run(tmp_path / "row", T5, 10) / "metrics.jsonl").write_text("3\n")
    other = write_run(tmp_path / "other", T5, 11) / "config.yaml"
    other.write_text(other.read_text().replace("  fraction: 1.0\n", ""))
    old = write_run(tmp_path / "old_result", T5, 5) / "result.json"
    old.write_text('{"objective": 1.0, "metrics": {}, "initial": {}, "scale_audit": {},'
                   ' "baselines": {}}')  # fmt: skip
    write_run(tmp_path / "copy", T5, 0, stop_after=2)
    write_run(tmp_path / "debug", T5, 6, debug__name="overfit")
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "trial.json").write_text('{"state": "failed", "reason": "no memory"}')
    study = collect([tmp_path])
    assert [run.path.name for run in study.runs] == ["good"]
    problems = {run.path.name: run.problem or "" for run in study.left_out}
    for name, part in {
        "no_config": "no config.yaml",
        "bad_yaml": "not YAML",
        "bad_json": "not JSON",
        "bad_line": "line",
        "lists": "holds a JSON list",
        "bytes": "not JSON",
        "words": "no number",
        "row": "no JSON object",
        "other": "lacks data.fraction",
        "old_result": "not a result of this version",
        "copy": "same configuration and seed",
        "debug": "debug=overfit",
        "failed": "no memory",
    }.items():
        assert part in problems[name], name


def test_an_unfinished_last_line_is_no_fault(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", T5, 0, stop_after=3) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "eval", "epo')
    (found,) = collect([tmp_path]).runs
    assert found.state == "unfinished"
    assert found.epochs == 3


def test_nothing_to_read_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run in"):
        collect([tmp_path])
    with pytest.raises(DataError, match="is not a directory"):
        collect([tmp_path / "absent"])


def test_table_has_a_row_per_run_and_the_settings_that_vary(tmp_path: Path) -> None:
    for seed in range(2):
        for rate in (1e-3, 1e-4):
            write_run(tmp_path / f"{seed}-{rate}", T5, seed, optim__lr=rate)
    table = collect([tmp_path]).table()
    assert table.height == 4
    assert set(table["optim.lr"]) == {1e-3, 1e-4}
    assert "horizon" not in table.columns
    assert np.isfinite(table["test_loss"].to_numpy()).all()
