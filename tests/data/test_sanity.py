"""The sanity line's figures against numpy, and what it warns of."""

from __future__ import annotations

import numpy as np
import pytest

from t5ts.data.sanity import check_sanity
from t5ts.data.windows import build_windows
from tests.data.test_windows import make_series

BORDERS = (200, 260, 320)


def values(seed=0):
    return np.random.default_rng(seed).normal(5, 2, size=(330, 3))


def test_line_and_figures():
    raw = values().astype(np.float32).astype(np.float64)
    series = make_series(values(), BORDERS)
    sanity = check_sanity(series, build_windows(series, context_len=16, target_len=4))
    scaled = (raw - raw[:200].mean(0)) / raw[:200].std(0)
    assert sanity.mean_mse["train"] == pytest.approx(1)
    assert sanity.mean_mse["val"] == pytest.approx((scaled[200:260] ** 2).mean(), rel=1e-5)
    assert sanity.variance["test"] == pytest.approx(scaled[260:320].var(0).mean(), rel=1e-5)
    for words in ("330 rows × 3 channels", "2020-01-01T00:00:00 …", "step 1 h", "gaps 0.00%"):
        assert words in sanity.line
    assert "windows train 181, val 57, test 57" in sanity.line
    assert sanity.warnings == []


def test_constant_channel_wild_scale_and_empty_split_are_warned_of():
    raw = values()
    raw[:, 0] = 7
    raw[260:, 1] *= 50
    raw[200:260, 2] = np.nan
    series = make_series(raw, BORDERS)
    sanity = check_sanity(series, build_windows(series, context_len=16, target_len=4))
    constant, empty, wild = sanity.warnings
    assert "'c0' is constant" in constant
    assert "'c2' has no value in the val rows" in empty
    assert "'c1' differs wildly" in wild
    assert "test" in wild
