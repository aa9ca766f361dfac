"""The verdict: from a study's comparisons to an answer in words, or the reason for none."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from t5ts.analysis import statistics
from t5ts.analysis.arms import RANDOM, Arm, Condition, conditions
from t5ts.analysis.encoder import checkpoint_of, in_play, is_doubted, loader_notes, weights_names
from t5ts.analysis.judgement import (
    ALIKE,
    CANNOT_TELL,
    HIGHER,
    LOWER,
    MARGIN,
    NO_VERDICT,
    NOTHING,
    OUTCOMES,
    UNFINISHED,
    WITHHELD,
    Comparison,
    Findings,
    Verdict,
    judge_family,
    shown_by,
)
from t5ts.analysis.pairs import pairs
from t5ts.analysis.statistics import ALPHA, log_ratio, mean_interval
from t5ts.analysis.study import Study, grouped
from t5ts.analysis.validity import check_condition, check_pair, check_reading
from t5ts.analysis.words import arm_label, faults, in_words, sentence, sentences
from t5ts.errors import DataError

#: The outcome if the pretrained arm beats random weights, by its result against its worst
#: control; worst first.
AGAINST_CONTROL = {
    WITHHELD: "unfair_control",
    HIGHER: "scale",
    ALIKE: "scale",
    CANNOT_TELL: "text_or_scale",
    LOWER: "helps",
}
#: Kinds of pairs whose validity a verdict reads.
_CHECKED = ("best", "control", "weights", "same_plan", "checkpoint")


def verdict(study: Study, *, margin: float = MARGIN) -> Findings:
    """Judge every condition of a study.

    The headline compares pretrained weights (`arms.PRETRAINED`) with random ones, each with the
    schedule and setting chosen for it on validation, at paired seeds, by the interval of the mean
    log-ratio of test losses, adjusted (Holm) for the study's data sets and checkpoints. The
    outcomes, and when there is none: docs/report.md. Several data sets give one answer.

    Args:
        study: From `collect`; a DataError if none of its runs can be used.
        margin: Relative difference of the loss that does not matter.
    """
    unread = check_reading(study.left_out)
    if not study.runs:
        raise DataError(f"no run can be judged, {unread[0].detail}.")
    found = conditions(study)
    compared = [[Comparison(pair) for pair in pairs(condition)] for condition in found]
    # One family per question, over all data sets and amounts of data.
    for kind, family in grouped(chain(*compared), lambda c: c.pair.kind).items():
        judge_family(family, margin=margin)
        for c in family if kind in _CHECKED else ():
            c.checks = check_pair(c.pair) if c.pair.seeds or kind == "best" else []
            if c.broken:
                c.kind = WITHHELD  # only this comparison
    verdicts = [_judge(study, *group, margin) for group in zip(found, compared, strict=True)]
    verdicts[0].checks += unread  # once
    return _answer(Findings(study=study, verdicts=verdicts), margin)


def _judge(study: Study, condition: Condition, found: list[Comparison], margin: float) -> Verdict:
    v = Verdict(condition, found, margin)
    v.checks += check_condition(condition, [c.pair for c in found if c.pair.seeds])
    _conclude(study, v)
    if v.main is None:
        return v
    names = weights_names(condition.arms)
    arms = {c.pair.treatment.weights: c.pair.treatment for c in found if c.pair.kind == "best"}
    for weights, arm in arms.items() if len(arms) > 1 else ():
        # Comparisons of these weights, or of their counterparts.
        ours = [c for c in found if c.pair.kind != "checkpoint"]
        ours = [c for c in ours if c.pair.treatment.weights == weights
                or c.pair.treatment.is_control_of(arm)]  # fmt: skip
        v.by_checkpoint[names[weights]] = _judge(study, condition, ours, margin)
    pretrained = [arm for arm in condition.arms if arm.is_pretrained]
    shapes = grouped(pretrained, lambda arm: str(arm.architecture)).values()
    values = {
        "first": names[v.main.pair.treatment.weights],
        "names": names,
        "shapes": [dict.fromkeys(names[arm.weights] for arm in arms) for arms in shapes],
    }
    v.reasons[1:1] = sentences("checkpoints", v=v, **values)
    if v.by_checkpoint and v.kind not in (WITHHELD, NOTHING, UNFINISHED):
        v.headline += " " + sentence("best_checkpoint", v=v, **values)
    return v


def _conclude(study: Study, v: Verdict) -> None:
    """Kind, headline and reasons of a condition's verdict."""
    main, after = v.main, []
    v.facts["checkpoint"] = checkpoint_of(main.pair.treatment) if main else None
    v.outcome = _outcome(study, v)
    v.kind = OUTCOMES[v.outcome]
    before = v.failed
    if main is not None and v.kind not in NO_VERDICT:
        same_plan = v.of_headline("weights")
        against = [c for c in same_plan if c.kind in (LOWER, HIGHER, ALIKE) and c.kind != main.kind]
        if v.kind != CANNOT_TELL and v.is_provisional:
            before.insert(0, "Provisional:")
            after.append(sentence("provisional", v=v))
        if v.kind != CANNOT_TELL and against:
            after.append(sentence("one_plan_differs", against=against))
        if notes := loader_notes(main.pair.treatment):
            after.append(sentence("notes", notes=notes))
        v.reasons += [sentence("under_one_plan", c=c) for c in same_plan]
        if found := main.pair.overruled:
            v.reasons.append(sentence("overruled", found=found))
        if main.kind in (LOWER, HIGHER):
            logs = np.log(np.divide(*main.pair.values("test_loss")))
            odd = [main.pair.seeds[place] for place in sorted(statistics.outlying(logs))]
            v.say("how_sure", odd=odd, p=statistics.robust_p(logs))
    v.headline = " ".join([*before, sentence(v.outcome, **v.facts), *after])


def _outcome(study: Study, v: Verdict) -> str:
    """A key of `OUTCOMES`; adds the reasons, and the facts that its headline needs."""
    main = v.main
    if main is None:
        pretrained = [arm for arm in v.condition.arms if arm.is_pretrained]
        if not pretrained:
            v.say("add_pretrained")
            return "no_pretrained"
        others = [in_words(arm) for arm in v.condition.arms if arm.init == RANDOM]
        needed = [f"init={RANDOM} freeze={arm.freeze}" for arm in pretrained]
        v.say("add_random", arm=pretrained[0], needed=needed, others=others)
        return "no_arm"
    v.say("best_plans" if main.pair.seeds else "no_shared_seed")
    if progress := _progress(study, v.asked):
        v.say("no_peeking", progress=progress, command=_command(v.asked))
        return "unfinished"
    if not main.pair.seeds:
        return "no_seed"
    if main.broken:
        v.reasons.insert(0, faults(main))
        return "broken"
    if why := _not_learned(main, v.condition):
        v.facts["why"] = why
        return "not_learned"
    controls = (c.pair.control for c in v.of_headline("control"))
    for arm in dict.fromkeys((*main.pair.arms, *controls)):
        if (use := in_play(arm)) is not None:
            v.reasons.append(sentence("in_play", arm=arm, of=use, answer=use.answer(v.margin)))
    if main.kind != LOWER and _is_not_asked(v, main):
        v.say("put_in_play")
        return "not_asked"
    return _what_it_shows(v, main)


def _is_not_asked(v: Verdict, main: Comparison) -> bool:
    """Whether the arms could not show what their weights know.

    A finding against the weights requires an encoder that was in play. Where the losses cannot
    tell, this replaces that answer only if the encoders were shown to be out of play.
    """
    found = {arm: use for arm in main.pair.arms if (use := in_play(arm)) is not None}
    answers = {use.answer(v.margin) for use in found.values()}
    unmoved = {arm: use for arm, use in found.items() if use.never_moved}
    v.facts |= {"unmoved": unmoved, "idle": found, "unsure": answers != {"no"}}
    is_out = len(found) == 2 and "yes" not in answers
    return bool(unmoved) or (is_out and (answers == {"no"} or main.kind != CANNOT_TELL))


def _what_it_shows(v: Verdict, main: Comparison) -> str:
    """The outcome of valid comparisons."""
    arm = main.pair.treatment
    # The headline's arm vs. a frozen random encoder, whatever else that pair answers.
    found = (
        c
        for c in v.comparisons
        if c.pair.seeds and c.pair.treatment is arm and arm.freeze != "all"
        if c.pair.control.weights[:2] == (arm.backbone, RANDOM) and c.pair.control.freeze == "all"
    )
    frozen = next(found, None)
    plans = {arm.freeze for arm in main.pair.rivals[0]}
    if frozen is not None and (
        frozen.effect.within(v.margin) or (frozen.kind == HIGHER and "all" not in plans)
    ):
        v.say("seen_nothing", frozen=frozen)
        return "frozen"
    outcome = "wide"
    if main.kind == LOWER:
        outcome = _content_or_scale(v)
    elif main.kind == HIGHER:
        outcome = "higher"
    elif main.kind == ALIKE:
        outcome, wide = "alike", main.new_windows
        v.facts["elsewhere"] = None if wide is None or wide.within(v.margin) else wide
    elif not main.effect.is_known:
        outcome = "one_seed"
    else:
        _count_needed(v, main)
        if main.p_t < ALPHA:
            v.say("alone")
    if frozen is not None and frozen.effect.low <= 0 <= frozen.effect.high:
        v.say("frozen_within", frozen=frozen)
    return outcome


def _content_or_scale(v: Verdict) -> str:
    """The outcome vs. controls that share only the checkpoint's scale, if random is beaten."""
    controls = v.of_headline("control")
    if not controls:
        v.say("add_controls", controls=dict.fromkeys(f"init={arm.init}" for arm in v.controls))
        return "lower"
    worst = list(AGAINST_CONTROL)
    rival = min(controls, key=lambda c: (worst.index(c.kind), -c.effect.value))
    outcome = AGAINST_CONTROL[rival.kind]
    if outcome == "helps" and is_doubted(rival.pair.treatment):
        outcome = "noted"
    v.facts["rival"] = rival
    if rival.kind == WITHHELD:
        v.reasons += [sentence("cannot_be_compared", c=c) for c in controls if c.kind == WITHHELD]
    else:
        v.say("against_control")
    if rival.kind == CANNOT_TELL and rival.effect.is_known:
        _count_needed(v, rival)
    return outcome


def _not_learned(main: Comparison, condition: Condition) -> str:
    """Why the better arm learned nothing, on validation; empty if it did learn."""
    wins = main.pair.treatment if main.effect.value < 0 else main.pair.control
    runs = {seed: wins.finished[seed] for seed in main.pair.seeds}
    results = [run.result for run in runs.values() if run.result is not None]
    at_once = sum(result.best_epoch == 0 for result in results)
    if 2 * at_once >= len(runs):
        return sentence("best_at_once", arm=wins, at_once=at_once, count=len(runs))
    ours = {seed: run.metric("val_loss") for seed, run in runs.items()}
    naive = [result.baselines["val"] for result in results]
    ratios = {
        name.replace("_", " "): log_ratio([*ours.values()], [one[name]["loss"] for one in naive])
        for name in naive[0]
    }
    for arm in condition.arms:
        shared = [seed for seed in ours if seed in arm.finished]
        if arm.backbone == "linear" and wins.backbone != "linear" and shared:
            theirs = [arm.finished[seed].metric("val_loss") for seed in shared]
            ratios[arm_label(arm)] = log_ratio([ours[seed] for seed in shared], theirs)
    better = {name: ratio for name, ratio in ratios.items() if ratio.value >= 0}
    return sentence("beaten", arm=wins, better=better) if better else ""


def _progress(study: Study, arms: Sequence[Arm]) -> list[tuple[str, int, int]]:
    """For everything unfinished: its name, the number of runs that ended, and the total."""
    every = grouped((*study.runs, *study.left_out), lambda run: run.sweep)
    sweeps = {run.sweep for arm in arms for run in arm.runs if run.sweep}
    found = []
    for sweep in sorted(sweeps, key=str):
        ended = {
            run.trial["number"]
            for run in every[sweep]
            if run.trial["state"] in ("complete", "pruned", "failed")
            # Of a trial with several seeds, one that has finished is not the end.
            or (run.result is not None and "seed_of" not in run.trial)
        }
        asked = max(int(run.trial["n_trials"]) for run in every[sweep])
        found.append((str(sweep[1] or sweep[0]), len(ended), asked))
    for arm in arms:
        own = [run.is_open for run in arm.runs if run.sweep is None]
        found.append((arm_label(arm), own.count(False), len(own)))
    return [(name, done, total) for name, done, total in found if done < total]


def _command(arms: Iterable[Arm]) -> str:
    """The command that resumes what is unfinished, as Hydra or the run recorded it."""
    import yaml

    runs = [run for arm in arms for run in arm.runs]
    for run in runs:
        for folder in run.path.resolve().parents[:3]:
            if (folder / "multirun.yaml").is_file():
                recorded = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
                lines = recorded["hydra"]["overrides"]
                words = shlex.join([*lines["task"], *lines["hydra"]])
                return f"`python -m t5ts.run --multirun {words}`"
        command = run.provenance.get("command") or []
        if run.is_open and command and Path(command[0]).name == "run.py":
            return f"`python -m t5ts.run {shlex.join(command[1:])}`"
    return f"the command that wrote {os.path.commonpath([run.path for run in runs])}"


def _count_needed(v: Verdict, c: Comparison) -> None:
    """How many paired seeds would settle a comparison, in the verdict and in words."""
    sd, n, tests = c.effect.sd, c.effect.count, c.family
    v.seeds_needed = statistics.seeds_needed(sd=sd, count=n, margin=v.margin, tests=tests)
    count = "more than 10,000"
    if v.seeds_needed is not None:
        count = f"about {max(v.seeds_needed, n + 1):,}"
    now, twice = (
        statistics.resolvable_effect(sd=sd, count=seeds, pilot=n, tests=tests)
        for seeds in (n, 2 * n)
    )
    v.say("seeds_needed", n=n, now=now, twice=twice, count=count)


def _answer(findings: Findings, margin: float) -> Findings:
    """The study's answer: the main condition's, or what several data sets show together."""
    main, verdicts = findings.main, findings.verdicts
    findings.kind, findings.headline = main.kind, main.headline
    findings.reasons = list(main.reasons)
    if len(verdicts) == 1:
        return findings
    lines = {v: sentence("one_condition", v=v) for v in verdicts}
    # The verdicts with an answer on each series: those on the most training data.
    answers = [v for v in verdicts if v.kind not in NO_VERDICT]
    judged = [
        max(grouped(same, lambda v: v.condition.fraction).items())[1]
        for same in grouped(answers, lambda v: v.condition.series).values()
    ]
    count = len({v.condition.series for v in verdicts})
    kinds = {v.kind for v in verdicts}
    stopped = next((kind for kind in (WITHHELD, UNFINISHED) if kind in kinds), None)
    if count > 1 and stopped:
        names = [v.condition.name for v in verdicts if v.kind == stopped]
        findings.kind, findings.reasons = stopped, [*lines.values()]
        findings.headline = sentence("no_answer", kind=stopped, count=count, names=names)
    elif len(judged) > 1:
        findings.kind, findings.headline = _over_data(judged, count, margin)
        p = statistics.wilcoxon_p(_mean_effects(judged, "best"))
        findings.reasons = [sentence("wilcoxon", p=p), *lines.values()]
    else:
        others = [v for v in verdicts if v is not main]
        counts = Counter(v.kind for v in others)
        withheld = [v.condition.name for v in others if v.kind == WITHHELD]
        values = {"name": main.condition.name, "others": counts, "withheld": withheld}
        findings.headline += " " + sentence("other_conditions", **values)
        findings.reasons += [lines[v] for v in others]
    return findings


def _mean_effects(judged: Sequence[Sequence[Verdict]], kind: str) -> list[float]:
    """The log effect on each data set: mean over its tasks and lengths, worst of the rivals."""
    effects = [[[c.effect.value for c in v.of_headline(kind)] for v in vs] for vs in judged]
    worst = [[max(own) for own in group if own] for group in effects]
    return [float(np.mean(group)) for group in worst if group]


def _over_data(judged: Sequence[Sequence[Verdict]], asked: int, margin: float) -> tuple[str, str]:
    """Kind and headline over several data sets, each of which counts once."""
    every = list(chain(*judged))
    effects, controls = (_mean_effects(judged, kind) for kind in ("best", "control"))
    overall, against = mean_interval(effects), mean_interval(controls)
    treatments = {v.condition.name: v.main.pair.treatment for v in every if v.main}
    doubted = [name for name, arm in treatments.items() if is_doubted(arm)]
    if (shown := shown_by(overall, margin)) != LOWER:
        outcome = {ALIKE: "alike", CANNOT_TELL: "wide", HIGHER: "higher"}[shown]
    elif any(c.kind == WITHHELD for v in every for c in v.of_headline("control")):
        outcome = "unfair_control"
    elif len(controls) < len(effects):
        outcome = "lower"
    elif not against.high < 0:
        outcome = "text_or_scale"
    else:
        outcome = "noted" if doubted else "helps"
    text = sentence(
        "over_data",
        effects=effects,
        overall=overall,
        checkpoints=list(dict.fromkeys(map(checkpoint_of, treatments.values()))),
        missing=asked - len(judged),
        outcome=outcome,
        doubted=doubted,
        promises=dict.fromkeys(arm.pretraining.promise for arm in treatments.values()),
    )
    failed = [f"{v.condition.name}: {line}" for v in every for line in v.failed]
    text = " ".join([*failed, text])
    if OUTCOMES[outcome] != CANNOT_TELL and any(v.is_provisional for v in every):
        text = f"Provisional: {text} Settings were chosen and tested on the same seeds."
    return OUTCOMES[outcome], text
