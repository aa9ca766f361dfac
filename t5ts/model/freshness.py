"""Which tensors of an encoder look freshly initialised? The test that stops a fake pretrained arm.

An initialiser draws each matrix independently entry by entry, with a standard deviation fixed by
its shape (the init law), and sets the LayerNorms to a constant. Training moves each matrix's spread
by its own factor, makes rows and columns unequal, adds a few strong directions, and lets the norms
differ. Each matrix and each norm vector is tested, since loaders re-initialise tensors they do not
find: a checkpoint saved after that is partly trained, partly fresh.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative deviation of a matrix's spread from the law that rounding and other libraries' constants
# may explain; for small matrices the sampling error of a spread dominates it.
LAW_TOLERANCE = 0.005
# Mean squared deviation in units of tolerance and sampling error: at most about 1 for a fresh
# draw. 40 AdamW steps at lr 1e-2 from HF's initialisation gave 800 at d_model 64, 15 at 32.
LAW_LIMIT = 3.0
# Relative spread of LayerNorm weights that brief training cannot have caused without moving the
# matrices too: norms like that over fresh matrices mean that the matrices were not loaded.
NORMS_MOVED = 0.15
# Structure of a matrix in standard errors: 3,700 independent draws (normal, uniform, rounded to
# int8) gave 4.9 at most. Of some 100,000 draws of small matrices, a few gave more than 6.
STRUCTURE_LIMIT, STRUCTURE_ALONE = 6.0, 10.0
# Structure a matrix must be expected to have, judging by the others, before its absence
# means that it was not trained with them. Checkpoints after 50 to 1,000 steps gave 24 at most.
STRUCTURE_EXPECTED = 40.0
# Median relative spread of the norms that moved above which a constant one was not trained with
# them; below it, rounding to bf16 or int8 may have made it constant.
NORMS_TRAINED = 0.03
# Log ratio of two kinds' spreads that separates other initialisers from T5's, whose queries alone
# are smaller by 1/√d_kv: those are off by more, brief training by less.
OTHER_LAW = 0.35
ZERO_ROWS = 0.25  # share of zero rows or columns that neither training nor rounding produces
_SPECTRUM_SIZE = 256  # largest corner of a matrix whose spectrum is computed, for speed


@dataclass(frozen=True)
class Freshness:
    """The test's statistics and findings.

    Attributes:
        law_distance: Mean squared deviation of the matrices' log spread from the init law at the
            best common factor, in units of its error; about 1 or less for a fresh draw.
        factor: That factor (HF's `initializer_factor`).
        norm_spread: RMS deviation of all LayerNorm weights from their median, relative to it; 0
            when each tensor is constant.
        drifted: The spreads are off T5's law, but so little that they started there: a sign of
            training where single matrices show none.
        has_structure: Some matrices clearly scatter unlike independent draws.
        structureless: Matrices that scatter like them: fresh, shuffled, or trained too briefly.
        fresh: Look freshly initialised or redrawn while the others were trained.
        broken: What training never produces: constant, zero or copied.
    """

    law_distance: float
    factor: float
    norm_spread: float
    drifted: bool
    num_matrices: int
    has_structure: bool
    structureless: tuple[str, ...]
    fresh: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def origin(self) -> str:
        """What an accepted encoder seems to be, as in `LoadReport.origin`."""
        if self.law_distance < LAW_LIMIT:
            return "barely trained"
        return "pretrained" if self.has_structure else "control"

    @property
    def verdict(self) -> str | None:
        """Why the encoder cannot be a pretrained one, or None when it looks trained."""
        if self.broken:
            return _listed(self.broken) + ", which training never produces"
        is_fresh = not self.has_structure and not self.drifted
        if is_fresh and self.law_distance < LAW_LIMIT and not 0 < self.norm_spread < NORMS_MOVED:
            return (
                f"the spread of its {self.num_matrices} matrices is the initialisation law times "
                f"{self.factor:.3g} (distance {self.law_distance:.2g}, trained is above "
                f"{LAW_LIMIT:g}), and its LayerNorm weights vary by {self.norm_spread:.0%} (0 % is "
                "constant; otherwise, were the matrices left out when it was saved or converted?)"
            )
        if is_fresh and not self.norm_spread:
            return (
                f"all LayerNorm weights are constant, and in each of its {self.num_matrices} "
                f"matrices rows and columns scatter as independent draws do"
            )
        if self.fresh:
            return (
                f"{len(self.fresh)} of its tensors look untrained among trained ones "
                f"({_listed(self.fresh)}): keys that did not load when it was saved or converted?"
            )
        return None

    @property
    def notes(self) -> list[str]:
        """What a user should know about an accepted encoder."""
        found = {
            "barely trained": ["note: barely trained, almost no different from its initialisation"],
            "control": [
                "note: rows and columns scatter like independent draws in every matrix, as in a "
                "shuffled or synthetic checkpoint"
            ],
        }.get(self.origin, [])
        constant = "note: all LayerNorm weights are constant, as before any training"
        return found if self.norm_spread else [*found, constant]


def examine(
    state: Mapping[str, Tensor], law: Mapping[str, float], norms: Mapping[str, Tensor]
) -> Freshness:
    """Compare an encoder's tensors with its initialisation law, and with each other.

    Args:
        state: Matrices by name, any float dtype.
        law: Standard deviation of each of them under the init law at factor 1.
        norms: LayerNorm weights by name.

    Source: own. The log of a sample standard deviation has variance (kurtosis − 1) / 4n.
    """
    logs: dict[str, float] = {}
    scales: dict[str, float] = {}
    structure: dict[str, float] = {}
    broken: list[str] = []
    for name, sigma in law.items():
        matrix = state[name].float().flatten(0, -2)  # experts on top of each other
        largest = matrix.abs().max()
        # Scaled to at most 1, so that fourth powers neither overflow nor vanish.
        centred = (matrix / largest if largest > 0 else matrix).sub_(matrix.mean() / largest)
        squares = centred.square()
        variance = squares.mean(dtype=torch.float64).item()
        if not variance > 1e-12:
            broken.append(f"{name} is constant")
            continue
        zeros = max((matrix == 0).all(dim=axis).float().mean().item() for axis in (0, 1))
        if zeros > ZERO_ROWS:
            broken.append(f"{zeros:.0%} of the rows or columns of {name} are zero")
        kurtosis = squares.square().mean(dtype=torch.float64).item() / variance**2
        logs[name] = math.log(math.sqrt(variance) * largest.item() / sigma)
        sampling = math.sqrt(max(kurtosis - 1, 0.5) / (4 * matrix.numel()))
        scales[name] = math.hypot(LAW_TOLERANCE, sampling)
        structure[name] = _structure(centred, squares, variance, kurtosis)
    factor_log = torch.tensor(list(logs.values())).double().median().item() if logs else 0.0
    off = {name: x - factor_log for name, x in logs.items()}
    distance = statistics.fmean((x / scales[n]) ** 2 for n, x in off.items()) if off else 0.0
    broken += [f"{name} is zero" for name, weight in norms.items() if not weight.any()]
    spread = _norm_spread(norms)
    fresh = _untouched(norms)
    # If the norms hardly moved it is too early to tell, since some matrices start to move later.
    if not 0 < spread < NORMS_MOVED:
        fresh += _left_out(structure, state, law)
    return Freshness(
        law_distance=distance,
        factor=math.exp(factor_log),
        norm_spread=spread,
        drifted=_has_drifted(off, scales, distance),
        num_matrices=len(law),
        # One matrix of many may seem structured by chance.
        has_structure=sum(value >= STRUCTURE_LIMIT for value in structure.values()) > 1
        or max(structure.values(), default=0.0) > STRUCTURE_ALONE,
        structureless=tuple(n for n, value in structure.items() if value < STRUCTURE_LIMIT),
        fresh=tuple(fresh),
        broken=(*broken, *_copies(state, law)),
    )


def _copies(state: Mapping[str, Tensor], law: Mapping[str, float]) -> list[str]:
    """Matrices that equal the same matrix of an earlier block, bit for bit."""
    blocks = [name.split(".", 2)[1:] for name in law if name.startswith("block.")]
    first: dict[str, str] = {}
    return [
        f"block.{number} is a copy of block.{first[part]} in {part}"
        for number, part in blocks
        if first.setdefault(part, number) != number
        and torch.equal(state[f"block.{number}.{part}"], state[f"block.{first[part]}.{part}"])
    ]


def _has_drifted(off: Mapping[str, float], scales: Mapping[str, float], distance: float) -> bool:
    """Whether all queries, or keys, … together, or all matrices, left T5's law for its vicinity."""
    kinds: dict[str, list[str]] = {}
    for name in off:
        kinds.setdefault(name.split(".")[-2], []).append(name)
    kinds.pop("relative_attention_bias", None)  # too small to differ from the law
    if any(abs(statistics.fmean(off[n] for n in names)) >= OTHER_LAW for names in kinds.values()):
        return False
    pooled = [
        abs(sum(off[name] / scales[name] for name in names)) / math.sqrt(len(names))
        for names in kinds.values()
    ]
    return distance >= LAW_LIMIT or max(pooled, default=0.0) >= STRUCTURE_LIMIT


def _untouched(norms: Mapping[str, Tensor]) -> list[str]:
    """Constant norm vectors among norms that training has clearly moved."""
    constant = [name for name, weight in norms.items() if _is_constant(weight)]
    moved = [weight.double() for name, weight in norms.items() if name not in constant]
    spreads = [(w.std() / w.mean().abs().clamp_min(1e-30)).item() for w in moved]
    return constant if spreads and statistics.median(spreads) >= NORMS_TRAINED else []


def _left_out(
    structure: Mapping[str, float], state: Mapping[str, Tensor], law: Mapping[str, float]
) -> list[str]:
    """Structureless matrices among so strongly structured ones that they were not trained too.

    Structure grows with the square of the relative displacement from the initialisation and with
    the square root of the size. Under Adafactor all matrices are displaced by the same share of
    their spread, under Adam by the same amount: the smaller of the two is expected.
    """
    moved = [name for name, value in structure.items() if value >= STRUCTURE_LIMIT]

    def expected(name: str) -> float:
        size, spread = state[name].numel(), law[name]
        return statistics.median(
            structure[other]
            * math.sqrt(size / state[other].numel())
            * min(1.0, (law[other] / spread) ** 2)
            for other in moved
        )

    others = structure.keys() - moved if moved else ()
    return sorted(name for name in others if expected(name) > STRUCTURE_EXPECTED)


def _norm_spread(norms: Mapping[str, Tensor]) -> float:
    if all(map(_is_constant, norms.values())):
        return 0.0
    weights = torch.cat([weight.double() for weight in norms.values()])
    median = weights.median().abs().clamp_min(1e-30)
    return (weights / median - weights.median().sign()).square().mean().sqrt().item()


def _is_constant(weight: Tensor) -> bool:
    return bool((weight == weight[0]).all())


def _structure(centred: Tensor, squares: Tensor, variance: float, kurtosis: float) -> float:
    """How much more than independent entries a matrix is, in standard errors.

    The largest excess of three: the scatter of its row and column norms, of its row and column
    sums, and its largest singular value. For independent entries a sum of squares over m of them
    has relative variance (kurtosis − 1) / m, an estimate of a variance from R sums is itself off
    by about sqrt(2 / R), and the largest singular value follows the Tracy-Widom law (Johnstone
    2001, "On the distribution of the largest eigenvalue in principal components analysis").
    """
    excess = [_edge_excess(centred, variance)]
    for axis in (0, 1):
        m, count = centred.shape[axis], centred.shape[1 - axis]
        if count < 2:
            continue
        error = math.sqrt(2 / (count - 1))
        norms = squares.sum(dim=axis, dtype=torch.float64)
        relative = (norms.var() / norms.mean().square()).item()
        excess.append((relative * m / max(kurtosis - 1, 0.1) - 1) / error)
        sums = centred.sum(dim=axis, dtype=torch.float64)
        excess.append((sums.square().mean().item() / (m * variance) - 1) / error)
    return max(excess)


def _edge_excess(centred: Tensor, variance: float) -> float:
    corner = centred[:_SPECTRUM_SIZE, :_SPECTRUM_SIZE]
    # Clipped: single outliers, which a shuffled checkpoint keeps, are not structure.
    corner = corner.clamp(-4 * math.sqrt(variance), 4 * math.sqrt(variance))
    if corner.shape[0] > corner.shape[1]:
        corner = corner.T
    power = corner.square().mean().item()
    if not power:
        return 0.0
    top = torch.linalg.eigvalsh(corner @ corner.T)[-1].item() / power
    a, b = (math.sqrt(n - 0.5) for n in corner.shape)
    # Mean −1.2065 and standard deviation 1.268 are the Tracy-Widom law's for real matrices.
    return ((top - (a + b) ** 2) / ((a + b) * (1 / a + 1 / b) ** (1 / 3)) + 1.2065) / 1.268


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
