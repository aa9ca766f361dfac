"""A series made from English text: the positive control for whether text pretraining can help.

A row is one token of a text that the packaged T5 has not seen. Its C values are the token's
embedding under a fixed random rotation, of which C directions are kept, plus noise. So the tokens
follow one another as in English text, and a model that knows English can predict a hidden one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from t5ts.errors import DataError

TEXT_FILE = Path(__file__).with_name("moby_dick.npz")
#: The packaged T5, by its path: `data` imports nothing from `model`.
CHECKPOINT = Path(__file__).parents[1] / "model" / "t5_tiny_en"


def disguise(*, num_rows: int, num_channels: int, noise_std: float, seed: int) -> np.ndarray:
    """The first tokens of the text as a series.

    Args:
        num_rows: T.
        num_channels: C, directions of the embedding to keep.
        noise_std: Of the noise, white in time and channels; the signal's RMS is 1.
        seed: Of rotation and noise. Rotation and noise are the same in their first channels
            whatever C is, and scale with `noise_std`.

    Returns:
        (T, C) float32.

    Raises:
        DataError: if there are fewer tokens, or fewer directions.
    """
    ids = np.load(TEXT_FILE)["ids"]
    if num_rows > len(ids):
        raise DataError(f"data.num_rows={num_rows}; the text has {len(ids):,} tokens.")
    table_VD = _embedding()
    width = table_VD.shape[1]
    if num_channels > width:
        raise DataError(
            f"data.num_channels={num_channels}; the tokens' embedding has {width} directions."
        )
    signal_TD = table_VD[ids[:num_rows]]
    signal_TD /= np.sqrt(np.square(signal_TD, dtype=np.float64).mean())
    rng = np.random.default_rng(seed)
    rotation_DD, _ = np.linalg.qr(rng.standard_normal((width, width)))
    values_TC = signal_TD @ rotation_DD[:, :num_channels].astype(np.float32)
    for channel in range(num_channels):
        values_TC[:, channel] += noise_std * rng.standard_normal(num_rows, dtype=np.float32)
    return np.ascontiguousarray(values_TC)


def provenance() -> dict[str, str]:
    """Source and licence of the text."""
    facts: dict[str, str] = json.loads(TEXT_FILE.with_suffix(".json").read_text(encoding="utf-8"))
    return facts


def _embedding() -> np.ndarray:
    """The packaged T5's token embedding, (V, D) float32, a copy."""
    from safetensors.torch import load_file  # NumPy has no bfloat16

    table_VD = load_file(CHECKPOINT / "model.safetensors")["shared.weight"]
    return table_VD.float().numpy()
