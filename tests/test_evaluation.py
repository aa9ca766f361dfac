"""What is measured on a split, against plain tensors; what is cached, and by what."""

import math

import pytest
import torch
from torch import Tensor, nn

from t5ts.data.windows import Windows
from t5ts.errors import DataError
from t5ts.evaluation import evaluate, evaluate_baselines
from t5ts.tasks import Forecast

TASK = Forecast(seq_len=8, horizon=4)
NUM = 30


def split(first_row: int = 5, num_windows: int = NUM) -> Windows:
    series_TC = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return Windows(
        series_TC=series_TC, name="val", window_len=12, first_row=first_row,
        num_windows=num_windows, context_len=8,
    )  # fmt: skip


class LastSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x_BCL: Tensor) -> Tensor:
        return self.dropout(x_BCL[..., -4:])


@pytest.mark.parametrize(("limit", "num"), [(None, NUM), (9, 9), (1000, NUM)])
def test_all_windows_are_measured_once_in_evaluation_mode(limit, num):
    windows, losses, numbers = split(), [], []
    got = evaluate(
        LastSteps(), windows, TASK, batch_size=7, autocast=None, mase_denominator_C=None,
        naive_mse=1.0, limit=limit, window_losses=losses,
        transform=lambda x_BCL, index_B: numbers.append(index_B) or x_BCL,
    )  # fmt: skip
    window_BCW = windows.gather(torch.arange(num))
    expected_B = (window_BCW[..., 4:8] - window_BCW[..., 8:]).square().mean(dim=(1, 2))
    assert torch.cat(numbers).tolist() == list(range(num))
    torch.testing.assert_close(torch.cat(losses), expected_B)
    assert got["loss"] == pytest.approx(expected_B.mean().item())


def test_baselines_are_cached_by_all_that_they_depend_on():
    common, cache = {"mase_denominator_C": None}, {}
    for _ in range(3):  # computed, and twice from the cache
        for task in (TASK, Forecast(seq_len=7, horizon=5)):
            for season in (1, 4):
                for windows in (split(), split(6), split(num_windows=NUM - 1)):
                    options = common | {"season": season, "batch_size": 7}
                    alone = evaluate_baselines(windows, task, computed={}, **options)
                    got = evaluate_baselines(windows, task, computed=cache, **options)
                    assert str(got) == str(alone)
                    got["seasonal_naive"]["loss"] = math.inf  # the caller's own copy
    assert len(cache) == 12


def test_a_split_of_gaps_has_nothing_to_score():
    windows = split()
    windows.series_TC.fill_(math.nan)
    with pytest.raises(DataError, match=r"data\.splits"):
        evaluate_baselines(
            windows, TASK, season=1, batch_size=7, mase_denominator_C=None, computed={}
        )
