"""Section 3: where the arms end, and what that says of the lab log's hypotheses."""

import math
from collections.abc import Callable

import numpy as np

from t5ts.analysis import effects
from t5ts.analysis.arms import Arm
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import ALIKE, CANNOT_TELL, HIGHER, LOWER, Findings, Verdict
from t5ts.analysis.sections.beside import add_shift, add_shuffled_time
from t5ts.analysis.sections.common import (
    EVIDENCE,
    KINDS,
    arms_of,
    evidence,
    final,
    named,
    questions,
    val_at,
)
from t5ts.analysis.study import Run
from t5ts.analysis.words import (
    NONE,
    fixed,
    interval,
    number,
    percent_interval,
    plural,
)


def final_performance(findings: Findings) -> Section:
    """Section 3: the lab log's table, all metrics with the baselines, all comparisons."""
    section = Section(
        number=3, title="Final performance", question="Where does each arm end, on unseen windows?"
    )
    for v in findings.verdicts:
        target = effects.common_target(v.condition)
        section.tabulate(
            f"The lab log's table, on {v.condition.name}; speed is the epochs to val_loss"
            f" {number(target)}, which every arm reaches",
            ["arm", "val_corr initial", "val_corr final", "speed (epochs)", "note"],
            [
                (
                    arm.name,
                    fixed(val_at(arm, "val_corr", 0).value),
                    fixed(final(arm, "val_corr").value),
                    number(effects.epochs_to(arm, target), digits=3),
                    _note(arm),
                )
                for arm in v.condition.arms
            ],
        )
        for text in hypotheses(v):
            section.say(text)
    rows = []
    for v, arm in arms_of(findings):
        if arm.best is None:
            continue
        rows.append(
            (
                named(findings, v, arm.name),
                str(len(arm.best.finished)),
                *(
                    interval(final(arm, m), digits=4)
                    for m in ("val_loss", "test_loss", "test_mae", "test_mase", "test_corr")
                ),
                number(_final_of(arm, lambda r: r.result.best_epoch), digits=3),  # type: ignore[union-attr]
                number(_final_of(arm, lambda r: r.result.seconds), digits=3),  # type: ignore[union-attr]
            )
        )
    for v in findings.verdicts:
        rows += _baseline_rows(findings, v)
    section.tabulate(
        "At the epoch that validation selected, train-standardised units, mean [95 % interval]",
        [
            "arm",
            "seeds",
            "val MSE",
            "test MSE",
            "test MAE",
            "test MASE",
            "test r",
            "best epoch",
            "seconds",
        ],
        rows,
    )
    section.tabulate(
        "Comparisons of the test loss: the first arm's against the second's [95 % interval over"
        " paired seeds, allowing for all comparisons of one question as p (Holm) does], what that"
        " shows of the first, and p-values",
        [
            "pair",
            "question",
            "seeds",
            "change of test loss",
            "shows",
            *EVIDENCE,
        ],
        [
            (
                named(findings, v, c.pair.name),
                KINDS[c.pair.kind],
                str(len(c.pair.seeds)),
                percent_interval(c.effect),
                c.kind,
                *evidence(c),
            )
            for v, c in questions(findings, *KINDS)
        ],
    )
    section.say(
        "p (t): paired t-test of the log-ratio; Holm adjusts it for all comparisons of one"
        " question. The interval for new windows is the comparison's own, not adjusted."
        " The permutation test assumes least and cannot go below 2/2ⁿ with n seeds"
        " (0.0625 with 5). Diebold–Mariano asks about time, not seeds: the seeds' mean losses on"
        " overlapping windows, with a variance that allows for their dependence. It is too sure"
        " where good and bad stretches last longer than about a fortieth of the test windows."
    )
    add_shift(findings, section)
    add_shuffled_time(findings, section)
    pictures = effects.forecasts(findings.main.condition)
    if pictures:
        section.show(
            "forecasts",
            "Three test windows of the first channel, each arm at its lowest seed. Grey lines:"
            " patch borders.",
            f"Forecasts of {', '.join(arm.name for arm, _ in pictures)} beside the truth.",
        )
    return section


def _final_of(arm: Arm, of: Callable[[Run], float]) -> float:
    runs = list(arm.best.finished.values()) if arm.best else []
    return float(np.mean([of(run) for run in runs])) if runs else math.nan


def _baseline_rows(findings: Findings, v: Verdict) -> list[tuple[str, ...]]:
    run = next((run for run in v.condition.runs if run.result is not None), None)
    if run is None or run.result is None:
        return []
    val, test = (run.result.baselines.get(split, {}) for split in ("val", "test"))
    rows = [
        (
            named(findings, v, f"baseline: {name.replace('_', ' ')}"),
            NONE,
            fixed(val[name].get("loss")),
            *(fixed(test.get(name, {}).get(key)) for key in ("loss", "mae", "mase", "corr")),
            NONE,
            NONE,
        )
        for name in val
    ]
    if run.result.best_achievable_loss is not None:
        best = fixed(run.result.best_achievable_loss)
        name = named(findings, v, "best achievable")
        rows.append((name, NONE, best, *([NONE] * 6)))
    return rows


def _note(arm: Arm) -> str:
    parts = []
    point = arm.shown
    starts = effects.unfreezing(point)
    if arm.freeze == "all":
        parts.append("encoder never trains")
    elif arm.freeze == "norms":
        parts.append("only norms and position biases train")
    elif starts:
        parts.append(f"unfrozen at epoch {', '.join(f'{s:g}' for s in starts)}")
    else:
        parts.append("trains from the first step")
    if arm.tried > 1:
        parts.append(f"best of {arm.tried} settings")
    states = [run.state for run in arm.runs if run.result is None]
    parts += [f"{states.count(state)} {state}" for state in sorted(set(states))]
    if arm.best:
        parts.append(plural(len(arm.best.finished), "seed"))
    return "; ".join(parts)


def hypotheses(v: Verdict) -> list[str]:
    """What the log's three arms and the fair one say about its two hypotheses."""
    arms = v.condition.arms
    shared = [a for a in arms if a.backbone == "shared" and a.best]
    pretrained = [a for a in arms if a.init == "t5" and a.best]
    if not shared or not pretrained:
        return []
    found = []
    fair = [c for c in v.comparisons if c.pair.kind in ("best", "weights") and c.pair.seeds]
    other = [
        c
        for c in v.comparisons
        if c.pair.kind == "other" and c.pair.control.backbone == "shared" and c.pair.seeds
    ]
    for c in other:
        found.append(
            f"As the log compared them: {c.pair.name}: {percent_interval(c.effect)}. That mixes the"
            " encoder's size and shape with its weights, and decides nothing about pretraining."
        )
    if not fair:
        found.append(
            "The log's hypotheses cannot be judged without the arm that it lacked: T5's shape with"
            " random weights (init=random, the same backbone and freezing)."
        )
        return found
    for c in fair:
        outcome = {
            LOWER: "supports “pretraining transfers” over “random initialisation does as well”",
            HIGHER: "supports “random initialisation does as well” over “pretraining transfers”",
            ALIKE: "supports “random initialisation does as well” over “pretraining transfers”",
            CANNOT_TELL: "supports neither “pretraining transfers” nor “random does as well” yet",
        }.get(c.kind, "decides nothing: an invariant is broken")
        found.append(f"The fair arm: {c.pair.name}: {percent_interval(c.effect)}; this {outcome}.")
    for c in v.comparisons:
        is_staged = c.pair.kind == "freezing" and c.pair.treatment.init == "t5"
        if is_staged and c.pair.treatment.freeze == "staged" and c.pair.seeds:
            outcome = {
                LOWER: "supports freezing first",
                HIGHER: "speaks against freezing first",
                ALIKE: "shows no difference that matters",
            }.get(c.kind, "does not decide whether freezing first helps")
            found.append(
                f"Freezing first: {c.pair.name}: {percent_interval(c.effect)}; this {outcome}."
            )
    return found
