"""The report's sections, in the order of the questions that the lab log asked."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from t5ts.analysis import effects
from t5ts.analysis.arms import Arm, Condition, Pair, Point
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import (
    CANNOT_TELL,
    DOES_NOT,
    TRANSFERS,
    WITHHELD,
    Comparison,
    Findings,
    Verdict,
)
from t5ts.analysis.statistics import Estimate, log_ratio, mean_interval
from t5ts.analysis.study import Run
from t5ts.analysis.validity import BROKEN, settings_that_differ
from t5ts.analysis.words import (
    NONE,
    fixed,
    interval,
    number,
    percent,
    percent_interval,
    plural,
    probability,
)

KINDS = {
    "weights": "weights alone",
    "control": "against a control",
    "frozen_random": "against a frozen random encoder",
    "freezing": "freezing plan",
    "other": "differs in more",
}


def sections(findings: Findings) -> list[Section]:
    """Sections 0 to 7."""
    return [
        answer(findings),
        initial_performance(findings),
        convergence(findings),
        final_performance(findings),
        stability(findings),
        when_to_unfreeze(findings),
        gap_over_time(findings),
        validity(findings),
    ]


def _arms(findings: Findings) -> Iterator[tuple[Verdict, Arm]]:
    for v in findings.verdicts:
        for arm in v.condition.arms:
            yield v, arm


def _named(findings: Findings, v: Verdict, name: str) -> str:
    """The name with its condition, where there are several."""
    return name if len(findings.verdicts) == 1 else f"{name} · {v.condition.name}"


def _questions(findings: Findings, *kinds: str) -> Iterator[tuple[Verdict, Comparison]]:
    for v in findings.verdicts:
        for c in v.comparisons:
            if c.pair.kind in kinds and c.pair.seeds:
                yield v, c


def answer(findings: Findings) -> Section:
    """Section 0: the other conditions and every comparison behind the answer."""
    section = Section(number=0, title="Answer", question="Does pretraining help here?")
    if len(findings.verdicts) > 1:
        for text in findings.together:
            section.say(text)
        section.tabulate(
            "Every data set, task and amount of data",
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
    if any(True for _ in _questions(findings, *KINDS)):
        section.show(
            "effects",
            "Change of the test loss, first arm against second: the mean over paired seeds and its"
            f" 95 % interval. Left of 0 the first arm is better; inside the grey band (±"
            f"{percent(findings.main.margin, sign=False)}) a difference does not matter.",
            "; ".join(
                f"{c.pair.name}: {percent_interval(c.effect)}"
                for _, c in _questions(findings, "weights")
            ),
        )
    return section


def _val_at(arm: Arm, metric: str, epoch: int) -> Estimate:
    runs = arm.best.finished.values() if arm.best else arm.shown.runs
    values = []
    for run in runs:
        epochs, curve = run.curve(metric)
        values += [float(v) for v in curve[epochs == epoch]]
    return mean_interval(values)


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
                _named(findings, v, arm.name),
                str(_val_at(arm, "val_loss", 0).count),
                *(
                    interval(_val_at(arm, metric, epoch))
                    for metric in ("val_loss", "val_corr")
                    for epoch in (0, 1)
                ),
            )
            for v, arm in _arms(findings)
        ],
    )
    section.tabulate(
        "Paired differences (below 0 in loss, above 0 in correlation: the first arm is ahead)",
        ["pair", "val_loss at 0", "val_loss at 1", "val_corr at 0", "val_corr at 1"],
        [
            (
                _named(findings, v, c.pair.name),
                *(
                    interval(effects.initial(c.pair, metric, epoch))
                    for metric in ("val_loss", "val_corr")
                    for epoch in (0, 1)
                ),
            )
            for v, c in _questions(findings, "weights", "control")
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
    for v, c in _questions(findings, "weights", "control"):
        s = effects.speed(c.pair)
        if s is None:
            continue
        rows.append(
            (
                _named(findings, v, c.pair.name),
                number(s.target),
                f"{number(s.treatment, digits=3)} against {number(s.control, digits=3)}",
                f"{number(s.steps[0], digits=3)} against {number(s.steps[1], digits=3)}",
                _factor(s.log_speedup),
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


def _factor(log_factor: Estimate) -> str:
    """A log-ratio as a factor with its interval."""
    text = f"{math.exp(log_factor.value):.2f}×" if math.isfinite(log_factor.value) else NONE
    if log_factor.is_known:
        text += f" [{math.exp(log_factor.low):.2f}, {math.exp(log_factor.high):.2f}]"
    return text


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
                    fixed(_val_at(arm, "val_corr", 0).value),
                    fixed(_final(arm, "val_corr").value),
                    number(effects.epochs_to(arm, target), digits=3),
                    _note(arm),
                )
                for arm in v.condition.arms
            ],
        )
        for text in hypotheses(v):
            section.say(text)
    rows = []
    for v, arm in _arms(findings):
        if arm.best is None:
            continue
        rows.append(
            (
                _named(findings, v, arm.name),
                str(len(arm.best.finished)),
                *(
                    interval(_final(arm, m), digits=4)
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
        "Comparisons of the test loss: change [95 % interval over paired seeds], and p-values",
        [
            "pair",
            "question",
            "seeds",
            "change of test loss",
            "for new windows too",
            "p (t)",
            "p (Holm)",
            "p (permutation)",
            "p (Diebold–Mariano)",
            "shows",
        ],
        [
            (
                _named(findings, v, c.pair.name),
                KINDS[c.pair.kind],
                str(len(c.pair.seeds)),
                percent_interval(c.effect),
                NONE
                if c.new_windows is None
                else f"[{percent(c.new_windows.low)}, {percent(c.new_windows.high)}]",
                _p(c.effect.p),
                _p(c.p_holm),
                _p(c.p_permutation),
                NONE if c.over_time is None else _p(c.over_time.p),
                _shows(c),
            )
            for v, c in _questions(findings, *KINDS)
        ],
    )
    section.say(
        "p (t): paired t-test of the log-ratio; Holm adjusts it for all comparisons of one"
        " question. The permutation test assumes least and cannot go below 2/2ⁿ with n seeds"
        " (0.0625 with 5). Diebold–Mariano asks about time, not seeds: the seeds' mean losses on"
        " overlapping windows, with a HAC variance."
    )
    pictures = effects.forecasts(findings.main.condition)
    if pictures:
        section.show(
            "forecasts",
            "Three test windows of the first channel, each arm at its lowest seed. Grey lines:"
            " patch borders.",
            f"Forecasts of {', '.join(arm.name for arm, _ in pictures)} beside the truth.",
        )
    return section


def _shows(c: Comparison) -> str:
    if c.pair.kind == "weights" or c.kind == WITHHELD:
        return c.kind
    if c.kind == TRANSFERS:
        return "first arm better"
    if c.kind == DOES_NOT:
        return "first arm worse" if c.effect.low > 0 else "no difference that matters"
    return CANNOT_TELL


def _p(p: float) -> str:
    return NONE if not math.isfinite(p) else probability(p).removeprefix("= ")


def _final(arm: Arm, metric: str) -> Estimate:
    runs = arm.best.finished.values() if arm.best else ()
    return mean_interval([run.metric(metric) for run in runs])


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
            _named(findings, v, f"baseline: {name.replace('_', ' ')}"),
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
        name = _named(findings, v, "best achievable")
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
    if len(arm.points) > 1:
        parts.append(f"best of {len(arm.points)} settings")
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
    fair = [c for c in v.comparisons if c.pair.kind == "weights" and c.pair.seeds]
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
            TRANSFERS: "supports “pretraining transfers” over “random initialisation does as well”",
            DOES_NOT: "supports “random initialisation does as well” over “pretraining transfers”",
            CANNOT_TELL: "supports neither “pretraining transfers” nor “random does as well” yet",
        }.get(c.kind, "decides nothing: an invariant is broken")
        found.append(f"The fair arm: {c.pair.name}: {percent_interval(c.effect)}; this {outcome}.")
    for c in v.comparisons:
        is_staged = c.pair.kind == "freezing" and c.pair.treatment.init == "t5"
        if is_staged and c.pair.treatment.freeze == "staged" and c.pair.seeds:
            outcome = {
                "first arm better": "supports freezing first",
                "first arm worse": "speaks against freezing first",
                "no difference that matters": "freezing first makes no difference that matters",
            }.get(_shows(c), "does not decide whether freezing first helps")
            found.append(
                f"Freezing first: {c.pair.name}: {percent_interval(c.effect)}; this {outcome}."
            )
    return found


def stability(findings: Findings) -> Section:
    """Section 4."""
    section = Section(
        number=4, title="Stability", question="Does an unfreezing shake the training?"
    )
    rows = []
    for v, arm in _arms(findings):
        s = effects.stability(arm)
        jump = NONE
        if math.isfinite(s.jump):
            jump = f"{s.jump:.2f}× ({s.jump_component})"
        rows.append(
            (
                _named(findings, v, arm.name),
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


def when_to_unfreeze(findings: Findings) -> Section:
    """Section 5."""
    section = Section(
        number=5, title="When to unfreeze", question="Which unfreeze epoch and learning rate?"
    )
    main = findings.main.condition
    if any(effects.surface(arm) for arm in main.arms):
        section.show(
            "surface",
            "Mean validation objective of every setting tried, darker is better; the ring marks"
            " the best.",
            "; ".join(_best_in_words(arm) for arm in main.arms if arm.best and arm.tuned),
        )
    rows = []
    for v, arm in _arms(findings):
        if not arm.best or len(arm.points) < 2:
            continue
        near = effects.neighbours(arm)
        rows += [
            (
                _named(findings, v, arm.name),
                "best" if place == 0 else f"neighbour {place}",
                _settings(arm, point),
                number(point.objective),
                str(len(point.finished)),
            )
            for place, point in enumerate(near)
        ]
    if rows:
        section.tabulate(
            "Best setting per arm and its nearest neighbours (a best that stands alone is luck)",
            ["arm", "which", "settings", "val objective", "seeds"],
            rows,
        )
    section.tabulate(
        "Regret on validation: what a simple rule costs against the best plan of the same weights"
        " (paired over seeds; 0: nothing)",
        ["weights", "best plan", "never unfreeze", "unfreeze at once"],
        _regret_rows(findings),
    )
    if not rows:
        section.say(
            "No arm tried more than one setting: python -m t5ts.run --multirun"
            " freeze.unfreeze_epoch=0,1,3,5 optim.lr=3e-4,1e-3 gives this section its surface."
        )
    return section


def _best_in_words(arm: Arm) -> str:
    assert arm.best is not None
    return f"{arm.name}: best {number(arm.best.objective)} at {_settings(arm, arm.best)}"


def _settings(arm: Arm, point: Point) -> str:
    return (
        ", ".join(f"{k}={number_or_text(point.settings.get(k))}" for k in arm.tuned) or "as given"
    )


def number_or_text(value: object) -> str:
    """A setting's value."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def _regret_rows(findings: Findings) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for v in findings.verdicts:
        groups: dict[tuple[str, str], list[Arm]] = {}
        for arm in v.condition.arms:
            if arm.best and arm.freeze in ("none", "staged", "all"):
                groups.setdefault((arm.backbone, arm.init), []).append(arm)
        for (backbone, init), arms in groups.items():
            never = [a.best for a in arms if a.freeze == "all" and a.best]
            at_once = [a.best for a in arms if a.freeze == "none" and a.best]
            # A sweep over the unfreeze epoch has "at once" as one of its points.
            at_once += [
                min(zero, key=lambda p: -p.objective if a.maximize else p.objective)
                for a in arms
                if a.freeze == "staged"
                and (zero := [p for p in a.points if _starts_at_once(p) and p.finished])
            ]
            if not never and not at_once:
                continue
            sign = -1 if arms[0].maximize else 1
            best = min(arms, key=lambda a: sign * a.best.objective)  # type: ignore[union-attr]
            rows.append(
                (
                    _named(findings, v, f"{backbone}, {init}"),
                    best.name + (f" ({_settings(best, best.best)})" if best.tuned else ""),  # type: ignore[arg-type]
                    interval(effects.regret(best, never[0])) if never else "not run",
                    interval(effects.regret(best, at_once[0])) if at_once else "not run",
                )
            )
    return rows


def _starts_at_once(point: Point) -> bool:
    return point.settings.get("freeze.unfreeze_epoch") == 0


def gap_over_time(findings: Findings) -> Section:
    """Section 6."""
    section = Section(
        number=6,
        title="Gap over time",
        question="Does random initialisation catch up, and what is pretraining worth in data?",
    )
    rows = []
    for v, c in _questions(findings, "weights"):
        g = effects.gap(c.pair)
        if g is None:
            continue
        rows.append(
            (
                _named(findings, v, c.pair.name),
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
    """Effective data transferred, where one series was trained on several fractions of it."""
    by_series: dict[str, list[tuple[float, Pair]]] = {}
    for v in findings.verdicts:
        if v.main is None or not v.main.pair.seeds:
            continue
        rest = {k: x for k, x in v.condition.config.items() if k != "data.fraction"}
        key = f"{sorted(rest.items())} {v.main.pair.name}"
        windows = v.main.pair.treatment.runs[0].provenance.get("windows") or {}
        if windows.get("train"):
            by_series.setdefault(key, []).append((float(windows["train"]), v.main.pair))
    for entries in by_series.values():
        by_size = sorted(entries, key=lambda entry: entry[0])
        found = effects.effective_data_transferred(by_size)
        if not found:
            continue
        section.tabulate(
            f"Effective data transferred ({by_size[0][1].name}): how much data the random arm needs"
            " for the pretrained arm's test loss (Hernandez et al. 2021)",
            ["training windows", "worth to the random arm", "multiplier", "extra windows"],
            [
                (
                    f"{t.windows:,.0f}",
                    f"more than {by_size[-1][0]:,.0f}"
                    if math.isinf(t.equivalent)
                    else f"{t.equivalent:,.0f}",
                    _factor(t.multiplier) if t.multiplier.count else "beyond what was measured",
                    NONE if math.isinf(t.equivalent) else f"{t.equivalent - t.windows:,.0f}",
                )
                for t in found
            ],
        )


def validity(findings: Findings) -> Section:
    """Section 7."""
    section = Section(
        number=7, title="Validity", question="Do the arms differ in nothing but the weights?"
    )
    for v in findings.verdicts:
        section.tabulate(
            f"Invariants, on {v.condition.name}",
            ["invariant", "status", "evidence"],
            [(c.name, c.status, c.detail) for c in v.checks],
            broken={i for i, c in enumerate(v.checks) if c.status == BROKEN},
        )
    section.tabulate(
        "What differs between the arms of each comparison (best settings)",
        ["pair", "question", "settings: first arm against second"],
        [
            (
                _named(findings, v, c.pair.name),
                KINDS[c.pair.kind],
                "; ".join(
                    f"{k}: {number_or_text(a)} against {number_or_text(b)}"
                    for k, (a, b) in settings_that_differ(c.pair).items()
                )
                or "nothing",
            )
            for v, c in _questions(findings, *KINDS)
        ],
    )
    section.tabulate(
        "Tuning budget",
        ["arm", "settings tried", "runs", "seeds of the best", "epochs trained", "epochs asked"],
        [
            (
                _named(findings, v, arm.name),
                str(len(arm.points)),
                str(len(arm.runs)),
                str(len(arm.best.finished)) if arm.best else "0",
                f"{arm.epochs_trained:,}",
                f"{sum(int(r.config['train.epochs']) for r in arm.runs):,}",
            )
            for v, arm in _arms(findings)
        ],
    )
    _baselines(findings, section)
    if any(effects.scale_audit(arm) for arm in findings.main.condition.arms):
        section.show(
            "scale",
            "Scale at step 0: RMS of what goes into the encoder, of each block's output, and of"
            " the encoder's output. Arms that start at other scales differ in more than what T5"
            " learnt.",
            "; ".join(
                f"{arm.name}: output {number(effects.scale_audit(arm).get('output'), digits=3)}"
                for arm in findings.main.condition.arms
            ),
        )
    section.tabulate(
        "Where each arm's encoder comes from",
        ["arm", "source", "encoder tensors, SHA-256", "load report"],
        [(_named(findings, v, arm.name), *_weights(arm)) for v, arm in _arms(findings)],
    )
    return section


def _baselines(findings: Findings, section: Section) -> None:
    rows = []
    first = "seasonal naive"
    for v, arm in _arms(findings):
        runs = list(arm.best.finished.values()) if arm.best else []
        # The task's own naive forecast stands first.
        naive = [next(iter(r.result.baselines["test"].values()))["loss"] for r in runs if r.result]
        last = [r.result.baselines["test"]["last_value"]["loss"] for r in runs if r.result]
        test = [r.metric("test_loss") for r in runs]
        if not runs:
            continue
        if runs[0].result is not None:
            first = next(iter(runs[0].result.baselines["test"])).replace("_", " ")
        linear = next((a for a in v.condition.arms if a.backbone == "linear" and a.best), None)
        against_linear = "not run"
        if linear is not None and linear.best is not None and linear is not arm:
            seeds = sorted(set(linear.best.finished) & set(arm.best.finished))  # type: ignore[union-attr]
            ratio = log_ratio(
                [arm.best.finished[s].metric("test_loss") for s in seeds],  # type: ignore[union-attr]
                [linear.best.finished[s].metric("test_loss") for s in seeds],
            )
            against_linear = percent_interval(ratio)
        rows.append(
            (
                _named(findings, v, arm.name),
                percent_interval(log_ratio(test, naive)),
                percent_interval(log_ratio(test, last)),
                against_linear,
            )
        )
    section.tabulate(
        "Test loss against forecasts that need no encoder (geometric mean over seeds)",
        ["arm", first, "last value", "linear"],
        rows,
    )


def _weights(arm: Arm) -> tuple[str, str, str]:
    digests = {
        str((r.provenance.get("initial_sha256") or {}).get("encoder"))[:12] for r in arm.runs
    }
    weights = next((r.provenance["weights"] for r in arm.runs if r.provenance.get("weights")), None)
    shown = next(iter(digests)) + "…" if len(digests) == 1 else f"{len(digests)} (one per seed)"
    if weights is None:
        return "drawn from the seed", shown, NONE
    return (
        str(weights.get("source")),
        shown,
        "; ".join(weights.get("checks") or ()) or NONE,
    )
