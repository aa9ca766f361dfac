"""Masked spans: as many, as long and as scattered as stated, and a function of numbers alone."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.spans import draw_masks, num_masked

#: Masked steps of window 7 by seed 3 in epoch 2.
EXPECTED = [78, 79, 80, 81, 82, 83, 84, 85, 86, 89, 90, 91, 105, 106, 107, 108, 109, 110, 111]
DEFAULT = {"seq_len": 128, "ratio": 0.15, "min_len": 3, "max_len": 10}


def draw(windows, *, seed: int = 0, epoch: int | None = 0, **changes) -> np.ndarray:
    return draw_masks(np.asarray(windows), seed=seed, epoch=epoch, **(DEFAULT | changes))


def run_lengths(mask_L: np.ndarray) -> list[int]:
    return [len(list(run)) for is_masked, run in itertools.groupby(mask_L) if is_masked]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), ratio=st.floats(0.01, 0.99), seq_len=st.integers(2, 60))
def test_every_span_and_every_window_is_as_stated(data, ratio, seq_len) -> None:
    max_len = data.draw(st.integers(1, seq_len - 1))
    min_len = data.draw(st.integers(1, max_len))
    shape = {"seq_len": seq_len, "ratio": ratio, "min_len": min_len, "max_len": max_len}
    mask = draw(range(20), **shape)
    assert mask.shape == (20, seq_len)
    assert set(mask.sum(axis=1)) == {num_masked(**shape)}
    lengths = [length for row in mask for length in run_lengths(row)]
    assert min_len <= min(lengths) <= max(lengths) <= max_len


def test_number_masked_is_the_nearest_that_spans_add_up_to() -> None:
    assert num_masked(**DEFAULT) == 19  # 0.15 · 128 = 19.2
    assert num_masked(seq_len=128, ratio=0.001, min_len=3, max_len=10) == 3
    assert num_masked(seq_len=100, ratio=0.17, min_len=6, max_len=6) == 18
    assert num_masked(seq_len=10, ratio=0.99, min_len=1, max_len=1) == 5
    assert num_masked(seq_len=2, ratio=0.5, min_len=1, max_len=1) == 1


def test_masks_follow_from_seed_window_and_epoch_whatever_the_batch() -> None:
    whole = draw(range(100))
    np.random.seed(1)  # whatever others drew must not matter
    for part in (range(30, 37), [99], [5, 3, 5]):
        np.testing.assert_array_equal(draw(part), whole[list(part)])
    for other in (draw(range(100), seed=1), draw(range(100), epoch=1), draw(range(1, 101))):
        assert (whole == other).all(axis=1).mean() < 0.05
    assert not np.array_equal(draw([0], seed=1), draw([1], seed=0))
    assert not np.array_equal(draw(range(100), epoch=None), draw(range(100), epoch=0))


def test_masks_are_the_same_on_every_machine() -> None:
    """These very steps: a change of the hash would change the meaning of every seed."""
    assert np.flatnonzero(draw([7], seed=3, epoch=2)[0]).tolist() == EXPECTED


def test_every_step_and_every_length_has_its_share() -> None:
    mask = draw(range(20_000))
    share_L = mask.mean(axis=0)
    assert share_L.mean() == pytest.approx(19 / 128)
    assert share_L == pytest.approx(share_L[::-1], abs=0.015)  # 4 times the draw's own spread
    assert share_L[10:-10] == pytest.approx(share_L[10:-10].mean(), rel=0.1)
    assert 0.02 < share_L.min() < 0.04  # few spans reach an end, but some do
    counts = np.bincount([n for row in mask[:4000] for n in run_lengths(row)], minlength=11)
    assert (counts[3:11] > 0.04 * counts.sum()).all()


@pytest.mark.parametrize("other", [{"window": 1}, {"epoch": 1}, {"seed": 1}])
def test_neighbouring_masks_are_not_alike(other) -> None:
    """The overlap of two masks is that of independent ones: 19 · 19 / 128 steps."""
    windows = np.arange(0, 20_000, 2)
    shift = other.get("window", 0)
    a = draw(windows)
    b = draw(windows + shift, seed=other.get("seed", 0), epoch=other.get("epoch", 0))
    assert (a & b).sum(axis=1).mean() == pytest.approx(19 * 19 / 128, rel=0.05)


def test_memory_does_not_grow_with_spans_times_steps() -> None:
    """(B, S, L) bytes of it were 200 MB for a batch of long windows."""
    shape = {"seq_len": 2000, "ratio": 0.4, "min_len": 2, "max_len": 4}
    draw([0], **shape)  # the tables of lengths are made once
    tracemalloc.start()
    mask = draw(range(128), **shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * mask.size  # a few arrays of (B, S) or (B, L), 8 bytes an entry
