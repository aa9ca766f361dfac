"""Draws follow from numbers alone: SplitMix64's stream, masked spans, shuffled time."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run
from torch import Tensor, nn

from t5ts.data.windows import Windows
from t5ts.draws import draw_masks, mix, num_masked, shuffle_time, time_orders, uniform, words
from t5ts.evaluation import evaluate
from t5ts.tasks import Forecast

#: Masked steps of window 7 by seed 3 in epoch 2.
EXPECTED = [78, 79, 80, 81, 82, 83, 84, 85, 86, 89, 90, 91, 105, 106, 107, 108, 109, 110, 111]
DEFAULT = {"seq_len": 128, "ratio": 0.15, "min_len": 3, "max_len": 10}


def test_the_stream_is_splitmix64s():
    """First outputs from the seed 1234567, as in other implementations."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    assert [int(mix(words(1234567 + i * golden))[0]) for i in range(3)] == expected
    bits = np.array(expected, dtype=np.uint64) >> np.uint64(11)
    assert (uniform(words(1234567), 3)[0] == bits * 2.0**-53).all()


# ------------------------------------------------------------------------------------ masks


def draw(windows, *, seed: int = 0, epoch: int | None = 0, **changes) -> np.ndarray:
    return draw_masks(np.asarray(windows), seed=seed, epoch=epoch, **(DEFAULT | changes))


def run_lengths(mask_L: np.ndarray) -> list[int]:
    return [len(list(run)) for is_masked, run in itertools.groupby(mask_L) if is_masked]


@settings(max_examples=50)
@given(data=st.data(), ratio=st.floats(0.01, 0.99), seq_len=st.integers(2, 60))
def test_every_span_and_every_window_is_as_stated(data, ratio, seq_len):
    max_len = data.draw(st.integers(1, seq_len - 1))
    min_len = data.draw(st.integers(1, max_len))
    shape = {"seq_len": seq_len, "ratio": ratio, "min_len": min_len, "max_len": max_len}
    mask = draw(range(20), **shape)
    assert mask.shape == (20, seq_len)
    assert set(mask.sum(axis=1)) == {num_masked(**shape)}
    lengths = [length for row in mask for length in run_lengths(row)]
    assert min_len <= min(lengths) <= max(lengths) <= max_len


def test_number_masked_is_the_nearest_that_spans_add_up_to():
    assert num_masked(**DEFAULT) == 19  # 0.15 · 128 = 19.2
    assert num_masked(seq_len=128, ratio=0.001, min_len=3, max_len=10) == 3
    assert num_masked(seq_len=100, ratio=0.17, min_len=6, max_len=6) == 18
    assert num_masked(seq_len=11, ratio=0.99, min_len=1, max_len=1) == 6
    assert num_masked(seq_len=10, ratio=0.25, min_len=1, max_len=1) == 2  # and not 3


def test_masks_follow_from_seed_window_and_epoch_whatever_the_batch():
    whole = draw(range(100))
    for part in (range(30, 37), [99], [5, 3, 5]):
        np.testing.assert_array_equal(draw(part), whole[list(part)])
    for other in (draw(range(100), seed=1), draw(range(100), epoch=1), draw(range(1, 101))):
        assert (whole == other).all(axis=1).mean() < 0.05
    assert not np.array_equal(draw([0], seed=1), draw([1], seed=0))
    assert not np.array_equal(draw(range(100), epoch=None), whole)
    # These very steps: a change of the hash would change the meaning of every seed.
    assert np.flatnonzero(draw([7], seed=3, epoch=2)[0]).tolist() == EXPECTED


def test_every_step_and_every_length_has_its_share():
    mask = draw(range(20_000))
    share_L = mask.mean(axis=0)
    assert share_L == pytest.approx(share_L[::-1], abs=0.015)  # 4 times the draw's own spread
    assert share_L[10:-10] == pytest.approx(share_L[10:-10].mean(), rel=0.1)
    assert 0.02 < share_L.min() < 0.04  # few spans reach an end, but some do
    counts = np.bincount([n for row in mask[:4000] for n in run_lengths(row)], minlength=11)
    assert (counts[3:11] > 0.04 * counts.sum()).all()


def test_memory_does_not_grow_with_spans_times_steps():
    """(B, S, L) bytes of it were 200 MB for a batch of long windows."""
    shape = {"seq_len": 2000, "ratio": 0.4, "min_len": 2, "max_len": 4}
    draw([0], **shape)  # the tables of lengths are made once
    tracemalloc.start()
    mask = draw(range(128), **shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * mask.size  # a few arrays of (B, S) or (B, L), 8 bytes an entry


# ---------------------------------------------------------------------------- shuffled time


def test_orders_are_permutations_of_the_window_alone():
    orders = time_orders(np.arange(2000), length=10)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert (time_orders(np.array([7, 3]), length=10) == orders[[7, 3]]).all()
    assert len({tuple(order) for order in orders}) > 1990
    # A change of the hash would change what `train.shuffled_test` measures.
    assert orders[3].tolist() == [4, 2, 7, 9, 8, 6, 1, 3, 5, 0]
    # Each step is as likely at each place: 200 times, give or take.
    counts = np.array([np.bincount(place, minlength=10) for place in orders.T])
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


def test_channels_share_an_order_and_gaps_move_along():
    inputs_BCL = torch.stack([torch.arange(12.0), -torch.arange(12.0)])[None].repeat(2, 1, 1)
    inputs_BCL[:, :, 5] = torch.nan
    got_BCL = shuffle_time(inputs_BCL, torch.tensor([4, 9]))
    assert torch.equal(got_BCL[:, 0].nan_to_num(5.0), -got_BCL[:, 1].nan_to_num(-5.0))
    assert not torch.equal(got_BCL[0].nan_to_num(5.0), got_BCL[1].nan_to_num(5.0))
    assert torch.equal(got_BCL.nan_to_num(99).sort(-1)[0], inputs_BCL.nan_to_num(99).sort(-1)[0])


class Highest(nn.Module):
    """Forecasts the highest value of the context, wherever it is."""

    def forward(self, x_BCL: Tensor) -> Tensor:
        return x_BCL.amax(-1, keepdim=True).expand(-1, -1, 4)


def test_targets_and_last_values_stay_in_their_places():
    generator = torch.Generator().manual_seed(0)
    rows_TC = torch.randn(60, 3, generator=generator).cumsum(0)
    windows = Windows(rows_TC, name="test", window_len=16, first_row=0, num_windows=45)
    plain, shuffled = (
        evaluate(
            Highest(), windows, Forecast(seq_len=12, horizon=4), batch_size=size, autocast=None,
            mase_denominator_C=torch.ones(3), naive_mse=1.0, **how,
        )
        for size, how in ((7, {}), (100, {"transform": shuffle_time}))
    )  # fmt: skip
    assert shuffled == pytest.approx(plain, rel=1e-12)


def test_a_run_is_measured_with_shuffled_time_only_if_asked(small, tmp_path):
    config = ["backbone=linear", "train.epochs=1"]
    plain = run(small(*config), run_dir=tmp_path / "plain")
    asked = run(small(*config, "train.shuffled_test=true"), run_dir=tmp_path / "asked")
    extra = {k: v for k, v in asked.metrics.items() if k.startswith("shuffled_")}
    assert asked.metrics == plain.metrics | extra
    names = {k.removeprefix("test_") for k in plain.metrics if k.startswith("test_")}
    assert {k.removeprefix("shuffled_") for k in extra} == names
    assert asked.metrics["shuffled_loss"] > asked.metrics["test_loss"]
