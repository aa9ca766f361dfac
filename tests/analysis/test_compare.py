"""Arms side by side: hand-worked means and intervals over hand-written run directories."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from scipy.stats import ttest_1samp, ttest_rel

from t5ts.analysis.compare import main, mean_and_half_width, read_runs, tables
from t5ts.analysis.results import Result
from t5ts.config import Config
from t5ts.errors import DataError


@pytest.fixture
def write(composed: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """Write a run directory with a given val_loss; None leaves it unfinished."""

    def make(name: str, loss: float | None, *overrides: str) -> Path:
        config = composed(*overrides)
        run_dir = tmp_path / name
        run_dir.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(asdict(config)), run_dir / "config.yaml")
        (run_dir / "provenance.json").write_text("{}")
        if loss is not None:
            values: dict[str, Any] = dict.fromkeys(Result.__dataclass_fields__, 0)
            values |= {
                "arm": config.arm,
                "data": config.data.name,
                "seed": config.seed,
                "metrics": {"val_loss": loss, "test_loss": 2 * loss},
                "initial": {"val_loss": 1.0},
                "baselines": {"val": {"seasonal_naive": {"loss": 0.5}}},
                "best_epoch": 3,
                "scale_audit": {},
            }
            (run_dir / "result.json").write_text(json.dumps(values))
        return run_dir

    return make


def cells(table: str) -> dict[str, list[str]]:
    """The cells of each row, by arm."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_interval_is_that_of_students_t() -> None:
    values = [0.4, 0.5, 0.45, 0.7, 0.3]
    mean, half = mean_and_half_width(values)
    oracle = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((oracle.low, oracle.high))


def test_arms_are_averaged_over_seeds_and_compared_seed_by_seed(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    losses = {"random": [0.40, 0.50, 0.60], "t5": [0.35, 0.47, 0.54]}
    for init, values in losses.items():
        for seed, loss in enumerate(values):
            write(f"{init}-{seed}", loss, f"init={init}", f"seed={seed}", "backbone=t5_tiny_en")
    runs, unfinished = read_runs([tmp_path])
    rows = cells(tables(runs, metric="val_loss"))
    oracle = ttest_rel(losses["t5"], losses["random"]).confidence_interval(0.95)
    half = (oracle.high - oracle.low) / 2
    # sd 0.1 of the random arm: t(0.975, 2) · 0.1 / √3 = 4.3027 · 0.0577
    assert rows["t5_tiny_en-random-none"] == ["3", "0.5000 ± 0.2484", "1.0000", "3", "–"]
    assert rows["t5_tiny_en-t5-none"][-1] == f"-0.0467 ± {half:.4f}"
    assert rows["seasonal naive"][1] == "0.5000"
    assert unfinished == 0


def test_conditions_are_kept_apart_and_named_by_what_differs(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for number, (data, fraction) in enumerate(
        [("nyc_weather", 0.1), ("nyc_weather", 1.0), ("synthetic", 1.0)]
    ):
        write(f"{number}", number + 1.0, f"data={data}", f"data.fraction={fraction}")
    text = tables(read_runs([tmp_path])[0], metric="val_loss")
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert titles == [
        "**nyc_weather data.fraction=0.1**",
        "**nyc_weather data.fraction=1.0**",
        "**synthetic data.fraction=1.0**",
    ]
    assert [cells(table)["t5_small-random-none"][1] for table in text.split("\n\n**")] == [
        "1.0000", "2.0000", "3.0000",
    ]  # fmt: skip


def test_arms_of_one_name_are_told_apart_by_their_settings(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for epoch in (1, 2):
        for init in ("random", "t5"):
            write(
                f"{init}-{epoch}", float(epoch) - 0.5 * (init == "t5"), f"init={init}",
                "freeze=staged", f"freeze.unfreeze_epoch={epoch}",
            )  # fmt: skip
    rows = cells(tables(read_runs([tmp_path])[0], metric="val_loss"))
    assert rows["t5_small-t5-staged freeze.unfreeze_epoch=2.0"][-1] == "-0.5000"
    assert rows["t5_small-random-staged freeze.unfreeze_epoch=1.0"][1] == "1.0000"


def test_unfinished_and_put_aside_runs_are_left_out(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("done", 0.25)
    write("done/previous-1", 0.75)
    write("going", None, "seed=1")
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0.2500" in said
    assert "0.7500" not in said
    assert "1 unfinished" in said
    assert "One seed" in said


def test_user_errors(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    write("a", None)
    with pytest.raises(DataError, match="1 unfinished"):
        read_runs([tmp_path])
    write("b", 0.5)
    assert main([str(tmp_path), "--metric", "loss"]) == 2
    assert "val_loss" in capsys.readouterr().err
    write("c", 0.5)
    with pytest.raises(DataError, match="2 runs but 1 seeds"):
        tables(read_runs([tmp_path])[0], metric="val_loss")
