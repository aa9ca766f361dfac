"""Shuffled time: an order for each window, the same whoever asks, and what it leaves alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from t5ts import distributed
from t5ts.config import Config
from t5ts.data.windows import Windows
from t5ts.evaluation import evaluate
from t5ts.experiment import run
from t5ts.shuffling import shuffle_time, time_orders
from t5ts.task import Forecast

Compose = Callable[..., Config]
TASK = Forecast(seq_len=12, horizon=4)
WINDOWS = Windows(
    torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).cumsum(0),
    name="test",
    window_len=16,
    first_row=0,
    num_windows=45,
)


class Repeats(nn.Module):
    """Forecasts one number of the context for every step."""

    def __init__(self, number: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.number = number

    def forward(self, x_BCL: Tensor) -> Tensor:
        return self.number(x_BCL)[..., None].expand(*x_BCL.shape[:2], TASK.horizon)


def measured(number: Callable[[Tensor], Tensor], *, size: int = 7, **how) -> dict[str, float]:
    return evaluate(
        Repeats(number), WINDOWS, TASK, batch_size=size, autocast=None,
        mase_denominator_C=torch.ones(3), naive_mse=1.0, **how,
    )  # fmt: skip


def test_orders_are_permutations_of_the_window_alone() -> None:
    orders = time_orders(np.arange(2000), length=10)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert (time_orders(np.array([7, 3]), length=10) == orders[[7, 3]]).all()
    assert len({tuple(order) for order in orders}) > 1990
    # Each step is as likely at each place: 200 times, give or take.
    counts = np.array([np.bincount(place, minlength=10) for place in orders.T])
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


def test_channels_keep_step_and_gaps_move_along() -> None:
    inputs_BCL = torch.stack([torch.arange(12.0), -torch.arange(12.0)])[None].repeat(2, 1, 1)
    inputs_BCL[:, :, 5] = torch.nan
    got_BCL = shuffle_time(inputs_BCL, torch.tensor([4, 9]))
    assert torch.equal(got_BCL[:, 0].nan_to_num(5.0), -got_BCL[:, 1].nan_to_num(-5.0))
    assert not torch.equal(got_BCL[0].nan_to_num(5.0), got_BCL[1].nan_to_num(5.0))
    for channel_L, whole_L in zip(got_BCL.flatten(0, 1), inputs_BCL.flatten(0, 1), strict=True):
        kept, expected = channel_L[~channel_L.isnan()], whole_L[~whole_L.isnan()]
        assert torch.equal(kept.sort().values, expected.sort().values)


def test_what_has_no_order_is_unaffected_and_what_has_is_not() -> None:
    for number in (lambda x: x.amax(-1), lambda x: x.double().sum(-1)):
        assert measured(number, show=shuffle_time) == pytest.approx(measured(number), rel=1e-12)
    last, shuffled = (
        measured(lambda x: x[..., -1]),
        measured(lambda x: x[..., -1], show=shuffle_time),
    )
    assert shuffled["loss"] > 1.2 * last["loss"]


def test_target_and_last_value_stay_in_their_places() -> None:
    """A forecast that sees nothing scores the same: so do its changes since the last value."""
    metrics = [
        measured(lambda x: torch.zeros(x.shape[:2]), **how) for how in ({}, {"show": shuffle_time})
    ]
    assert metrics[0]["corr_delta"] == metrics[1]["corr_delta"]
    assert metrics[0] == pytest.approx(metrics[1], nan_ok=True)


@pytest.mark.parametrize("size", [1, 16, 100])
def test_batches_do_not_matter(size: int) -> None:
    def at(size: int) -> dict[str, float]:
        return measured(lambda x: x[..., -1], size=size, show=shuffle_time)

    assert at(size) == pytest.approx(at(7), rel=1e-12)


def test_shares_of_several_processes_are_of_the_same_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each window's loss is that of one process (the sums over two: test_distributed)."""
    whole: list[Tensor] = []
    measured(lambda x: x[..., -1], show=shuffle_time, window_losses=whole)
    parts: list[Tensor] = []
    for rank in range(3):
        monkeypatch.setattr(
            distributed, "share", lambda index_B, rank=rank: index_B.tensor_split(3)[rank]
        )
        measured(lambda x: x[..., -1], show=shuffle_time, window_losses=parts)
    assert torch.equal(torch.cat(parts), torch.cat(whole))


def test_a_run_is_measured_with_shuffled_time_only_if_asked(small: Compose, tmp_path: Path) -> None:
    config = ["backbone=linear", "train.epochs=1"]
    plain = run(small(*config), run_dir=tmp_path / "plain")
    asked = run(small(*config, "train.shuffled_test=true"), run_dir=tmp_path / "asked")
    extra = {k: v for k, v in asked.metrics.items() if k.startswith("shuffled_")}
    assert asked.metrics == plain.metrics | extra
    names = {k.removeprefix("test_") for k in plain.metrics if k.startswith("test_")}
    assert {k.removeprefix("shuffled_") for k in extra} == names
    assert asked.metrics["shuffled_loss"] > asked.metrics["test_loss"]
