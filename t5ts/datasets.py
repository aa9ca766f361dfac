"""The series of a run, loaded once by each process, in the windows of its task."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from hydra.utils import get_method
from torch import Tensor

from t5ts.config import Config
from t5ts.data.series import Series
from t5ts.data.windows import WindowSplits, build_windows, mase_denominator
from t5ts.errors import ConfigError, DataError
from t5ts.schema import DataConfig
from t5ts.tasks import Task


@dataclass(kw_only=True, eq=False)
class Dataset:
    """A series in windows, and what its metrics need."""

    series: Series
    splits: WindowSplits  # those in use: `debug=overfit` puts one set in all three places
    mase_denominator_C: Tensor | None  # seasonal-naive MAE of the train rows; None without MASE
    baseline_season: int  # the season that the naive baselines repeat


def build_dataset(config: DataConfig, task: Task, device: torch.device) -> Dataset:
    """A series in the windows of a task, on a device.

    Raises:
        DataError: if it cannot be read, or is too short.
    """
    series = load_once(config)
    try:
        splits = build_windows(
            series,
            context_len=task.context_len,
            target_len=task.target_len,
            fraction=config.fraction,
            device=device,
        )
    except DataError:
        _loaded.clear()  # it may have failed halfway through standardising
        raise
    denominator_C = None
    if task.uses_season:
        rows_TC = splits.train.series_TC[slice(*splits.scaler_rows)]
        denominator_C = mase_denominator(rows_TC, season=series.season)
    return Dataset(
        series=series,
        splits=splits,
        mase_denominator_C=denominator_C,
        baseline_season=task.baseline_season(series.season),
    )


def build_ood(config: Config, task: Task, trained_on: Series, device: torch.device) -> Dataset:
    """The test-only series, windowed like the training series.

    It is standardised by its own train rows, as when a model is applied zero-shot to new data:
    only differences beyond level and scale count as shift.
    """
    assert config.ood is not None
    try:
        ood = build_dataset(config.ood, task, device)
    except DataError as error:
        raise DataError(f"ood ({config.ood.name}): {error} (Read data.… as ood.… here.)") from error
    channels, trained = ood.series.channels, trained_on.channels
    if len(channels) != len(trained):
        raise ConfigError(
            f"ood ({config.ood.name}) has {len(channels)} channels ({', '.join(channels)}), and"
            f" data ({config.data.name}) {len(trained)} ({', '.join(trained)}): one model reads"
            " both, channel by channel; choose equally many (channels, stations, num_channels)."
        )
    test = ood.splits.test
    ood.splits = replace(ood.splits, test=test.first(len(test), name="ood"))
    return ood


def load_series(data: DataConfig) -> Series:
    """Call the data's loader with every field its schema adds to the common ones."""
    common = {field.name for field in fields(DataConfig)}
    arguments = {f.name: getattr(data, f.name) for f in fields(data) if f.name not in common}
    series: Series = get_method(data._target_)(**arguments)
    return series


#: The last two loaded series (a run's data and its ood), by their source.
_loaded: dict[str, Series] = {}


def load_once(data: DataConfig) -> Series:
    """Load a series, or reuse the one this process already loaded if its file is unchanged.

    Only `build_windows` may write to it: it standardises the series once.
    """
    values = asdict(replace(data, fraction=1.0, windows_per_epoch=None))
    files = [Path(values[key]).expanduser() for key in ("path", "dir") if values.get(key)]
    files += [path for folder in files if folder.is_dir() for path in sorted(folder.iterdir())]
    stats = [path.stat() for path in files if path.exists()]
    stamps = [[stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino] for stat in stats]
    key = json.dumps([values, str(Path.cwd()), stamps])
    series = _loaded.pop(key, None)
    if series is None:
        while len(_loaded) > 1:
            del _loaded[next(iter(_loaded))]
        series = load_series(data)
    _loaded[key] = series
    return series
