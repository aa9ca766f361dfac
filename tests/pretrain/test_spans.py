"""Span corruption against hand-worked examples, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.pretrain.spans import corrupt, corrupt_rows, noise_mask, raw_length, span_counts

FIRST, EOS = 999, 1


def restore(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text from a corrupted input and its target."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token > FIRST - 100:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    text: list[int] = []
    for token in source[:-1]:
        text += spans[int(token)] if token > FIRST - 100 else [int(token)]
    return text


def test_figure_2_of_the_paper():
    # Thank you for inviting me to your party last week . → Thank you <X> me to your party <Y>
    # week . and <X> for inviting <Y> last <Z>
    words = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
    mask = np.isin(words, [12, 13, 18])
    source, target = corrupt(words, mask, first_sentinel=FIRST, eos=EOS)
    assert source.tolist() == [10, 11, 999, 14, 15, 16, 17, 998, 19, 20, EOS]
    assert target.tolist() == [999, 12, 13, 998, 18, 997, EOS]


def test_spans_at_both_ends():
    mask = np.array([True, False, False, True, True])
    source, target = corrupt(np.array([5, 6, 7, 8, 9]), mask, first_sentinel=FIRST, eos=EOS)
    assert source.tolist() == [999, 6, 7, 998, EOS]
    assert target.tolist() == [999, 5, 998, 8, 9, 997, EOS]


def test_counts_of_the_papers_row():
    # Raffel et al.: 512 tokens of input come from 568 of text, and the published code's targets
    # have 114 (85 corrupted, 28 sentinels, the end mark); here one more sentinel ends the spans.
    assert raw_length(512) == 568
    assert span_counts(568) == (85, 28)
    source, target = corrupt_rows(
        np.arange(568)[None] + 2000, np.random.default_rng(0), first_sentinel=FIRST, eos=EOS
    )
    assert source.shape == (1, 512)
    assert target.shape == (1, 85 + 28 + 2)


@given(length=st.integers(2, 400), seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_inverting_the_corruption_gives_the_text(length, seed):
    tokens = np.arange(2000, 2000 + length)
    mask = noise_mask(length, np.random.default_rng(seed))
    source, target = corrupt(tokens, mask, first_sentinel=FIRST, eos=EOS)
    FIRST_TEXT = 2000
    back = restore(
        np.where(source >= FIRST_TEXT, -source, source),
        np.where(target >= FIRST_TEXT, -target, target),
    )
    assert [-t for t in back] == tokens.tolist()


@given(length=st.integers(2, 600), seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_noise_share_and_spans(length, seed):
    mask = noise_mask(length, np.random.default_rng(seed))
    num_noise, num_spans = span_counts(length)
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    assert (int(mask.sum()), int(starts.sum())) == (num_noise, num_spans)
    assert abs(num_noise - 0.15 * length) <= 1
    assert not mask[0]
    assert mask[-1]


@given(mask=st.lists(st.booleans(), min_size=1, max_size=60))
def test_sentinels_go_down_by_one_in_both(mask):
    source, target = corrupt(
        np.arange(len(mask)), np.array(mask), first_sentinel=FIRST, eos=len(mask)
    )
    in_source = [t for t in source.tolist() if t > 900]
    in_target = [t for t in target.tolist() if t > 900]
    assert in_target == [FIRST - k for k in range(len(in_target))]
    assert in_source == in_target[:-1]


def test_every_span_length_law_is_uniform():
    # 8 tokens with 2 noise spans of 3 tokens in all: (1, 2) and (2, 1) equally often.
    firsts = []
    for seed in range(2000):
        mask = noise_mask(8, np.random.default_rng(seed), density=0.375, mean_span=1.5)
        assert mask.sum() == 3
        firsts.append(int(np.argmin(mask[np.argmax(mask) :])))
    assert firsts.count(1) / len(firsts) == pytest.approx(0.5, abs=0.04)
    assert set(firsts) == {1, 2}
