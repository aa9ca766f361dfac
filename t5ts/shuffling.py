"""The steps of a context in another order: whether a forecaster uses the order of time at all."""

import numpy as np
import torch
from torch import Tensor

from t5ts.draws import mix, uniform, words

#: Word of the hash that sets these draws apart from others of the same windows.
SHUFFLE = 0x7E


def time_orders(window_B: np.ndarray, *, length: int) -> np.ndarray:
    """One permutation of the steps for each window; it follows from the window's number alone.

    Args:
        window_B: (B,) window numbers.
        length: L, steps to permute.

    Returns:
        (B, L) int64; each row holds 0 … L − 1, every order being equally likely.
    """
    key_B = mix(np.asarray(window_B).astype(np.uint64) ^ mix(words(SHUFFLE)))
    return np.argsort(uniform(key_B, length), axis=1, kind="stable")


def shuffle_time(inputs_BCL: Tensor, index_B: Tensor) -> Tensor:
    """Each window's steps in its own fixed order, the same in all of its channels.

    What a channel's values are, and which stand at one time in several channels, stays; when they
    were is gone.

    Args:
        inputs_BCL: Contexts; NaN move like values.
        index_B: The windows' numbers.

    Source: Tan et al. 2024, "Are Language Models Actually Useful for Time Series Forecasting?",
        whose "sf-all" it is, at inference.
    """
    order_BL = torch.from_numpy(time_orders(index_B.cpu().numpy(), length=inputs_BCL.shape[-1])).to(
        inputs_BCL.device, non_blocking=True
    )
    return inputs_BCL.gather(-1, order_BL[:, None].expand_as(inputs_BCL))
