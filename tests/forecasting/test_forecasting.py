"""Forecasts of a finished run: the run's own, in data units, for any matching data."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SMALL, TINY_T5
from data.table_files import series_table
from runs import Compose, largest_file, run

import t5ts
from t5ts.errors import DataError, UserError, WeightsError
from t5ts.export import export
from t5ts.export import main as export_main
from t5ts.forecasting.tables import errors, predict
from t5ts.forecasting.trained import TrainedForecaster
from t5ts.predict import main

ROWS, SEQ_LEN, HORIZON = 600, 32, 8
CSV = ["data=csv", *(o for o in SMALL if not o.startswith("data"))]


def table(rows: int = ROWS, *, gaps: bool = False, minutes: int = 60) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    hours = np.arange(rows)
    load = 1000 + 50 * np.sin(hours / 24 * 2 * np.pi) + generator.normal(0, 5, rows)
    temp = 10 + 8 * np.cos(hours / 24 * 2 * np.pi) + generator.normal(0, 1, rows)
    if gaps:
        load[500:504] = np.nan
        temp[596:] = np.nan
    return series_table(minutes=minutes, load=load, temp=temp)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trained")


def finished(composed: Compose, folder: Path, name: str, *overrides: str, gaps: bool) -> Path:
    data = folder / f"{name}.csv"
    table(gaps=gaps).write_csv(data)
    few = ["train.epochs=2", "train.progress=false"]
    encoder = [] if "backbone=linear" in overrides else TINY_T5
    horizon = ["horizon=null"] if "task=reconstruct" in overrides else []
    config = composed(*CSV, *encoder, f"data.path={data}", *few, *overrides, *horizon)
    run(config, run_dir=folder / name)
    return folder / name


@pytest.fixture(scope="module")
def clean(composed, folder) -> Path:
    return finished(composed, folder, "clean", gaps=False)


@pytest.fixture(scope="module")
def gappy(composed, folder) -> Path:
    return finished(composed, folder, "gappy", "data.missing=interpolate", gaps=True)


@pytest.fixture(scope="module")
def filler(composed, folder) -> Path:
    overrides = ["task=reconstruct", "data.missing=mask"]
    return finished(composed, folder, "filler", *overrides, gaps=True)


@pytest.mark.parametrize("name", ["clean", "gappy"])
def test_predictions_are_the_runs_own(name, request):
    run_dir = request.getfixturevalue(name)
    sample = json.loads((run_dir / "forecast_sample.json").read_text())
    forecaster = t5ts.load(run_dir)
    for window in sample["windows"]:
        frame = forecaster.predict(start=window["start"]).head(HORIZON)
        assert frame["channel"].unique().to_list() == [sample["channel"]]
        assert frame["time"][0].isoformat() == window["start"]
        scale = forecaster.std_C[0]
        for key, column in (("prediction", "forecast"), ("seasonal_naive", "seasonal_naive")):
            np.testing.assert_allclose(frame[column] / scale, np.array(window[key]) / scale, 1e-6)
        truth = np.array(window["truth"], dtype=float)
        np.testing.assert_allclose(frame["actual"].to_numpy(), truth, rtol=1e-6)


def test_errors_over_all_test_windows_are_the_runs_test_metrics(clean):
    forecaster = t5ts.load(clean)
    first = forecaster.provenance["data"]["borders"][1]
    frame = forecaster.predict(start=first, end=ROWS - 1, every=1)
    whole = frame.filter(pl.len().over("origin", "channel") == HORIZON)
    ours, naive = errors(forecaster, whole).iter_rows(named=True)
    result = forecaster.result
    for key in ("mse", "mae", "corr"):
        name = "loss" if key == "mse" else key
        assert ours[key] == pytest.approx(result["metrics"][f"test_{name}"], rel=1e-5)
        baseline = result["baselines"]["test"]["seasonal_naive"][name]
        assert naive[key] == pytest.approx(baseline, rel=1e-5)
    of_load = whole.filter(pl.col("channel") == "load")
    assert ours["mae load"] == pytest.approx((of_load["forecast"] - of_load["actual"]).abs().mean())


def test_the_future_follows_the_end_and_needs_nothing_but_the_last_context(clean):
    forecaster = t5ts.load(clean)
    future = forecaster.predict()
    assert len(future) == 2 * HORIZON
    assert "actual" not in future.columns
    assert future["origin"].unique().item() == table()["time"][-1]
    assert future["time"].unique().sort()[0] == table()["time"][-1] + np.timedelta64(1, "h")
    own = replace(forecaster.config, data=replace(forecaster.config.data, path="clean.csv"))
    assert replace(forecaster, config=own).predict().equals(future)  # trained in another folder
    tail = forecaster.predict(table().tail(SEQ_LEN))
    assert tail["forecast"].to_list() == future["forecast"].to_list()


def test_files_frames_and_arrays_of_the_same_values_give_the_same(clean):
    forecaster, frame = t5ts.load(clean), table()
    expected = forecaster.predict()["forecast"].to_numpy()
    swapped = frame.select("temp", "time", "load")
    pandas = pytest.importorskip("pandas").DataFrame(
        {c: frame[c].to_numpy() for c in ("load", "temp")}, index=frame["time"].to_numpy()
    )
    zoned = pandas.tz_localize("Europe/Berlin").rename_axis("time").reset_index()
    for data in (frame, swapped, pandas, zoned):
        np.testing.assert_array_equal(forecaster.predict(data)["forecast"], expected)
    # An index of times is the time, whatever the run's own file called it.
    own = replace(forecaster.config, data=replace(forecaster.config.data, time="when"))
    by_index = replace(forecaster, config=own).predict(pandas)
    np.testing.assert_array_equal(by_index["forecast"], expected)
    values = frame.select("load", "temp").to_numpy()
    by_row = forecaster.predict(values)
    np.testing.assert_allclose(by_row["forecast"], expected, rtol=1e-6)
    assert forecaster.predict(np.asmatrix(values)).equals(by_row)
    with pytest.raises(DataError, match="more than one column 'load'"):
        forecaster.predict(pandas.assign(again=1.0).rename(columns={"again": "load"}))
    assert by_row["time"].to_list() == [*range(ROWS, ROWS + HORIZON)] * 2


def test_a_gap_in_a_context_is_filled_from_the_past_alone(gappy):
    forecaster = t5ts.load(gappy)
    held = table(gaps=True).with_columns(pl.col("load", "temp").forward_fill())
    ours = forecaster.predict()["forecast"].to_numpy()
    columns = {name: table(gaps=True)[name].to_numpy() for name in ("time", "load", "temp")}
    pandas = pytest.importorskip("pandas").DataFrame(columns).convert_dtypes()  # has NA
    for data in (held, pandas):
        np.testing.assert_array_equal(ours, forecaster.predict(data)["forecast"].to_numpy())
    # The markers of gaps in the run's file are gaps in arrays too.
    own = replace(forecaster.config, data=replace(forecaster.config.data, nulls=["-9999"]))
    raw = table(gaps=True).select("load", "temp").fill_null(-9999.0).to_numpy()
    for values in (raw, np.ma.masked_equal(np.where(raw < -1e3, 1e6, raw), 1e6)):
        marked = replace(forecaster, config=own).predict(values)["forecast"].to_numpy()
        np.testing.assert_allclose(marked, ours, rtol=1e-6)


def test_reconstruction_fills_gaps_and_keeps_every_other_value(filler):
    forecaster, given = t5ts.load(filler), table(gaps=True)
    filled = forecaster.predict()
    assert len(filled) == 2 * ROWS
    for channel in ("load", "temp"):
        ours = filled.filter(pl.col("channel") == channel)
        missing = given[channel].is_null()
        assert ours["is_filled"].to_list() == missing.to_list()
        kept = ours["value"].to_numpy()[~missing.to_numpy()]
        np.testing.assert_allclose(kept, given[channel].drop_nulls().to_numpy(), rtol=1e-6)
        assert np.isfinite(ours["value"].to_numpy()).all()
    # As the model says, where the gap is in the middle of the window that fills it.
    series = forecaster.read()
    expected = forecaster.predict_from(series, [480])[0, 0, 20:24]
    gap = filled.filter(is_filled=True, channel="load")["value"].to_numpy()
    assert gap == pytest.approx(expected)


def test_several_models_give_mean_and_spread(clean, gappy):
    two = [t5ts.load(clean), t5ts.load(gappy)]
    both = predict(two, two[0].read())
    each = np.stack([predict([one], two[0].read())["forecast"].to_numpy() for one in two])
    np.testing.assert_allclose(both["forecast"], each.mean(axis=0))
    np.testing.assert_allclose(both["spread"], each.std(axis=0, ddof=1))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (table().rename({"temp": "wind"}), "wind"),
        (table().with_columns(pl.col("temp").alias("extra")).drop("temp"), "temp"),
        (table(minutes=120), "2 h"),
        (table(SEQ_LEN - 1), f"{SEQ_LEN - 1} rows"),
        (np.zeros((100, 3)), "(100, 3)"),
        (table().with_columns(temp=pl.Series([object()] * ROWS)), "temp"),
        (table().drop("time"), "the frame"),
        ([[1.0, 2.0]] * 100, "type list"),
        (table()["load"], "type Series"),
        ("absent.csv", "absent.csv"),
    ],
)
def test_data_of_another_kind_are_refused(clean, data, named):
    with pytest.raises(DataError) as caught:
        t5ts.load(clean).predict(data)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "span",
    [
        {"start": "2024-01-01"},  # before the first whole context
        {"start": "2030-01-01"},
        {"start": "not a time"},
        {"start": "2024-01-20", "end": "2024-01-10"},
        {"start": "2024-01-20", "end": "2025-01-10"},
        {"end": "2024-01-20"},
        {"start": 500, "every": 0},
        {"start": 500, "every": 2.5},
    ],
)
def test_impossible_spans_are_refused(clean, span):
    with pytest.raises(DataError):
        t5ts.load(clean).predict(**span)


def test_span_keeps_to_its_ends_and_predicts_each_row_once(clean):
    frame = t5ts.load(clean).predict(start=table()["time"][500], end=519)
    rows = table()["time"][500:520].to_list()
    assert frame.filter(channel="temp")["time"].to_list() == rows
    partly = t5ts.load(clean).predict(start=ROWS - 4, end=ROWS + 3)
    assert partly["actual"].null_count() == 2 * 4


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ("2024-01-21", "2024-01-21 23:00"),  # a date: its whole day
        ("2024-01-21T05:00", "2024-01-21 05:00"),
        ("2024-01-21T05:30", "2024-01-21 05:00"),
        ("2024-01-21T05:00+02:00", "2024-01-21 03:00"),
    ],
)
def test_the_last_row_of_a_span(clean, end, last):
    frame = t5ts.load(clean).predict(start="2024-01-21", end=end)
    assert f"{frame['time'].max():%Y-%m-%d %H:%M}" == last
    assert f"{frame['time'].min():%Y-%m-%d %H:%M}" == "2024-01-21 00:00"


def test_command_writes_csv_parquet_and_picture(clean, tmp_path, capsys):
    data = tmp_path / "other.csv"
    table().write_csv(data, separator="^")
    out = tmp_path / "forecast.csv"
    options = ["--data", str(data), "--out", str(out), "--plot", "data.separator=^"]
    assert main([str(clean), f"{clean}/.", *options]) == 0  # one run, though named twice
    assert out.with_suffix(".png").stat().st_size > 10_000
    read = pl.read_csv(out, try_parse_dates=True)
    assert read.equals(t5ts.load(clean).predict())
    parquet = tmp_path / "forecast.parquet"
    assert main([str(clean), "--from", "2024-01-20", "--out", str(parquet)]) == 0
    assert "mae load" in capsys.readouterr().out
    assert pl.read_parquet(parquet)["actual"].null_count() == 0


@pytest.mark.parametrize(
    ("command", "limit", "left"),
    [
        (main, 100, "forecast.csv"),
        (main, 100, "forecast.parquet"),
        (main, 5000, "forecast.csv --plot"),
        (export_main, 100, "export"),
        (export_main, 10_000, "export"),
    ],
)
def test_a_full_disk_is_one_message_and_nothing_half_written(
    command, limit, left, clean, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with largest_file(limit):
        assert command([str(clean), "--out", *left.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert command([str(clean), "--out", *left.split()]) == 0


@pytest.mark.parametrize(
    ("command", "out", "status"),
    [(main, "forecast.csv", 0), (main, "forecast.parquet --plot", 0), (export_main, "model", 2)],
)
def test_two_commands_with_one_out_do_not_disturb_each_other(
    command, out, status, clean, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    real, second = Path.replace, list[int]()

    def replace(self: Path, target: Path) -> Path:
        if target.name == out.split()[0] and not second:
            second.append(-1)
            second[0] = command([str(clean), "--out", *out.split()])
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert command([str(clean), "--out", *out.split()]) == status
    assert second == [0]
    assert len(list(tmp_path.iterdir())) == len(out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["RUN", "--out", "forecast.txt"],
        ["RUN", "--out", "absent/forecast.csv"],
        ["data.path=x", "--out", "forecast.csv"],
        ["RUN", "seed=1", "--out", "forecast.csv"],
        ["RUN", "data.pth=1", "--out", "forecast.csv"],
        ["RUN", "data=nyc_weather", "--out", "forecast.csv"],
        ["absent", "--out", "forecast.csv"],
    ],
)
def test_command_refuses_with_one_message(clean, arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([a.replace("RUN", str(clean)) for a in arguments]) == 2
    assert capsys.readouterr().err.startswith("t5ts: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("span", [[], ["--from", "2024-01-21", "--to", "2024-01-22"]])
def test_filled_gaps_are_drawn(filler, span, tmp_path):
    assert main([str(filler), *span, "--plot", "--out", str(tmp_path / "filled.csv")]) == 0
    assert (tmp_path / "filled.png").stat().st_size > 10_000


@pytest.mark.parametrize("option", ["--last", "--every=8"])
def test_a_reconstruction_refuses_options_of_forecasts(filler, option, capsys, tmp_path):
    assert main([str(filler), option, "--out", str(tmp_path / "filled.csv")]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_export_is_the_run_and_its_encoder_is_transformers(clean, tmp_path):
    from transformers import T5EncoderModel

    out = export(clean, tmp_path / "model")
    assert {p.suffix for p in out.iterdir()} <= {".json", ".safetensors", ".md"}
    ours, again = t5ts.load(clean), export(out, tmp_path / "again")
    for folder in (out, again):
        assert t5ts.load(folder).predict().equals(ours.predict())
    with pytest.raises(UserError):
        export(clean, out)
    theirs, found = T5EncoderModel.from_pretrained(out, output_loading_info=True)
    assert not any(found.values())
    tokens_MND = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = theirs.eval()(inputs_embeds=tokens_MND).last_hidden_state
        torch.testing.assert_close(ours.model.encoder(tokens_MND), expected)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("model/forecaster.json", b'"season"', b'"seasoo"'),
        ("model/forecaster.json", rb'"std": \[\s*', b'"std": [1'),
        ("model/forecaster.safetensors", b"head.bias", b"head.bia5"),
        ("run/config.yaml", b"instance", b"none"),
        ("run/provenance.json", rb'"std": \[\s*', b'"std": [1'),
        ("run/result.json", b'"seconds": ', b'"seconds": 1'),
    ],
)
def test_damaged_files_are_refused(clean, tmp_path, file, old, new):
    run_dir = shutil.copytree(clean, tmp_path / "run")
    out = export(clean, tmp_path / "model")
    damaged = tmp_path / file
    content = damaged.read_bytes()
    damaged.write_bytes(re.sub(old, new, content))
    assert damaged.read_bytes() != content
    with pytest.raises(WeightsError, match=damaged.name):
        t5ts.load(damaged.parent)
    assert t5ts.load(out if damaged.parent == run_dir else run_dir)


def test_run_without_an_encoder_is_exported_and_loaded(composed, folder, tmp_path):
    run_dir = finished(composed, folder, "linear", "backbone=linear", gaps=False)
    out = export(run_dir, tmp_path / "model")
    assert not (out / "model.safetensors").exists()
    assert t5ts.load(out).predict().equals(t5ts.load(run_dir).predict())


def test_a_card_has_intervals_over_the_seeds_that_ran_beside(composed, clean, folder, tmp_path):
    sweep = tmp_path / "sweep"
    for number, setting in enumerate(["seed=0", "seed=1", "optim.lr=1"]):
        overrides = [*CSV, "backbone=linear", f"data.path={folder / 'clean.csv'}", setting]
        run(composed(*overrides, "train.epochs=1"), run_dir=sweep / str(number))
    alone = export(sweep / "0", tmp_path / "alone") / "README.md"
    assert "interval]" not in alone.read_text()
    (sweep / "multirun.yaml").touch()
    losses = [json.loads((sweep / name / "result.json").read_text())["metrics"]["test_loss"]
              for name in "01"]  # fmt: skip
    row = f"| test_loss | {losses[0]:.6g} | {np.mean(losses):.6g} ["
    for name, study in (("within", []), ("told", [sweep, clean])):
        card = (export(sweep / "0", tmp_path / name, study=study) / "README.md").read_text()
        assert row in card
        assert ("verdict" in card) == bool(study)


@pytest.mark.parametrize("absent", ["token_scale", "scaler"])
def test_a_run_of_an_older_t5ts_is_refused(clean, tmp_path, absent):
    copy = Path(shutil.copytree(clean, tmp_path / "old"))
    provenance = json.loads((copy / "provenance.json").read_text())
    (provenance if absent == "token_scale" else provenance["data"]).pop(absent)
    del provenance["crc32"]
    (copy / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(DataError):
        t5ts.load(copy)


def test_python_interface_runs_reads_and_judges(clean, folder, tmp_path):
    overrides = [*CSV, "backbone=linear", f"data.path={folder / 'clean.csv'}", "train.epochs=1"]
    result = t5ts.run(overrides, run_dir=tmp_path / "linear")
    assert isinstance(t5ts.load(result.run_dir), TrainedForecaster)
    frame = t5ts.results(tmp_path)  # one, or several
    assert frame["test_loss"].to_list() == [result.metrics["test_loss"]]
    assert t5ts.verdict([tmp_path, clean]).headline
    wrong = {
        "int=t5": "init",
        "~seed": "seed",
        "data.path=ü.csv": "ü",
        "data.ar=[1]": "data=synthetic",
    }
    for nonsense, named in wrong.items():
        with pytest.raises(UserError, match=named):
            t5ts.run([*overrides, nonsense], run_dir=tmp_path / "nonsense")
    with pytest.raises(UserError, match="init"):
        t5ts.run("int=t5")


def test_stored_configuration_is_the_runs(composed, clean, folder):
    few = ["train.epochs=2", "train.progress=false"]
    expected = composed(*CSV, *TINY_T5, f"data.path={folder / 'clean.csv'}", *few)
    assert t5ts.load(clean).config == expected
