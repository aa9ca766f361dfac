"""Span corruption, T5's pretraining objective: pure functions of tokens, a mask and a generator.

Source: Raffel et al. 2020, section 3.1.4 and figure 2; the law of the spans is that of the
published code (`random_spans_noise_mask` in google-research/text-to-text-transfer-transformer).
"""

import numpy as np

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0


def span_counts(
    length: int, *, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN_LENGTH
) -> tuple[int, int]:
    """Number of corrupted tokens and of spans in a row of `length` tokens (at least 2)."""
    num_noise = min(max(round(length * density), 1), length - 1)
    num_spans = min(max(round(num_noise / mean_span), 1), length - num_noise)
    return num_noise, num_spans


def raw_length(
    input_length: int, *, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN_LENGTH
) -> int:
    """The longest row of text whose corrupted input, end mark included, fits `input_length`."""
    length = 2
    while True:
        num_noise, num_spans = span_counts(length + 1, density=density, mean_span=mean_span)
        if length + 1 - num_noise + num_spans + 1 > input_length:
            return length
        length += 1


def noise_mask(
    length: int,
    generator: np.random.Generator,
    *,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN_LENGTH,
) -> np.ndarray:
    """Which tokens of a row are corrupted, (length,) bool.

    Kept and corrupted spans alternate, beginning with a kept and ending with a corrupted one; the
    tokens of each kind are cut into that many non-empty spans, every way equally likely.
    """
    num_noise, num_spans = span_counts(length, density=density, mean_span=mean_span)
    kept = _random_parts(length - num_noise, num_spans, generator)
    noise = _random_parts(num_noise, num_spans, generator)
    lengths = np.stack([kept, noise], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)


def _random_parts(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive numbers, uniformly among all such sums."""
    cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(
    tokens: np.ndarray, mask: np.ndarray, *, first_sentinel: int, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """A row's corrupted input and its target.

    Each corrupted span becomes one sentinel, the k-th with id `first_sentinel - k`. The target is
    the spans, each behind its sentinel, and one more sentinel to mark their end. Both end in `eos`.

    Args:
        tokens: (length,) ids of the text.
        mask: (length,) bool, True where corrupted.
        first_sentinel: Id of <extra_id_0>.
        eos: Id of the end mark.

    Returns:
        Input and target, int64, of `length - noise + spans + 1` and `noise + spans + 2` tokens.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    sentinels = first_sentinel - (np.cumsum(starts) - 1)
    source = np.where(starts, sentinels, tokens)[~mask | starts]
    # A target is the masked tokens with a sentinel put in before each span's first one.
    order = np.flatnonzero(mask)
    before = np.flatnonzero(starts[order])
    target = np.insert(tokens[order].astype(np.int64), before, sentinels[order][before])
    end = [first_sentinel - int(starts.sum()), eos]
    return np.append(source, eos).astype(np.int64), np.append(target, end)


def corrupt_rows(
    rows: np.ndarray, generator: np.random.Generator, *, first_sentinel: int, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt rows of equal length, each with its own mask; equal counts, so no padding.

    Args:
        rows: (B, length) ids.

    Returns:
        (B, input length) and (B, target length) int64.
    """
    pairs = [
        corrupt(
            row.astype(np.int64),
            noise_mask(len(row), generator),
            first_sentinel=first_sentinel,
            eos=eos,
        )
        for row in rows
    ]
    return np.stack([source for source, _ in pairs]), np.stack([target for _, target in pairs])
