"""Does this encoder look freshly initialised? The test that stops a fake pretrained arm.

A T5 initialiser draws each matrix with a standard deviation fixed by its shape (the init law) and
sets the LayerNorms to a constant. Training moves each matrix's spread by its own factor (T5's
queries alone grow several-fold), lets the norms differ, and makes rows and columns unequal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative deviation of a matrix's spread from the law that no draw explains but rounding and other
# libraries' constants might; for small matrices the sampling error of a spread dominates it.
LAW_TOLERANCE = 0.005
# Mean squared deviation in units of tolerance and sampling error: a fresh draw gives about 1 at
# most. 40 AdamW steps at lr 1e-2 from HF's initialisation gave 800 at d_model 64, 15 at 32.
LAW_LIMIT = 3.0
# Relative spread of LayerNorm weights that brief training cannot have caused without moving the
# matrices too: norms like that over fresh matrices mean that the matrices were not loaded.
NORMS_MOVED = 0.15


@dataclass(frozen=True)
class Freshness:
    """What the test saw.

    Attributes:
        law_distance: Mean squared deviation of the matrices' log spread from the init law at the
            best common factor, in units of its error; about 1 or less for a fresh draw.
        factor: That best common factor (HF's `initializer_factor`).
        norm_spread: RMS deviation of all LayerNorm weights from their median, relative to it;
            0 when each tensor is constant.
        num_exchangeable: Matrices whose row and column norms scatter as independent draws would.
        num_matrices: Matrices examined.
        constant: Matrices whose entries are all equal.
    """

    law_distance: float
    factor: float
    norm_spread: float
    num_exchangeable: int
    num_matrices: int
    constant: tuple[str, ...]

    @property
    def verdict(self) -> str | None:
        """Why the encoder counts as freshly initialised, or None when it looks trained."""
        if self.constant:
            return f"{self.constant[0]} is constant, as nothing that was trained is"
        if self.law_distance < LAW_LIMIT and not 0 < self.norm_spread < NORMS_MOVED:
            norms = (
                f"while its LayerNorm weights vary by {self.norm_spread:.0%}: were the matrices "
                "left out when it was saved or converted?"
                if self.norm_spread
                else "and all LayerNorm weights are constant"
            )
            return (
                f"the spread of its {self.num_matrices} matrices is T5's initialisation law times "
                f"{self.factor:.3g} (distance {self.law_distance:.2g}, trained is above "
                f"{LAW_LIMIT:g}), {norms}"
            )
        if not self.norm_spread and self.num_exchangeable == self.num_matrices:
            return (
                "all LayerNorm weights are constant, and in each of its "
                f"{self.num_matrices} matrices rows and columns scatter as independent draws do"
            )
        return None

    @property
    def notes(self) -> list[str]:
        """What a user should know about an encoder that is not refused."""
        notes = []
        if self.law_distance < LAW_LIMIT:
            notes.append(
                "note: barely trained, only its LayerNorm weights tell it from T5's initialisation"
            )
        elif self.num_exchangeable == self.num_matrices:
            notes.append(
                "note: rows and columns scatter like independent draws in every matrix, as in a "
                "shuffled or synthetic checkpoint"
            )
        if not self.norm_spread:
            notes.append("note: all LayerNorm weights are constant, as before any training")
        return notes


def examine(
    state: Mapping[str, Tensor], law: Mapping[str, float], norms: Mapping[str, Tensor]
) -> Freshness:
    """Compare an encoder's tensors with its initialisation law.

    Args:
        state: Matrices by name, any float dtype.
        law: Standard deviation of each of them under the init law at factor 1.
        norms: LayerNorm weights by name.

    Returns:
        The statistics and, through `verdict`, the conclusion.

    Source: own. The log of a sample standard deviation has variance (kurtosis − 1) / 4n.
    """
    logs, scales, exchangeable, constant = [], [], 0, []
    for name, sigma in law.items():
        matrix = state[name].float()
        largest = matrix.abs().max()
        # Scaled to at most 1, so that fourth powers neither overflow nor vanish.
        centred = (matrix / largest if largest > 0 else matrix).sub_(matrix.mean() / largest)
        squares = centred.square()
        variance = squares.mean(dtype=torch.float64).item()
        if not variance > 1e-12:
            constant.append(name)
            continue
        kurtosis = squares.square().mean(dtype=torch.float64).item() / variance**2
        logs.append(math.log(math.sqrt(variance) * largest.item() / sigma))
        sampling = math.sqrt(max(kurtosis - 1, 0.5) / (4 * matrix.numel()))
        scales.append(math.hypot(LAW_TOLERANCE, sampling))
        exchangeable += _is_exchangeable(squares, kurtosis)
    factor_log = torch.tensor(logs, dtype=torch.float64).median().item() if logs else 0.0
    distances = [((x - factor_log) / s) ** 2 for x, s in zip(logs, scales, strict=True)]
    return Freshness(
        law_distance=sum(distances) / len(distances) if distances else 0.0,
        factor=math.exp(factor_log),
        norm_spread=_norm_spread(norms),
        num_exchangeable=exchangeable,
        num_matrices=len(law),
        constant=tuple(constant),
    )


def _norm_spread(norms: Mapping[str, Tensor]) -> float:
    if all(bool((weight == weight[0]).all()) for weight in norms.values()):
        return 0.0
    weights = torch.cat([weight.double() for weight in norms.values()])
    median = weights.median().abs().clamp_min(1e-30)
    return (weights / median - weights.median().sign()).square().mean().sqrt().item()


def _is_exchangeable(squares: Tensor, kurtosis: float) -> bool:
    """Whether neither row nor column norms scatter more than independent entries' would.

    For independent entries the sum of squares over m of them has relative variance
    (kurtosis − 1) / m; an estimate of it from R sums is itself off by about sqrt(2 / R).
    """
    for axis in (0, 1):
        sums = squares.sum(dim=axis, dtype=torch.float64)
        relative = (sums.var() / sums.mean().square()).item() if sums.numel() > 1 else 0.0
        expected = max(kurtosis - 1, 0.1) / squares.shape[axis]
        if relative > expected * (1 + 8 * math.sqrt(2 / sums.numel())):
            return False
    return True
