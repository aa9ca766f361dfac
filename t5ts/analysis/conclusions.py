"""The verdict: from a study's comparisons to an answer in words, or the reason for none."""

import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis import statistics, validity
from t5ts.analysis.arms import (
    RANDOM,
    Arm,
    Condition,
    conditions,
    pairs,
    short_path,
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
    NO_VERDICT,
    NOT_ASKED,
    NOT_LEARNED,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
    Comparison,
    Findings,
    Verdict,
    judge_family,
)
from t5ts.analysis.statistics import ALPHA, log_ratio, mean_interval
from t5ts.analysis.study import Run, Study
from t5ts.analysis.validity import check_pair, in_play, loader_notes
from t5ts.analysis.words import arm_label, sentence, sentences
from t5ts.errors import DataError

#: The verdict's kind for each outcome; `sentences.j2` has a headline for each.
OUTCOMES = {
    "no_pretrained": NOTHING,
    "no_arm": NOTHING,
    "no_seed": NOTHING,
    "unfinished": UNFINISHED,
    "broken": WITHHELD,
    "not_learned": NOT_LEARNED,
    "not_asked": NOT_ASKED,
    "frozen": CANNOT_DISCRIMINATE,
    "helps": TRANSFERS,
    "noted": LOWER_HERE,
    "lower": LOWER_HERE,
    "scale": DOES_NOT,
    "text_or_scale": CANNOT_TELL,
    "unfair_control": CANNOT_TELL,
    "alike": DOES_NOT,
    "higher": DOES_NOT,
    "one_seed": CANNOT_TELL,
    "wide": CANNOT_TELL,
}
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
#: Loader notes that contradict what an init promises.
_DOUBTS = re.compile(
    "origin:|fresh|not on text|barely trained|shuffled|before any training|redrawn"
)


def verdict(study: Study, *, margin: float = MARGIN) -> Findings:
    """Judge every condition of a study.

    The headline compares pretrained weights (`arms.PRETRAINED`) with random ones, each with the
    schedule and setting chosen for it on validation, at paired seeds. Test loss is *lower with this
    checkpoint* if the interval of the mean log-ratio, adjusted (Holm) for the study's data sets and
    checkpoints, is below 0. It *transfers* if that also holds against every control (`matched`,
    `shuffled`) that was run, each at its own best. It *does not* if the interval is above 0 or
    inside ±margin, or if a control does as well; the set-up *cannot discriminate* if a frozen
    random encoder does. There is no verdict from an unfinished sweep, where an invariant is
    broken, or where the better arm has *learned nothing*: it does not beat the naive forecasts or
    `linear` on validation, or its best epoch is mostly 0, or where the question was *not asked*:
    unless test loss is lower, neither encoder is shown to be in play, or one that should train
    never moved measurably. Several data sets give one answer: their mean.

    Args:
        study: From `collect`.
        margin: Relative difference of the loss that does not matter.

    Raises:
        DataError: if none of the runs can be used.
    """
    unread = validity.check_reading(study.left_out)
    if not study.runs:
        raise DataError(f"no run can be judged, {unread[0].detail}.")
    found = conditions(study)
    compared = [[Comparison(pair) for pair in pairs(condition)] for condition in found]
    families: dict[str, list[Comparison]] = defaultdict(list)
    for c in chain(*compared):
        # One family per question, over all data sets and amounts of data.
        families[c.pair.kind].append(c)
    for family in families.values():
        judge_family(family, margin=margin)
    for c in chain(*(families[kind] for kind in _CHECKED)):
        c.checks = check_pair(c.pair) if c.pair.seeds or c.pair.kind == "best" else []
        c.broken = [check for check in c.checks if check.status == validity.BROKEN]
        if c.broken:
            c.kind = WITHHELD  # this comparison alone
    verdicts = [_judge(study, *of, margin) for of in zip(found, compared, strict=True)]
    verdicts[0].checks += unread  # once
    return _answer(Findings(study=study, verdicts=verdicts), margin)


def _judge(study: Study, condition: Condition, found: list[Comparison], margin: float) -> Verdict:
    v = Verdict(condition, found, margin)
    v.checks += validity.check_plans([c.pair for c in found if c.pair.seeds])
    v.checks += validity.check_condition(condition)
    _conclude(study, v)
    names = weights_names(condition.arms)
    arms = {c.pair.treatment.weights: c.pair.treatment for c in found if c.pair.kind == "best"}
    for weights, arm in arms.items() if len(arms) > 1 else ():
        # Comparisons of these weights, or of their counterparts.
        ours = [
            (c, c.pair.treatment.weights == weights or c.pair.treatment.is_control_of(arm))
            for c in found
        ]
        own = [c for c, is_about in ours if is_about and c.pair.kind != "checkpoint"]
        v.by_checkpoint[names[weights]] = _judge(study, condition, own, margin)
    shapes: dict[str, dict[str, None]] = defaultdict(dict)
    for arm in condition.arms:
        if arm.is_pretrained:
            shapes[str(arm.architecture)][names[arm.weights]] = None
    if v.main is not None:
        values = {"first": names[v.main.pair.treatment.weights], "names": names}
        v.reasons[1:1] = sentences("checkpoints", v=v, shapes=shapes.values(), **values)
        if v.by_checkpoint and v.kind not in (WITHHELD, NOTHING, UNFINISHED):
            v.headline += " " + sentence("best_checkpoint", v=v, **values)
    return v


def _conclude(study: Study, v: Verdict) -> None:
    """Kind, headline and reasons of a condition's verdict."""
    main, after = v.main, []
    v.facts["checkpoint"] = _checkpoint(main.pair.treatment) if main else None
    v.outcome = _outcome(study, v)
    v.kind = OUTCOMES[v.outcome]
    before = _failed(v)
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
        others = [arm.name for arm in v.condition.arms if arm.init == RANDOM]
        if not pretrained:
            v.say("add_pretrained")
            return "no_pretrained"
        needed = [f"init={RANDOM} freeze={arm.freeze}" for arm in pretrained]
        v.say("add_random", arm=pretrained[0], needed=needed, others=others)
        return "no_arm"
    v.facts["unpaired"] = main.pair.unpaired
    v.say("best_plans" if main.pair.seeds else "no_shared_seed")
    if progress := _progress(study, v.asked):
        v.say("no_peeking", progress=progress, command=_command(v.asked))
        return "unfinished"
    if not main.pair.seeds:
        return "no_seed"
    if main.broken:
        v.reasons[:0] = [f"{check.name}: {check.detail}." for check in main.broken]
        return "broken"
    if why := _not_learned(main, v.condition):
        v.facts["why"] = why
        return "not_learned"
    controls = (c.pair.control for c in v.of_headline("control"))
    for arm in dict.fromkeys((*main.pair.arms, *controls)):
        if (of := in_play(arm)) is not None:
            v.reasons.append(sentence("in_play", arm=arm, of=of, answer=of.answer(v.margin)))
    if main.kind != LOWER and _is_not_asked(v, main):
        v.say("put_in_play")
        return "not_asked"
    return _what_it_shows(v, main)


def _is_not_asked(v: Verdict, main: Comparison) -> bool:
    """Whether the arms could not show what their weights know.

    An answer against the weights has to show that an encoder was in play. Where the losses cannot
    tell, only encoders shown to be out of play are a better reason than that.
    """
    found = {arm: of for arm in main.pair.arms if (of := in_play(arm)) is not None}
    answers = {of.answer(v.margin) for of in found.values()}
    unmoved = {arm: of for arm, of in found.items() if of.never_moved}
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
    if outcome == "helps" and _is_doubted(rival.pair.treatment):
        outcome = "noted"
    v.facts["rival"] = rival
    if rival.kind == WITHHELD:
        v.reasons += [sentence("cannot_be_compared", c=c) for c in controls if c.kind == WITHHELD]
    else:
        v.say("against_control")
    if rival.kind == CANNOT_TELL and rival.effect.is_known:
        _count_needed(v, rival)
    return outcome


def _failed(v: Verdict) -> list[str]:
    """The failed seeds of the arms behind the headline, one sentence per arm."""
    asked = [(arm_label(arm), arm.shown) for arm in v.asked if arm.shown.failed]
    return [f"{name} failed at {len(of.failed)} of {of.num_seeds} seeds." for name, of in asked]


def _is_doubted(arm: Arm) -> bool:
    """Whether a loader note contradicts what the weights promise."""
    return any(map(_DOUBTS.search, loader_notes(arm)))


def _not_learned(main: Comparison, condition: Condition) -> str:
    """Why the better arm learned nothing, on validation; empty if it did learn."""
    pair = main.pair
    wins = pair.treatment if main.effect.value < 0 else pair.control
    runs = [wins.finished[seed] for seed in pair.seeds]
    results = [run.result for run in runs if run.result is not None]
    at_once = sum(result.best_epoch == 0 for result in results)
    if 2 * at_once >= len(runs):
        return sentence("best_at_once", arm=wins, at_once=at_once, count=len(runs))
    naive = [result.baselines["val"] for result in results]
    ours = [run.metric("val_loss") for run in runs]
    ratios = {
        name.replace("_", " "): log_ratio(ours, [of[name]["loss"] for of in naive])
        for name in naive[0]
    }
    for arm in condition.arms:
        shared = [run for run in runs if run.seed in arm.finished]
        if arm.backbone == "linear" and wins.backbone != "linear" and shared:
            theirs = [arm.finished[run.seed].metric("val_loss") for run in shared]
            ratios[arm.name] = log_ratio([run.metric("val_loss") for run in shared], theirs)
    better = {name: ratio for name, ratio in ratios.items() if ratio.value >= 0}
    return sentence("beaten", arm=wins, better=better) if better else ""


def _progress(study: Study, arms: Sequence[Arm]) -> list[tuple[str, int, int]]:
    """For everything unfinished: its name, the number of runs that ended, and the total."""
    sweeps = {_sweep_of(run) for arm in arms for run in arm.runs} - {None}
    ended: dict[Any, set[Any]] = {sweep: set() for sweep in sorted(sweeps, key=str)}
    asked: dict[Any, int] = dict.fromkeys(sweeps, 0)
    for run in (*study.runs, *study.left_out):
        if (sweep := _sweep_of(run)) in ended:
            asked[sweep] = max(asked[sweep], int(run.trial["n_trials"]))
            has_ended = run.trial["state"] in ("complete", "pruned", "failed")
            # Of a trial with several seeds, one that has finished is not the end.
            if has_ended or (run.result is not None and "seed_of" not in run.trial):
                ended[sweep].add(run.trial["number"])
    found = [(str(sweep[1] or sweep[0]), len(of), asked[sweep]) for sweep, of in ended.items()]
    for arm in arms:
        own = [run.is_open for run in arm.runs if _sweep_of(run) is None]
        found.append((arm_label(arm), own.count(False), len(own)))
    return [(name, done, total) for name, done, total in found if done < total]


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
                recorded = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
                lines = recorded["hydra"]["overrides"]
                words = shlex.join([*lines["task"], *lines["hydra"]])
                return f"`python -m t5ts.run --multirun {words}`"
        command = run.provenance.get("command") or []
        if run.is_open and command and Path(command[0]).name == "run.py":
            return f"`python -m t5ts.run {shlex.join(command[1:])}`"
    return f"the command that wrote {os.path.commonpath([run.path for run in runs])}"


def _checkpoint(arm: Arm) -> str:
    """The pretrained weights: their option's name and where they were read from, a donor's name."""
    loaded = (run.weights for run in arm.runs)
    sources = {str(of["source"]) for of in loaded if of.get("source")} - {arm.backbone}
    if arm.init == "run":
        sources = {short_path(source, sources) for source in sources}
    return f"{arm.backbone} ({', '.join(sorted(sources))})" if sources else arm.backbone


def weights_names(arms: Sequence[Arm]) -> dict[tuple[str, str, str | None], str]:
    """A name for pretrained weights: the backbone, and what distinguishes several with it."""
    names: dict[tuple[str, str, str | None], str] = {}
    every = list(dict.fromkeys(arm.weights for arm in arms if arm.is_pretrained))
    for backbone, init, donor in every:
        name = backbone
        if sum(other[0] == backbone for other in every) > 1:
            name += f"-{init}"
        if sum(other[:2] == (backbone, init) for other in every) > 1:
            name += f" ({short_path(str(donor), (str(other[2]) for other in every))})"
        names[backbone, init, donor] = name
    return names


def _count_needed(v: Verdict, c: Comparison) -> None:
    """How many paired seeds would settle a comparison, in the verdict and in words."""
    sd, n, tests = c.effect.sd, c.effect.count, c.family
    v.seeds_needed = statistics.seeds_needed(sd=sd, count=n, margin=v.margin, tests=tests)
    count = "more than 10,000"
    if v.seeds_needed is not None:
        count = f"about {max(v.seeds_needed, n + 1)}"
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
    lines = [f"{v.condition.name}: {v.kind}. {v.headline}" for v in verdicts]
    judged = _by_data(verdicts)
    count = len({v.condition.series for v in verdicts})
    kinds = {v.kind for v in verdicts}
    stopped = next((kind for kind in (WITHHELD, UNFINISHED) if kind in kinds), None)
    if count > 1 and stopped:
        names = "; ".join(v.condition.name for v in verdicts if v.kind == stopped)
        findings.kind, findings.reasons = stopped, lines
        findings.headline = f"No verdict over {count} data sets: {stopped} on {names}."
    elif len(judged) > 1:
        findings.kind, findings.headline = _over_data(judged, count, margin)
        p = statistics.wilcoxon_p(_mean_effects(judged, "best"))
        findings.reasons = [sentence("wilcoxon", p=p), *lines]
    else:
        others = [v for v in verdicts if v is not main]
        counts = Counter(v.kind for v in others)
        withheld = [v.condition.name for v in others if v.kind == WITHHELD]
        values = {"name": main.condition.name, "others": counts, "withheld": withheld}
        findings.headline += " " + sentence("other_conditions", **values)
        findings.reasons += lines
    return findings


def _by_data(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts with an answer, by data set: those on the most training data."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if v.kind not in NO_VERDICT:
            groups[v.condition.series].append(v)
    found = []
    for group in groups.values():
        most = max(v.condition.config["data.fraction"] for v in group)
        found.append([v for v in group if v.condition.config["data.fraction"] == most])
    return found


def _mean_effects(judged: Sequence[Sequence[Verdict]], kind: str) -> list[float]:
    """The log effect on each data set: mean over its tasks and lengths, worst of the rivals."""
    effects = [[[c.effect.value for c in v.of_headline(kind)] for v in of] for of in judged]
    worst = [[max(own) for own in group if own] for group in effects]
    return [float(np.mean(group)) for group in worst if group]


def _over_data(judged: Sequence[Sequence[Verdict]], asked: int, margin: float) -> tuple[str, str]:
    """Kind and headline over several data sets, each of which counts once."""
    every = list(chain(*judged))
    effects, controls = (_mean_effects(judged, kind) for kind in ("best", "control"))
    overall, against = mean_interval(effects), mean_interval(controls)
    treatments = [v.main.pair.treatment for v in every if v.main]
    doubted = [v.condition.name for v in every if v.main and _is_doubted(v.main.pair.treatment)]
    if overall.within(margin):
        outcome = "alike"
    elif not overall.excludes_zero():
        outcome = "wide"
    elif overall.value > 0:
        outcome = "higher"
    elif any(c.kind == WITHHELD for v in every for c in v.of_headline("control")):
        outcome = "unfair_control"
    elif len(controls) < len(effects):
        outcome = "lower"
    elif not against.high < 0:
        outcome = "text_or_scale"
    else:
        outcome = "noted" if doubted else "helps"
    kind = OUTCOMES[outcome]
    text = sentence(
        "over_data",
        effects=effects,
        overall=overall,
        checkpoints=list(dict.fromkeys(map(_checkpoint, treatments))),
        missing=asked - len(judged),
        outcome=outcome,
        doubted=doubted,
        promises=dict.fromkeys(arm.pretraining.promise for arm in treatments),
    )
    failed = [f"{v.condition.name}: {line}" for v in every for line in _failed(v)]
    text = " ".join([*failed, text])
    if kind != CANNOT_TELL and any(v.is_provisional for v in every):
        text = f"Provisional: {text} Settings were chosen and tested on the same seeds."
    return kind, text
