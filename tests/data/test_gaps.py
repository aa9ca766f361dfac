"""Repair against np.interp, for any pattern of gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.data.gaps import check_policy, repair
from t5ts.errors import DataError


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_interpolation_equals_numpy(gaps, seed):
    missing_T = np.array(gaps)
    values_T = np.random.default_rng(seed).normal(size=len(gaps)).astype(np.float32)
    values_TC = np.stack([values_T, np.where(missing_T, np.nan, values_T)], axis=1)
    if missing_T.all():
        with pytest.raises(DataError, match="'b' of x has no value"):
            repair(values_TC, ["a", "b"], missing="interpolate", name="x")
        return
    rows = np.arange(len(gaps))
    expected = np.interp(rows, rows[~missing_T], values_T[~missing_T])
    share, notes = repair(values_TC, ["a", "b"], missing="interpolate", name="x")
    np.testing.assert_allclose(values_TC[:, 1], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(values_TC[:, 0], values_T)
    assert share == missing_T.sum() / values_TC.size
    assert len(notes) == bool(missing_T.any())


def test_mask_keeps_the_gaps_and_counts_them():
    values_TC = np.array([[1, np.nan], [np.nan, np.nan], [3, 4]], dtype=np.float32)
    share, notes = repair(values_TC, ["a", "b"], missing="mask", name="x")
    assert np.isnan(values_TC).sum() == 3
    assert share == 0.5
    assert "longest gap 2 rows in b" in notes[0]
    assert "b 2, a 1" in notes[0]


def test_error_names_channel_and_row():
    values_TC = np.array([[1.0], [np.nan], [3.0]], dtype=np.float32)
    with pytest.raises(DataError, match=r"'a' of x has 1 missing values, the first in row 2"):
        repair(values_TC, ["a"], missing="error", name="x")
    with pytest.raises(DataError, match="interpolate"):
        check_policy("drop")
