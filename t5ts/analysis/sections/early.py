"""Sections 1 and 2: how the arms begin, and how fast they learn."""

from t5ts.analysis import effects
from t5ts.analysis.arms import Condition
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.common import arms_of, factor, named, questions, val_at
from t5ts.analysis.words import interval, number


def initial_performance(findings: Findings) -> Section:
    """Section 1."""
    section = Section(
        number=1,
        title="Initial performance",
        question="Is the pretrained arm ahead before training, and after one epoch?",
    )
    section.tabulate(
        "Validation before the first step and after epoch 1, mean over seeds [95 % interval]",
        ["arm", "seeds", "val_loss at 0", "val_loss at 1", "val_corr at 0", "val_corr at 1"],
        [
            (
                named(findings, v, arm.name),
                str(val_at(arm, "val_loss", 0).count),
                *(
                    interval(val_at(arm, metric, epoch))
                    for metric in ("val_loss", "val_corr")
                    for epoch in (0, 1)
                ),
            )
            for v, arm in arms_of(findings)
        ],
    )
    section.tabulate(
        "Paired differences (below 0 in loss, above 0 in correlation: the first arm is ahead)",
        ["pair", "val_loss at 0", "val_loss at 1", "val_corr at 0", "val_corr at 1"],
        [
            (
                named(findings, v, c.pair.name),
                *(
                    interval(effects.initial(c.pair, metric, epoch))
                    for metric in ("val_loss", "val_corr")
                    for epoch in (0, 1)
                ),
            )
            for v, c in questions(findings, "best", "control", "weights")
        ],
    )
    return section


def convergence(findings: Findings) -> Section:
    """Section 2."""
    section = Section(
        number=2,
        title="Convergence speed",
        question="Does the pretrained arm get there in fewer steps?",
    )
    rows = []
    for v, c in questions(findings, "best", "control", "weights"):
        s = effects.speed(c.pair)
        if s is None:
            continue
        rows.append(
            (
                named(findings, v, c.pair.name),
                number(s.target),
                f"{number(s.treatment, digits=3)} against {number(s.control, digits=3)}",
                f"{number(s.steps[0], digits=3)} against {number(s.steps[1], digits=3)}",
                factor(s.log_speedup),
                interval(s.area),
            )
        )
    section.say(
        "The target is, at each seed, the worse of both arms' best validation losses, so that both"
        " reach it. A speed-up above 1 means that the first arm needs fewer epochs; the area is the"
        " mean val_loss over all epochs, as a paired difference (below 0: the first arm is lower)."
    )
    section.tabulate(
        "Time to the same loss",
        ["pair", "val_loss to reach", "epochs", "steps", "speed-up", "area under the curve"],
        rows,
    )
    if any(effects.learning_curve(arm, "val_loss") for arm in findings.main.condition.arms):
        section.show(
            "curves",
            f"Validation over the epochs on {findings.main.condition.name}: mean over seeds with"
            " its 95 % interval; a white triangle marks an unfreezing.",
            _curves_in_words(findings.main.condition),
        )
    return section


def _curves_in_words(condition: Condition) -> str:
    parts = []
    for arm in condition.arms:
        curve = effects.learning_curve(arm, "val_loss")
        if curve is not None:
            parts.append(
                f"{arm.name} goes from {number(float(curve.mean[0]), digits=3)} to"
                f" {number(float(curve.mean[-1]), digits=3)} at epoch {curve.x[-1]:g}"
            )
    return "val_loss: " + "; ".join(parts)
