"""Another series: tested on once, by its own scale and season, and nothing else changes."""

import logging

import numpy as np
import pytest
import torch
from conftest import SMALL
from data.table_files import series_table
from runs import changed, read, rows, run

from t5ts import experiment, meter
from t5ts.build import build, build_model
from t5ts.checkpoint import load_checkpoint
from t5ts.config import identity
from t5ts.data.sources import load_synthetic
from t5ts.errors import ConfigError, DataError
from t5ts.tracking import Tracker

LINEAR = ["backbone=linear", "train.epochs=1"]
#: A series of another scale, spread and season than the small setting's.
OTHER = [
    "data@ood=synthetic", "ood.num_rows=500", "ood.seed=5", "ood.season=12",
    "ood.season_amplitude=30", "ood.noise_std=9", "ood.trend=0.1",
]  # fmt: skip


def test_it_is_read_once_after_training_and_the_tracker_hears_of_it(small, tmp_path, monkeypatch):
    evaluated: list[str] = []
    real, tracker, summary = meter.evaluate, Tracker(), {}

    def evaluate(model, windows, *args, **kwargs):
        evaluated.append(windows.name)
        return real(model, windows, *args, **kwargs)

    monkeypatch.setattr(tracker, "finish", lambda values, _pictures: summary.update(values))
    monkeypatch.setattr(meter, "evaluate", evaluate)
    monkeypatch.setattr(experiment, "_build_tracker", lambda *_: tracker)
    run(small(*LINEAR, *OTHER, "train.shuffled_test=true"), run_dir=tmp_path)
    assert evaluated == ["val", "val", "test", "ood", "test"]
    assert {"test_loss", "ood_loss", "ood_skill", "shuffled_loss"} <= set(summary)


def test_masked_spans_of_another_series(small, tmp_path):
    task = ["task=reconstruct", "task.mask=value", "horizon=null"]
    result = run(small(*LINEAR, *OTHER, *task), run_dir=tmp_path)
    naive = result.baselines["ood"]["linear_interpolation"]["loss"]
    assert result.metrics["ood_skill"] == pytest.approx(1 - result.metrics["ood_loss"] / naive)
    assert "ood_mase" not in result.metrics


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [
        ([*OTHER, "ood.num_channels=3"], ConfigError, r"ood \(synthetic\) has 3"),
        (["data@ood=csv", "ood.path=absent.csv"], DataError, r"ood \(absent\): .*absent\.csv"),
        (["data@ood=synthetic", "ood.num_rows=50"], DataError, r"ood \(synthetic\): "),
    ],
)
def test_what_is_wrong_with_it_names_it(overrides, error, named, small):
    with pytest.raises(error, match=named):
        build(small(*LINEAR, *overrides))


def test_a_run_begins_with_both_series_and_warns_of_another_step(small, tmp_path, caplog):
    """And gaps of the other series alone are hidden from the model, and not scored."""
    values_T = np.sin(np.arange(400) * 0.07)
    values_T[::50] = np.nan
    path = tmp_path / "other.csv"
    series_table(minutes=15, a=values_T, b=np.arange(400) % 7).write_csv(path)
    more = ["ood.time=time", "ood.missing=mask", "ood.season=96"]
    config = small(*LINEAR, "data@ood=csv", f"ood.path={path}", *more)
    with caplog.at_level(logging.DEBUG, logger="t5ts"):
        result = run(config, run_dir=tmp_path / "run")
    assert np.isfinite(result.metrics["ood_loss"])
    assert any(line.startswith("ood        ") and "400 rows" in line for line in caplog.messages)
    assert "x0 ← a, x1 ← b" in caplog.text
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "900 s" in warning
    assert "3600 s" in warning


def test_it_is_part_of_the_identity_where_it_is_set(composed):
    names = [identity(composed(*SMALL, *o)) for o in ([], ["~data@ood"], OTHER, OTHER[:-1])]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_it_is_measured_in_units_of_its_own_train_rows_and_nothing_else_changes(small, tmp_path):
    """The whole way again in numpy, but for the model's forward pass."""
    config = small(*LINEAR, *OTHER, "normalize=none", "data.fraction=0.5")
    result = run(config, run_dir=tmp_path / "run")
    plain = run(changed(config, {"ood": None}), run_dir=tmp_path / "plain")
    assert rows(tmp_path / "run") == rows(tmp_path / "plain")
    assert {k: v for k, v in result.metrics.items() if k[:4] != "ood_"} == plain.metrics
    assert not (tmp_path / "plain" / "ood_losses.npy").exists()
    raw = load_synthetic(
        num_rows=500, num_channels=2, seed=5, season=12, season_amplitude=30, noise_std=9,
        trend=0.1, horizon=8,
    )  # fmt: skip
    train_end, val_end, test_end = raw.borders
    train_TC = raw.values_TC[:train_end].astype(np.float64)
    series_TC = (raw.values_TC - train_TC.mean(axis=0)) / train_TC.std(axis=0)
    starts = range(val_end - 32, test_end - 40 + 1)
    window_WCL = np.stack([series_TC[s : s + 40].T for s in starts])
    context_WCL, truth_WCH = window_WCL[..., :32], window_WCL[..., 32:]

    weights, _ = load_checkpoint(tmp_path / "run" / "checkpoint" / "best.safetensors")
    model, _ = build_model(config, num_channels=2)
    model.load_state_dict({name.removeprefix("model/"): t for name, t in weights.items()})
    with torch.no_grad():
        prediction_WCH = model.eval()(torch.from_numpy(context_WCL).float()).double().numpy()

    error_WCH = prediction_WCH - truth_WCH
    naive_WCH = context_WCL[..., [-12 + h for h in range(8)]]
    step_C = np.abs(series_TC[12:train_end] - series_TC[: train_end - 12]).mean(axis=0)
    flat_CX, truth_CX = (x.swapaxes(0, 1).reshape(2, -1) for x in (prediction_WCH, truth_WCH))
    naive_mse = ((naive_WCH - truth_WCH) ** 2).mean()
    expected = {
        "ood_loss": (error_WCH**2).mean(),
        "ood_mae": np.abs(error_WCH).mean(),
        "ood_mase": (np.abs(error_WCH).mean(axis=(0, 2)) / step_C).mean(),
        "ood_corr": np.mean([np.corrcoef(flat_CX[c], truth_CX[c])[0, 1] for c in range(2)]),
        "ood_skill": 1 - (error_WCH**2).mean() / naive_mse,
    }
    assert {k: result.metrics[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    assert "ood_corr_delta" in result.metrics
    assert result.baselines["ood"]["seasonal_naive"]["loss"] == pytest.approx(naive_mse, rel=1e-5)
    losses_W = np.load(tmp_path / "run" / "ood_losses.npy")
    assert losses_W == pytest.approx((error_WCH**2).mean(axis=(1, 2)), rel=1e-4)
    about = read(tmp_path / "run" / "provenance.json")
    assert about["ood"]["sha256"] == raw.sha256 != about["data"]["sha256"]
    assert about["windows"]["ood"] == len(starts)  # all of them, whatever data.fraction is
    assert about["windows"]["train"] < 600 * 0.7 / 2
