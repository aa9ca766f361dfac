"""From a stream of tokens to batches: which rows a step sees is a function of the step alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from t5ts.errors import DataError
from tools.pretrain.spans import corrupt_rows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A token stream cut into rows of equal length (the last incomplete row is left out).

    Attributes:
        rows: (num_rows, length) uint16 ids; packed, so documents meet inside rows, an end mark
            between them.
        first_sentinel: Id of <extra_id_0>.
        eos: Id of the end mark.
        seed: Of the order of the rows and of their masks.
    """

    rows: np.ndarray
    first_sentinel: int
    eos: int
    seed: int

    def batch(self, step: int, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """The corrupted batch of a step, in a new order each epoch and with new masks each step.

        Returns:
            (batch_size, input length) and (batch_size, target length) int64.
        """
        first = step * batch_size
        positions = np.arange(first, first + batch_size)
        picked = np.empty((batch_size, self.rows.shape[1]), dtype=np.int64)
        for epoch in np.unique(positions // len(self.rows)):
            here = positions // len(self.rows) == epoch
            order = np.random.default_rng([self.seed, 0, int(epoch)]).permutation(len(self.rows))
            picked[here] = self.rows[order[positions[here] % len(self.rows)]]
        return self._corrupt(picked, np.random.default_rng([self.seed, 1, step]))

    def fixed_batches(self, *, batch_size: int, limit: int | None = None) -> list[tuple]:
        """Rows in order with masks that depend on the row alone, for an evaluation.

        Args:
            batch_size: Rows in a batch; does not change the masks.
            limit: Use so many rows, spread evenly over all of them; None for all.
        """
        count = len(self.rows) if limit is None else min(limit, len(self.rows))
        chosen = np.linspace(0, len(self.rows) - 1, count).astype(np.int64)
        pairs = [
            self._corrupt(self.rows[row : row + 1], np.random.default_rng([self.seed, 2, int(row)]))
            for row in chosen
        ]
        return [
            tuple(torch.cat(part) for part in zip(*pairs[i : i + batch_size], strict=True))
            for i in range(0, count, batch_size)
        ]

    def _corrupt(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        source, target = corrupt_rows(
            rows, generator, first_sentinel=self.first_sentinel, eos=self.eos
        )
        return torch.from_numpy(source), torch.from_numpy(target)


def load_rows(path: Path, *, length: int, first_sentinel: int, eos: int, seed: int) -> Rows:
    """Read a token stream and cut it into rows.

    Raises:
        DataError: if it is missing or shorter than one row.
    """
    if not path.is_file():
        raise DataError(f"no tokens at {path}: run `python -m tools.pretrain prepare` first.")
    stream = np.load(path, mmap_mode="r")
    return cut_rows(stream, length=length, first_sentinel=first_sentinel, eos=eos, seed=seed)


def cut_rows(stream: np.ndarray, *, length: int, first_sentinel: int, eos: int, seed: int) -> Rows:
    """Cut a token stream into rows.

    Raises:
        DataError: if it is shorter than one row.
    """
    count = len(stream) // length
    if count == 0:
        raise DataError(f"{len(stream)} tokens of text are fewer than one row of {length}.")
    rows = stream[: count * length].reshape(count, length)
    return Rows(rows=rows, first_sentinel=first_sentinel, eos=eos, seed=seed)
