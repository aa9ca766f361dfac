"""A trained forecaster: read from a run directory or an export, ready to predict in data units."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch
from torch import Tensor

from t5ts.build import build_model, build_task, load_series
from t5ts.config import (
    CONF,
    Config,
    CsvData,
    DataConfig,
    InitConfig,
    T5Backbone,
    from_hydra,
    register,
    stored_config,
)
from t5ts.data.series import Series
from t5ts.data.tables import FAR
from t5ts.data.windows import Windows, carried, standardise
from t5ts.donor import read_donor
from t5ts.errors import DataError
from t5ts.metrics import RegressionSums
from t5ts.model.forecaster import Forecaster
from t5ts.model.patching import PatchEmbedding
from t5ts.reconstruct import Reconstruct
from t5ts.task import Batch, Task

#: What can be predicted from: a file, a polars or pandas frame, (T, C) values, a configuration, or
#: None for the run's own data.
Data: TypeAlias = str | Path | np.ndarray | DataConfig | Any | None

#: Windows that are forecast at once.
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedForecaster:
    """The checkpoint that validation selected, with the scaler and the channels of its run.

    `t5ts.load(DIR)` makes one.

    Attributes:
        folder: The run directory or the export.
        config: The run's configuration.
        task: Forecast or Reconstruct.
        model: From (B, C, L) to (B, C, H), train-standardised; in evaluation mode, on the CPU.
        channels, units: (C,) of the data that it was trained on.
        step: Between two rows, in words ("1 h").
        season: Rows in one season of that data.
        mean_C, std_C: (C,) float64, data units: the train rows' scaler.
        result: The run's result.json: metrics, best epoch, arm.
        provenance: What the run recorded of its weights, data and code.
    """

    folder: Path
    config: Config
    task: Task
    model: Forecaster
    channels: list[str]
    units: list[str]
    step: str
    season: int
    mean_C: np.ndarray
    std_C: np.ndarray
    result: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def horizon(self) -> int:
        """Rows that one forecast covers."""
        return self.task.output_len

    def predict(
        self,
        data: Data = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        every: int | None = None,
    ) -> pl.DataFrame:
        """Forecast in data units; a run that reconstructs fills the gaps instead.

        Args:
            data: A file; a polars or pandas frame with a column per channel and, if it has times,
                a time column (or a DatetimeIndex); a (T, C) array; a data configuration; None for
                the run's own data. It is scaled as the run's train rows were.
            start, end: First and last time (ISO) or row number to predict; None for both: the
                `horizon` rows after the end of the data.
            every: Rows from one forecast of a span to the next; the horizon, so that each row is
                predicted once, where None.

        Returns:
            A row per forecast row and channel: `origin` (the last time that was seen), `time`,
            `channel`, `forecast`; over a span also `actual` and the task's naive baseline. Times
            are row numbers where the data have none. Of a reconstruction: `time`, `channel`,
            `value` and `is_filled`, of all rows of the span.

        Raises:
            DataError: if the data have other channels or another step, or too few rows.

        Example:
            >>> forecaster = t5ts.load("outputs/my_run")  # doctest: +SKIP
            >>> forecaster.predict("latest.csv")  # doctest: +SKIP
        """
        return predict([self], self.read(data), start=start, end=end, every=every)

    def read(self, data: Data = None, overrides: Sequence[str] = ()) -> Series:
        """Read data by the run's own rules for gaps and channels.

        Args:
            data: As for `predict`.
            overrides: `data.KEY=VALUE`, for a file that is written otherwise than the run's; with
                `data=NAME` first, another data configuration.

        Raises:
            DataError: as `predict`.
        """
        if isinstance(data, np.ndarray):
            series = self._from_array(data)
        elif data is None or isinstance(data, str | Path | DataConfig):
            series = load_series(self._data_config(data, overrides))
        else:
            series = self._from_frame(data, overrides)
        if series.channels != self.channels:
            raise DataError(
                f"{series.name} has the channels {', '.join(series.channels)}; {self.folder} was"
                f" trained on {', '.join(self.channels)}, in this order. Give the same columns."
            )
        if series.start and self.step and str(series.step) != self.step:
            raise DataError(
                f"{series.name} has a row every {series.step}; {self.folder} was trained on rows"
                f" every {self.step}. Resample the data."
            )
        if len(series.values_TC) < self.config.seq_len:
            raise DataError(
                f"{series.name} has {len(series.values_TC)} rows; {self.folder} needs"
                f" {self.config.seq_len} to predict from (seq_len). Give more of its past."
            )
        return series

    def _data_config(self, data: str | Path | DataConfig | None, overrides: Sequence[str]) -> Any:
        own = data if isinstance(data, DataConfig) else self.config.data
        if isinstance(data, str | Path):
            if not isinstance(own, CsvData):  # the packaged weather is read as interpolate reads
                missing = "interpolate" if self.provenance["data"]["gap_share"] else "error"
                own = CsvData(_target_="t5ts.data.sources.load_csv", name="csv", missing=missing)
            own = replace(
                own,
                path=str(data),
                channels=list(self.channels),
                season=self.season,
                splits=[0.7, 0.1, 0.2],
            )
        if isinstance(self.task, Reconstruct) and isinstance(own, CsvData):
            own = replace(own, missing="mask")  # the gaps are what is asked for
        return with_overrides(own, overrides)

    def _from_array(self, values_TC: np.ndarray) -> Series:
        if values_TC.ndim != 2 or values_TC.shape[1] != len(self.channels):
            raise DataError(
                f"The array has shape {values_TC.shape}; {self.folder} needs (T,"
                f" {len(self.channels)}), a column for each of {', '.join(self.channels)}."
            )
        rows = len(values_TC)
        if rows < 3:
            raise DataError(f"The array has {rows} rows; give at least {self.config.seq_len}.")
        # float32 would lose what is small beside a channel's level.
        offset_C = np.where(np.abs(self.mean_C) > FAR * self.std_C, self.mean_C, 0.0)
        return Series(
            name="array",
            values_TC=np.array(values_TC - offset_C, dtype=np.float32, order="C"),
            channels=list(self.channels),
            units=list(self.units),
            start="",
            step_s=1.0,
            season=self.season,
            season_note="",
            borders=(1, 2, rows),
            source="an array",
            licence="the user's own",
            fills_contexts=not isinstance(self.task, Reconstruct),
            offset_C=offset_C,
        )

    def _from_frame(self, frame: Any, overrides: Sequence[str]) -> Series:
        if not isinstance(frame, pl.DataFrame):
            if getattr(frame.index, "name", None) or frame.index.dtype.kind == "M":
                frame = frame.reset_index(names=frame.index.name or "time")
            frame = pl.DataFrame({str(name): frame[name].to_numpy() for name in frame.columns})
        # By way of a file, so that a frame meets the same checks as a file.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.parquet"
            frame.write_parquet(path)
            return self.read(path, overrides)

    def standardised(self, series: Series) -> Tensor:
        """(T, C) float32: a series as the model sees it, scaled as the run's train rows were."""
        assert series.scaler is None
        offset_C = 0.0 if series.offset_C is None else series.offset_C
        shift_C = self.mean_C - offset_C
        return torch.from_numpy(
            ((series.values_TC.astype(np.float64) - shift_C) / self.std_C).astype(np.float32)
        )

    @torch.no_grad()
    def run_model(
        self, series: Series, first_rows: Sequence[int]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Predict from the windows that start at some rows, a batch at a time.

        Args:
            series: As `read` returns it.
            first_rows: (K,) of the contexts (of the windows to reconstruct).

        Yields:
            What the model saw, its target all NaN, and (B, C, H) predictions; train-standardised.
        """
        series_TC = self.standardised(series)
        seq_len = self.config.seq_len
        windows = Windows(
            series_TC,
            name="predict",
            window_len=seq_len,
            first_row=0,
            num_windows=len(series_TC) - seq_len + 1,
            context_len=self.task.context_len,
            carried=carried(series_TC.numpy()) if series.fills_contexts else None,
        )
        chunks = torch.tensor(first_rows).split(BATCH_SIZE)
        for first_B in with_progress(chunks, "predicting"):
            inputs_BCL = windows.gather(first_B)
            prediction_BCH = self.model(inputs_BCL)
            yield Batch(inputs_BCL, torch.full_like(prediction_BCH, math.nan)), prediction_BCH

    def in_data_units(self, x_BCH: Tensor) -> np.ndarray:
        """(B, C, H) float64 in data units, of train-standardised values."""
        values = x_BCH.double().cpu().numpy()
        return values * self.std_C[:, None] + self.mean_C[:, None]


def load(path: str | Path) -> TrainedForecaster:
    """Read what a finished run has trained, from its directory or from an export.

    Nothing but that directory is read: neither the hub nor the checkpoint that the run began with.

    Args:
        path: A run directory with result.json, or what `t5ts.export` wrote.

    Raises:
        WeightsError: if it is neither, is not finished, or is corrupt.
        DataError: if it is a run of an older t5ts and its data, whose scaler it needs, changed.
    """
    donor = read_donor(path, key="RUN")
    config = stored_config(donor.config)
    facts = donor.provenance["data"]
    model = _empty_model(config, donor.provenance, num_channels=len(facts["channels"]))
    model.load_state_dict(donor.tensors)
    mean_C, std_C = _scaler(config, facts)
    return TrainedForecaster(
        folder=donor.folder,
        config=config,
        task=build_task(config),
        model=model.eval(),
        channels=list(facts["channels"]),
        units=list(facts["units"]),
        step=facts["step"] if facts["span"][0] else "",
        season=facts["season"],
        mean_C=mean_C,
        std_C=std_C,
        result=donor.result,
        provenance=donor.provenance,
    )


def _empty_model(config: Config, provenance: dict[str, Any], *, num_channels: int) -> Forecaster:
    """A model of the run's shape; its weights come from the checkpoint, all of them."""
    backbone = config.backbone
    if isinstance(backbone, T5Backbone) and backbone.d_model is None:
        sizes = provenance["weights"]["architecture"]
        backbone = replace(
            backbone,
            **{
                key: sizes[key]
                for key in (
                    "d_model", "d_ff", "d_kv", "num_layers", "num_heads", "vocab_size",
                    "feed_forward_proj",
                )
            },
        )  # fmt: skip
    shape = replace(
        config,
        backbone=backbone,
        init=InitConfig(name="random"),
        patch=replace(config.patch, init="fresh", path=None, scale="none"),
    )
    model, _ = build_model(shape, num_channels=num_channels)
    if isinstance(model.patch, PatchEmbedding):
        model.patch.scale = provenance["token_scale"]
    return model


def _scaler(config: Config, facts: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the train rows, (C,) float64 each, data units."""
    if "scaler" in facts:
        return tuple(np.array(facts["scaler"][name]) for name in ("mean", "std"))  # type: ignore[return-value]
    series = load_series(config.data)
    if series.sha256 != facts["sha256"]:
        raise DataError(
            f"This run of an older t5ts did not record its scaler, and its data, {series.source},"
            " have changed since: it cannot predict. Train it again."
        )
    standardise(series)
    assert series.scaler is not None
    return series.scaler[0], series.scaler[1]


def with_overrides(data: DataConfig, overrides: Sequence[str]) -> DataConfig:
    """A data configuration with `data.KEY=VALUE` applied.

    Raises:
        DataError: for an unknown key or a wrong value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not overrides:
        return data
    if other := [text for text in overrides if text.split("=")[0].split(".")[0] != "data"]:
        raise DataError(f"{', '.join(other)}: only the data can be chosen here (data.KEY=VALUE).")
    try:
        if any(text.startswith("data=") for text in overrides):
            register()
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return from_hydra(compose("config", overrides=list(overrides))).data
        given = OmegaConf.from_dotlist([text.removeprefix("data.") for text in overrides])
        changed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(data), given))
    except (HydraException, OmegaConfBaseException) as error:
        raise DataError(f"{', '.join(overrides)}: {str(error).splitlines()[0]}") from error
    assert isinstance(changed, DataConfig)
    return changed


def with_progress(chunks: Sequence[Tensor], words: str) -> Iterator[Tensor]:
    """The chunks; with a progress bar where they are many and someone looks."""
    if len(chunks) < 4 or not sys.stderr.isatty():
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(chunks, words, console=Console(stderr=True), transient=True)


def predict(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    *,
    start: str | int | None = None,
    end: str | int | None = None,
    every: int | None = None,
) -> pl.DataFrame:
    """Forecast with one model or with several: then their mean, and their spread.

    Args:
        forecasters: Of one task, horizon and set of channels: the seeds of an arm.
        series: As `TrainedForecaster.read` returns it.
        start, end, every: See `TrainedForecaster.predict`.

    Returns:
        As `TrainedForecaster.predict`; of several models `forecast` is the mean and `spread` the
        standard deviation (ddof 1) among them.

    Raises:
        DataError: as there, or if the models do not go together.
    """
    first = forecasters[0]
    for other in forecasters[1:]:
        for name in ("channels", "step", "task_shape"):
            ours, theirs = _facts(first)[name], _facts(other)[name]
            if ours != theirs:
                raise DataError(
                    f"{first.folder} has {name} {ours}, {other.folder} {theirs}: predict with runs"
                    " of one task and one data set at a time."
                )
    if isinstance(first.task, Reconstruct):
        return _filled(forecasters, series, start, end)
    starts, last = _forecast_starts(first, series, start, end, every)
    return _forecasts(forecasters, series, starts, last)


def _facts(forecaster: TrainedForecaster) -> dict[str, Any]:
    task = forecaster.task
    return {
        "channels": forecaster.channels,
        "step": forecaster.step,
        "task_shape": (forecaster.config.task.name, forecaster.config.seq_len, task.output_len),
    }


def row_of(series: Series, moment: str | int, key: str) -> int:
    """The row of a time or the row of that number; it may lie after the end of the data.

    Raises:
        DataError: if it is no time, or the data have none.
    """
    if isinstance(moment, int) or moment.lstrip("-").isdigit():
        return int(moment)
    if not series.start:
        raise DataError(f"{key} {moment}: {series.name} has no times; give a row number.")
    try:
        wanted = datetime.fromisoformat(moment)
    except ValueError:
        raise DataError(f"{key} {moment} is not an ISO time such as {series.time_of(0)}.") from None
    wanted = wanted.replace(tzinfo=None)
    begun = datetime.fromisoformat(series.start)
    row = math.ceil((wanted - begun).total_seconds() / series.step.seconds - 1e-9)
    while series.step.time(begun, row) < wanted:  # months differ in length
        row += 1
    while row > 0 and series.step.time(begun, row - 1) >= wanted:
        row -= 1
    return row


def _forecast_starts(
    forecaster: TrainedForecaster,
    series: Series,
    start: str | int | None,
    end: str | int | None,
    every: int | None,
) -> tuple[list[int], int]:
    """The first row of each forecast, and the last row that is wanted."""
    rows, horizon, seq_len = len(series.values_TC), forecaster.horizon, forecaster.config.seq_len
    if start is None and end is not None:
        raise DataError("An end without a start: give both (--from TIME --to TIME).")
    first = rows if start is None else row_of(series, start, "--from")
    if not seq_len <= first <= rows:
        raise DataError(
            f"--from {start}: a forecast can begin at {label(series, seq_len)} (after {seq_len}"
            f" rows of context) at the earliest, and at {label(series, rows)} at the latest."
        )
    step = horizon if every is None else every
    if step < 1:
        raise DataError(f"--every {every}: give at least 1 row.")
    starts = list(range(first, rows + 1, step))
    most = starts[-1] + horizon - 1
    last = most if start is None else max(first, rows - 1)
    if end is not None:
        last = row_of(series, end, "--to")
        if not first <= last <= most:
            raise DataError(
                f"--to {end} must lie between {label(series, first)} and {label(series, most)}: the"
                f" last forecast begins at {label(series, starts[-1])} and covers {horizon} rows."
            )
    return [row for row in starts if row <= last], last


def label(series: Series, row: int) -> str | int:
    """A row's time; its number where the data have no times."""
    return series.time_of(row) or row


def _forecasts(
    forecasters: Sequence[TrainedForecaster], series: Series, starts: Sequence[int], last: int
) -> pl.DataFrame:
    first = forecasters[0]
    contexts = [start - first.config.seq_len for start in starts]
    by_model = []
    naive_KCH: np.ndarray | None = None
    season = first.task.baseline_season(first.season)
    for forecaster in forecasters:
        pairs = list(forecaster.run_model(series, contexts))
        by_model.append(np.concatenate([forecaster.in_data_units(p) for _, p in pairs]))
        if naive_KCH is None:
            naive_KCH = np.concatenate(
                [
                    first.in_data_units(first.task.baselines(b, season=season)[first.task.naive])
                    for b, _ in pairs
                ]
            )
    assert naive_KCH is not None
    row_KH = np.array(starts)[:, None] + np.arange(first.horizon)
    values_TC = data_units(series)
    known_KH = row_KH < len(values_TC)
    actual_KCH = np.where(
        known_KH[:, None],
        values_TC[np.minimum(row_KH, len(values_TC) - 1)].transpose(0, 2, 1),
        np.nan,
    )
    columns = {
        "forecast": np.mean(by_model, axis=0),
        **({"spread": np.std(by_model, axis=0, ddof=1)} if len(by_model) > 1 else {}),
        **({"actual": actual_KCH} if known_KH.any() else {}),
        first.task.naive: naive_KCH,
    }
    wanted_KH = row_KH <= last
    num_channels = len(first.channels)
    keep = np.repeat(wanted_KH[:, None], num_channels, axis=1).ravel()
    repeated_KCH = np.broadcast_to(row_KH[:, None], actual_KCH.shape)
    origin_KCH = np.broadcast_to(np.array(starts)[:, None, None] - 1, actual_KCH.shape)
    channel_KCH = np.broadcast_to(np.arange(num_channels)[None, :, None], actual_KCH.shape)
    return pl.DataFrame(
        {
            "origin": times(series, origin_KCH.ravel()[keep]),
            "time": times(series, repeated_KCH.ravel()[keep]),
            "channel": pl.Series(first.channels).gather(channel_KCH.ravel()[keep]),
            **{
                name: pl.Series(values.ravel()[keep]).fill_nan(None)
                for name, values in columns.items()
            },
        }
    )


def data_units(series: Series) -> np.ndarray:
    """(T, C) float64: the values of a series as its source has them."""
    values_TC = series.values_TC.astype(np.float64)
    return values_TC if series.offset_C is None else values_TC + series.offset_C


def times(series: Series, rows_K: np.ndarray) -> pl.Series:
    """The times of some rows; their numbers where the data have no times."""
    if not series.start:
        return pl.Series(rows_K)
    unique, place_K = np.unique(rows_K, return_inverse=True)
    begun = datetime.fromisoformat(series.start)
    known = pl.Series(
        [series.step.time(begun, int(row)) for row in unique], dtype=pl.Datetime("us")
    )
    return known.gather(place_K)


def _filled(
    forecasters: Sequence[TrainedForecaster],
    series: Series,
    start: str | int | None,
    end: str | int | None,
) -> pl.DataFrame:
    """The series with its gaps filled; each by the window that has it nearest its middle."""
    first, rows = forecasters[0], len(series.values_TC)
    seq_len = first.config.seq_len
    begin = 0 if start is None else row_of(series, start, "--from")
    stop = rows - 1 if end is None else row_of(series, end, "--to")
    if not 0 <= begin <= stop < rows:
        raise DataError(
            f"--from {start} --to {end}: give a span between {label(series, 0)} and"
            f" {label(series, rows - 1)}."
        )
    values_TC = data_units(series)
    missing_TC = np.isnan(values_TC)
    gap_rows = begin + np.flatnonzero(missing_TC[begin : stop + 1].any(axis=1))
    spread_TC = np.full_like(values_TC, np.nan)
    if len(gap_rows):
        stride = max(1, seq_len // 4)
        firsts = np.clip((gap_rows - seq_len // 2) // stride * stride, 0, rows - seq_len)
        starts = np.unique(firsts)
        by_model = [
            np.concatenate([f.in_data_units(p) for _, p in f.run_model(series, starts.tolist())])
            for f in forecasters
        ]
        window = np.searchsorted(starts, firsts)
        filled_GC = np.stack([y[window, :, gap_rows - firsts] for y in by_model])
        missing_GC = missing_TC[gap_rows]
        values_TC[gap_rows] = np.where(missing_GC, filled_GC.mean(axis=0), values_TC[gap_rows])
        if len(by_model) > 1:
            spread_GC = filled_GC.std(axis=0, ddof=1)
            spread_TC[gap_rows] = np.where(missing_GC, spread_GC, np.nan)
    span = slice(begin, stop + 1)
    rows_T = np.arange(begin, stop + 1)
    num_channels = len(first.channels)
    return pl.DataFrame(
        {
            "time": times(series, np.repeat(rows_T, num_channels)),
            "channel": first.channels * len(rows_T),
            "value": values_TC[span].ravel(),
            "is_filled": missing_TC[span].ravel(),
            **(
                {"spread": pl.Series(spread_TC[span].ravel()).fill_nan(None)}
                if len(forecasters) > 1
                else {}
            ),
        }
    )


def past(series: Series, frame: pl.DataFrame, *, rows: int) -> pl.DataFrame:
    """The last rows before a forecast, for its picture: `time`, `channel`, `value`."""
    end = row_of(series, str(frame["time"][0]), "time")
    kept = np.arange(max(0, end - rows), end)
    return pl.DataFrame(
        {
            "time": times(series, np.repeat(kept, len(series.channels))),
            "channel": series.channels * len(kept),
            "value": data_units(series)[kept].ravel(),
        }
    )


def errors(forecaster: TrainedForecaster, frame: pl.DataFrame) -> pl.DataFrame:
    """How far forecasts and the naive baseline were from what came, over all rows with both.

    Args:
        forecaster: Whose scaler gives the units.
        frame: As `predict` returns it for a span.

    Returns:
        A row for the forecast and one for the baseline: `mse`, `mae` and `corr` as the run's own
        metrics, and each channel's mean absolute error in data units, `mae CHANNEL`.
    """

    def values_CN(name: str) -> np.ndarray:
        of_channel = (frame.filter(pl.col("channel") == c)[name] for c in forecaster.channels)
        return np.stack([values_N.to_numpy().astype(np.float64) for values_N in of_channel])

    actual_CN = values_CN("actual")
    rows = []
    for name in ("forecast", forecaster.task.naive):
        predicted_CN = values_CN(name)
        predicted_1CN, actual_1CN = (
            torch.from_numpy((x_CN - forecaster.mean_C[:, None]) / forecaster.std_C[:, None])[None]
            for x_CN in (predicted_CN, actual_CN)
        )
        sums = RegressionSums(len(forecaster.channels))
        sums.update(predicted_1CN, actual_1CN, torch.zeros_like(actual_1CN))
        metrics = sums.compute()
        error_C = np.nanmean(np.abs(predicted_CN - actual_CN), axis=1)
        rows.append(
            {"of": name, "mse": metrics["loss"], "mae": metrics["mae"], "corr": metrics["corr"]}
            | {f"mae {c}": e for c, e in zip(forecaster.channels, error_C.tolist(), strict=True)}
        )
    return pl.DataFrame(rows)
