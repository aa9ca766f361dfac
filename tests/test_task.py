"""A window is cut where it should be, and the baselines are what their names say."""

import pytest
import torch

from t5ts.task import Forecast

TASK = Forecast(seq_len=6, horizon=5)
WINDOW = torch.arange(2 * 3 * 11, dtype=torch.float32).reshape(2, 3, 11)


def test_batch_splits_a_window() -> None:
    batch = TASK.batch(WINDOW)
    assert torch.equal(torch.cat([batch.inputs_BCL, batch.target_BCH], -1), WINDOW)
    assert torch.equal(batch.last_BC, WINDOW[..., 5])


def test_baselines() -> None:
    batch = TASK.batch(WINDOW)
    got = TASK.baselines(batch, season=2)
    # Steps 6, 7, 8 … repeat steps 4, 5, 4 …
    assert torch.equal(got["seasonal_naive"], WINDOW[..., [4, 5, 4, 5, 4]])
    assert torch.equal(got["last_value"], WINDOW[..., 5:6].expand(2, 3, 5))
    assert torch.equal(got["mean"], torch.zeros(2, 3, 5))


def test_seasonal_naive_of_season_one_is_the_last_value() -> None:
    got = TASK.baselines(TASK.batch(WINDOW), season=1)
    assert torch.equal(got["seasonal_naive"], got["last_value"])


@pytest.mark.parametrize(("season", "used"), [(1, 1), (6, 6), (7, 1)])
def test_a_season_beyond_the_context_falls_back_to_the_last_value(season, used) -> None:
    assert TASK.baseline_season(season) == used


def test_loss_is_the_mean_square_per_element() -> None:
    batch = TASK.batch(WINDOW)
    assert float(TASK.loss(batch.target_BCH + 2, batch)) == pytest.approx(4.0)
