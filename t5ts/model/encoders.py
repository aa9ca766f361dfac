"""The encoders between patch embedding and head: T5's stack, a light baseline, and none."""

import re

from torch import Tensor, nn

from t5ts.model.shared_encoder import SharedEncoder
from t5ts.model.t5_encoder import T5Encoder


class NoEncoder(nn.Module):
    """Nothing between patching and head: with it, the forecaster is one linear map.

    It has no width of its own (`d_model` 0) and no blocks.

    Source: Zeng et al. 2023 (NLinear), "Are Transformers Effective for Time Series Forecasting?".
    """

    def __init__(self) -> None:
        super().__init__()
        self.d_model = 0
        self.num_blocks = 0

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return tokens_MND


Encoder = T5Encoder | SharedEncoder | NoEncoder


def component_of(parameter_name: str) -> str:
    """The part of a `Forecaster` that a parameter belongs to.

    T5's relative position bias, which all blocks use, stands in block 0 and counts there.

    Args:
        parameter_name: As in `Forecaster.named_parameters()`.

    Returns:
        "patch", "stem", "block_<i>", "final_norm" or "head".

    Raises:
        ValueError: if the name is none of a forecaster's.
    """
    match = re.match(r"encoder\.block\.(\d+)\.", parameter_name)
    if match:
        return f"block_{match[1]}"
    for prefix, component in _COMPONENT_OF_PREFIX.items():
        if parameter_name.startswith(prefix):
            return component
    raise ValueError(
        f"{parameter_name!r} is no forecaster parameter: names begin with "
        f"encoder.block.<i>. or one of {', '.join(_COMPONENT_OF_PREFIX)}"
    )


_COMPONENT_OF_PREFIX = {
    "patch.": "patch",
    "encoder.stem.": "stem",
    "encoder.final_layer_norm.": "final_norm",
    "head.": "head",
}
