"""Gaps are counted, kept, and named where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.data.gaps import check_policy, count_gaps
from t5ts.errors import DataError


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from(["interpolate", "mask"]))
@settings(max_examples=200, deadline=None)
def test_gaps_are_counted_and_kept(gaps, missing):
    missing_T = np.array(gaps)
    values_T = np.arange(len(gaps), dtype=np.float32)
    values_TC = np.stack([values_T, np.where(missing_T, np.nan, values_T)], axis=1)
    if missing_T.all():
        with pytest.raises(DataError, match="'b' of x has no value"):
            count_gaps(values_TC, ["a", "b"], missing=missing, name="x")
        return
    share, notes = count_gaps(values_TC, ["a", "b"], missing=missing, name="x")
    np.testing.assert_array_equal(np.isnan(values_TC[:, 1]), missing_T)
    assert share == missing_T.sum() / values_TC.size
    assert len(notes) == bool(missing_T.any())
    if notes:
        longest = max(len(run) for run in "".join(".x"[gap] for gap in gaps).split("."))
        assert f"longest gap {longest} rows in b" in notes[0]


def test_channels_with_most_gaps_come_first():
    values_TC = np.array([[1, np.nan], [np.nan, np.nan], [3, 4]], dtype=np.float32)
    share, notes = count_gaps(values_TC, ["a", "b"], missing="mask", name="x")
    assert share == 0.5
    assert "b 2, a 1" in notes[0]


def test_error_names_channel_and_row():
    values_TC = np.array([[1.0], [np.nan], [3.0]], dtype=np.float32)
    with pytest.raises(DataError, match=r"'a' of x has 1 missing values, the first in row 2"):
        count_gaps(values_TC, ["a"], missing="error", name="x")
    with pytest.raises(DataError, match="interpolate"):
        check_policy("drop")
