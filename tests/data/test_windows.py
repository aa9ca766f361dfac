"""Windows against plain numpy slicing; the scaler against numpy; order as a pure function."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.data import windows as module
from t5ts.data.series import Series, Step, split_borders
from t5ts.data.windows import build_windows, epoch_order, mase_denominator
from t5ts.errors import DataError


def make_series(values_TC, borders) -> Series:
    values_TC = np.array(values_TC, dtype=np.float32, order="C")
    names = [f"c{c}" for c in range(values_TC.shape[1])]
    return Series(
        name="made", values_TC=values_TC, channels=names, units=[""] * len(names), step_s=3600.0,
        start="2020-01-01T00:00:00", season=1, season_note="", borders=borders, source="test",
        licence="none",
    )  # fmt: skip


def random_series(num_rows=120, num_channels=3, borders=(70, 90, 110), seed=0) -> Series:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-2, 3, num_channels)
    values = rng.normal(size=(num_rows, num_channels)) * scale + 100 * rng.normal(size=num_channels)
    return make_series(values, borders)


def numpy_scaled(values_TC, train_end):
    train = values_TC[:train_end].astype(np.float64)
    return ((values_TC.astype(np.float64) - train.mean(0)) / train.std(0)).astype(np.float32)


@settings(max_examples=30)
@given(
    lengths=st.tuples(*[st.integers(1, 40)] * 3),
    tail=st.integers(0, 5),
    num_channels=st.integers(1, 4),
    context_len=st.integers(0, 12),
    target_len=st.integers(1, 12),
    fraction=st.sampled_from([1.0, 0.5, 0.3]),
    seed=st.integers(0, 10),
)
def test_every_window_is_the_numpy_slice_and_none_is_dropped(
    lengths, tail, num_channels, context_len, target_len, fraction, seed
):
    ends = np.cumsum(lengths)
    borders = tuple(int(end) for end in ends)
    values = np.random.default_rng(seed).normal(size=(borders[2] + tail, num_channels))
    series = make_series(values, borders)
    expected_TC = series.values_TC.copy()
    train_rows = max(1, math.floor(fraction * borders[0] + 0.5))
    window_len = context_len + target_len
    enough = train_rows >= window_len and lengths[1] >= target_len and lengths[2] >= target_len
    arguments = {"context_len": context_len, "target_len": target_len, "fraction": fraction}
    if not enough:
        with pytest.raises(DataError):
            build_windows(series, **arguments)
        return
    splits = build_windows(series, **arguments)
    if not splits.constant_channels:
        expected_TC = numpy_scaled(expected_TC, borders[0])
        np.testing.assert_allclose(series.values_TC, expected_TC, rtol=1e-5, atol=1e-5)
    first_rows = {
        "train": range(borders[0] - train_rows, borders[0] - window_len + 1),
        "val": range(borders[0] - context_len, borders[1] - window_len + 1),
        "test": range(borders[1] - context_len, borders[2] - window_len + 1),
    }
    assert len(splits.val) == lengths[1] - target_len + 1
    assert len(splits.test) == lengths[2] - target_len + 1
    for name, rows in first_rows.items():
        part = getattr(splits, name)
        assert len(part) == len(rows)
        batch_BCW = part.gather(torch.arange(len(part)))
        assert batch_BCW.shape == (len(rows), num_channels, window_len)
        assert batch_BCW.is_contiguous()
        for window_CW, row in zip(batch_BCW.numpy(), rows, strict=True):
            np.testing.assert_array_equal(window_CW, series.values_TC[row : row + window_len].T)
        repeated = torch.tensor([len(part) - 1, 0, len(part) - 1])
        assert torch.equal(part.gather(repeated), batch_BCW[repeated])
        with pytest.raises((IndexError, RuntimeError)):
            part.gather(torch.tensor([len(part)]))


def test_a_checksum_covers_offsets_and_filled_contexts():
    plain, filled = random_series(), {"fills_contexts": True, "gap_share": 0.1}
    changes = ({}, {"offset_C": np.ones(3)}, {"offset_C": np.zeros(3)}, filled)
    found = [replace(plain, sha256="", **change).sha256 for change in changes]
    assert found[0] == found[2] == plain.sha256
    assert len({*found}) == 3


def test_a_ratio_of_the_rows_is_not_a_row_short():
    """0.29 · 100 is 28.999999999999996."""
    made = split_borders([0.29, 0.21, 0.5], num_rows=100, start="", step=Step(1), name="made")
    assert made == (29, 50, 100)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_scaler_equals_numpy_on_all_train_rows_and_no_others(monkeypatch, fraction):
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)  # many chunks, the last one short
    series = random_series()
    series.values_TC[[3, 40, 95], 1] = np.nan
    series.values_TC[75] = 1e6
    raw = series.values_TC[:70].astype(np.float64)
    splits = build_windows(series, context_len=8, target_len=4, fraction=fraction)
    np.testing.assert_allclose(splits.mean_C, np.nanmean(raw, 0), rtol=1e-13)
    np.testing.assert_allclose(splits.std_C, np.nanstd(raw, 0), rtol=1e-12)
    assert splits.mean_C.dtype == torch.float64
    assert splits.scaler_rows == (0, 70)
    assert torch.isnan(splits.test.series_TC).sum() == 3


def test_splits_share_the_storage_that_is_scaled_once():
    series = random_series()
    address, sha256 = series.values_TC.ctypes.data, series.sha256
    one = build_windows(series, context_len=8, target_len=4)
    scaled = series.values_TC.copy()
    two = build_windows(series, context_len=8, target_len=4, fraction=0.5)
    np.testing.assert_array_equal(series.values_TC, scaled)
    assert torch.equal(one.mean_C, two.mean_C)
    assert torch.equal(one.std_C, two.std_C)
    assert series.sha256 == sha256
    for part in (one.train, one.val, two.test):
        assert part.series_TC.data_ptr() == address


@pytest.mark.parametrize("value", [3.0, 0.1, 1e9])
def test_constant_channel_is_scaled_by_one_and_listed(value):
    values = np.random.default_rng(0).normal(size=(120, 2))
    values[:70, 1] = value
    values[70:, 1] = value + 64
    splits = build_windows(make_series(values, (70, 90, 110)), context_len=8, target_len=4)
    assert splits.constant_channels == [1]
    assert splits.std_C[1] == 1
    assert torch.allclose(splits.train.gather(torch.tensor([0]))[:, 1], torch.tensor(0.0))
    # 64 is representable next to 1e9 in float32
    assert splits.test.series_TC[100, 1] == pytest.approx(64, abs=0.01)


def test_a_channel_without_train_values_or_that_overflows_is_named():
    empty, wild = random_series(), random_series()
    empty.values_TC[:70, 2] = np.nan
    wild.values_TC[:70, 0] = np.linspace(0, 1e-30, 70)
    wild.values_TC[80:, 0] = 1e30
    for series, named in ((empty, "'c2'"), (wild, "'c0'")):
        with pytest.raises(DataError, match=named):
            build_windows(series, context_len=8, target_len=4)


@pytest.mark.parametrize(
    ("context_len", "target_len", "fraction", "named"),
    [
        (60, 20, 1.0, ["train", "70 rows", "needs 80", "seq_len", "horizon", "data.splits"]),
        (8, 4, 0.1, ["train", "7 rows", "needs 12", "data.fraction=0.1 of 70"]),
        (8, 21, 1.0, ["val", "20 rows", "needs 21", "seq_len", "data.splits"]),
        (0, 30, 1.0, ["val", "seq_len"]),
    ],
)
def test_too_few_rows_names_split_rows_and_keys(context_len, target_len, fraction, named):
    lengths = {"context_len": context_len, "target_len": target_len, "fraction": fraction}
    with pytest.raises(DataError) as error:
        build_windows(random_series(), **lengths)
    assert [word for word in named if word not in str(error.value)] == []


@given(
    num=st.integers(1, 500),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    limit=st.integers(1, 600) | st.none(),
)
@settings(max_examples=30)
def test_epoch_order_is_a_pure_permutation_and_its_head(num, seed, epoch, limit):
    before = torch.get_rng_state()
    order = epoch_order(num, seed=seed, epoch=epoch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(seed % 100)
    assert torch.equal(epoch_order(num, seed=seed, epoch=epoch, limit=limit), order[:limit])
    assert sorted(order.tolist()) == list(range(num))
    # A checkpoint of an older release must resume with the same order.
    assert epoch_order(8, seed=0, epoch=0).tolist() == [4, 1, 3, 5, 0, 2, 6, 7]
    others = [(seed, epoch + 1), ((seed + 1) % 2**63, epoch), (-1 - seed, epoch)]
    for other_seed, other_epoch in others if num > 50 else ():
        assert not torch.equal(epoch_order(num, seed=other_seed, epoch=other_epoch), order)


@pytest.mark.parametrize("season", [1, 5, 69])
def test_mase_denominator_equals_numpy(season, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 13)
    values = random_series().values_TC
    values[5, 0], values[:, 1] = np.nan, 5
    expected = np.nanmean(np.abs(values[season:].astype(np.float64) - values[:-season]), axis=0)
    found = mase_denominator(torch.from_numpy(values), season=season)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[1] == 0
    with pytest.raises(DataError, match=r"data\.season"):
        mase_denominator(torch.from_numpy(values), season=len(values))


@pytest.mark.gpu
def test_a_gpu_gathers_what_the_cpu_gathers():
    on_cpu = build_windows(random_series(), context_len=8, target_len=4)
    on_gpu = build_windows(random_series(), context_len=8, target_len=4, device="cuda")
    index = epoch_order(len(on_cpu.train), seed=0, epoch=0)
    assert torch.equal(on_gpu.train.gather(index).cpu(), on_cpu.train.gather(index))


def gappy(seed: int) -> Series:
    """A series of which a third is missing, the first rows and some long runs among it."""
    rng = np.random.default_rng(seed)
    values = rng.normal(5, 2, size=(300, 2))
    missing = rng.random(values.shape) < 0.2
    missing[:3, 0] = missing[40:60] = missing[190:215] = missing[250:262, 1] = True
    values[missing] = np.nan
    series = make_series(values, (200, 240, 300))
    series.fills_contexts = True
    return series


def test_contexts_are_filled_from_earlier_rows_and_gaps_are_not_scored():
    """Against a plain loop, in every window of every split: no step knows a later one."""
    splits = build_windows(gappy(0), context_len=12, target_len=6)
    for part in (splits.train, splits.val, splits.test, splits.val.first(5, name="few")):
        windows = part.gather(torch.arange(len(part))).numpy()
        truth_TC = part.series_TC.numpy()
        filled_TC = np.vstack([np.zeros((1, 2), np.float32), truth_TC])
        for row in range(1, len(filled_TC)):
            filled_TC[row] = np.where(np.isnan(filled_TC[row]), filled_TC[row - 1], filled_TC[row])
        for number, window_CW in enumerate(windows):
            first = part.first_row + number
            np.testing.assert_array_equal(window_CW[:, :12], filled_TC[1:][first : first + 12].T)
            np.testing.assert_array_equal(window_CW[:, 12:], truth_TC[first + 12 : first + 18].T)
    assert np.isnan(windows[..., 12:]).any()


def test_gaps_stay_where_nothing_is_a_context_and_the_scaler_does_not_see_them():
    filled, masked = gappy(1), gappy(1)
    masked.fills_contexts = False
    for series in (filled, masked):
        splits = build_windows(series, context_len=0, target_len=18)
        assert bool(splits.val.gather(torch.arange(len(splits.val))).isnan().any())
    np.testing.assert_array_equal(filled.values_TC, masked.values_TC)
