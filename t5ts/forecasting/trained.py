"""A trained forecaster: read from a run directory or an export, ready to predict in data units."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track
from torch import Tensor

from t5ts.build import build_model, build_task
from t5ts.config import Config, stored_config
from t5ts.data.series import Series
from t5ts.data.windows import Windows, carried
from t5ts.datasets import load_series
from t5ts.donor import read_donor
from t5ts.errors import DataError
from t5ts.forecasting.tables import Place, predict
from t5ts.model.forecaster import Forecaster
from t5ts.model.patching import PatchEmbedding
from t5ts.overrides import compose_config
from t5ts.schema import CsvData, DataConfig, HFBackbone, InitConfig, T5Backbone
from t5ts.tasks import Batch, Reconstruct, Task

#: What can be predicted from: a file, a polars or pandas frame, (T, C) values, a configuration, or
#: None for the run's own data.
Data: TypeAlias = str | Path | np.ndarray | DataConfig | Any | None

#: Windows in one batch.
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainedForecaster:
    """The checkpoint that validation selected, with the scaler and the channels of its run.

    `t5ts.load(DIR)` makes one.

    Attributes:
        folder, config, task: The run directory or the export, and what was run.
        model: From (B, C, L) to (B, C, H), train-standardised; in evaluation mode, on the CPU.
        channels, step, season: Of the data that it was trained on: (C,) names, the time between two
            rows in words ("1 h"), rows in one season.
        mean_C, std_C: (C,) float64, data units: the train rows' scaler.
        result: The run's result.json: metrics, best epoch, arm.
        provenance: What the run recorded of its weights, data and code.
    """

    folder: Path
    config: Config
    task: Task
    model: Forecaster
    channels: list[str]
    step: str
    season: int
    mean_C: np.ndarray
    std_C: np.ndarray
    result: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def horizon(self) -> int:
        """Rows that one forecast covers."""
        return self.task.target_len

    @property
    def fills_gaps(self) -> bool:
        """Whether it reconstructs instead of forecasting."""
        return isinstance(self.task, Reconstruct)

    def predict(
        self,
        data: Data = None,
        *,
        start: Place | None = None,
        end: Place | None = None,
        every: int | None = None,
    ) -> pl.DataFrame:
        """Forecast in data units; a run that reconstructs fills the gaps instead.

        Args:
            data: A file; a polars or pandas frame with a column per channel and a time column (or a
                DatetimeIndex); a (T, C) array; a data configuration; None for the run's own data.
                It is scaled as the run's train rows were.
            start, end: First and last time (ISO text, datetime) or row number to predict; None: the
                `horizon` rows after the end of the data.
            every: Rows from one forecast of a span to the next; None for the horizon, so that each
                row is predicted once.

        Returns:
            A row per forecast row and channel: `origin` (the last time that was seen), `time`,
            `channel`, `forecast`; over a span also `actual` and the task's naive baseline. Times
            are row numbers where the data have none. Of a reconstruction: `time`, `channel`,
            `value` and `is_filled`, of all rows of the span.

        Raises:
            DataError: if the data have other channels or another step, or too few rows.
        """
        return predict([self], self.read(data), start=start, end=end, every=every)

    def read(self, data: Data = None, overrides: Sequence[str] = ()) -> Series:
        """Read data by the run's own rules for gaps and channels.

        Args:
            data: As for `predict`.
            overrides: `data.KEY=VALUE`, for a file in another format than the run's; with
                `data=NAME` first, another data configuration.

        Raises:
            DataError: as `predict`.
        """
        if data is None or isinstance(data, str | Path | DataConfig):
            series = load_series(self._data_config(data, overrides))
        elif isinstance(data, np.ndarray):
            series = self._from_array(data)
        elif isinstance(data, pl.DataFrame) or {"columns", "reset_index"} <= set(dir(data)):
            series = _from_frame(data, self._data_config("frame", overrides))
        else:
            raise DataError(
                f"data of type {type(data).__name__}: give a polars or pandas frame, a NumPy array"
                f" (T, {len(self.channels)}), or a file's path."
            )
        rows, step = len(series.values_TC), str(series.step)
        problem = ""
        if series.channels != self.channels:
            theirs, ours = ", ".join(series.channels), ", ".join(self.channels)
            problem = f"has the channels {theirs}; give {ours}, in this order"
        elif series.start and self.step and step != self.step:
            problem = f"has a row every {step}; give a row every {self.step}"
        elif rows < self.config.seq_len:
            problem = f"has {rows} rows; give at least {self.config.seq_len} (seq_len)"
        if problem:
            raise DataError(f"{series.name} {problem}, as {self.folder} was trained on.")
        return series

    def _data_config(self, data: str | Path | DataConfig | None, overrides: Sequence[str]) -> Any:
        own = data if isinstance(data, DataConfig) else self.config.data
        if data is None and isinstance(own, CsvData):  # a relative path was that of another folder
            source = str(self.provenance["data"]["source"])
            own = replace(own, path=source if Path(source).is_file() else own.path)
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
        if self.fills_gaps and isinstance(own, CsvData):
            own = replace(own, missing="mask")  # the gaps are to be filled
        return with_overrides(own, overrides)

    def _from_array(self, values_TC: np.ndarray) -> Series:
        if values_TC.ndim != 2 or values_TC.shape[1] != len(self.channels):
            raise DataError(
                f"The array has shape {values_TC.shape}; {self.folder} needs (T,"
                f" {len(self.channels)}), a column for each of {', '.join(self.channels)}."
            )
        if np.ma.isMaskedArray(values_TC):
            values_TC = np.ma.filled(values_TC.astype(float), np.nan)
        values_TC = np.asarray(values_TC)  # a matrix has rows of two dimensions
        rows = len(values_TC)
        if rows < max(self.config.seq_len, 3):
            raise DataError(f"The array has {rows} rows; give at least {self.config.seq_len}.")
        begin = datetime(2000, 1, 1)  # tables need times; they are removed below
        times = pl.datetime_range(begin, begin + timedelta(hours=rows - 1), "1h", eager=True)
        clock = "time" if "time" not in self.channels else "date"
        frame = pl.DataFrame({clock: times, **dict(zip(self.channels, values_TC.T, strict=True))})
        own = self._data_config("array", ())
        config = replace(own, time=clock, id=None, value=None, time_format=None)
        return replace(_from_frame(frame, config), name="array", start="", step_s=1.0)

    def standardised(self, series: Series) -> Tensor:
        """(T, C) float32: a series as the model sees it, scaled as the run's train rows were."""
        assert series.scaler is None
        offset_C = 0.0 if series.offset_C is None else series.offset_C
        shift_C = self.mean_C - offset_C
        return torch.from_numpy(
            ((series.values_TC.astype(np.float64) - shift_C) / self.std_C).astype(np.float32)
        )

    @torch.no_grad()
    def predict_from(self, series: Series, first_rows: Sequence[int]) -> np.ndarray:
        """(K, C, H) float64 in data units, from the windows whose context starts at K rows."""
        batches = -(-len(first_rows) // BATCH_SIZE)
        contexts = track(
            self._contexts(series, first_rows),
            "predicting",
            total=batches,
            console=Console(stderr=True),
            transient=True,
            disable=batches < 4 or not sys.stderr.isatty(),
        )
        return np.concatenate([self.in_data_units(self.model(x_BCL)) for x_BCL in contexts])

    def naive_from(self, series: Series, first_rows: Sequence[int]) -> np.ndarray:
        """The same of the task's naive baseline."""
        season, naive = self.task.baseline_season(self.season), []
        for x_BCL in self._contexts(series, first_rows):
            nothing_BCH = x_BCL.new_full((*x_BCL.shape[:2], self.horizon), math.nan)
            found = self.task.baselines(Batch(x_BCL, nothing_BCH), season=season)
            naive.append(self.in_data_units(found[self.task.naive]))
        return np.concatenate(naive)

    def _contexts(self, series: Series, first_rows: Sequence[int]) -> Iterator[Tensor]:
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
        for first_B in torch.tensor(first_rows).split(BATCH_SIZE):
            yield windows.gather(first_B)

    def in_data_units(self, x_BCH: Tensor) -> np.ndarray:
        """(B, C, H) float64 in data units, of train-standardised values."""
        values = x_BCH.cpu().double().numpy()
        return values * self.std_C[:, None] + self.mean_C[:, None]


def _from_frame(frame: Any, config: CsvData) -> Series:
    """A polars or pandas frame via a file, so that it passes the same checks as a file."""
    if not isinstance(frame, pl.DataFrame):
        is_clock = frame.index.dtype.kind == "M"
        if frame.index.name or is_clock:
            named = (config.time if is_clock else None) or frame.index.name or "time"
            frame = frame.reset_index(names=named)
        if twice := frame.columns[frame.columns.duplicated()].tolist():
            raise DataError(f"the frame has more than one column {twice[0]!r}.")
        frame = pl.DataFrame({str(name): _column(frame[name]) for name in frame.columns})
    if mixed := [name for name, dtype in frame.schema.items() if dtype == pl.Object]:
        raise DataError(f"the frame has neither numbers, times nor text in {', '.join(mixed)}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{config.path}.parquet"
        try:
            frame.write_parquet(path)
            return load_series(replace(config, path=str(path)))
        except DataError as error:
            raise DataError(str(error).replace(str(path), f"the {config.path}")) from error


def _column(values: Any) -> pl.Series:
    """A pandas column; of times with a zone, a place's is kept, since its days may begin there."""
    if values.dtype.kind in "iuf" and values.hasnans:  # may be pandas' own missing value
        return pl.Series(values.to_numpy("float64", na_value=math.nan))
    if (zone := getattr(values.dtype, "tz", None)) is None:
        return pl.Series(values.to_numpy())
    times = pl.Series(values.dt.tz_convert(None).to_numpy())
    place = str(zone) if "/" in str(zone) else "UTC"
    return times.dt.replace_time_zone("UTC").dt.convert_time_zone(place)


def load(path: str | Path) -> TrainedForecaster:
    """Load the model of a finished run, from its directory or from an export.

    Only that directory is read, not the hub or the checkpoint that the run started from.

    Args:
        path: A run directory with result.json, or what `t5ts.export` wrote.

    Raises:
        WeightsError: if it is neither, is not finished, or is corrupt.
        DataError: if it is a run of an older t5ts that did not record what is needed.
    """
    donor = read_donor(path, key="RUN")
    facts = donor.provenance["data"]
    if "token_scale" not in donor.provenance or "scaler" not in facts:
        raise DataError(
            f"{donor.folder} is a run of an older t5ts that did not record its scaler: it cannot"
            " predict. Train it again."
        )
    config = stored_config(donor.config)
    model = _empty_model(config, donor.provenance, num_channels=len(facts["channels"]))
    model.load_state_dict(donor.tensors)
    return TrainedForecaster(
        folder=donor.folder,
        config=config,
        task=build_task(config),
        model=model.eval(),
        channels=list(facts["channels"]),
        step=facts["step"] if facts["span"][0] else "",
        season=facts["season"],
        mean_C=np.array(facts["scaler"]["mean"]),
        std_C=np.array(facts["scaler"]["std"]),
        result=donor.result,
        provenance=donor.provenance,
    )


def _empty_model(config: Config, provenance: dict[str, Any], *, num_channels: int) -> Forecaster:
    """A model of the run's shape; its weights come from the checkpoint, all of them."""
    backbone = config.backbone
    if isinstance(backbone, HFBackbone):
        built = provenance["weights"]["architecture"]
        backbone = replace(backbone, sizes={**built["config"], "model_type": built["model_type"]})
    elif isinstance(backbone, T5Backbone) and backbone.d_model is None:
        built = provenance["weights"]["architecture"]
        sizes = {key: value for key, value in built.items() if hasattr(backbone, key)}
        backbone = replace(backbone, **sizes)
    fresh = replace(config.patch, init="fresh", path=None, scale="none")
    shape = replace(config, backbone=backbone, init=InitConfig(name="random"), patch=fresh)
    model, _ = build_model(shape, num_channels=num_channels)
    if isinstance(model.patch, PatchEmbedding):
        model.patch.scale = provenance["token_scale"]
    return model


def with_overrides(data: DataConfig, overrides: Sequence[str]) -> DataConfig:
    """A data configuration with `data.KEY=VALUE` applied, or after `data=NAME` another one.

    Raises:
        ConfigError, DataError: for an unknown key or a wrong value.
    """
    if not overrides:
        return data
    if other := [text for text in overrides if text.split("=")[0].split(".")[0] != "data"]:
        raise DataError(f"{', '.join(other)}: only the data can be chosen here (data.KEY=VALUE).")
    if any(text.startswith("data=") for text in overrides):
        return compose_config(overrides)[0].data
    try:
        given = OmegaConf.from_dotlist([text.removeprefix("data.") for text in overrides])
        changed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(data), given))
    except OmegaConfBaseException as error:
        raise DataError(f"{', '.join(overrides)}: {str(error).splitlines()[0]}") from error
    return changed
