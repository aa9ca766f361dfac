"""The verdict: from a study's comparisons to an answer in words, or the reason for none."""

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis.arms import (
    PRETRAINED,
    RANDOM,
    Arm,
    Condition,
    chosen_from,
    conditions,
    is_instruction_tuned,
    pairs,
)
from t5ts.analysis.judgement import (
    ALIKE,
    CANNOT_DISCRIMINATE,
    CANNOT_TELL,
    DOES_NOT,
    HIGHER,
    LOWER,
    LOWER_HERE,
    MARGIN,
    NOT_LEARNED,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
    Comparison,
    Facts,
    Findings,
    Verdict,
    compare,
    judge_family,
)
from t5ts.analysis.statistics import (
    ALPHA,
    FAILURE_RATE,
    FAILURE_SPREADS,
    Estimate,
    log_ratio,
    outlying,
    resolvable_effect,
    robust_p,
    seeds_needed,
    wilcoxon_p,
)
from t5ts.analysis.study import Run, Study
from t5ts.analysis.validity import (
    arms_needed,
    check_condition,
    check_pair,
    check_plans,
    failures,
    loader_notes,
)
from t5ts.analysis.words import percent, percent_interval, plural, probability

#: What was found: the verdict's kind, and the headline.
TEMPLATES: dict[str, tuple[str, str]] = {
    "no pretrained": (NOTHING, "Nothing is said about pretraining: no arm has pretrained weights."),
    "no arm": (NOTHING, "Nothing to compare fairly: there is no arm with {needed}."),
    "no seed": (NOTHING, "Nothing to compare yet: no pair of arms has finished the same seed."),
    "unfinished": (UNFINISHED, "Unfinished: {progress}; resume with {command}."),
    "broken": (WITHHELD, "No verdict: the arms cannot be compared."),
    "not learned": (NOT_LEARNED, "No verdict, since nothing was learned: {why}."),
    "frozen": (
        CANNOT_DISCRIMINATE,
        "This set-up cannot discriminate: an encoder that stays random does as well as"
        " {checkpoint} (within ±{margin}) or better. The data, the task, the model's size or its"
        " training may be why.",
    ),
    "helps": (
        TRANSFERS,
        "Pretraining helps with {checkpoint}: test loss {size} lower than with random weights"
        " ({interval}), and lower than with {rival} weights too.",
    ),
    "noted": (
        LOWER_HERE,
        "Test loss is {size} lower with {checkpoint} than with random weights ({interval}) and"
        " lower than with {rival} weights, but the loader doubts that these weights are T5's,"
        " pretrained on text.",
    ),
    "lower": (
        LOWER_HERE,
        "Test loss is {size} lower with {checkpoint} than with random weights ({interval});"
        " whether its content or its scale does it {unknown}.",
    ),
    "scale": (
        DOES_NOT,
        "It is not the text: with {checkpoint} test loss is {size} lower than with random weights,"
        " but not lower than with {rival} weights, which have the checkpoint's scale alone.",
    ),
    "text or scale": (
        CANNOT_TELL,
        "Cannot tell the text from the scale: with {checkpoint} test loss is {size} lower than"
        " with random weights, and may be as low with {rival} weights, which have the checkpoint's"
        " scale alone.",
    ),
    "unfair control": (
        CANNOT_TELL,
        "Cannot tell the text from the scale: with {checkpoint} test loss is {size} lower than"
        " with random weights, but {rival} weights, which have the checkpoint's scale alone, were"
        " not given the same chance.",
    ),
    "alike": (
        DOES_NOT,
        "Pretraining with {checkpoint} makes no difference that matters on these test windows: it"
        " moves the test loss by less than {margin} ({interval}){elsewhere}.",
    ),
    "higher": (
        DOES_NOT,
        "Test loss is {size} higher with {checkpoint} than with random weights ({interval}): this"
        " checkpoint does not help here.",
    ),
    "one seed": (
        CANNOT_TELL,
        "Cannot tell: one paired seed says nothing of how much seeds differ. Run at least 5 seeds"
        " of both arms.",
    ),
    "wide": (
        CANNOT_TELL,
        "Cannot tell: with {checkpoint} the test loss may be anything from {low} to {high} than"
        " with random weights. {count} paired seeds would decide.",
    ),
}
#: Loader's notes that speak against "pretrained on text".
_DOUBTS = re.compile(
    "origin:|fresh|not on text|barely trained|shuffled|before any training|redrawn"
)


def headline(facts: Facts) -> tuple[str, str]:
    """The verdict's kind and its sentences: a pure function of the facts."""
    kind, template = TEMPLATES[facts.outcome]
    words = {"checkpoint": facts.checkpoint, "margin": percent(facts.margin, sign=False)}
    if facts.main is not None:
        effect = facts.main.effect
        words |= {"size": _size(effect.value), "interval": _interval(effect)}
        words |= {"low": _lower_or_higher(effect.low), "high": _lower_or_higher(effect.high)}
    if facts.rival is not None:
        words["rival"] = facts.rival.pair.control.init
    said = template.format(**words | facts.values)
    return kind, " ".join([*facts.first, said, *facts.cautions])


def verdict(study: Study, *, margin: float = MARGIN) -> Findings:
    """Judge every condition of a study.

    The headline compares pretrained with random weights, each under the plan and setting that
    validation chose for it, at paired seeds. Test loss is *lower with this checkpoint* if the
    interval of the mean log-ratio, adjusted (Holm) for the study's data sets and checkpoints, lies
    below 0. It *transfers* if that also holds against every control (`matched`, `shuffled`) that
    was run, each at its own best. It *does not* if the interval lies above 0 or inside ±margin, or
    if a control does as well; the set-up *cannot discriminate* if an encoder that stays random
    does. There is no verdict from an unfinished sweep, where an invariant is broken, or where the
    better arm has *learned nothing*: it does not beat the naive forecasts or `linear` on
    validation, or its best epoch is mostly 0. Several data sets are one answer: their mean.

    Args:
        study: From `collect`.
        margin: Relative difference of the loss that does not matter.
    """
    found = conditions(study)
    compared = [[compare(pair) for pair in pairs(condition)] for condition in found]
    everything = [c for comparisons in compared for c in comparisons]
    for kind in {c.pair.kind for c in everything}:
        # One family per question, over all data sets and amounts of data.
        judge_family([c for c in everything if c.pair.kind == kind], margin=margin)
    verdicts = [
        _judge(study, condition, comparisons, study.left_out if number == 0 else [], margin)
        for number, (condition, comparisons) in enumerate(zip(found, compared, strict=True))
    ]
    findings = Findings(study=study, verdicts=verdicts)
    _answer(findings, margin)
    return findings


def _judge(
    study: Study,
    condition: Condition,
    compared: list[Comparison],
    left_out: Sequence[Run],
    margin: float,
) -> Verdict:
    best = [c for c in compared if c.pair.kind == "best"]
    main = _main([c for c in best if c.pair.seeds] or best)
    for c in compared:
        if c.pair.kind in ("best", "control", "weights", "same_plan", "checkpoint"):
            c.checks = check_pair(c.pair) if c.pair.seeds or c is main else []
            if c.broken:
                c.kind = WITHHELD  # it alone: the others stand
    judged = Verdict(
        condition=condition,
        kind=NOTHING,
        headline="",
        reasons=[],
        main=main,
        comparisons=compared,
        checks=[
            *(main.checks if main else []),
            *check_plans([c.pair for c in compared if c.pair.seeds]),
            *check_condition(condition, left_out),
        ],
        margin=margin,
    )
    facts = _facts(study, judged)
    judged.kind, judged.headline = headline(facts)
    backbones = list(dict.fromkeys(c.pair.treatment.backbone for c in best))
    if len(backbones) > 1:
        for backbone in backbones:
            own = [
                c
                for c in compared
                if c.pair.treatment.backbone == backbone and c.pair.kind != "checkpoint"
            ]
            judged.by_checkpoint[backbone] = _judge(study, condition, own, [], margin)
    judged.reasons[1:1] = [*_each_checkpoint(judged), *_between_checkpoints(judged)]
    return judged


def _main(best: Sequence[Comparison]) -> Comparison | None:
    """The pair whose pretrained arm validates best; the test windows have no say in it."""

    def rank(c: Comparison) -> tuple[int, float]:
        return -len(c.pair.seeds), c.pair.treatment.loss(c.pair.treatment.best)

    return min(best, key=rank, default=None)


def _facts(study: Study, judged: Verdict) -> Facts:
    """What the headline says; the reasons go to the verdict."""
    main, condition = judged.main, judged.condition
    if main is None:
        return _no_pair(judged)
    pair = main.pair
    sides = [arm for arms in pair.rivals for arm in arms]
    facts = Facts(
        outcome="wide",
        checkpoint=_checkpoint(pair.treatment),
        main=main,
        margin=judged.margin,
        first=_failed(judged),
    )
    judged.is_provisional = max(map(chosen_from, pair.rivals)) > 1
    asked = [*sides, *_control_arms(judged)]
    progress = _progress(study, asked)
    if pair.seeds:
        judged.reasons.append(
            f"Test loss of {pair.name}, on {condition.name}: {_sure(main)}. Each is at its own best"
            " plan and setting, chosen by validation."
        )
    else:
        seeds = "; ".join(
            f"{arm.name}: {', '.join(map(str, arm.best.finished)) if arm.best else 'none'}"
            for arm in (pair.treatment, pair.control)
        )
        judged.reasons.append(f"Seeds finished by {seeds}. Run both arms with the same seeds.")
    if progress:
        facts.outcome = "unfinished"
        facts.values = {
            "progress": " and ".join(f"{done}/{asked} ({name})" for name, done, asked in progress),
            "command": _command(asked),
        }
        judged.reasons.append(
            "No verdict before the end: whoever looks often and stops when the answer pleases is"
            " wrong more often than the intervals say."
        )
        return facts
    if not pair.seeds:
        facts.outcome = "no seed"
        return facts
    if main.broken:
        facts.outcome = "broken"
        judged.reasons[:0] = [f"{check.name}: {check.detail}." for check in main.broken]
        return facts
    why = _not_learned(main, condition)
    if why:
        facts.outcome, facts.values = "not learned", {"why": why}
        return facts
    _conclude(judged, facts)
    if TEMPLATES[facts.outcome][0] != CANNOT_TELL:
        _add_cautions(judged, facts)
    judged.reasons += _same_plan(judged, main)
    notes = loader_notes(pair.treatment)
    if notes:
        facts.cautions.append(f"The loader notes of these weights: {'; '.join(notes)}.")
    if main.kind in (LOWER, HIGHER):
        judged.reasons += [_robust(main), _over_time(main)]
    judged.reasons = [reason for reason in judged.reasons if reason]
    return facts


def _control_arms(judged: Verdict) -> list[Arm]:
    """The arms of `matched` and `shuffled` weights beside the headline's checkpoint."""
    assert judged.main is not None
    backbone = judged.main.pair.treatment.backbone
    return [
        arm
        for arm in judged.condition.arms
        if arm.backbone == backbone and arm.init not in (PRETRAINED, RANDOM)
    ]


def _failed(judged: Verdict) -> list[str]:
    """What failed of the arms that the headline is drawn from, a sentence each."""
    if judged.main is None:
        return []
    arms = [*(arm for arms in judged.main.pair.rivals for arm in arms), *_control_arms(judged)]
    return [
        f"{arm.name} failed at {len(lost)} of {count} seeds."
        for arm in arms
        for lost, count in [failures(arm)]
        if lost
    ]


def _no_pair(judged: Verdict) -> Facts:
    pretrained = [arm for arm in judged.condition.arms if arm.init == PRETRAINED]
    if not pretrained:
        judged.reasons = ["Add runs with init=t5 and the same settings and seeds."]
        return Facts(outcome="no pretrained")
    needed = sorted({arms_needed(arm) for arm in pretrained})
    others = [arm.name for arm in judged.condition.arms if arm.init == RANDOM]
    reason = (
        "A fair control has the same encoder and plan with random weights:"
        f" backbone={pretrained[0].backbone} {arms_needed(pretrained[0])}"
    )
    if others:
        reason += f" ({', '.join(others)} differ from the pretrained arm in more)"
    judged.reasons = [reason + "."]
    return Facts(outcome="no arm", values={"needed": " or ".join(needed)})


def _conclude(judged: Verdict, facts: Facts) -> None:
    """From the comparisons to an outcome."""
    main = facts.main
    assert main is not None
    effect, margin = main.effect, judged.margin
    frozen = _frozen_random(judged, main)
    plans = {arm.freeze for arm in main.pair.rivals[0]}
    if frozen is not None and (
        frozen.effect.within(margin) or (frozen.kind == HIGHER and "all" not in plans)
    ):
        facts.outcome = "frozen"
        judged.reasons.append(
            f"{frozen.pair.name}: test loss {percent_interval(frozen.effect)} (95 % interval)."
            " Whatever the encoder contributes cannot be seen here."
        )
        return
    if main.kind == LOWER:
        _text_or_scale(judged, facts)
    elif main.kind == HIGHER:
        facts.outcome = "higher"
    elif main.kind == ALIKE:
        facts.outcome, facts.values = "alike", {"elsewhere": ""}
        wide = main.new_windows
        if wide is not None and not wide.within(margin):
            reach = f"{_lower_or_higher(wide.low)} to {_lower_or_higher(wide.high)}"
            facts.values["elsewhere"] = f"; on other stretches of the series it may be {reach}"
    elif not effect.is_known:
        facts.outcome = "one seed"
    else:
        facts.values = {"count": _count_needed(judged, main).capitalize()}
        if main.p_t < ALPHA:
            judged.reasons.append(
                f"Alone the comparison would show a difference (p {probability(main.p_t)}), but not"
                f" after allowing for all {main.family} comparisons made."
            )
    if frozen is not None and frozen.effect.low <= 0 <= frozen.effect.high:
        judged.reasons.append(
            f"Caution: {frozen.pair.control.name}, an encoder that stays random, lies within the"
            f" interval of {frozen.pair.treatment.name} ({percent_interval(frozen.effect)})."
        )


def _text_or_scale(judged: Verdict, facts: Facts) -> None:
    """Who beats random weights must also beat controls that have the checkpoint's scale alone."""
    assert facts.main is not None
    treatment = facts.main.pair.treatment
    controls = [c for c in _controls(judged, treatment) if c.pair.seeds]
    worst = [WITHHELD, HIGHER, ALIKE, CANNOT_TELL, LOWER]
    rank = {id(c): (worst.index(c.kind), -c.effect.value) for c in controls}
    rival = facts.rival = min(controls, key=lambda c: rank[id(c)], default=None)
    if rival is None:
        facts.outcome, facts.values = "lower", {"unknown": "was not asked"}
        add = "init=matched and init=shuffled (experiment=controls)"
        if run := dict.fromkeys(f"init={arm.init}" for arm in _control_arms(judged)):
            facts.values["unknown"] = "is not known: no control finished its seeds under its plans"
            plans = " or ".join(f"freeze={arm.freeze}" for arm in facts.main.pair.rivals[0])
            seeds = ", ".join(map(str, facts.main.pair.seeds))
            add = f"{' and '.join(run)} with {plans} at seeds {seeds}"
        judged.reasons.append(
            f"No control tells whether the text helps or only the weights' scale: add {add}."
        )
        return
    facts.outcome = {
        WITHHELD: "unfair control",
        HIGHER: "scale",
        ALIKE: "scale",
        CANNOT_TELL: "text or scale",
        LOWER: "helps",
    }[rival.kind]
    if facts.outcome == "helps" and _is_doubted(treatment):
        facts.outcome = "noted"
    if rival.kind == WITHHELD:
        judged.reasons += [_why_withheld(c) for c in controls if c.kind == WITHHELD]
    else:
        judged.reasons.append(
            f"Against weights of the same scale without the text: {rival.pair.name}: test loss"
            f" {_sure(rival)}."
        )
    if rival.kind == CANNOT_TELL and rival.effect.is_known:
        _count_needed(judged, rival)


def _is_doubted(arm: Arm) -> bool:
    """Whether the loader notes something that speaks against "pretrained on text"."""
    return any(map(_DOUBTS.search, loader_notes(arm)))


def _controls(judged: Verdict, treatment: Arm) -> list[Comparison]:
    of_backbone = (c for c in judged.comparisons if c.pair.treatment.backbone == treatment.backbone)
    return [c for c in of_backbone if c.pair.kind == "control"]


def _add_cautions(judged: Verdict, facts: Facts) -> None:
    """What a decided verdict must say of itself."""
    assert facts.main is not None
    tried = [chosen_from(arms) for arms in facts.main.pair.rivals]
    if judged.is_provisional:
        facts.first.insert(0, "Provisional:")
        facts.cautions.append(
            f"The best of {max(tried)} plans and settings was chosen and tested on the same seeds;"
            " experiment=final runs it on others."
        )
    against = [c for c in _plans_compared(judged, facts.main) if c.kind != facts.main.kind]
    against = [c for c in against if c.kind in (LOWER, HIGHER, ALIKE)]
    if against:
        facts.cautions.append(
            "Under one and the same plan it looks different: "
            + "; ".join(f"{c.pair.name} {percent_interval(c.effect)}" for c in against)
            + "."
        )


def _plans_compared(judged: Verdict, main: Comparison) -> list[Comparison]:
    backbone = main.pair.treatment.backbone
    return [
        c
        for c in judged.comparisons
        if c.pair.kind == "weights" and c.pair.seeds and c.pair.treatment.backbone == backbone
    ]


def _same_plan(judged: Verdict, main: Comparison) -> list[str]:
    return [
        f"Under one plan, {c.pair.name}: {percent_interval(c.effect)}, p {probability(c.p_holm)}:"
        f" {c.kind}."
        for c in _plans_compared(judged, main)
    ]


def _not_learned(main: Comparison, condition: Condition) -> str:
    """Why the winning arm has shown nothing, on validation; empty if it has learned."""
    pair = main.pair
    wins = pair.treatment if main.effect.value < 0 else pair.control
    assert wins.best is not None
    runs = {seed: wins.best.finished[seed] for seed in pair.seeds}
    losses = [run.metric("val_loss") for run in runs.values()]
    at_once = sum(run.result is not None and run.result.best_epoch == 0 for run in runs.values())
    if 2 * at_once >= len(runs):
        return f"{wins.name}, the better arm, was best at epoch 0 in {at_once} of {len(runs)} runs"
    naive = [run.result.baselines["val"] for run in runs.values() if run.result is not None]
    rivals: dict[str, tuple[list[float], list[float]]] = {
        name.replace("_", " "): (losses, [of[name]["loss"] for of in naive]) for name in naive[0]
    }
    for arm in condition.arms:
        seeds = [s for s in pair.seeds if arm.best and s in arm.best.finished]
        if arm.backbone == "linear" and wins.backbone != "linear" and arm.best and seeds:
            ours, theirs = (
                [point[seed].metric("val_loss") for seed in seeds]
                for point in (runs, arm.best.finished)
            )
            rivals[arm.name] = (ours, theirs)
    better = [
        f"{name} ({percent_interval(ratio)})"
        for name, values in rivals.items()
        for ratio in [log_ratio(*values)]
        if ratio.value >= 0
    ]
    if not better:
        return ""
    return f"{wins.name}, the better arm, does not beat {', '.join(better)} on validation"


def _progress(study: Study, arms: Iterable[Arm]) -> list[tuple[str, int, int]]:
    """Of what is not finished: its name, how many runs have ended, and of how many."""
    runs = [run for arm in arms for run in arm.runs]
    sweeps = {_sweep_of(run) for run in runs} - {None}
    ended: dict[Any, set[Any]] = {sweep: set() for sweep in sweeps}
    asked: dict[Any, int] = dict.fromkeys(sweeps, 0)
    for run in (*study.runs, *study.left_out):
        sweep = _sweep_of(run)
        if sweep in ended:
            asked[sweep] = max(asked[sweep], int(run.trial["n_trials"]))
            if run.result is not None or run.trial["state"] in ("complete", "pruned", "failed"):
                ended[sweep].add(run.trial["number"])
    found = [
        (str(sweep[1] or sweep[0]), len(ended[sweep]), asked[sweep])
        for sweep in sorted(sweeps, key=str)
        if len(ended[sweep]) < asked[sweep]
    ]
    for arm in arms:
        own = [run for run in arm.runs if _sweep_of(run) is None]
        if any(run.is_open for run in own):
            found.append((arm.name, sum(not run.is_open for run in own), len(own)))
    return found


def _sweep_of(run: Run) -> Any:
    known = {"study", "number", "n_trials", "state"} <= run.trial.keys()
    return (run.trial["study"], run.trial.get("arm")) if known else None


def _command(arms: Iterable[Arm]) -> str:
    """The command that resumes what is unfinished, as Hydra or the run recorded it."""
    import yaml

    runs = [run for arm in arms for run in arm.runs]
    for run in runs:
        for folder in run.path.resolve().parents[:3]:
            if (folder / "multirun.yaml").is_file():
                said = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
                lines = said["hydra"]["overrides"]
                words = shlex.join([*lines["task"], *lines["hydra"]])
                return f"`python -m t5ts.run --multirun {words}`"
        command = run.provenance.get("command") or []
        if run.is_open and command and Path(command[0]).name == "run.py":
            return f"`python -m t5ts.run {shlex.join(command[1:])}`"
    return f"the command that wrote {os.path.commonpath([run.path for run in runs])}"


def _checkpoint(arm: Arm) -> str:
    """The pretrained weights by their option's name and where they were read from."""
    sources = {
        (run.provenance.get("weights") or {}).get("source") for run in arm.runs if run.provenance
    } - {None, arm.backbone}
    return f"{arm.backbone} ({', '.join(sorted(map(str, sources)))})" if sources else arm.backbone


def _each_checkpoint(judged: Verdict) -> list[str]:
    """What each checkpoint but the headline's shows; whose the headline is."""
    if judged.main is None or len(judged.by_checkpoint) < 2:
        return []
    first = judged.main.pair.treatment.backbone
    if judged.kind not in (WITHHELD, NOTHING, UNFINISHED):
        others = [
            f"{backbone}: {v.kind}"
            for backbone, v in judged.by_checkpoint.items()
            if v.kind != judged.kind
        ]
        judged.headline += (
            f" This is {first}, the best of {len(judged.by_checkpoint)} checkpoints on validation"
            + (f"; not so {', '.join(others)}." if others else "; the others agree.")
        )
    return [
        f"With {backbone}: {v.headline} {v.reasons[0]}"
        for backbone, v in judged.by_checkpoint.items()
        if backbone != first
    ]


def _between_checkpoints(judged: Verdict) -> list[str]:
    """Which of two checkpoints of one architecture is better; that others are not compared."""
    said = []
    for c in judged.comparisons:
        if c.pair.kind != "checkpoint" or not c.pair.seeds:
            continue
        if c.kind == WITHHELD:
            said.append(_why_withheld(c))
            continue
        a, b = c.pair.treatment.backbone, c.pair.control.backbone
        tuned = is_instruction_tuned(a) and not is_instruction_tuned(b)
        subject = "Instruction tuning" if tuned else f"The choice of {a} instead of {b}"
        outcome = {
            LOWER: f"{subject} helps",
            HIGHER: f"{subject} hurts",
            ALIKE: f"{subject} makes no difference that matters",
            CANNOT_TELL: f"Cannot tell whether {subject[:1].lower()}{subject[1:]} helps",
        }[c.kind]
        said.append(
            f"{outcome}: test loss of {c.pair.name} {_sure(c)}; the same architecture and plan."
        )
    shapes: dict[str, list[str]] = {}
    for arm in judged.condition.arms:
        if arm.init == PRETRAINED and arm.backbone not in shapes.get(str(arm.architecture), []):
            shapes.setdefault(str(arm.architecture), []).append(arm.backbone)
    if len(shapes) > 1:
        groups = "; ".join(" and ".join(backbones) for backbones in shapes.values())
        said.append(
            f"Not compared with each other, since their architectures differ: {groups}. Each is"
            " judged against random weights of its own shape."
        )
    return said


def _why_withheld(c: Comparison) -> str:
    return f"{c.pair.name} cannot be compared: {'; '.join(check.detail for check in c.broken)}."


def _frozen_random(judged: Verdict, main: Comparison) -> Comparison | None:
    """The comparison of the headline's pretrained arm with an encoder that stays random."""
    for c in judged.comparisons:
        is_frozen = c.pair.control.freeze == "all" and c.pair.control.init == RANDOM
        same_backbone = c.pair.control.backbone == main.pair.treatment.backbone
        if c.pair.treatment is main.pair.treatment and is_frozen and same_backbone and c.pair.seeds:
            return None if main.pair.treatment.freeze == "all" else c
    return None


def _count_needed(judged: Verdict, c: Comparison) -> str:
    """How many paired seeds would decide a comparison, in words; into the verdict too."""
    sd, n, tests = c.effect.sd, c.effect.count, c.family
    judged.seeds_needed = seeds_needed(sd=sd, count=n, margin=judged.margin, tests=tests)
    count = "more than 10,000"
    if judged.seeds_needed is not None:
        count = f"about {max(judged.seeds_needed, n + 1)}"
    now, twice = (
        _size(resolvable_effect(sd=sd, count=seeds, pilot=n, tests=tests)) for seeds in (n, 2 * n)
    )
    judged.reasons.append(
        f"{n} paired seeds show a true difference of {now} in 80 % of studies, {2 * n} one of"
        f" {twice}; {count} decide whether there is one that matters"
        f" ({percent(judged.margin, sign=False)}), whatever it is. All from the spread of these."
    )
    return count


def _robust(main: Comparison) -> str:
    """Whether the result is only about seeds that behave; empty where it stands either way."""
    a, b = main.pair.values("test_loss")
    logs = np.log(a / b)
    odd = ", ".join(str(main.pair.seeds[i]) for i in sorted(outlying(logs)))
    said = [f"Unlike the other seeds: {odd}."] if odd else []
    p = robust_p(logs)
    if not p < ALPHA:
        said.append(
            f"This is about seeds like these: if {100 * FAILURE_RATE:g} % of seeds failed by"
            f" {FAILURE_SPREADS:g} of these spreads, {len(logs)} seeds would not show it"
            f" (p {probability(p)})."
        )
    return " ".join(said)


def _sure(c: Comparison) -> str:
    """An effect with its interval and how sure that is."""
    text = percent_interval(c.effect)
    if not c.effect.is_known:
        return text
    n = plural(c.effect.count, "paired seed")
    return f"{text} (95 % interval over {n}{_allowing(c)}, Holm-adjusted p {probability(c.p_holm)})"


def _allowing(c: Comparison) -> str:
    return f", allowing for {c.family} comparisons" if c.family > 1 else ""


def _size(log_effect: float) -> str:
    return percent(abs(math.expm1(log_effect)), sign=False)


def _interval(effect: Estimate) -> str:
    ends = (percent(math.expm1(end)) for end in (effect.low, effect.high))
    return f"95 % interval {' to '.join(ends)}"


def _lower_or_higher(log_effect: float) -> str:
    return f"{_size(log_effect)} {'higher' if log_effect > 0 else 'lower'}"


def _over_time(main: Comparison) -> str:
    """Whether it also holds for other stretches of the series; empty where not recorded."""
    wide, dm = main.new_windows, main.over_time
    if wide is None or dm is None:
        return ""
    same = wide.excludes_zero() and (wide.value < 0) == (main.effect.value < 0)
    holds = "it holds there too" if same else "it is not shown there"
    return (
        f"For other stretches of this series, as well as other seeds: {percent_interval(wide)}:"
        f" {holds} (Diebold–Mariano on {dm.count:,} overlapping windows: p {probability(dm.p)})."
    )


def _answer(findings: Findings, margin: float) -> None:
    """The study's answer: the main condition's, or what several data sets show together."""
    main = findings.main
    findings.kind, findings.headline = main.kind, main.headline
    findings.reasons = list(main.reasons)
    if len(findings.verdicts) == 1:
        return
    lines = [f"{v.condition.name}: {v.kind}. {v.headline}" for v in findings.verdicts]
    judged = _by_data(findings.verdicts)
    stopped = [
        kind for kind in (WITHHELD, UNFINISHED) if kind in {v.kind for v in findings.verdicts}
    ]
    names = {_data(v.condition) for v in findings.verdicts}
    if len(names) > 1 and stopped:
        findings.kind = stopped[0]
        which = [v.condition.name for v in findings.verdicts if v.kind == stopped[0]]
        findings.headline = (
            f"No verdict over {len(names)} data sets: {stopped[0]} on {'; '.join(which)}."
        )
        findings.reasons = lines
    elif len(judged) > 1:
        findings.kind, findings.headline = _over_data(judged, len(names), margin)
        findings.reasons = [f"Wilcoxon across data sets: p {_wilcoxon(judged)}.", *lines]
    else:
        kinds = Counter(v.kind for v in findings.verdicts if v is not main)
        others = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        findings.headline += f" That is {main.condition.name}; of the other conditions {others}."
        findings.reasons += lines


def _data(condition: Condition) -> str:
    """Which series: by its checksum where it is known."""
    prints = (json.loads(run.fingerprint)[0] for run in condition.runs if run.fingerprint)
    return str(next(prints, condition.config["data.name"]))


def _by_data(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts that say something, by data set; of each those on the most training data."""
    groups: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if v.kind not in (WITHHELD, UNFINISHED, NOTHING, NOT_LEARNED):
            groups.setdefault(_data(v.condition), []).append(v)
    return [
        [v for v in group if v.condition.config["data.fraction"] == most]
        for group in groups.values()
        for most in [max(v.condition.config["data.fraction"] for v in group)]
    ]


def _mean_effects(judged: Sequence[Sequence[Verdict]], kind: str) -> list[float]:
    """The log effect on each data set, the mean over its tasks and lengths; of rivals the worst."""
    found = []
    for group in judged:
        effects = [
            max(own)
            for v in group
            if (
                own := [
                    c.effect.value for c in v.comparisons if c.pair.kind == kind and _is_of(v, c)
                ]
            )
        ]
        found += [float(np.mean(effects))] if effects else []
    return found


def _is_of(v: Verdict, c: Comparison) -> bool:
    """Whether a comparison is of the verdict's own checkpoint."""
    assert v.main is not None
    return bool(c.pair.seeds) and c.pair.treatment.backbone == v.main.pair.treatment.backbone


def _wilcoxon(judged: Sequence[Sequence[Verdict]]) -> str:
    return probability(wilcoxon_p(_mean_effects(judged, "best")))


def _over_data(judged: Sequence[Sequence[Verdict]], asked: int, margin: float) -> tuple[str, str]:
    """Kind and headline over several data sets, each of which counts once."""
    effects, controls = (_mean_effects(judged, kind) for kind in ("best", "control"))
    overall, against = (log_ratio(np.exp(x), np.ones(len(x))) for x in (effects, controls))
    every = [v for group in judged for v in group]
    of_controls = [
        c for v in every for c in v.comparisons if c.pair.kind == "control" and _is_of(v, c)
    ]
    doubted = [v.condition.name for v in every if v.main and _is_doubted(v.main.pair.treatment)]
    if overall.within(margin):
        kind, said = DOES_NOT, "No difference that matters."
    elif not overall.excludes_zero():
        kind, said = CANNOT_TELL, "Over data sets like these it cannot be told."
    elif overall.value > 0:
        kind, said = DOES_NOT, "Pretrained weights do not help."
    elif any(c.kind == WITHHELD for c in of_controls):
        kind, said = CANNOT_TELL, "But the controls' weights were not given the same chance."
    elif len(controls) < len(effects):
        kind, said = LOWER_HERE, "Whether its content or its scale does it is not known of all."
    elif not against.high < 0:
        kind, said = CANNOT_TELL, "But not shown to be lower than with the controls' weights."
    elif doubted:
        kind = LOWER_HERE
        said = (
            "It is lower than with the controls' weights too, but the loader doubts that these"
            f" weights are T5's, pretrained on text ({'; '.join(doubted)})."
        )
    else:
        kind, said = TRANSFERS, "It is lower than with the controls' weights too."
    checkpoints = dict.fromkeys(_checkpoint(v.main.pair.treatment) for v in every if v.main)
    which = " or ".join(checkpoints) + (", the best of each," if len(checkpoints) > 1 else "")
    text = (
        f"Over {len(effects)} data sets test loss with {which} against"
        f" random weights changes by {percent_interval(overall)} (95 % interval over data sets);"
        f" lower in {sum(e < 0 for e in effects)} of {len(effects)}. {said}"
    )
    if len(judged) < asked:
        text += f" Without a verdict: {plural(asked - len(judged), 'more data set')}."
    failed = [f"{v.condition.name}: {line}" for v in every for line in _failed(v)]
    text = " ".join([*failed, text])
    if kind != CANNOT_TELL and any(v.is_provisional for v in every):
        text = f"Provisional: {text} Settings were chosen and tested on the same seeds."
    return kind, text
