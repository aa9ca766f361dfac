"""Section 0: the answer."""

from t5ts.analysis.document import Section
from t5ts.analysis.figures import EFFECT_KEY
from t5ts.analysis.judgement import WITHHELD, Findings
from t5ts.analysis.sections.common import KINDS, named, questions
from t5ts.analysis.words import NONE, percent, percent_interval


def answer(findings: Findings) -> Section:
    """Section 0: the other conditions and every comparison behind the answer."""
    section = Section(number=0, title="Answer", question="Does pretraining help here?")
    if len(findings.verdicts) > 1:
        section.tabulate(
            "Every data set, task and amount of data; the pictures below show"
            f" {findings.main.condition.name}",
            ["condition", "verdict", "test loss, pretrained against random", "paired seeds"],
            [
                (
                    v.condition.name,
                    v.kind,
                    percent_interval(v.main.effect) if v.main and v.main.pair.seeds else NONE,
                    str(len(v.main.pair.seeds)) if v.main else "0",
                )
                for v in findings.verdicts
            ],
            broken={i for i, v in enumerate(findings.verdicts) if v.kind == WITHHELD},
        )
    by_checkpoint = [
        (
            named(findings, v, backbone),
            own.kind,
            own.main.pair.name,
            percent_interval(own.main.effect),
            str(len(own.main.pair.seeds)),
        )
        for v in findings.verdicts
        for backbone, own in v.by_checkpoint.items()
        if own.main is not None
    ]
    if by_checkpoint:
        section.tabulate(
            "Each checkpoint against random weights of its own shape",
            ["checkpoint", "verdict", "best plan against its control", "test loss", "paired seeds"],
            by_checkpoint,
        )
    if any(True for _ in questions(findings, *KINDS)):
        section.show(
            "effects",
            "Change of the test loss, first arm against second: the mean over paired seeds and its"
            f" 95 % interval. Left of 0 the first arm is better; inside the grey band (±"
            f"{percent(findings.main.margin, sign=False)}) a difference does not matter."
            f" {EFFECT_KEY}",
            "; ".join(
                f"{c.pair.name}: {percent_interval(c.effect)}"
                for _, c in questions(findings, "best", "weights")
            ),
        )
    return section
