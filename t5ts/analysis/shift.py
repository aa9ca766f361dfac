"""The selected weights on another series, and with the order of time shuffled."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from t5ts.analysis.arms import RANDOM, Arm, Condition, Pair, paired
from t5ts.analysis.judgement import WITHHELD, Comparison, Findings, Verdict, compare, judge_family
from t5ts.analysis.statistics import Estimate, log_ratio

#: Settings of a series that do not identify it.
_NOT_WHICH = ("name", "_target_", "fraction", "windows_per_epoch", "dir", "sha256")


@dataclass(kw_only=True, eq=False)
class ShiftComparison:
    """A comparison of two arms on another series.

    Attributes:
        comparison: Of the loss on it, judged in a separate family.
        beyond: Mean log of the treatment's ratio of that loss to its test loss over the control's:
            above 0 the treatment loses more under the shift than the control does.
    """

    verdict: Verdict
    comparison: Comparison
    beyond: Estimate


def has(arm: Arm, metric: str) -> bool:
    """Whether a finished run of the arm's best point has this metric."""
    return any(run.result and metric in run.result.metrics for run in arm.finished.values())


def ratio_to_test(arm: Arm, metric: str) -> Estimate:
    """Mean log of a loss over the test loss, paired over the seeds of the arm's best point."""
    runs = arm.finished.values()
    return log_ratio(
        [run.metric(metric) for run in runs], [run.metric("test_loss") for run in runs]
    )


def beyond(pair: Pair, metric: str) -> Estimate:
    """How much more the treatment's loss grows from test to this metric; see `ShiftComparison`."""
    (a, b), (test_a, test_b) = pair.values(metric), pair.values("test_loss")
    return log_ratio(a / test_a, b / test_b)


def under_shift(findings: Findings) -> list[ShiftComparison]:
    """The other series' loss: t5 vs. random for each schedule, staged vs. none and all.

    Each of the two questions is one family for Holm, over all conditions. The verdict does
    not use them. A pair whose weights' comparison is withheld, or whose runs met different
    files under one name, is withheld here too.
    """
    weights = _compared(findings, _compares_weights, "weights")
    freezing = _compared(findings, _compares_freezing, "freezing")
    return [*weights, *freezing]


def _compares_weights(a: Arm, b: Arm) -> bool:
    return a.is_pretrained and b.init == RANDOM and a.freeze == b.freeze


def _compares_freezing(a: Arm, b: Arm) -> bool:
    return a.weights == b.weights and a.freeze == "staged" and b.freeze in ("none", "all")


def _compared(
    findings: Findings, is_asked: Callable[[Arm, Arm], bool], kind: str
) -> list[ShiftComparison]:
    found = []
    for v in findings.verdicts:
        arms = [arm for arm in v.condition.arms if has(arm, "ood_loss")]
        for a, b in itertools.permutations(arms, 2):
            pair = paired(kind, a, b)
            if a.backbone == b.backbone and is_asked(a, b) and pair.seeds:
                c = compare(pair, split="ood")
                found.append(
                    ShiftComparison(verdict=v, comparison=c, beyond=beyond(pair, "ood_loss"))
                )
    judge_family([one.comparison for one in found], margin=findings.main.margin)
    for one in found:
        if _is_withheld(one):
            one.comparison.kind = WITHHELD
    return found


def _is_withheld(one: ShiftComparison) -> bool:
    pair = one.comparison.pair
    series = {(run.provenance.get("ood") or {}).get("sha256") for run in pair.all_runs}
    twins = (c for c in one.verdict.comparisons if c.pair.arms == pair.arms)
    return len(series) > 1 or any(c.kind == WITHHELD for c in twins)


def series_names(condition: Condition) -> tuple[str, str]:
    """Names of the training series and the other one, with what distinguishes them."""
    items = condition.config.items()
    settings = [
        {key.removeprefix(of): value for key, value in items if key.startswith(of)}
        for of in ("data.", "ood.")
    ]
    ours, theirs = (str(of.get("name")) for of in settings)
    if ours != theirs:
        return ours, theirs
    keys = sorted(set(settings[0]) - set(_NOT_WHICH))
    differing = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    parts = [", ".join(f"{key}={of.get(key)}" for key in differing) for of in settings]
    first, second = (f"{ours} ({part})" if part else ours for part in parts)
    return first, second
