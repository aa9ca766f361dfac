"""The verdict: from a study's comparisons to an answer in words, or the reason for none."""

import math
from collections.abc import Sequence

from t5ts.analysis.arms import (
    PRETRAINED,
    RANDOM,
    Condition,
    conditions,
    is_instruction_tuned,
    pairs,
)
from t5ts.analysis.judgement import (
    CANNOT_DISCRIMINATE,
    CANNOT_TELL,
    DOES_NOT,
    MARGIN,
    NOTHING,
    TRANSFERS,
    WITHHELD,
    Comparison,
    Findings,
    Verdict,
    compare,
    judge_family,
)
from t5ts.analysis.statistics import (
    log_ratio,
    resolvable_effect,
    seeds_needed,
    wilcoxon_p,
)
from t5ts.analysis.study import Run, Study
from t5ts.analysis.validity import (
    BROKEN,
    arms_needed,
    check_condition,
    check_pair,
    check_plans,
)
from t5ts.analysis.words import percent, percent_interval, plural, probability


def verdict(study: Study, *, margin: float = MARGIN) -> Findings:
    """Judge every condition of a study.

    A pair of arms that differ in the encoder's weights alone *transfers* if the 95 % interval of
    the log-ratio of their test losses over paired seeds lies below 0 and the Holm-adjusted p is
    below 0.05; it *does not* if the interval lies above 0, or wholly inside ±margin; otherwise it
    *cannot tell*. Where arms with `matched` or `shuffled` weights were run, transfer also needs to
    beat the better of them: else the checkpoint's scale may be all that helps. Where several
    checkpoints were run, each is judged so, and those of one architecture against each other. The
    data *cannot
    discriminate* if the interval against an encoder that stays random lies inside ±margin. A broken
    invariant withholds the verdict.

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
        _judge(condition, comparisons, study.left_out if number == 0 else [], margin)
        for number, (condition, comparisons) in enumerate(zip(found, compared, strict=True))
    ]
    return Findings(study=study, verdicts=verdicts, together=_together(verdicts))


def _judge(
    condition: Condition, compared: list[Comparison], left_out: Sequence[Run], margin: float
) -> Verdict:
    fair = [c for c in compared if c.pair.kind == "weights"]
    main = _main([c for c in fair if c.pair.seeds] or fair)
    checks = check_pair(main.pair) if main else []
    for c in fair:
        if c is main or not c.pair.seeds:
            continue
        broken = [check for check in check_pair(c.pair) if check.status == BROKEN]
        if broken:
            c.kind = WITHHELD
            checks += broken
    for c in compared:
        if c.pair.kind in ("control", "checkpoint") and c.pair.seeds:
            c.checks = check_pair(c.pair)
            if c.broken:
                c.kind = WITHHELD  # it alone: against random weights the verdict stands
    checks += check_plans([c.pair for c in compared if c.pair.seeds])
    judged = Verdict(
        condition=condition,
        kind=NOTHING,
        headline="",
        reasons=[],
        main=main,
        comparisons=compared,
        checks=[*checks, *check_condition(condition, left_out)],
        margin=margin,
    )
    if main is None:
        judged.headline, judged.reasons = _no_pair(condition)
    elif not main.pair.seeds:
        judged.headline = "Nothing to compare yet: no pair of arms has finished the same seed."
        seeds = "; ".join(
            f"{arm.name}: {', '.join(map(str, arm.best.finished)) if arm.best else 'none'}"
            for arm in (main.pair.treatment, main.pair.control)
        )
        judged.reasons = [f"Seeds finished by {seeds}. Run both arms with the same seeds."]
    elif judged.broken:
        judged.kind = main.kind = WITHHELD
        judged.headline = "No verdict: the arms cannot be compared."
        judged.reasons = [f"{check.name}: {check.detail}." for check in judged.broken]
    else:
        _conclude(judged, main, fair)
    backbones = list(dict.fromkeys(c.pair.treatment.backbone for c in fair))
    if len(backbones) > 1:
        for backbone in backbones:
            own = [
                c
                for c in compared
                if c.pair.treatment.backbone == backbone and c.pair.kind != "checkpoint"
            ]
            judged.by_checkpoint[backbone] = _judge(condition, own, [], margin)
    judged.reasons[1:1] = [*_each_checkpoint(judged), *_between_checkpoints(judged)]
    return judged


def _each_checkpoint(judged: Verdict) -> list[str]:
    """What each checkpoint but the headline's shows; whose the headline is."""
    if judged.main is None or len(judged.by_checkpoint) < 2:
        return []
    first = judged.main.pair.treatment.backbone
    if judged.kind not in (WITHHELD, NOTHING):
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
        if is_instruction_tuned(a) and not is_instruction_tuned(b):
            subject = "Instruction tuning"
            better, worse, unknown = (
                f"{subject} helps",
                f"{subject} hurts",
                "instruction tuning helps",
            )
        else:
            subject = f"The choice between {a} and {b}"
            better, worse = f"{a} is better than {b}", f"{a} is worse than {b}"
            unknown = f"{a} is better than {b}"
        if c.kind == TRANSFERS:
            outcome = better
        elif c.kind == CANNOT_TELL:
            outcome = f"Cannot tell whether {unknown}"
        elif c.effect.within(judged.margin):
            outcome = f"{subject} makes no difference that matters"
        else:
            outcome = worse
        said.append(
            f"{outcome}: test loss of {c.pair.name} {percent_interval(c.effect)} (95 % interval"
            f" over {plural(c.effect.count, 'paired seed')}, Holm-adjusted p"
            f" {probability(c.p_holm)}); the same architecture and plan."
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


def _main(fair: Sequence[Comparison]) -> Comparison | None:
    """The pair whose pretrained arm validates best; the test windows have no say in it."""
    if not fair:
        return None

    def rank(c: Comparison) -> tuple[int, float]:
        best = c.pair.treatment.best
        value = math.inf if best is None else best.objective
        return (-len(c.pair.seeds), -value if c.pair.treatment.maximize else value)

    return min(fair, key=rank)


def _no_pair(condition: Condition) -> tuple[str, list[str]]:
    pretrained = [arm for arm in condition.arms if arm.init == PRETRAINED]
    if not pretrained:
        return (
            "Nothing is said about pretraining: no arm has pretrained weights.",
            ["Add runs with init=t5 and the same settings and seeds."],
        )
    needed = sorted({arms_needed(arm) for arm in pretrained})
    others = [arm.name for arm in condition.arms if arm.init == RANDOM]
    reason = "A fair control has the same encoder and plan with random weights: " + " or ".join(
        f"backbone={arm.backbone} {arms_needed(arm)}" for arm in pretrained[:1]
    )
    if others:
        reason += f" ({', '.join(others)} differ from the pretrained arm in more)"
    return (
        f"Nothing to compare fairly: there is no arm with {' or '.join(needed)}.",
        [reason + "."],
    )


def _conclude(judged: Verdict, main: Comparison, fair: Sequence[Comparison]) -> None:
    effect, pair, margin = main.effect, main.pair, judged.margin
    data, n = judged.condition.name, len(pair.seeds)
    sure = percent_interval(effect)
    if effect.is_known:
        sure += (
            f" (95 % interval over {plural(n, 'paired seed')}, Holm-adjusted p"
            f" {probability(main.p_holm)})"
        )
    judged.kind = main.kind
    frozen = _frozen_random(judged, main)
    if frozen is not None and frozen.effect.within(margin):
        judged.kind = CANNOT_DISCRIMINATE
        judged.headline = (
            "This data set cannot discriminate: an encoder that stays random does as well as the"
            f" pretrained one, within ±{percent(margin, sign=False)}."
        )
        judged.reasons.append(
            f"{frozen.pair.name}: test loss {percent_interval(frozen.effect)} (95 % interval)."
            " Whatever the encoder contributes cannot be seen here; try data with more to learn."
        )
    elif main.kind == TRANSFERS:
        _text_or_scale(judged, main)
    elif main.kind == DOES_NOT and effect.within(margin):
        judged.headline = (
            "Pretraining makes no difference that matters: whatever it does to the test error is"
            f" smaller than {percent(margin, sign=False)}."
        )
    elif main.kind == DOES_NOT:
        judged.headline = (
            f"Pretraining hurts: test error {percent(math.expm1(effect.value), sign=False)} higher"
            f" than with random weights{_between(math.expm1(effect.low), math.expm1(effect.high))}."
        )
    else:
        _cannot_tell(judged, main)
    judged.reasons.insert(0, f"Test loss of {pair.name}, on {data}: {sure}.")
    if judged.kind in (TRANSFERS, DOES_NOT) and not effect.within(margin):
        judged.reasons.append(_over_time(main))
    if frozen is not None and judged.kind != CANNOT_DISCRIMINATE and frozen.effect.is_known:
        low, high = frozen.effect.low, frozen.effect.high
        if low <= 0 <= high:
            judged.reasons.append(
                f"Caution: {frozen.pair.control.name}, an encoder that stays random, lies within"
                f" the interval of {frozen.pair.treatment.name}"
                f" ({percent_interval(frozen.effect)})."
            )
    still_open = [
        run
        for arm in (pair.treatment, pair.control)
        for run in arm.runs
        if run.result is None and run.state not in ("failed", "pruned")
    ]
    if still_open:
        judged.reasons.append(
            f"Not the last word: {plural(len(still_open), 'run')} of these two arms not finished."
            " Whoever looks often and stops when the answer pleases is wrong more often than these"
            " intervals say."
        )
    rest = [
        c
        for c in fair
        if c is not main and c.pair.seeds and c.pair.treatment.backbone == pair.treatment.backbone
    ]
    judged.reasons += [
        f"{c.pair.name}: {percent_interval(c.effect)}, p {probability(c.p_holm)}: {c.kind}."
        for c in rest
    ]
    judged.reasons = [reason for reason in judged.reasons if reason]


def _text_or_scale(judged: Verdict, main: Comparison) -> None:
    """Who beats random weights must also beat controls that have the checkpoint's scale alone."""
    effect = main.effect
    gain = percent(-math.expm1(effect.value), sign=False)
    controls = [
        c
        for c in judged.comparisons
        if c.pair.kind == "control" and c.pair.treatment is main.pair.treatment and c.pair.seeds
    ]
    withheld = [c for c in controls if c.kind == WITHHELD]
    if withheld:
        judged.kind = CANNOT_TELL
        judged.headline = (
            f"Cannot tell the text from the scale: test error is {gain} lower than with random"
            f" weights, but {' and '.join(c.pair.control.init for c in withheld)} weights, which"
            " have the checkpoint's scale alone, were not given the same chance."
        )
        judged.reasons += [_why_withheld(c) for c in withheld]
        return
    # The control that does best against the pretrained arm decides.
    rival = max(controls, key=lambda c: c.effect.value, default=None)
    if rival is None or rival.kind == TRANSFERS:
        judged.headline = (
            f"Pretraining helps: test error {gain} lower than with random weights"
            f"{_between(-math.expm1(effect.high), -math.expm1(effect.low))}."
        )
        judged.reasons.append(
            "No control tells whether the text helps or only the weights' scale: add init=matched"
            " and init=shuffled (experiment=controls)."
            if rival is None
            else f"Also against weights of the same scale without the text: {rival.pair.name}"
            f" {percent_interval(rival.effect)}."
        )
        return
    judged.kind = rival.kind
    said = f"{rival.pair.name}: test loss {percent_interval(rival.effect)} (95 % interval)."
    if rival.kind == DOES_NOT:
        judged.headline = (
            f"It is not the text: test error is {gain} lower than with random weights, but so it"
            f" is with {rival.pair.control.init} weights, which have the checkpoint's scale alone."
        )
    else:
        judged.headline = (
            f"Cannot tell the text from the scale: test error is {gain} lower than with random"
            f" weights, and may be as low with {rival.pair.control.init} weights, which have the"
            " checkpoint's scale alone."
        )
        if rival.effect.is_known:
            judged.seeds_needed = seeds_needed(
                sd=rival.effect.sd,
                count=rival.effect.count,
                margin=judged.margin,
                tests=rival.family,
            )
    judged.reasons.append(said)


def _between(low: float, high: float) -> str:
    return f" (95 % sure: {percent(low, sign=False)} to {percent(high, sign=False)})"


def _frozen_random(judged: Verdict, main: Comparison) -> Comparison | None:
    """The comparison of the headline's pretrained arm with an encoder that stays random."""
    for c in judged.comparisons:
        is_frozen = c.pair.control.freeze == "all" and c.pair.control.init == RANDOM
        if c.pair.treatment is main.pair.treatment and is_frozen and c.pair.seeds:
            return c
    return None


def _cannot_tell(judged: Verdict, main: Comparison) -> None:
    effect, margin = main.effect, judged.margin
    if not effect.is_known:
        judged.headline = (
            "Cannot tell: one paired seed says nothing of how much seeds differ. Run at least"
            " 5 seeds of both arms."
        )
        return
    judged.seeds_needed = seeds_needed(
        sd=effect.sd, count=effect.count, margin=margin, tests=main.family
    )
    if judged.seeds_needed is None:
        count = "more than 10,000"
    else:
        count = f"about {max(judged.seeds_needed, effect.count + 1)}"
    judged.headline = (
        "Cannot tell: with pretraining the test error may be anything from"
        f" {_lower_or_higher(effect.low)} to {_lower_or_higher(effect.high)} than with random"
        f" weights. {count.capitalize()} paired seeds would decide."
    )
    resolved = resolvable_effect(sd=effect.sd, count=effect.count, tests=main.family)
    judged.reasons.append(
        f"With {count} paired seeds 80 % of studies decide, whatever the truth, whether there is a"
        f" difference that matters ({percent(margin, sign=False)}); {effect.count} paired seeds"
        f" show a true difference of {percent(math.expm1(resolved), sign=False)} in 80 %."
    )
    if effect.excludes_zero():
        judged.headline = (
            "Cannot tell: with pretraining the test error seems"
            f" {_lower_or_higher(effect.value)} than with random weights, but that is not sure"
            f" after allowing for all {main.family} comparisons made. {count.capitalize()} paired"
            " seeds would decide."
        )


def _lower_or_higher(log_ratio: float) -> str:
    share = math.expm1(log_ratio)
    return f"{percent(abs(share), sign=False)} {'higher' if share > 0 else 'lower'}"


def _over_time(main: Comparison) -> str:
    """Whether it also holds for other stretches of the series; empty where not recorded."""
    wide, dm = main.new_windows, main.over_time
    if wide is None or dm is None:
        return ""
    span = f"[{percent(wide.low)}, {percent(wide.high)}]"
    same = wide.excludes_zero() and (wide.value < 0) == (main.effect.value < 0)
    holds = "it holds there too" if same else "it is not shown there"
    return (
        f"For other stretches of this series, as well as other seeds, the interval is {span}:"
        f" {holds} (Diebold–Mariano on {dm.count:,} overlapping windows: p {probability(dm.p)})."
    )


def _together(verdicts: Sequence[Verdict]) -> list[str]:
    """What several data sets show together: geometric mean over them, Wilcoxon across them."""
    by_data: dict[str, Comparison] = {}
    for v in verdicts:
        usable = v.main is not None and v.main.pair.seeds and v.kind not in (WITHHELD, NOTHING)
        if usable:  # the first condition of a data set has the most training data
            assert v.main is not None
            by_data.setdefault(str(v.condition.config["data.name"]), v.main)
    if len(by_data) < 2:
        return []
    effects = [c.effect.value for c in by_data.values()]
    overall = log_ratio([math.exp(e) for e in effects], [1.0] * len(effects))
    lower = sum(e < 0 for e in effects)
    return [
        f"Over {len(effects)} data sets ({', '.join(by_data)}) the geometric-mean ratio of test"
        f" losses, pretrained over random, is {percent_interval(overall)} (95 % interval over data"
        f" sets); lower in {lower} of {len(effects)}; Wilcoxon across data sets p"
        f" {probability(wilcoxon_p(effects))}.",
    ]
