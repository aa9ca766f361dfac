"""What the selected weights give beside the test windows: on another series, with time shuffled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from t5ts.analysis.arms import RANDOM, Arm, Condition, Pair, paired
from t5ts.analysis.judgement import WITHHELD, Comparison, Findings, Verdict, compare, judge_family
from t5ts.analysis.statistics import Estimate, log_ratio

#: Settings of a series that do not say which one it is.
_NOT_WHICH = ("name", "_target_", "fraction", "windows_per_epoch", "dir", "sha256")


@dataclass(kw_only=True, eq=False)
class Beside:
    """A comparison on what the arms are measured on besides.

    Attributes:
        comparison: Of the loss there, judged in a family of its own.
        beyond: Mean log of the treatment's ratio of that loss to its test loss over the control's:
            above 0 the treatment loses more on the way there than the control does.
    """

    verdict: Verdict
    comparison: Comparison
    beyond: Estimate


def has(arm: Arm, metric: str) -> bool:
    """Whether a finished run of the arm's best point was measured so."""
    return arm.best is not None and any(
        run.result is not None and metric in run.result.metrics
        for run in arm.best.finished.values()
    )


def ratio_to_test(arm: Arm, metric: str) -> Estimate:
    """Mean log of a loss over the test loss, paired over the seeds of the arm's best point."""
    runs = arm.best.finished.values() if arm.best else ()
    return log_ratio(
        [run.metric(metric) for run in runs], [run.metric("test_loss") for run in runs]
    )


def beyond(pair: Pair, metric: str) -> Estimate:
    """How much more the treatment's loss grows from test to there; see `Beside`."""
    (a, b), (test_a, test_b) = pair.values(metric), pair.values("test_loss")
    return log_ratio(a / test_a, b / test_b)


def under_shift(findings: Findings) -> list[Beside]:
    """The other series' loss: t5 against random for each plan, staged against none and all.

    Each of the two questions is one family for Holm, over all conditions. The verdict knows
    nothing of them. A pair whose weights' comparison is withheld, or whose runs met different
    files under one name, is withheld here too.
    """
    weights = _compared(findings, _asks_for_weights, "weights")
    freezing = _compared(findings, _asks_for_freezing, "freezing")
    return [*weights, *freezing]


def _asks_for_weights(a: Arm, b: Arm) -> bool:
    return a.is_pretrained and b.init == RANDOM and a.freeze == b.freeze


def _asks_for_freezing(a: Arm, b: Arm) -> bool:
    return a.weights == b.weights and a.freeze == "staged" and b.freeze in ("none", "all")


def _compared(findings: Findings, asks: Callable[[Arm, Arm], bool], kind: str) -> list[Beside]:
    found = []
    for v in findings.verdicts:
        arms = [arm for arm in v.condition.arms if has(arm, "ood_loss")]
        for a in arms:
            for b in arms:
                if a.backbone == b.backbone and asks(a, b):
                    pair = paired(kind, a, b)
                    if pair.seeds:
                        found.append(
                            Beside(
                                verdict=v,
                                comparison=compare(pair, split="ood"),
                                beyond=beyond(pair, "ood_loss"),
                            )
                        )
    judge_family([one.comparison for one in found], margin=findings.main.margin)
    for one in found:
        if _is_withheld(one):
            one.comparison.kind = WITHHELD
    return found


def _is_withheld(one: Beside) -> bool:
    pair = one.comparison.pair
    series = {
        (run.provenance.get("ood") or {}).get("sha256") for both in pair.runs() for run in both
    }
    twins = [
        c
        for c in one.verdict.comparisons
        if c.pair.treatment is pair.treatment and c.pair.control is pair.control
    ]
    return len(series) > 1 or any(c.kind == WITHHELD for c in twins)


def series_names(condition: Condition) -> tuple[str, str]:
    """The series that is trained on and the other one, with what tells them apart."""
    settings = [
        {
            key.removeprefix(prefix): value
            for key, value in condition.config.items()
            if key.startswith(prefix)
        }
        for prefix in ("data.", "ood.")
    ]
    ours, theirs = (str(of.get("name")) for of in settings)
    if ours != theirs:
        return ours, theirs
    keys = sorted(set(settings[0]) - set(_NOT_WHICH))
    differing = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    first, second = (_with(ours, of, differing) for of in settings)
    return first, second


def _with(name: str, settings: dict[str, Any], keys: list[str]) -> str:
    said = ", ".join(f"{key}={settings.get(key)}" for key in keys)
    return f"{name} ({said})" if said else name
