"""Masked spans: which steps of a window are hidden, as a pure function of numbers.

The random bits are a hash of (seed, window, epoch), so that a mask is the same in every arm, batch,
process and resumed run.
"""

from functools import cache

import numpy as np

from t5ts.draws import mix, uniform, words

#: Word of the hash in place of an epoch: the masks of validation and test.
NO_EPOCH = 2**64 - 1


@cache
def num_masked(seq_len: int, *, ratio: float, min_len: int, max_len: int) -> int:
    """Steps that are masked in each window: what spans can add up to, nearest to the ratio.

    Every window has the same number, so that every window weighs the same in the loss.

    Args:
        seq_len: L.
        ratio: Wished share of the steps, above 0 and below 1.
        min_len: Least length of a span, 1 or more.
        max_len: Greatest, from min_len to L − 1.

    Returns:
        From min_len to L − 1; the smaller of two that are equally near. So many that even spans of
        the least length keep a visible step between them.
    """
    possible = [
        total
        for total in range(min_len, seq_len)
        if _adds_up(total, min_len, max_len) and total // min_len <= seq_len - total + 1
    ]
    return min(possible, key=lambda total: (abs(total - ratio * seq_len), total))


def draw_masks(
    window_B: np.ndarray,
    *,
    seq_len: int,
    ratio: float,
    min_len: int,
    max_len: int,
    seed: int,
    epoch: int | None,
) -> np.ndarray:
    """Which steps are masked in each window.

    The lengths of the spans are drawn one after another, each uniformly from those with which the
    rest can still add up; then the spans are placed in distinct gaps between the visible steps,
    each choice of gaps being equally likely. So spans do not touch, every span has a length from
    min_len to max_len, and every window has `num_masked` masked steps. The steps within a span's
    length of a window's ends are masked less often than the rest, since fewer spans reach them.

    Args:
        window_B: (B,) window numbers.
        seq_len, ratio, min_len, max_len: See `num_masked`.
        seed: Of all masks.
        epoch: Of training; None gives the masks that belong to no epoch.

    Returns:
        (B, L) bool.

    Source: own.
    """
    total = num_masked(seq_len, ratio=ratio, min_len=min_len, max_len=max_len)
    most_spans, num_gaps = total // min_len, seq_len - total + 1
    key_B = mix(np.asarray(window_B).astype(np.uint64) ^ mix(words(seed)))
    key_B = mix(key_B ^ words(NO_EPOCH if epoch is None else epoch))
    draw_BU = uniform(key_B, most_spans + num_gaps)
    length_BS = _lengths(draw_BU[:, :most_spans], total, min_len, max_len)
    num_spans_B1 = (length_BS > 0).sum(axis=1, keepdims=True)
    # A window's spans take the gaps with its smallest draws, in that order: the last length drawn
    # is what was left, and must not always stand last. Spans that are not there sort last.
    gap_BS = np.argsort(draw_BU[:, most_spans:], axis=1, kind="stable")[:, :most_spans]
    gap_BS = np.where(np.arange(most_spans) < num_spans_B1, gap_BS, seq_len)
    order_BS = np.argsort(gap_BS, axis=1, kind="stable")
    gap_BS, length_BS = (np.take_along_axis(x, order_BS, axis=1) for x in (gap_BS, length_BS))
    start_BS = gap_BS + np.cumsum(length_BS, axis=1) - length_BS
    # Up by one where a span begins, down where it ends: spans never touch, so no edge is written
    # twice, except in column L, which takes the spans that are not there and is cut off.
    edge_BL = np.zeros((len(start_BS), seq_len + 1), dtype=np.int8)
    np.put_along_axis(edge_BL, np.minimum(start_BS, seq_len), 1, axis=1)
    np.put_along_axis(edge_BL, np.minimum(start_BS + length_BS, seq_len), -1, axis=1)
    return edge_BL[:, :seq_len].cumsum(axis=1, dtype=np.int8).astype(bool)


def _lengths(draw_BS: np.ndarray, total: int, min_len: int, max_len: int) -> np.ndarray:
    """(B, S) lengths that sum to `total` in each row; 0 from a row's last span on."""
    choices, count = _choices(total, min_len, max_len)
    left_B = np.full(len(draw_BS), total)
    lengths = []
    for draw_B in draw_BS.T:
        length_B = choices[left_B, (draw_B * count[left_B]).astype(np.int64)]
        left_B = left_B - length_B
        lengths.append(length_B)
    return np.stack(lengths, axis=1)


@cache
def _choices(total: int, min_len: int, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """For each number of steps left: the lengths that the next span may have, and how many."""
    table = np.zeros((total + 1, max_len - min_len + 1), dtype=np.int64)
    count = np.ones(total + 1, dtype=np.int64)  # nothing left: one choice, 0
    for left in range(min_len, total + 1):
        fitting = [
            length
            for length in range(min_len, min(max_len, left) + 1)
            if left == length or _adds_up(left - length, min_len, max_len)
        ]
        table[left, : len(fitting)] = fitting
        count[left] = max(1, len(fitting))
    return table, count


def _adds_up(total: int, min_len: int, max_len: int) -> bool:
    """Whether spans of min_len … max_len steps can add up to `total`: ⌈total/max⌉ of them fit."""
    return total >= min_len and -(-total // max_len) * min_len <= total
