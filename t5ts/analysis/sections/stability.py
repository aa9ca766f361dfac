"""Section 4: whether training went well."""

import math

from t5ts.analysis import effects
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.common import arms_of, named
from t5ts.analysis.words import NONE, number


def stability(findings: Findings) -> Section:
    """Section 4."""
    section = Section(
        number=4, title="Stability", question="Does an unfreezing shake the training?"
    )
    rows = []
    for v, arm in arms_of(findings):
        s = effects.stability(arm)
        jump = NONE
        if math.isfinite(s.jump):
            jump = f"{s.jump:.2f}× ({s.jump_component})"
        rows.append(
            (
                named(findings, v, arm.name),
                number(s.largest_norm, digits=3),
                jump,
                number(s.largest_ratio, digits=2),
                str(s.skipped),
                str(s.nonfinite),
                str(s.failed),
                str(s.unfinished),
            )
        )
    section.tabulate(
        "Over all runs of an arm. Jump: largest ratio of a component's mean gradient norm in the"
        " epoch after an unfreezing to the epoch before it",
        [
            "arm",
            "largest gradient norm",
            "jump at unfreezing",
            "largest update ratio",
            "AMP skipped steps",
            "non-finite steps",
            "failed runs",
            "unfinished",
        ],
        rows,
    )
    if any(effects.gradient_map(arm) for arm in findings.main.condition.arms):
        section.show(
            "gradients",
            "Mean gradient norm of each component (L2, before clipping) in each epoch; white is"
            " frozen.",
            "Heat map of gradient norms, a panel per arm, components over epochs.",
        )
    return section
