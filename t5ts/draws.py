"""Seeds of a run's components, and random draws as a pure function of integers.

Such draws are the same in every arm, batch, process and resumed run: the masked spans of a
window (`draw_masks`) and the order of its steps (`shuffle_time`).

Source: SplitMix64 (Steele et al. 2014); masks own.
"""

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

#: Hash word used instead of an epoch: the masks of validation and test.
NO_EPOCH = 2**64 - 1
#: Hash word that separates the shuffles from other draws for the same windows.
SHUFFLE = 0x7E


def component_seed(seed: int, component: str) -> int:
    """A separate seed for each component, so that none consumes another's randomness."""
    digest = hashlib.sha256(f"{seed}/{component}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def component_generator(seed: int, component: str) -> torch.Generator:
    """A CPU generator for one component."""
    return torch.Generator().manual_seed(component_seed(seed, component))


def words(value: int) -> np.ndarray:
    """(1,) the number as 64 bits; an array, since numpy warns of a scalar that wraps around."""
    return np.array([value % 2**64], dtype=np.uint64)


def mix(key: np.ndarray) -> np.ndarray:
    """SplitMix64's step: advance the state and mix its bits."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(key_B: np.ndarray, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1): SplitMix64's stream from each key."""
    offset = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(key_B[:, None] + offset) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def time_orders(window_B: np.ndarray, *, length: int) -> np.ndarray:
    """(B, L) int64: for each window's number its permutation of the steps, all equally likely."""
    key_B = mix(np.asarray(window_B).astype(np.uint64) ^ mix(words(SHUFFLE)))
    return np.argsort(uniform(key_B, length), axis=1, kind="stable")


def shuffle_time(inputs_BCL: Tensor, index_B: Tensor) -> Tensor:
    """Each window's steps in its own fixed order, the same in all of its channels.

    Each channel keeps its values (NaN included), and channels stay aligned with each other; the
    order in time is destroyed. `index_B` are the windows' numbers.

    Source: Tan et al. 2024, "Are Language Models Actually Useful for Time Series Forecasting?",
        its "sf-all", at inference.
    """
    orders = time_orders(index_B.cpu().numpy(), length=inputs_BCL.shape[-1])
    order_BL = torch.from_numpy(orders).to(inputs_BCL.device, non_blocking=True)
    return inputs_BCL.gather(-1, order_BL[:, None].expand_as(inputs_BCL))


@cache
def num_masked(seq_len: int, *, ratio: float, min_len: int, max_len: int) -> int:
    """Number of masked steps in each window: the sum of spans nearest to the ratio of the steps.

    Every window has the same number, from `min_len` to `seq_len` − 1, so that every window weighs
    the same in the loss; few enough that the shortest spans keep a visible step between them. Spans
    have `min_len` (1 or more) to `max_len` (below `seq_len`) steps.
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
    """Which steps are masked in each window: (B, L) bool.

    The lengths of the spans are drawn one after another, each uniformly from those that allow the
    rest to add up; then the spans are placed in distinct gaps between the visible steps,
    each choice of gaps being equally likely. So spans do not touch, every span has a length from
    min_len to max_len, and every window has `num_masked` masked steps. The steps within a span's
    length of a window's ends are masked less often than the rest, since fewer spans reach them.

    Args:
        window_B: (B,) window numbers.
        seq_len, ratio, min_len, max_len: See `num_masked`.
        seed: Of all masks.
        epoch: Training epoch; None gives the masks of validation and test.
    """
    total = num_masked(seq_len, ratio=ratio, min_len=min_len, max_len=max_len)
    most_spans, num_gaps = total // min_len, seq_len - total + 1
    key_B = mix(np.asarray(window_B).astype(np.uint64) ^ mix(words(seed)))
    key_B = mix(key_B ^ words(NO_EPOCH if epoch is None else epoch))
    draw_BU = uniform(key_B, most_spans + num_gaps)
    length_BS = _draw_lengths(draw_BU[:, :most_spans], total, min_len, max_len)
    num_spans_B1 = (length_BS > 0).sum(axis=1, keepdims=True)
    # A window's spans take the gaps with its smallest draws, in that order: the last length drawn
    # is the remainder, and must not always come last. Unused spans sort last.
    gap_BS = np.argsort(draw_BU[:, most_spans:], axis=1, kind="stable")[:, :most_spans]
    gap_BS = np.where(np.arange(most_spans) < num_spans_B1, gap_BS, seq_len)
    order_BS = np.argsort(gap_BS, axis=1, kind="stable")
    gap_BS, length_BS = (np.take_along_axis(x, order_BS, axis=1) for x in (gap_BS, length_BS))
    start_BS = gap_BS + np.cumsum(length_BS, axis=1) - length_BS
    # +1 where a span begins, −1 where it ends: spans never touch, so no edge is written
    # twice, except in column L, which takes the unused spans and is cut off.
    edge_BL = np.zeros((len(start_BS), seq_len + 1), dtype=np.int8)
    np.put_along_axis(edge_BL, np.minimum(start_BS, seq_len), 1, axis=1)
    np.put_along_axis(edge_BL, np.minimum(start_BS + length_BS, seq_len), -1, axis=1)
    return edge_BL[:, :seq_len].cumsum(axis=1, dtype=np.int8).astype(bool)


def _draw_lengths(draw_BS: np.ndarray, total: int, min_len: int, max_len: int) -> np.ndarray:
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
    """For each number of steps left: the allowed lengths of the next span, and their count."""
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
