"""What two arms show when they are compared, and what a study's comparisons make up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from t5ts.analysis.arms import (
    Condition,
    Pair,
)
from t5ts.analysis.statistics import (
    ALPHA,
    Estimate,
    crossed_interval,
    diebold_mariano,
    holm,
    log_ratio,
    permutation_p,
)
from t5ts.analysis.study import Study
from t5ts.analysis.validity import (
    BROKEN,
    Check,
)

#: Relative differences of the loss below this do not matter; `--margin` changes it.
MARGIN = 0.01
TRANSFERS, DOES_NOT = "transfers", "does not transfer"
CANNOT_TELL, CANNOT_DISCRIMINATE = "cannot tell", "cannot discriminate"
WITHHELD, NOTHING = "withheld", "nothing to compare"


@dataclass(kw_only=True, eq=False)
class Comparison:
    """One pair of arms, judged.

    Attributes:
        effect: Mean log-ratio of the losses, treatment over control; below 0 is better.
        p_holm: p of the effect, adjusted for the family of pairs of its kind.
        family: Number of pairs in it.
        p_permutation: Sign-flip permutation test, unadjusted.
        over_time: Diebold–Mariano on seed-averaged window losses, None where not recorded.
        new_windows: The difference as a share of the control's loss, with the interval for other
            stretches of the series as well as other seeds; None where not recorded.
        kind: What it shows: transfers, does not transfer, cannot tell.
        checks: Validity of a pair of kind control or checkpoint; a fair pair's are the verdict's.
    """

    pair: Pair
    effect: Estimate
    p_holm: float = math.nan
    family: int = 1
    p_permutation: float = math.nan
    over_time: Estimate | None = None
    new_windows: Estimate | None = None
    kind: str = CANNOT_TELL
    checks: list[Check] = field(default_factory=list)

    @property
    def broken(self) -> list[Check]:
        """What withholds it, where the checks are its own."""
        return [check for check in self.checks if check.status == BROKEN]


@dataclass(kw_only=True, eq=False)
class Verdict:
    """What one condition shows.

    Attributes:
        kind: transfers, does not transfer, cannot tell, cannot discriminate, withheld, or nothing
            to compare.
        headline: One sentence for a reader who knows nothing of the study.
        reasons: How sure it is, and what would make it surer.
        main: The comparison that the headline is about.
        comparisons: All of them.
        checks: Validity, the main pair's first.
        seeds_needed: Paired seeds that would decide, where it cannot tell.
        by_checkpoint: Where several checkpoints were run, what each shows against its own random
            arm, by the backbone's name.
    """

    condition: Condition
    kind: str
    headline: str
    reasons: list[str]
    main: Comparison | None
    comparisons: list[Comparison]
    checks: list[Check]
    seeds_needed: int | None = None
    margin: float = MARGIN
    by_checkpoint: dict[str, "Verdict"] = field(default_factory=dict)

    @property
    def broken(self) -> list[Check]:
        """The invariants that do not hold."""
        return [check for check in self.checks if check.status == BROKEN]


@dataclass(kw_only=True, eq=False)
class Findings:
    """The verdicts of all conditions, and what they show together."""

    study: Study
    verdicts: list[Verdict]
    together: list[str] = field(default_factory=list)

    @property
    def main(self) -> Verdict:
        """The verdict to show first: one that can be reached, on the most training data."""
        rank = [TRANSFERS, DOES_NOT, CANNOT_DISCRIMINATE, CANNOT_TELL, WITHHELD, NOTHING]
        reached = [v for v in self.verdicts if rank.index(v.kind) < rank.index(WITHHELD)]
        broken = [v for v in self.verdicts if v.kind == WITHHELD]
        return (broken or reached or self.verdicts)[0]


def judge_family(family: Sequence[Comparison], *, margin: float) -> None:
    """Adjust the p-values of one question's comparisons for each other, and say what they show."""
    for c, p in zip(family, holm([c.effect.p for c in family]), strict=True):
        c.p_holm, c.family = p, sum(math.isfinite(f.effect.p) for f in family)
        c.kind = _kind(c.effect, p, margin)


def compare(pair: Pair, *, split: str = "test") -> Comparison:
    """Two arms' losses at their paired seeds, and over time where each window's are recorded.

    Args:
        pair: The arms.
        split: test, or ood for the other series' test windows.
    """
    treatment, control = pair.values(f"{split}_loss")
    compared = Comparison(pair=pair, effect=log_ratio(treatment, control))
    if len(treatment) >= 2:
        compared.p_permutation = permutation_p(np.log(treatment) - np.log(control))
    losses_a = [a.window_losses(split) for a, _ in pair.runs()]
    losses_b = [b.window_losses(split) for _, b in pair.runs()]
    known = [losses for losses in (*losses_a, *losses_b) if losses is not None]
    if known and len(known) == 2 * len(pair.seeds) and len({len(x) for x in known}) == 1:
        config = pair.treatment.runs[0].config
        # Without a horizon (reconstruction) windows share the steps of their whole length.
        horizon = int(config["horizon"] or config["seq_len"])
        losses = np.stack(known)
        losses = losses[:, np.isfinite(losses).all(axis=0)]  # windows without a target have none
        a_SW, b_SW = losses[: len(losses_a)], losses[len(losses_a) :]
        a_W, b_W = a_SW.mean(axis=0), b_SW.mean(axis=0)
        compared.over_time = diebold_mariano(a_W, b_W, horizon=horizon)
        compared.new_windows = crossed_interval((a_SW - b_SW) / b_W.mean(), horizon=horizon)
    return compared


def _kind(effect: Estimate, p_holm: float, margin: float) -> str:
    if not effect.is_known:
        return CANNOT_TELL
    if effect.within(margin):
        return DOES_NOT
    if effect.high < 0 and p_holm < ALPHA:
        return TRANSFERS
    if effect.low > 0 and p_holm < ALPHA:
        return DOES_NOT
    return CANNOT_TELL
