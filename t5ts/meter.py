"""What is measured of a run's model: metrics by split, and a few forecasts to draw."""

from typing import Any

import numpy as np
import torch

from t5ts import distributed
from t5ts.build import Setup
from t5ts.draws import shuffle_time
from t5ts.evaluation import autocast_to, evaluate, evaluate_baselines

#: Windows whose forecasts are drawn, evenly spaced over the test windows.
SAMPLE_WINDOWS = 3


class Meter:
    """Evaluates a run's model and its untrained baselines on its splits.

    Attributes:
        baselines: By split (val, test, ood) and forecast: its metrics.
    """

    def __init__(self, setup: Setup, batch_size: int) -> None:
        self._setup, self._batch_size = setup, batch_size
        data, ood = setup.data, setup.ood
        # Windows, and the data with the season and naive errors for their metrics.
        self._splits = {"val": (data.splits.val, data), "test": (data.splits.test, data)}
        if ood is not None:
            self._splits["ood"] = ood.splits.test, ood
        self.baselines = {
            split: evaluate_baselines(
                windows,
                setup.task,
                season=own.baseline_season,
                batch_size=batch_size,
                mase_denominator_C=own.mase_denominator_C,
                computed=own.series.computed,
            )
            for split, (windows, own) in self._splits.items()
        }

    def measure(self, split: str, *, name: str | None = None, **how: Any) -> dict[str, float]:
        """Metrics of the model on a split (val, test, ood), named `val_loss` and so on.

        `name` is their prefix instead of the split's; `how` is for `evaluate`.
        """
        setup = self._setup
        windows, own = self._splits[split]
        metrics = evaluate(
            setup.model,
            windows,
            setup.task,
            batch_size=self._batch_size,
            autocast=setup.autocast,
            mase_denominator_C=own.mase_denominator_C,
            naive_mse=self.baselines[split][setup.task.naive]["loss"],
            limit=setup.eval_limit,
            **how,
        )
        return {f"{name or split}_{metric}": value for metric, value in metrics.items()}

    def test(self, *, shuffled: bool) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and windows' losses, on splits that selected nothing; also on shuffled time."""
        metrics: dict[str, float] = {}
        window_losses: dict[str, np.ndarray] = {}
        for split in list(self._splits)[1:]:
            mine: list[torch.Tensor] = []
            metrics |= self.measure(split, window_losses=mine)
            every = distributed.gather_objects(mine)  # the shares are contiguous and in order
            window_losses[split] = torch.cat([loss_B for own in every for loss_B in own]).numpy()
        if shuffled:
            metrics |= self.measure("test", name="shuffled", transform=shuffle_time)
        return metrics, window_losses


def forecast_sample(setup: Setup) -> dict[str, Any]:
    """A few test predictions of the first channel, in data units, for the plot, JSON-able."""
    series, task, test = setup.data.series, setup.task, setup.data.splits.test
    # From the middle of equal parts: neither the first nor the last window, which are special.
    count = min(SAMPLE_WINDOWS, len(test))
    index_B = (torch.arange(count) * 2 + 1) * len(test) // (2 * count)
    batch = task.batch(test.gather(index_B), index_B)
    setup.model.eval()
    with torch.no_grad(), autocast_to(setup.device, setup.autocast):
        prediction_BCH = setup.model(batch.inputs_BCL)
    drawn = {
        "context": batch.inputs_BCL,
        "truth": batch.target_BCH,
        "prediction": prediction_BCH,
        task.naive: task.baselines(batch, season=setup.data.baseline_season)[task.naive],
    }
    mean, std = float(setup.data.splits.mean_C[0]), float(setup.data.splits.std_C[0])
    in_units = {name: (x[:, 0].cpu().double() * std + mean).tolist() for name, x in drawn.items()}
    starts = [test.first_row + int(index) + task.context_len for index in index_B]
    patch, seq_len = setup.model.patch, batch.inputs_BCL.shape[-1]
    stride = getattr(patch, "stride", seq_len)
    return {
        "channel": series.channels[0],
        "unit": series.units[0],
        "patch_starts": list(range(-getattr(patch, "pad", 0), seq_len, stride)),
        "target_start": task.context_len,  # the first step of a window that may be predicted
        "naive": task.naive,
        "windows": [
            {"start": series.time_of(row), **{name: x[i] for name, x in in_units.items()}}
            for i, row in enumerate(starts)
        ],
    }
