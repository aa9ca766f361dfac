"""The verdict: from a study's comparisons to an answer in words, or the reason for none."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis.arms import (
    RANDOM,
    Arm,
    Condition,
    chosen_from,
    conditions,
    is_instruction_tuned,
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
    compare,
    judge_family,
)
from t5ts.analysis.statistics import (
    ALPHA,
    FAILURE_RATE,
    FAILURE_SPREADS,
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
    in_play,
    loader_notes,
)
from t5ts.analysis.words import sentence

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
    never moved measurably. Several data sets give one
    answer: their mean.

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
    left_out = study.left_out
    verdicts = []
    for condition, comparisons in zip(found, compared, strict=True):
        verdicts.append(_judge(study, condition, comparisons, left_out, margin))
        left_out = []  # named once
    return _answer(Findings(study=study, verdicts=verdicts), margin)


def _judge(
    study: Study,
    condition: Condition,
    compared: list[Comparison],
    left_out: Sequence[Run],
    margin: float,
) -> Verdict:
    best = [c for c in compared if c.pair.kind == "best"]
    # The pretrained arm that validates best; the test windows play no part.
    main = min(
        [c for c in best if c.pair.seeds] or best,
        key=lambda c: (-len(c.pair.seeds), c.pair.treatment.loss(c.pair.treatment.best)),
        default=None,
    )
    for c in compared:
        if c.pair.kind in ("best", "control", "weights", "same_plan", "checkpoint"):
            c.checks = check_pair(c.pair) if c.pair.seeds or c is main else []
            if c.broken:
                c.kind = WITHHELD  # this comparison alone
    v = Verdict(
        condition=condition,
        main=main,
        comparisons=compared,
        checks=[
            *(main.checks if main else []),
            *check_plans([c.pair for c in compared if c.pair.seeds]),
            *check_condition(condition, left_out),
        ],
        margin=margin,
    )
    _conclude(study, v)
    asked = {c.pair.treatment.weights: c.pair.treatment for c in best}
    names = weights_names(condition.arms)
    if len(asked) > 1:
        for weights, arm in asked.items():
            own = [c for c in compared if c.pair.kind != "checkpoint" and _is_about(c, arm)]
            v.by_checkpoint[names[weights]] = _judge(study, condition, own, [], margin)
    v.reasons[1:1] = [*_each_checkpoint(v, names), *_between_checkpoints(v, names)]
    return v


def _conclude(study: Study, v: Verdict) -> None:
    """Kind, headline and reasons of a condition's verdict."""
    v.outcome, values = _outcome(study, v)
    v.kind = OUTCOMES[v.outcome]
    before, after = _failed(v), []
    main = v.main
    if main is not None:
        treatment = main.pair.treatment
        values |= {"main": main, "margin": v.margin, "checkpoint": _checkpoint(treatment)}
        values |= {"weights": treatment.pretraining}
    if main is not None and v.kind not in NO_VERDICT:
        if v.kind != CANNOT_TELL and v.is_provisional:
            before.insert(0, "Provisional:")
            after.append(sentence("provisional", tried=max(map(chosen_from, main.pair.rivals))))
        plans = _of_headline(v, "weights")
        against = [c for c in plans if c.kind in (LOWER, HIGHER, ALIKE) and c.kind != main.kind]
        if v.kind != CANNOT_TELL and against:
            after.append(sentence("one_plan_differs", against=against))
        if notes := loader_notes(main.pair.treatment):
            after.append(sentence("notes", notes=notes))
        v.reasons += [sentence("under_one_plan", c=c) for c in plans]
        if main.kind in (LOWER, HIGHER):
            v.reasons += [*_robust(main), *_over_time(main)]
    v.headline = " ".join([*before, sentence(v.outcome, **values), *after])


def _outcome(study: Study, v: Verdict) -> tuple[str, dict[str, Any]]:
    """A key of `OUTCOMES` and what its headline needs; adds the reasons to the verdict."""
    main = v.main
    if main is None:
        return _no_pair(v)
    v.is_provisional = max(map(chosen_from, main.pair.rivals)) > 1
    asked = _arms_asked(v)
    if main.pair.seeds:
        v.reasons.append(sentence("best_plans", main=main, condition=v.condition.name))
    else:
        finished = {arm.name: list(arm.finished) for arm in main.pair.arms}
        v.reasons.append(sentence("no_shared_seed", finished=finished))
    if progress := _progress(study, asked):
        v.reasons.append(sentence("no_peeking"))
        return "unfinished", {"progress": progress, "command": _command(asked)}
    if not main.pair.seeds:
        return "no_seed", {}
    if main.broken:
        v.reasons[:0] = [f"{check.name}: {check.detail}." for check in main.broken]
        return "broken", {}
    if why := _not_learned(main, v.condition):
        return "not_learned", {"why": why}
    v.reasons += _in_play(v, main)
    if main.kind != LOWER and (asked_nothing := _not_asked(main, v.margin)):
        v.reasons.append(sentence("put_in_play"))
        return "not_asked", asked_nothing
    return _what_it_shows(v, main)


def _no_pair(v: Verdict) -> tuple[str, dict[str, Any]]:
    pretrained = [arm for arm in v.condition.arms if arm.is_pretrained]
    if not pretrained:
        v.reasons = [sentence("add_pretrained")]
        return "no_pretrained", {}
    first = pretrained[0]
    others = [arm.name for arm in v.condition.arms if arm.init == RANDOM]
    needed = {"backbone": first.backbone, "needed": arms_needed(first)}
    v.reasons = [sentence("add_random", others=others, **needed)]
    return "no_arm", {"needed": sorted({arms_needed(arm) for arm in pretrained})}


def _what_it_shows(v: Verdict, main: Comparison) -> tuple[str, dict[str, Any]]:
    """The outcome of valid comparisons."""
    frozen = _frozen_random(v, main)
    plans = {arm.freeze for arm in main.pair.rivals[0]}
    if frozen is not None and (
        frozen.effect.within(v.margin) or (frozen.kind == HIGHER and "all" not in plans)
    ):
        v.reasons.append(sentence("seen_nothing", frozen=frozen))
        return "frozen", {}
    outcome: str = "wide"
    values: dict[str, Any] = {}
    if main.kind == LOWER:
        outcome, values = _content_or_scale(v, main)
    elif main.kind == HIGHER:
        outcome = "higher"
    elif main.kind == ALIKE:
        wide = main.new_windows
        is_elsewhere = wide is not None and not wide.within(v.margin)
        outcome, values = "alike", {"elsewhere": wide if is_elsewhere else None}
    elif not main.effect.is_known:
        outcome = "one_seed"
    else:
        values = {"count": _count_needed(v, main)}
        if main.p_t < ALPHA:
            v.reasons.append(sentence("alone", main=main))
    if frozen is not None and frozen.effect.low <= 0 <= frozen.effect.high:
        v.reasons.append(sentence("frozen_within", frozen=frozen))
    return outcome, values


def _content_or_scale(v: Verdict, main: Comparison) -> tuple[str, dict[str, Any]]:
    """The outcome vs. controls that share only the checkpoint's scale, if random is beaten."""
    treatment = main.pair.treatment
    controls = _of_headline(v, "control")
    if not controls:
        unfinished = list(dict.fromkeys(f"init={arm.init}" for arm in _control_arms(v)))
        plans = [f"freeze={arm.freeze}" for arm in main.pair.rivals[0]]
        values = {"controls": unfinished, "plans": plans, "seeds": main.pair.seeds}
        values |= {"weights": treatment.pretraining, "donor": treatment.donor}
        v.reasons.append(sentence("add_controls", **values))
        return "lower", values
    worst = list(AGAINST_CONTROL)
    rival = min(controls, key=lambda c: (worst.index(c.kind), -c.effect.value))
    outcome = AGAINST_CONTROL[rival.kind]
    if outcome == "helps" and _is_doubted(treatment):
        outcome = "noted"
    if rival.kind == WITHHELD:
        v.reasons += [sentence("cannot_be_compared", c=c) for c in controls if c.kind == WITHHELD]
    else:
        v.reasons.append(sentence("against_control", rival=rival, weights=treatment.pretraining))
    if rival.kind == CANNOT_TELL and rival.effect.is_known:
        _count_needed(v, rival)
    return outcome, {"rival": rival}


def _is_about(c: Comparison, arm: Arm) -> bool:
    """Whether a comparison is of a pretrained arm's weights or of its counterpart's."""
    treatment = c.pair.treatment
    return treatment.weights == arm.weights or treatment.is_control_of(arm)


def _of_headline(v: Verdict, kind: str) -> list[Comparison]:
    """Comparisons of a kind, of the headline's weights, at finished seeds."""
    if v.main is None:
        return []
    weights = v.main.pair.treatment.weights
    found = (c for c in v.comparisons if c.pair.kind == kind and c.pair.seeds)
    return [c for c in found if c.pair.treatment.weights == weights]


def _control_arms(v: Verdict) -> list[Arm]:
    """The arms of `matched` and `shuffled` weights of the headline's checkpoint."""
    if v.main is None:
        return []
    arm = v.main.pair.treatment
    return [a for a in v.condition.arms if a.init != RANDOM and a.is_control_of(arm)]


def _arms_asked(v: Verdict) -> list[Arm]:
    """Every arm behind the headline."""
    if v.main is None:
        return []
    return [*(arm for arms in v.main.pair.rivals for arm in arms), *_control_arms(v)]


def _failed(v: Verdict) -> list[str]:
    """The failed seeds of the arms behind the headline, one sentence per arm."""
    lost = [(arm, *failures(arm)) for arm in _arms_asked(v)]
    return [
        sentence("failed_seeds", arm=arm, lost=seeds, count=count)
        for arm, seeds, count in lost
        if seeds
    ]


def _is_doubted(arm: Arm) -> bool:
    """Whether a loader note contradicts what the weights promise."""
    return any(map(_DOUBTS.search, loader_notes(arm)))


def _not_learned(main: Comparison, condition: Condition) -> str:
    """Why the better arm learned nothing, on validation; empty if it did learn."""
    pair = main.pair
    wins = pair.treatment if main.effect.value < 0 else pair.control
    runs = {seed: wins.finished[seed] for seed in pair.seeds}
    results = [run.result for run in runs.values() if run.result is not None]
    at_once = sum(result.best_epoch == 0 for result in results)
    if 2 * at_once >= len(runs):
        return sentence("best_at_once", arm=wins, at_once=at_once, count=len(runs))
    naive = [result.baselines["val"] for result in results]
    ratios = {
        name.replace("_", " "): log_ratio(
            [run.metric("val_loss") for run in runs.values()], [of[name]["loss"] for of in naive]
        )
        for name in naive[0]
    }
    for arm in condition.arms:
        seeds = [seed for seed in pair.seeds if seed in arm.finished]
        if arm.backbone == "linear" and wins.backbone != "linear" and seeds:
            ours, theirs = (
                [of[seed].metric("val_loss") for seed in seeds] for of in (runs, arm.finished)
            )
            ratios[arm.name] = log_ratio(ours, theirs)
    better = {name: ratio for name, ratio in ratios.items() if ratio.value >= 0}
    return sentence("beaten", arm=wins, better=better) if better else ""


def _in_play(v: Verdict, main: Comparison) -> list[str]:
    """Whether the encoder of each arm behind the headline took part, where that is recorded."""
    controls = [c.pair.control for c in _of_headline(v, "control")]
    found = {arm.name: in_play(arm) for arm in (*main.pair.arms, *controls)}
    return [
        sentence("in_play", name=name, of=of, answer=of.answer(v.margin))
        for name, of in found.items()
        if of is not None
    ]


def _not_asked(main: Comparison, margin: float) -> dict[str, Any] | None:
    """Why the arms could not show what their weights know; None if they could or it is unknown.

    An answer against the weights has to show that an encoder was in play. Where the losses cannot
    tell, only encoders shown to be out of play are a better reason than that.
    """
    found = {arm.name: of for arm in main.pair.arms if (of := in_play(arm)) is not None}
    unmoved = {name: of for name, of in found.items() if of.never_moved}
    answers = {of.answer(margin) for of in found.values()}
    is_out = len(found) == 2 and "yes" not in answers
    if unmoved or (is_out and (answers == {"no"} or main.kind != CANNOT_TELL)):
        return {"unmoved": unmoved, "idle": found, "unsure": answers != {"no"}}
    return None


def _progress(study: Study, arms: Iterable[Arm]) -> list[tuple[str, int, int]]:
    """For everything unfinished: its name, the number of runs that ended, and the total."""
    runs = [run for arm in arms for run in arm.runs]
    sweeps = {_sweep_of(run) for run in runs} - {None}
    ended: dict[Any, set[Any]] = {sweep: set() for sweep in sweeps}
    asked: dict[Any, int] = dict.fromkeys(sweeps, 0)
    for run in (*study.runs, *study.left_out):
        sweep = _sweep_of(run)
        if sweep in ended:
            asked[sweep] = max(asked[sweep], int(run.trial["n_trials"]))
            has_ended = run.trial["state"] in ("complete", "pruned", "failed")
            # Of a trial with several seeds, one that has finished is not the end.
            if has_ended or (run.result is not None and "seed_of" not in run.trial):
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
    loaded = (run.provenance.get("weights") or {} for run in arm.runs)
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


def _each_checkpoint(v: Verdict, names: dict[Any, str]) -> list[str]:
    """What each other checkpoint shows; name the headline's checkpoint."""
    if v.main is None or len(v.by_checkpoint) < 2:
        return []
    first = names[v.main.pair.treatment.weights]
    if v.kind not in (WITHHELD, NOTHING, UNFINISHED):
        others = [
            f"{name}: {own.kind}" for name, own in v.by_checkpoint.items() if own.kind != v.kind
        ]
        count = len(v.by_checkpoint)
        v.headline += " " + sentence("best_checkpoint", name=first, count=count, others=others)
    return [
        sentence("with_checkpoint", name=name, headline=own.headline, reason=own.reasons[0])
        for name, own in v.by_checkpoint.items()
        if name != first
    ]


def _between_checkpoints(v: Verdict, names: dict[Any, str]) -> list[str]:
    """Which of two checkpoints of one architecture is better, and which are not compared."""
    sentences = []
    for c in v.comparisons:
        if c.pair.kind != "checkpoint" or not c.pair.seeds:
            continue
        if c.kind == WITHHELD:
            sentences.append(sentence("cannot_be_compared", c=c))
            continue
        tuned = [is_instruction_tuned(arm.backbone) for arm in c.pair.arms]
        a, b = (names[arm.weights] for arm in c.pair.arms)
        is_tuning = tuned == [True, False]
        subject = "Instruction tuning" if is_tuning else f"Choosing {a} over {b}"
        sentences.append(sentence("between_checkpoints", subject=subject, c=c))
    shapes: dict[str, dict[str, None]] = {}
    for arm in v.condition.arms:
        if arm.is_pretrained:
            shapes.setdefault(str(arm.architecture), {})[names[arm.weights]] = None
    if len(shapes) > 1:
        sentences.append(
            sentence("other_shapes", groups=[" and ".join(of) for of in shapes.values()])
        )
    return sentences


def _frozen_random(v: Verdict, main: Comparison) -> Comparison | None:
    """The comparison of the headline's pretrained arm with a frozen random encoder."""
    arm = main.pair.treatment
    found = (
        c
        for c in v.comparisons
        if c.pair.treatment is arm
        and (c.pair.control.init, c.pair.control.freeze) == (RANDOM, "all")
        if c.pair.control.backbone == arm.backbone and c.pair.seeds
    )
    return None if arm.freeze == "all" else next(found, None)


def _count_needed(v: Verdict, c: Comparison) -> str:
    """How many paired seeds would settle a comparison, in words; also stored in the verdict."""
    sd, n, tests = c.effect.sd, c.effect.count, c.family
    v.seeds_needed = seeds_needed(sd=sd, count=n, margin=v.margin, tests=tests)
    count = "more than 10,000"
    if v.seeds_needed is not None:
        count = f"about {max(v.seeds_needed, n + 1)}"
    now, twice = (
        resolvable_effect(sd=sd, count=seeds, pilot=n, tests=tests) for seeds in (n, 2 * n)
    )
    values = {"n": n, "now": now, "twice": twice, "count": count, "margin": v.margin}
    v.reasons.append(sentence("seeds_needed", **values))
    return count


def _robust(main: Comparison) -> list[str]:
    """Whether the result depends on no seed failing; empty if it holds either way."""
    a, b = main.pair.values("test_loss")
    logs = np.log(a / b)
    p = robust_p(logs)
    odd = [main.pair.seeds[i] for i in sorted(outlying(logs))]
    sentences = [sentence("odd_seeds", odd=odd)] if odd else []
    if not p < ALPHA:
        rate, spreads = f"{100 * FAILURE_RATE:g}", f"{FAILURE_SPREADS:g}"
        sentences.append(
            sentence("seeds_like_these", rate=rate, spreads=spreads, count=len(logs), p=p)
        )
    return [" ".join(sentences)] if sentences else []


def _over_time(main: Comparison) -> list[str]:
    """Whether it also holds for other stretches of the series; nothing if not recorded."""
    wide, dm = main.new_windows, main.over_time
    if wide is None or dm is None:
        return []
    holds = wide.excludes_zero() and (wide.value < 0) == (main.effect.value < 0)
    return [sentence("over_time", wide=wide, dm=dm, holds=holds)]


def _answer(findings: Findings, margin: float) -> Findings:
    """The study's answer: the main condition's, or what several data sets show together."""
    main, verdicts = findings.main, findings.verdicts
    findings.kind, findings.headline = main.kind, main.headline
    findings.reasons = list(main.reasons)
    if len(verdicts) == 1:
        return findings
    lines = [sentence("each_condition", v=v) for v in verdicts]
    judged = _by_data(verdicts)
    count = len({v.condition.series for v in verdicts})
    kinds = Counter(v.kind for v in verdicts)
    stopped = next((kind for kind in (WITHHELD, UNFINISHED) if kinds[kind]), None)
    if count > 1 and stopped:
        names = [v.condition.name for v in verdicts if v.kind == stopped]
        findings.kind, findings.reasons = stopped, lines
        findings.headline = sentence("stopped", count=count, kind=stopped, names=names)
    elif len(judged) > 1:
        findings.kind, findings.headline = _over_data(judged, count, margin)
        p = wilcoxon_p(_mean_effects(judged, "best"))
        findings.reasons = [sentence("wilcoxon", p=p), *lines]
    else:
        kinds = Counter(v.kind for v in verdicts if v is not main)
        others = [f"{count} {kind}" for kind, count in kinds.items()]
        name = main.condition.name
        withheld = [v.condition.name for v in verdicts if v is not main and v.kind == WITHHELD]
        values = {"name": name, "others": others, "withheld": withheld}
        findings.headline += " " + sentence("other_conditions", **values)
        findings.reasons += lines
    return findings


def _by_data(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts with an answer, by data set: those on the most training data."""
    groups: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if v.kind not in NO_VERDICT:
            groups.setdefault(v.condition.series, []).append(v)
    found = []
    for group in groups.values():
        most = max(v.condition.config["data.fraction"] for v in group)
        found.append([v for v in group if v.condition.config["data.fraction"] == most])
    return found


def _mean_effects(judged: Sequence[Sequence[Verdict]], kind: str) -> list[float]:
    """The log effect on each data set: mean over its tasks and lengths, worst of the rivals."""
    found = []
    for group in judged:
        effects = [[c.effect.value for c in _of_headline(v, kind)] for v in group]
        worst = [max(own) for own in effects if own]
        found += [float(np.mean(worst))] if worst else []
    return found


def _over_data(judged: Sequence[Sequence[Verdict]], asked: int, margin: float) -> tuple[str, str]:
    """Kind and headline over several data sets, each of which counts once."""
    every = [v for group in judged for v in group]
    effects, controls = (_mean_effects(judged, kind) for kind in ("best", "control"))
    overall, against = (log_ratio(np.exp(x), np.ones(len(x))) for x in (effects, controls))
    treatments = [v.main.pair.treatment for v in every if v.main]
    doubted = [v for v in every if v.main and _is_doubted(v.main.pair.treatment)]
    if overall.within(margin):
        outcome = "alike"
    elif not overall.excludes_zero():
        outcome = "wide"
    elif overall.value > 0:
        outcome = "higher"
    elif any(c.kind == WITHHELD for v in every for c in _of_headline(v, "control")):
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
        lower=sum(effect < 0 for effect in effects),
        checkpoints=list(dict.fromkeys(map(_checkpoint, treatments))),
        missing=asked - len(judged),
        finding=sentence(
            f"over_data_{outcome}",
            doubted=[v.condition.name for v in doubted],
            promise=" or ".join(dict.fromkeys(arm.pretraining.promise for arm in treatments)),
        ),
    )
    failed = [f"{v.condition.name}: {line}" for v in every for line in _failed(v)]
    text = " ".join([*failed, text])
    if kind != CANNOT_TELL and any(v.is_provisional for v in every):
        text = f"Provisional: {text} Settings were chosen and tested on the same seeds."
    return kind, text
