"""What comparing two arms shows, and the verdict that a study's comparisons add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t5ts.analysis.arms import RANDOM, Arm, Condition
from t5ts.analysis.pairs import Pair, chosen_from
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
from t5ts.analysis.words import arm_label, sentences

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
#: The verdict's kind for each outcome; `sentences.j2` has a headline for each.
OUTCOMES = {
    outcome: kind
    for kind, outcomes in {
        NOTHING: ("no_pretrained", "no_arm", "no_seed"),
        UNFINISHED: ("unfinished",),
        WITHHELD: ("broken",),
        NOT_LEARNED: ("not_learned",),
        NOT_ASKED: ("not_asked",),
        CANNOT_DISCRIMINATE: ("frozen",),
        TRANSFERS: ("helps",),
        LOWER_HERE: ("noted", "lower"),
        DOES_NOT: ("scale", "alike", "higher"),
        CANNOT_TELL: ("text_or_scale", "unfair_control", "one_seed", "wide"),
    }.items()
    for outcome in outcomes
}


class Comparison:
    """One pair of arms: their losses at the paired seeds, and over time where that is recorded.

    Attributes:
        effect: Mean log-ratio of the losses, treatment over control; below 0 is better. After
            `judge_family` its interval and p are adjusted for `family` pairs of its kind.
        p_t, p_permutation: p of the effect alone; sign-flip permutation test, NaN below 2 seeds.
        over_time: Diebold–Mariano on seed-averaged window losses, None where not recorded.
        new_windows: The same mean log-ratio with the interval for other stretches of the series
            as well as other seeds, not adjusted for the family; None where not recorded.
        kind: The result: lower, higher, no difference that matters, cannot tell, withheld.
        checks: Its validity, of the kinds that a verdict reads.
    """

    def __init__(self, pair: Pair, *, split: str = "test") -> None:
        """Compare them on the test windows, or for split=ood on those of the other series."""
        self.pair, self.family, self.kind = pair, 1, CANNOT_TELL
        self.checks: list[Check] = []
        treatment, control = pair.values(f"{split}_loss")
        self.effect = log_ratio(treatment, control)
        self.p_t = self.effect.p
        self.p_permutation = permutation_p(np.log(treatment) - np.log(control))
        self.over_time: Estimate | None = None
        self.new_windows: Estimate | None = None
        known = [run.window_losses(split) for run in pair.runs]
        losses = [x for x in known if x is not None]
        if losses and len(losses) == len(known) and len({len(x) for x in losses}) == 1:
            config = pair.treatment.runs[0].config
            # Without a horizon (reconstruction) windows share the steps of their whole length.
            horizon = int(config["horizon"] or config["seq_len"])
            every = np.stack(losses)
            every = every[:, np.isfinite(every).all(axis=0)]  # a window without a target has none
            a_SW, b_SW = every[::2], every[1::2]
            self.over_time = diebold_mariano(a_SW.mean(axis=0), b_SW.mean(axis=0), horizon=horizon)
            self.new_windows = crossed_log_ratio(a_SW, b_SW, horizon=horizon)

    @property
    def broken(self) -> list[Check]:
        """The broken invariants, which withhold its result."""
        return [check for check in self.checks if check.status == BROKEN]


class Verdict:
    """What one condition shows.

    Attributes:
        kind, outcome: Of a study's kinds above; the finding behind it, of `OUTCOMES`.
        headline: A sentence or two for a reader who knows nothing of the study.
        reasons: How certain it is, and what would make it more certain.
        main: The comparison that the headline is about; None without any.
        controls, asked: Arms of its checkpoint's controls; every arm behind the headline.
        checks, facts: Validity, the main pair's first; the values its sentences mention.
        tried: Schedules and settings that the arms were chosen from on the tested seeds; if more
            than one, it is provisional.
        seeds_needed: Paired seeds that would settle it, if it cannot tell.
        by_checkpoint: If several checkpoints were run, what each shows vs. its own random arm.
    """

    def __init__(self, condition: Condition, comparisons: list[Comparison], margin: float) -> None:
        self.condition, self.comparisons, self.margin = condition, comparisons, margin
        # The pretrained arm that validates best; the test windows play no part.
        self.main = min(
            (c for c in comparisons if c.pair.kind == "best"),
            key=lambda c: (-len(c.pair.seeds), c.pair.treatment.loss),
            default=None,
        )
        self.kind, self.outcome, self.headline = NOTHING, "", ""
        self.reasons: list[str] = []
        self.facts: dict[str, Any] = {"v": self, "main": self.main, "margin": margin}
        self.checks: list[Check] = []
        self.controls: list[Arm] = []
        self.asked: list[Arm] = []
        self.tried = 0
        self.seeds_needed: int | None = None
        self.by_checkpoint: dict[str, Verdict] = {}
        if self.main is not None:
            arm, rivals = self.main.pair.treatment, self.main.pair.rivals
            self.facts["weights"] = arm.pretraining
            others = [other for other in condition.arms if other.init != RANDOM]
            self.controls = [other for other in others if other.is_control_of(arm)]
            self.asked = [*rivals[0], *rivals[1], *self.controls]
            self.tried = max(map(chosen_from, rivals))
            self.checks += self.main.checks
        self.is_provisional = self.tried > 1

    def of_headline(self, kind: str) -> list[Comparison]:
        """Comparisons of a kind, of the headline's weights, at finished seeds."""
        weights = self.main.pair.treatment.weights if self.main else None
        found = (c for c in self.comparisons if c.pair.kind == kind and c.pair.seeds)
        return [c for c in found if c.pair.treatment.weights == weights]

    def say(self, block: str, **facts: Any) -> None:
        """Add sentences of `sentences.j2` to the reasons, and their facts to those of the rest."""
        self.facts |= facts
        self.reasons += sentences(block, **self.facts)

    @property
    def failed(self) -> list[str]:
        """The failed seeds of the arms behind the headline, one sentence per arm."""
        asked = [(arm_label(arm), arm.shown) for arm in self.asked if arm.shown.failed]
        return [f"{name} failed at {len(p.failed)} of {p.num_seeds} seeds." for name, p in asked]

    @property
    def broken(self) -> list[Check]:
        """The invariants that do not hold; an unfinished sweep has broken none yet."""
        checks = [] if self.kind == UNFINISHED else self.checks
        return [check for check in checks if check.status == BROKEN]


@dataclass(kw_only=True, eq=False)
class Findings:
    """The verdicts of all conditions, and the answer over all data sets, or else `main`'s."""

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


def shown_by(effect: Estimate, margin: float) -> str:
    """What an effect shows of the first arm's loss."""
    if effect.within(margin):
        return ALIKE
    return CANNOT_TELL if not effect.excludes_zero() else LOWER if effect.value < 0 else HIGHER


def judge_family(family: Sequence[Comparison], *, margin: float) -> None:
    """Adjust p and interval of one question's comparisons for each other; set what each shows."""
    count = max(1, sum(c.effect.is_known for c in family))
    for c, effect in zip(family, simultaneous([c.effect for c in family]), strict=True):
        c.effect, c.family, c.kind = effect, count, shown_by(effect, margin)
