"""The values that `report.md.j2` is filled with; the template has the sentences and tables."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np

from t5ts.analysis import effects, judgement, words
from t5ts.analysis.arms import Arm, Pair, Point, paired
from t5ts.analysis.controls import last_seen
from t5ts.analysis.document import Section, parse
from t5ts.analysis.figures import effect_key, unfreezes
from t5ts.analysis.judgement import Comparison, Findings, Verdict
from t5ts.analysis.shift import beyond, has, ratio_to_test, series_names, under_shift
from t5ts.analysis.statistics import Estimate, log_ratio, mean_interval
from t5ts.analysis.validity import BROKEN, NOTE, in_play, settings_that_differ
from t5ts.analysis.words import NONE, interval, plural

KINDS = {
    "best": "each at its own best schedule",
    "control": "control, each at its own best schedule",
    "weights": "weights only, same schedule",
    "same_plan": "control, same schedule",
    "frozen_random": "vs. a frozen random encoder",
    "checkpoint": "another checkpoint",
    "freezing": "freezing schedule",
    "other": "more than the weights differ",
}
#: A section that ends after its question.
_EMPTY = re.compile(r"^(\*.*\?\*)\s+(?=## |\Z)", re.MULTILINE)
Found = TypeVar("Found")
Row = tuple[str, ...]


#: What the verdict's card shows, and its look (a class of the page's style sheet).
BADGES = {
    judgement.TRANSFERS: ("Transfers", "good"),
    judgement.LOWER_HERE: ("Lower with this checkpoint", "good"),
    judgement.DOES_NOT: ("Does not transfer", "bad"),
    judgement.CANNOT_TELL: ("Cannot tell", "open"),
    judgement.CANNOT_DISCRIMINATE: ("Cannot discriminate", "open"),
    judgement.NOT_LEARNED: ("Nothing learned", "open"),
    judgement.NOT_ASKED: ("Not asked", "open"),
    judgement.UNFINISHED: ("Unfinished", "open"),
    judgement.WITHHELD: ("Verdict withheld", "broken"),
    judgement.NOTHING: ("Nothing to compare", "open"),
}
#: What the parts of an arm's name mean.
ARM_WORDS = {
    "t5": "t5: pretrained on text",
    "pretrained": "pretrained: on text",
    "run": "run: the encoder of a finished run",
    "chronos": "chronos: pretrained on time series",
    "random": "random: T5's or the encoder's own random initialisation",
    "matched": "matched: random with the pretrained tensors' means and standard deviations",
    "shuffled": "shuffled: the pretrained entries in random order",
    "none": "none: trained from the first step",
    "staged": "staged: frozen at first",
    "all": "all: never trained",
    "norms": "norms: only norms and position biases trained",
}


def sections(findings: Findings, pictures: Sequence[str] = ()) -> list[Section]:
    """Sections 0 to 7, with those pictures that were drawn."""
    return parse(markdown(findings, pictures))


def markdown(findings: Findings, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with links to the pictures that were drawn."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,  # by `_escape`, as Markdown needs it
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(
        (files("t5ts.analysis") / "report.md.j2").read_text(encoding="utf-8")
    )
    text = template.render(header(findings) | _context(findings), pictures=pictures)
    text = _EMPTY.sub("\\1\n\nNothing to show yet.\n\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def header(findings: Findings) -> dict[str, Any]:
    """The values above the sections: badge, headline, reasons."""
    badge, look = BADGES[findings.kind]
    headline = findings.headline
    if headline.startswith(f"{badge}: "):  # the badge shows it
        headline = headline.removeprefix(f"{badge}: ")
        headline = headline[:1].upper() + headline[1:]
    checks = findings.main.checks
    noted, broken = (sum(c.status == status for c in checks) for status in (NOTE, BROKEN))
    return {
        "badge": badge,
        "look": look,
        "headline": headline,
        "reasons": findings.reasons,
        "in_short": in_short(findings),
        "arm_words": arm_words(findings),
        "model": " or ".join(
            dict.fromkeys(arm.model for arm in _arms(findings) if arm.is_pretrained)
        )
        or "T5",
        "checks": f"{len(checks) - noted - broken} of {len(checks)} validity checks hold"
        + (f", {noted} with a note" if noted else "")
        + f", {broken or 'none'} broken",
    }


def in_short(findings: Findings) -> str:
    """What was read, in one line."""
    study, kinds = findings.study, [v.kind for v in findings.verdicts]
    arms = {arm.name for v in findings.verdicts for arm in v.condition.arms}
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    parts = [
        f"{plural(len(study.runs), 'run')}, {len(study.finished)} finished",
        plural(len(arms), "arm"),
        findings.main.condition.name
        if len(kinds) == 1
        else f"{len(kinds)} data sets, tasks or amounts of data, each judged separately: {counts}"
        " (section 0)",
    ]
    if study.left_out:
        parts.append(f"{plural(len(study.left_out), 'run')} left out (section 7)")
    return " · ".join(parts)


def _arms(findings: Findings) -> list[Arm]:
    return [arm for v in findings.verdicts for arm in v.condition.arms]


def arm_words(findings: Findings) -> str:
    """How to read an arm's name."""
    arms = _arms(findings)
    backbones = {arm.backbone for arm in arms}
    order = "encoder-weights-freezing"
    if len(backbones) == 1:
        order = f"weights-freezing, all on the encoder {next(iter(backbones))}"
    used = {arm.init for arm in arms} | {arm.freeze for arm in arms}
    return f"{order} ({'; '.join(text for key, text in ARM_WORDS.items() if key in used)})"


def _escape(value: Any) -> Any:
    """Escape bars and line breaks, which would end a cell or a row; markup is left alone."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return Markup(str(value).replace("|", "\\|").replace("\n", " "))


def _context(findings: Findings) -> dict[str, Any]:
    """The values that `report.md.j2` uses."""
    main = findings.main.condition
    arms = [(v, arm) for v in findings.verdicts for arm in v.condition.arms]
    questions = partial(_questions, findings)
    shift = under_shift(findings)
    return {
        **_WORDS,
        "verdicts": findings.verdicts,
        "outcomes": [(v, v.main) for v in findings.verdicts],
        "checkpoints": [
            (v, backbone, own)
            for v in findings.verdicts
            for backbone, own in v.by_checkpoint.items()
            if own.main is not None
        ],
        "main": main,
        "main_name": main.name,
        "effect_key": effect_key(findings),
        "unfreezes": unfreezes(findings),
        "margin": words.percent(findings.main.margin, sign=False),
        "objective": str(main.config["objective"]),
        "arms": arms,
        "arm_label": words.arm_label,
        "named": partial(named, findings),
        "questions": questions,
        "comparisons": questions(*KINDS),
        "speeds": _known(questions("best", "control", "weights"), effects.speed),
        "curves": [
            (arm.name, curve)
            for arm in main.arms
            if (curve := effects.learning_curve(arm, "val_loss")) is not None
        ],
        "epochs_asked": lambda arm: sum(int(r.config["train.epochs"]) for r in arm.runs),
        "finished": [(v, arm) for v, arm in arms if arm.best],
        "controls": last_seen(findings.study.runs),
        "in_play": [
            (v, arm, of, of.answer(v.margin)) for v, arm in arms if (of := in_play(arm)) is not None
        ],
        "shifted": [
            (v, measured)
            for v in findings.verdicts
            if (measured := [(arm,) for arm in v.condition.arms if has(arm, "ood_loss")])
        ],
        "under_shift": [(one, one.verdict, one.comparison) for one in shift],
        "staged_under_shift": _staged(shift),
        "shuffled_arms": [
            (v, arm, ratio_to_test(arm, "shuffled_loss"))
            for v, arm in arms
            if has(arm, "shuffled_loss")
        ],
        "shuffled_pairs": [
            (v, c, beyond(c.pair, "shuffled_loss"))
            for v, c in questions("best", "weights")
            if c.pair.treatment.freeze == c.pair.control.freeze
            and has(c.pair.treatment, "shuffled_loss")
            and has(c.pair.control, "shuffled_loss")
        ],
        "forecasts": effects.forecasts(main),
        "neighbours": [
            (v, arm, place, point)
            for v, arm in arms
            if arm.best and len(arm.points) > 1
            for place, point in enumerate(effects.neighbours(arm))
        ],
        "regret_rows": _regret_rows(findings),
        "gaps": _known(questions("best", "weights"), lambda pair: effects.gap(pair)),
        "transferred": _transferred(findings),
        "naive": next(iter(baselines(findings.verdicts[-1], "test")), "seasonal_naive"),
        "weights_rows": [(named(findings, v, arm.name), *_weights(arm)) for v, arm in arms],
    }


def named(findings: Findings, v: Verdict, name: str) -> str:
    """The name with its condition, where there are several."""
    return name if len(findings.verdicts) == 1 else f"{name} · {v.condition.name}"


def _questions(findings: Findings, *kinds: str) -> list[tuple[Verdict, Comparison]]:
    """Every comparison of these kinds that has finished paired seeds."""
    return [
        (v, c)
        for v in findings.verdicts
        for c in v.comparisons
        if c.pair.kind in kinds and c.pair.seeds
    ]


def _known(
    questions: Iterable[tuple[Verdict, Comparison]], of: Callable[[Pair], Found | None]
) -> list[tuple[Verdict, Comparison, Found]]:
    """The comparisons for which `of` returns something, with what it returns."""
    return [(v, c, found) for v, c in questions if (found := of(c.pair)) is not None]


def val_at(arm: Arm, metric: str, epoch: int) -> Estimate:
    """Mean over an arm's seeds of a validation metric after an epoch."""
    curves = [run.curve(metric) for run in (_finished(arm) or arm.shown.runs)]
    return mean_interval([float(v) for epochs, curve in curves for v in curve[epochs == epoch]])


def final(arm: Arm, metric: str) -> Estimate:
    """Mean over an arm's seeds of a final metric."""
    return mean_interval([run.metric(metric) for run in _finished(arm)])


def _finished(arm: Arm) -> list[Any]:
    return list(arm.best.finished.values()) if arm.best else []


def p_value(p: float) -> str:
    """A p-value for a column; a dash where it is not known."""
    return words.probability(p).removeprefix("= ") if math.isfinite(p) else NONE


def factor(log_factor: Estimate) -> str:
    """A log-ratio as a factor with its interval."""
    text = f"{math.exp(log_factor.value):.2f}×" if math.isfinite(log_factor.value) else NONE
    if log_factor.is_known:
        text += f" [{math.exp(log_factor.low):.2f}, {math.exp(log_factor.high):.2f}]"
    return text


def setting(value: object) -> str:
    """A setting's value."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def settings(arm: Arm, point: Point) -> str:
    """The tuned settings of an arm and their values at this point."""
    return ", ".join(f"{k}={setting(point.settings.get(k))}" for k in arm.tuned) or "as given"


def log_comparisons(v: Verdict) -> dict[str, list[Comparison]] | None:
    """The comparisons that the lab log's hypotheses are about; None without its arms."""
    arms = [arm for arm in v.condition.arms if arm.best]
    if not any(a.backbone == "shared" for a in arms) or not any(a.init == "t5" for a in arms):
        return None
    seen = [c for c in v.comparisons if c.pair.seeds]
    return {
        "fair": [c for c in seen if c.pair.kind in ("best", "weights")],
        "other": [
            c for c in seen if c.pair.kind == "other" and c.pair.control.backbone == "shared"
        ],
        "staged": [
            c
            for c in seen
            if c.pair.kind == "freezing"
            and (c.pair.treatment.init, c.pair.treatment.freeze) == ("t5", "staged")
        ],
    }


def mean_of(arm: Arm, name: str) -> float:
    """Mean over an arm's finished runs of a number in their results."""
    return float(np.mean([getattr(run.result, name) for run in _finished(arm)]))


def baselines(v: Verdict, split: str) -> dict[str, dict[str, float]]:
    """Metrics of the forecasts that are not trained, the task's own naive one first."""
    results = [run.result for run in v.condition.runs if run.result is not None]
    return next((r.baselines[split] for r in results if split in r.baselines), {})


def best_achievable(v: Verdict) -> float | None:
    """The validation loss that no forecast can beat, for a synthetic series."""
    return next((r.result.best_achievable_loss for r in v.condition.runs if r.result), None)


def against_baseline(arm: Arm, name: str) -> Estimate:
    """Mean log of an arm's test loss over that of a forecast that is not trained."""
    runs = _finished(arm)
    losses = [run.result.baselines["test"][name]["loss"] for run in runs]
    return log_ratio([run.metric("test_loss") for run in runs], losses)


def against_linear(v: Verdict, arm: Arm) -> Estimate | None:
    """The same over the linear forecaster's; None where that was not run."""
    linear = next((a for a in v.condition.arms if a.backbone == "linear" and a.best), None)
    if linear is None or linear is arm:
        return None
    return paired("other", arm, linear).log_ratio("test_loss")


def _staged(shift: list[Any]) -> list[tuple[Verdict, Arm, list[Any]]]:
    """The comparisons of staged unfreezing under shift, by data set and the encoder's weights."""
    groups: dict[tuple[int, str, str], tuple[Verdict, Arm, list[Any]]] = {}
    for one in shift:
        arm = one.comparison.pair.treatment
        if one.comparison.pair.kind == "freezing":
            key = (id(one.verdict), arm.backbone, arm.init)
            groups.setdefault(key, (one.verdict, arm, []))[2].append(one)
    return list(groups.values())


def _regret_rows(findings: Findings) -> list[Row]:
    rows: list[Row] = []
    for v in findings.verdicts:
        groups: dict[tuple[str, str], list[Arm]] = {}
        for arm in v.condition.arms:
            if arm.best and arm.freeze in ("none", "staged", "all"):
                groups.setdefault((arm.backbone, arm.init), []).append(arm)
        for (backbone, init), arms in groups.items():
            sign = -1 if arms[0].maximize else 1
            best = min(arms, key=lambda a: sign * a.best.objective)  # type: ignore[union-attr]
            never = next((a.best for a in arms if a.freeze == "all"), None)
            # A sweep over the unfreeze epoch has "at once" as one of its points.
            zero = [
                p
                for a in arms
                for p in a.points
                if a.freeze == "staged"
                and p.finished
                and p.settings.get("freeze.unfreeze_epoch") == 0
            ]
            at_once = next((a.best for a in arms if a.freeze == "none"), None) or min(
                zero, key=lambda p: sign * p.objective, default=None
            )
            if never or at_once:
                assert best.best is not None
                tuned = f" ({settings(best, best.best)})" if best.tuned else ""
                label = named(findings, v, f"{backbone}, {init}")
                rows.append((label, best.name + tuned, _cost(best, never), _cost(best, at_once)))
    return rows


def _cost(best: Arm, point: Point | None) -> str:
    if point is None:
        return "not run"
    return "is the best" if point is best.best else interval(effects.regret(best, point))


def _transferred(findings: Findings) -> list[tuple[str, int, float, list[Any]]]:
    """Effective data transferred, where one series was trained on several fractions of it.

    At each fraction both weights use their own best schedule.

    Returns:
        Name of series and encoder, number of fractions, the most windows, and (value, pair) of each
        fraction; none if no seed has finished all of them.
    """
    by_series: dict[tuple[str, str], list[tuple[float, Pair]]] = {}
    for v in findings.verdicts:
        rest = {k: x for k, x in v.condition.config.items() if k != "data.fraction"}
        for pair in (c.pair for c in v.comparisons if c.pair.kind == "best"):
            windows = pair.treatment.runs[0].provenance.get("windows") or {}
            if windows.get("train"):
                name = f"{pair.treatment.backbone} on {rest['data.name']}"
                key = (name, str(sorted(rest.items())))
                by_series.setdefault(key, []).append((float(windows["train"]), pair))
    found = []
    for (name, _), entries in by_series.items():
        entries.sort(key=lambda entry: entry[0])
        if len(entries) > 1:
            by_size = effects.effective_data_transferred(entries)
            rows = [(t, pair) for t, (_, pair) in zip(by_size, entries, strict=False)]
            found.append((name, len(entries), entries[-1][0], rows))
    return found


def _weights(arm: Arm) -> tuple[str, str, str]:
    digests = {
        str((run.provenance.get("initial_sha256") or {}).get("encoder"))[:12] for run in arm.runs
    }
    shown = f"{next(iter(digests))}…" if len(digests) == 1 else f"{len(digests)} (one per seed)"
    weights = next((r.provenance["weights"] for r in arm.runs if r.provenance.get("weights")), None)
    if weights is None:
        return "drawn from the seed", shown, NONE
    return str(weights.get("source")), shown, "; ".join(weights.get("checks") or ()) or NONE


#: Functions and words that the template calls by their own names.
_WORDS: dict[str, Any] = {
    function.__name__: function
    for function in (
        against_baseline, against_linear, baselines, best_achievable, factor, final, words.fixed,
        interval, log_comparisons, mean_of, words.number, p_value, words.percent_interval,
        words.percent_span, plural, ratio_to_test, series_names, setting, settings,
        settings_that_differ, val_at,
    )
}  # fmt: skip
_WORDS |= {"effects": effects, "inf": math.inf, "judgement": judgement, "KINDS": KINDS}
_WORDS |= {"NONE": NONE, "CANNOT_TELL": judgement.CANNOT_TELL}
