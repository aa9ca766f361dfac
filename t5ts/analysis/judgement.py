"""What two arms show when they are compared, and what a study's comparisons make up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from t5ts.analysis.arms import Condition, Pair
from t5ts.analysis.statistics import (
    Estimate,
    crossed_log_ratio,
    diebold_mariano,
    log_ratio,
    permutation_p,
    simultaneous,
)
from t5ts.analysis.study import Study
from t5ts.analysis.validity import BROKEN, Check

#: Relative differences of the loss below this do not matter; `--margin` changes it.
MARGIN = 0.01
#: What a comparison shows of its first arm's loss.
LOWER, HIGHER, ALIKE = "lower", "higher", "no difference that matters"
#: What a study shows; the first only where controls were beaten too.
TRANSFERS, LOWER_HERE = "transfers", "lower with this checkpoint"
DOES_NOT, CANNOT_DISCRIMINATE = "does not transfer", "cannot discriminate"
CANNOT_TELL, NOT_LEARNED, NOT_ASKED = "cannot tell", "nothing learned", "not asked"
UNFINISHED, WITHHELD, NOTHING = "unfinished", "withheld", "nothing to compare"
#: The kinds among these that give no answer.
NO_VERDICT = (NOT_LEARNED, NOT_ASKED, UNFINISHED, WITHHELD, NOTHING)


@dataclass(kw_only=True, eq=False)
class Comparison:
    """One pair of arms, judged.

    Attributes:
        effect: Mean log-ratio of the losses, treatment over control; below 0 is better. Once judged
            its interval and p allow for the family of pairs of its kind.
        family: Number of pairs in it.
        p_t: p of the effect alone.
        p_permutation: Sign-flip permutation test, unadjusted.
        over_time: Diebold–Mariano on seed-averaged window losses, None where not recorded.
        new_windows: The same mean log-ratio with the interval for other stretches of the series
            as well as other seeds, not adjusted for the family; None where not recorded.
        kind: The result: lower, higher, no difference that matters, cannot tell, withheld.
        checks: Its validity, of the kinds that a verdict reads.
    """

    pair: Pair
    effect: Estimate
    family: int = 1
    p_t: float = math.nan
    p_permutation: float = math.nan
    over_time: Estimate | None = None
    new_windows: Estimate | None = None
    kind: str = CANNOT_TELL
    checks: list[Check] = field(default_factory=list)

    @property
    def p_holm(self) -> float:
        """p of the effect, adjusted once the pair is judged."""
        return self.effect.p

    @property
    def broken(self) -> list[Check]:
        """The broken invariants that withhold its result."""
        return [check for check in self.checks if check.status == BROKEN]


@dataclass(kw_only=True, eq=False)
class Verdict:
    """What one condition shows.

    Attributes:
        kind: One of the kinds of a study above.
        outcome: The finding behind the kind; a key of `conclusions.OUTCOMES`.
        headline: A sentence or two for a reader who knows nothing of the study.
        reasons: How certain it is, and what would make it more certain.
        main: The comparison that the headline is about.
        comparisons: All of them.
        checks: Validity, the main pair's first.
        is_provisional: Whether a setting was chosen and tested on the same seeds.
        seeds_needed: Paired seeds that would settle it, if it cannot tell.
        by_checkpoint: If several checkpoints were run, what each shows vs. its own random
            arm, by the backbone's name.
    """

    condition: Condition
    main: Comparison | None
    comparisons: list[Comparison]
    checks: list[Check]
    kind: str = NOTHING
    outcome: str = ""
    headline: str = ""
    reasons: list[str] = field(default_factory=list)
    is_provisional: bool = False
    seeds_needed: int | None = None
    margin: float = MARGIN
    by_checkpoint: dict[str, "Verdict"] = field(default_factory=dict)

    @property
    def broken(self) -> list[Check]:
        """The invariants that do not hold; an unfinished sweep has broken none yet."""
        if self.kind == UNFINISHED:
            return []
        return [check for check in self.checks if check.status == BROKEN]


@dataclass(kw_only=True, eq=False)
class Findings:
    """The verdicts of all conditions, and the answer that they give together.

    Attributes:
        kind, headline, reasons: Over all data sets if there are several, else `main`'s.
    """

    study: Study
    verdicts: list[Verdict]
    kind: str = NOTHING
    headline: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def main(self) -> Verdict:
        """The verdict to draw: one that has an answer, on the most training data.

        With several data sets a withheld one comes first: it is the reason for no answer.
        """
        reached = [v for v in self.verdicts if v.kind not in NO_VERDICT]
        broken = [v for v in self.verdicts if v.kind == WITHHELD]
        is_one_series = len({v.condition.series for v in self.verdicts}) == 1
        first = reached or broken if is_one_series else broken or reached
        return (first or self.verdicts)[0]


def judge_family(family: Sequence[Comparison], *, margin: float) -> None:
    """Adjust p and interval of one question's comparisons for each other; set what each shows."""
    count = sum(c.effect.is_known for c in family)
    for c, effect in zip(family, simultaneous([c.effect for c in family]), strict=True):
        c.effect, c.family, c.kind = effect, max(1, count), _kind(effect, margin)


def compare(pair: Pair, *, split: str = "test") -> Comparison:
    """Two arms' losses at their paired seeds, and over time if the loss of each window is recorded.

    Args:
        pair: The arms.
        split: test, or ood for the other series' test windows.
    """
    treatment, control = pair.values(f"{split}_loss")
    effect = log_ratio(treatment, control)
    compared = Comparison(pair=pair, effect=effect, p_t=effect.p)
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
        losses = losses[:, np.isfinite(losses).all(axis=0)]  # windows without a target have no loss
        a_SW, b_SW = losses[: len(losses_a)], losses[len(losses_a) :]
        compared.over_time = diebold_mariano(a_SW.mean(axis=0), b_SW.mean(axis=0), horizon=horizon)
        compared.new_windows = crossed_log_ratio(a_SW, b_SW, horizon=horizon)
    return compared


def _kind(effect: Estimate, margin: float) -> str:
    if effect.within(margin):
        return ALIKE
    if effect.excludes_zero():
        return LOWER if effect.value < 0 else HIGHER
    return CANNOT_TELL
