"""The selected weights on another series, and with the order of time shuffled."""

import itertools
from typing import NamedTuple

from t5ts.analysis.arms import RANDOM, Arm, Condition, Pair
from t5ts.analysis.judgement import WITHHELD, Comparison, Findings, Verdict, judge_family
from t5ts.analysis.statistics import Estimate, log_ratio

#: Settings of a series that do not identify it.
_NOT_WHICH = ("name", "_target_", "fraction", "windows_per_epoch", "dir", "sha256")


class ShiftComparison(NamedTuple):
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
    found: dict[str, list[ShiftComparison]] = {"weights": [], "freezing": []}
    for v in findings.verdicts:
        for a, b in itertools.permutations(v.condition.arms, 2):
            kind = "other"
            if a.is_pretrained and b.init == RANDOM and a.freeze == b.freeze:
                kind = "weights"
            elif a.weights == b.weights and a.freeze == "staged" and b.freeze in ("none", "all"):
                kind = "freezing"
            pair = Pair(kind, a, b)
            is_known = has(a, "ood_loss") and has(b, "ood_loss") and pair.seeds
            if kind in found and a.backbone == b.backbone and is_known:
                c, more = Comparison(pair, split="ood"), beyond(pair, "ood_loss")
                found[kind].append(ShiftComparison(v, c, more))
    for family in found.values():
        judge_family([one.comparison for one in family], margin=findings.main.margin)
    every = [*found["weights"], *found["freezing"]]
    for v, c, _ in every:
        series = {(run.provenance.get("ood") or {}).get("sha256") for run in c.pair.all_runs}
        twins = (other for other in v.comparisons if other.pair.arms == c.pair.arms)
        if len(series) > 1 or any(other.kind == WITHHELD for other in twins):
            c.kind = WITHHELD
    return every


def series_names(condition: Condition) -> tuple[str, str]:
    """Names of the training series and the other one, with what distinguishes them."""
    ours, theirs = (
        {k.removeprefix(of): v for k, v in condition.config.items() if k.startswith(of)}
        for of in ("data.", "ood.")
    )
    names = str(ours["name"]), str(theirs.get("name"))
    if names[0] != names[1]:
        return names
    differing = [k for k in sorted({*ours} - {*_NOT_WHICH}) if ours[k] != theirs.get(k)]
    parts = [
        ", ".join(f"{k}={of[k]}" for k in differing if of.get(k) is not None)
        for of in (ours, theirs)
    ]
    first, second = (f"{names[0]} ({part})" if part else names[0] for part in parts)
    return first, second
