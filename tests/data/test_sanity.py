"""Gaps are counted; the sanity line's figures against numpy, and what it warns of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.data.sanity import check_sanity, count_gaps
from t5ts.data.windows import build_windows
from t5ts.errors import DataError
from tests.data.test_windows import make_series

BORDERS = (200, 260, 320)


def values(seed=0):
    return np.random.default_rng(seed).normal(5, 2, size=(330, 3))


def test_line_and_figures():
    series = make_series(values(), BORDERS)
    sanity = check_sanity(series, build_windows(series, context_len=16, target_len=4))
    raw = values().astype(np.float32).astype(np.float64)
    test = ((raw - raw[:200].mean(0)) / raw[:200].std(0))[260:320].var(0).mean()
    assert "train 1, val" in sanity.line
    assert f"test {test:.3g}" in sanity.line
    figures = ("330 rows × 3", "2020-01-01T00:00:00", "1 h", "0.00%", "181", "val 57", "test 57")
    assert [figure for figure in figures if figure not in sanity.line] == []
    assert sanity.warnings == []


def test_constant_channel_ramp_wild_scale_and_empty_split_are_warned_of():
    raw = values()
    raw[:, 0] = 7
    raw[260:, 1] *= 50
    raw[200:260, 1] = raw[:200, 1].mean()  # hardly varies
    raw[200:260, 2] = np.nan
    ramp = np.arange(330) * 60.0 + 5
    ramp[:2] = np.nan
    series = make_series(np.column_stack([raw, ramp]), BORDERS)
    sanity = check_sanity(series, build_windows(series, context_len=16, target_len=4))
    named = [warning.split("'")[1] for warning in sanity.warnings]
    assert named == ["c0", "c3", "c1", "c2", "c1", "c3"]
    assert "ramp" in sanity.warnings[1]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from(["interpolate", "mask"]))
@settings(max_examples=30)
def test_gaps_are_counted_and_kept(gaps, missing):
    missing_T = np.array(gaps)
    values_T = np.arange(len(gaps), dtype=np.float32)
    values_TC = np.stack([values_T, np.where(missing_T, np.nan, values_T)], axis=1)
    if missing_T.all():
        with pytest.raises(DataError, match="'b'"):
            count_gaps(values_TC, ["a", "b"], missing=missing, name="x")
        return
    share, notes = count_gaps(values_TC, ["a", "b"], missing=missing, name="x")
    np.testing.assert_array_equal(np.isnan(values_TC[:, 1]), missing_T)
    assert share == missing_T.sum() / values_TC.size
    assert len(notes) == bool(missing_T.any())
    if notes:
        longest = max(len(run) for run in "".join(".x"[gap] for gap in gaps).split("."))
        assert f" {longest} rows in b" in notes[0]


def test_gaps_are_named_by_channel_and_row():
    values_TC = np.array([[1, np.nan], [np.nan, np.nan], [3, 4]], dtype=np.float32)
    assert "b 2, a 1" in count_gaps(values_TC, ["a", "b"], missing="mask", name="x")[1][0]
    with pytest.raises(DataError, match=r"'a'.* 1 .*row 2\b"):
        count_gaps(values_TC[:, :1], ["a"], missing="error", name="x")
