"""What several sections need: which arms and comparisons, under which names."""

import math
from collections.abc import Iterator

from t5ts.analysis.arms import Arm
from t5ts.analysis.judgement import Comparison, Findings, Verdict
from t5ts.analysis.statistics import Estimate, mean_interval
from t5ts.analysis.words import NONE, percent_span, probability

KINDS = {
    "best": "each at its own best plan",
    "control": "control, each at its own best plan",
    "weights": "weights alone, one plan",
    "same_plan": "control, one plan",
    "frozen_random": "against a frozen random encoder",
    "checkpoint": "another checkpoint",
    "freezing": "freezing plan",
    "other": "differs in more",
}


def arms_of(findings: Findings) -> Iterator[tuple[Verdict, Arm]]:
    """Every arm of every condition, with its condition's verdict."""
    for v in findings.verdicts:
        for arm in v.condition.arms:
            yield v, arm


def named(findings: Findings, v: Verdict, name: str) -> str:
    """The name with its condition, where there are several."""
    return name if len(findings.verdicts) == 1 else f"{name} · {v.condition.name}"


def questions(findings: Findings, *kinds: str) -> Iterator[tuple[Verdict, Comparison]]:
    """Every comparison of these kinds for which paired seeds are finished."""
    for v in findings.verdicts:
        for c in v.comparisons:
            if c.pair.kind in kinds and c.pair.seeds:
                yield v, c


def val_at(arm: Arm, metric: str, epoch: int) -> Estimate:
    """Mean over an arm's seeds of a validation metric after an epoch."""
    runs = arm.best.finished.values() if arm.best else arm.shown.runs
    values = []
    for run in runs:
        epochs, curve = run.curve(metric)
        values += [float(v) for v in curve[epochs == epoch]]
    return mean_interval(values)


def final(arm: Arm, metric: str) -> Estimate:
    """Mean over an arm's seeds of a final metric."""
    runs = arm.best.finished.values() if arm.best else ()
    return mean_interval([run.metric(metric) for run in runs])


def p_value(p: float) -> str:
    """A p-value for a column; a dash where it is not known."""
    return NONE if not math.isfinite(p) else probability(p).removeprefix("= ")


#: What stands behind a comparison, and its cells (`evidence`).
EVIDENCE = ["p (Holm)", "p (t)", "p (permutation)", "for new windows too", "p (Diebold–Mariano)"]


def evidence(c: Comparison) -> list[str]:
    """The p-values of a comparison and its interval for new windows; dashes where not known."""
    new, over_time = c.new_windows, c.over_time
    return [
        p_value(c.p_holm),
        p_value(c.p_t),
        p_value(c.p_permutation),
        NONE if new is None else percent_span(new),
        NONE if over_time is None else p_value(over_time.p),
    ]


def factor(log_factor: Estimate) -> str:
    """A log-ratio as a factor with its interval."""
    text = f"{math.exp(log_factor.value):.2f}×" if math.isfinite(log_factor.value) else NONE
    if log_factor.is_known:
        text += f" [{math.exp(log_factor.low):.2f}, {math.exp(log_factor.high):.2f}]"
    return text


def number_or_text(value: object) -> str:
    """A setting's value."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "null" if value is None else str(value)
