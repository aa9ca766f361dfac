"""Section 6: the gap over time, and what pretraining is worth in data."""

import math

from t5ts.analysis import effects
from t5ts.analysis.arms import Pair
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.common import factor, named, questions
from t5ts.analysis.words import NONE, interval


def gap_over_time(findings: Findings) -> Section:
    """Section 6."""
    section = Section(
        number=6,
        title="Gap over time",
        question="Does random initialisation catch up, and what is pretraining worth in data?",
    )
    rows = []
    for v, c in questions(findings, "best", "weights"):
        g = effects.gap(c.pair)
        if g is None:
            continue
        rows.append(
            (
                named(findings, v, c.pair.name),
                interval(g.end),
                interval(g.slope),
                f"epoch {g.late_from:g} on",
                _catches_up(g),
            )
        )
    section.tabulate(
        "Gap in val_loss, random less pretrained (above 0: the pretrained arm is ahead), with the"
        " slope of its last half per epoch",
        ["pair", "gap at the end", "slope", "fitted from", "reading"],
        rows,
    )
    if rows:
        section.show(
            "gap",
            f"Gap in val_loss on {findings.main.condition.name}, mean over paired seeds with its"
            " 95 % interval; above 0 the pretrained arm is ahead.",
            "; ".join(f"{row[0]}: {row[1]} at the end, slope {row[2]}" for row in rows[:4]),
        )
        section.say(
            "“Can't catch up” is a claim about this schedule: learning rates that decay to 0"
            " flatten every curve at its end. A longer run is the only proof."
        )
    _transferred(findings, section)
    return section


def _catches_up(g: effects.Gap) -> str:
    if not g.end.is_known:
        return "one seed: no interval"
    if g.end.high < 0:
        return "the random arm is ahead"
    if g.end.low <= 0:
        return "no gap is left that the seeds show"
    if g.slope.high < 0:
        return f"closing: 0 after about {g.catch_up:.0f} more epochs on this slope"
    if g.slope.low > 0:
        return "still widening: random does not catch up within this run"
    return "neither closing nor widening: random does not catch up within this run"


def _transferred(findings: Findings, section: Section) -> None:
    """Effective data transferred, where one series was trained on several fractions of it.

    At each fraction both weights are at their own best plan there.
    """
    by_series: dict[tuple[str, str], list[tuple[float, Pair]]] = {}
    for v in findings.verdicts:
        rest = {k: x for k, x in v.condition.config.items() if k != "data.fraction"}
        for c in v.comparisons:
            windows = c.pair.treatment.runs[0].provenance.get("windows") or {}
            if c.pair.kind == "best" and windows.get("train"):
                key = (
                    f"{c.pair.treatment.backbone} on {rest['data.name']}",
                    str(sorted(rest.items())),
                )
                by_series.setdefault(key, []).append((float(windows["train"]), c.pair))
    for (name, _), entries in by_series.items():
        if len(entries) < 2:
            continue
        by_size = sorted(entries, key=lambda entry: entry[0])
        found = effects.effective_data_transferred(by_size)
        if not found:
            section.say(
                f"Effective data transferred ({name}): no seed is finished at all"
                f" {len(entries)} fractions by both weights' best settings."
            )
            continue
        section.tabulate(
            f"Effective data transferred ({name}): how much data random weights need for the"
            " pretrained arm's test loss, each at its own best plan (Hernandez et al. 2021)",
            ["training windows", "pair", "worth to random weights", "multiplier", "extra windows"],
            [
                (
                    f"{t.windows:,.0f}",
                    pair.name,
                    f"more than {by_size[-1][0]:,.0f}"
                    if math.isinf(t.equivalent)
                    else f"{t.equivalent:,.0f}",
                    factor(t.multiplier) if t.multiplier.count else "beyond what was measured",
                    NONE if math.isinf(t.equivalent) else f"{t.equivalent - t.windows:,.0f}",
                )
                for t, (_, pair) in zip(found, by_size, strict=True)
            ],
        )
