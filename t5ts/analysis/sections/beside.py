"""Parts of section 3: the arms on another series, and with the order of time taken away."""

from t5ts.analysis.arms import Arm
from t5ts.analysis.beside import (
    Beside,
    beyond,
    has,
    ratio_to_test,
    series_names,
    under_shift,
)
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import (
    ALIKE,
    CANNOT_TELL,
    HIGHER,
    LOWER,
    WITHHELD,
    Findings,
    Verdict,
)
from t5ts.analysis.sections.common import (
    EVIDENCE,
    KINDS,
    arms_of,
    evidence,
    factor,
    final,
    named,
    p_value,
    questions,
)
from t5ts.analysis.statistics import Estimate
from t5ts.analysis.words import NONE, fixed, interval, percent_interval

#: Whether a plan pays, by what its comparison shows.
_PAYS = {
    LOWER: "pays",
    HIGHER: "costs",
    ALIKE: "makes no difference that matters",
    WITHHELD: "cannot be judged, since an invariant is broken",
    CANNOT_TELL: "is not shown to pay or to cost",
}
#: The plans that staged unfreezing is compared with, in words.
_PLANS = {"none": "full fine-tuning from the first step", "all": "an encoder that stays frozen"}


def add_shift(findings: Findings, section: Section) -> None:
    """The table “Under shift”, its comparisons and what they say of LP-FT; nothing without ood."""
    shifted = [v for v in findings.verdicts if any(has(a, "ood_loss") for a in v.condition.arms)]
    for v in shifted:
        ours, theirs = series_names(v.condition)
        where = f", {v.condition.name}" if len(findings.verdicts) > 1 else ""
        section.tabulate(
            f"Under shift{where}: trained on {ours}, tested on its own test windows and on those of"
            f" {theirs} (ood), each in units of its own train rows; mean [95 % interval], and the"
            " geometric mean of ood over test",
            ["arm", "seeds", "test MSE", "ood MSE", "ood / test", "ood MAE", "ood MASE", "ood r"],
            [
                *(_shift_row(arm) for arm in v.condition.arms if has(arm, "ood_loss")),
                *_baseline_rows(v),
            ],
        )
    if not shifted:
        return
    found = under_shift(findings)
    if found:
        section.tabulate(
            "Comparisons of the ood loss, as those of the test loss above. Beyond the test loss:"
            " how much more of its test loss the first arm loses under shift than the second does"
            " (below 0: it is the more robust one)",
            [
                "pair",
                "question",
                "seeds",
                "change of ood loss",
                "shows",
                "beyond the test loss",
                *EVIDENCE,
            ],
            [_comparison_row(findings, one) for one in found],
        )
    for text in lp_ft(findings, found):
        section.say(text)


def _shift_row(arm: Arm) -> tuple[str, ...]:
    assert arm.best is not None
    return (
        arm.name,
        str(len(arm.best.finished)),
        interval(final(arm, "test_loss"), digits=4),
        interval(final(arm, "ood_loss"), digits=4),
        factor(ratio_to_test(arm, "ood_loss")),
        *(interval(final(arm, f"ood_{m}"), digits=4) for m in ("mae", "mase", "corr")),
    )


def _baseline_rows(v: Verdict) -> list[tuple[str, ...]]:
    """Forecasts that are not trained: how much harder the other series is for them."""
    run = next(r for r in v.condition.runs if r.result is not None and "ood" in r.result.baselines)
    assert run.result is not None
    test, ood = run.result.baselines["test"], run.result.baselines["ood"]
    return [
        (
            f"baseline: {name.replace('_', ' ')}",
            NONE,
            fixed(test[name]["loss"]),
            fixed(metrics["loss"]),
            f"{metrics['loss'] / test[name]['loss']:.2f}×",
            *(fixed(metrics.get(key)) for key in ("mae", "mase", "corr")),
        )
        for name, metrics in ood.items()
    ]


def _comparison_row(findings: Findings, one: Beside) -> tuple[str, ...]:
    c = one.comparison
    return (
        named(findings, one.verdict, c.pair.name),
        KINDS[c.pair.kind],
        str(len(c.pair.seeds)),
        percent_interval(c.effect),
        c.kind,
        percent_interval(one.beyond),
        *evidence(c),
    )


def lp_ft(findings: Findings, found: list[Beside]) -> list[str]:
    """Whether staged unfreezing pays out of distribution, a sentence for each encoder's weights."""
    groups: dict[tuple[int, str, str], list[Beside]] = {}
    for one in found:
        pair = one.comparison.pair
        if pair.kind == "freezing":
            key = (id(one.verdict), pair.treatment.backbone, pair.treatment.init)
            groups.setdefault(key, []).append(one)
    said = []
    for members in groups.values():
        v, arm = members[0].verdict, members[0].comparison.pair.treatment
        parts = [
            f"against {_PLANS[c.pair.control.freeze]} it {_PAYS[c.kind]}"
            f" (ood loss {percent_interval(c.effect)}; test loss"
            f" {percent_interval(c.pair.log_ratio('test_loss'))}; so the shift's own part is"
            f" {percent_interval(one.beyond)})"
            for one in members
            for c in (one.comparison,)
        ]
        where = named(findings, v, f"Staged unfreezing of {arm.init} weights")
        said.append(
            f"Does staged unfreezing pay out of distribution (LP-FT, Kumar et al. 2022)? {where}:"
            f" {'; '.join(parts)}."
        )
    return said


def add_shuffled_time(findings: Findings, section: Section) -> None:
    """The table “Shuffled time”; nothing where no run was measured so."""
    arms = [(v, arm) for v, arm in arms_of(findings) if has(arm, "shuffled_loss")]
    if not arms:
        return
    section.tabulate(
        "Shuffled time: the same weights on the same test windows, with the steps of each context"
        " in a random order; mean [95 % interval], and the geometric mean of shuffled over test",
        ["arm", "seeds", "test MSE", "shuffled MSE", "shuffled / test", "shows"],
        [
            (
                named(findings, v, arm.name),
                str(len(arm.best.finished)) if arm.best else "0",
                interval(final(arm, "test_loss"), digits=4),
                interval(final(arm, "shuffled_loss"), digits=4),
                factor(ratio := ratio_to_test(arm, "shuffled_loss")),
                _uses_order(ratio, v.margin),
            )
            for v, arm in arms
        ],
    )
    rows = [
        (
            named(findings, v, c.pair.name),
            str(len(c.pair.seeds)),
            percent_interval(more := beyond(c.pair, "shuffled_loss")),
            p_value(more.p),
        )
        for v, c in questions(findings, "best", "weights")
        if c.pair.treatment.freeze == c.pair.control.freeze
        if has(c.pair.treatment, "shuffled_loss") and has(c.pair.control, "shuffled_loss")
    ]
    if rows:
        section.tabulate(
            "How much more the first arm loses by the shuffling than the second (above 0: it uses"
            " more of the order)",
            ["pair", "seeds", "shuffled / test, first against second", "p (t)"],
            rows,
        )
    section.say(
        "Tan et al. 2024 (arXiv 2406.16964) shuffle the input at inference to ask whether a"
        " language model represents the order of time: theirs lost no more by it than the same"
        " forecasters without a language model. An arm that loses nothing here forecasts from"
        " which values there were, not from when; only a pretrained arm that loses more than the"
        " random one has made more of the order. The better of two arms has more to lose: see the"
        " losses themselves."
    )


def _uses_order(ratio: Estimate, margin: float) -> str:
    if not ratio.is_known:
        return CANNOT_TELL
    if ratio.within(margin):
        return "order makes no difference that matters"
    if ratio.low > 0:
        return "uses the order"
    return "better without the order" if ratio.high < 0 else CANNOT_TELL
