"""The report's text: `report.md.j2` filled with values, and its parts, which the page shows too."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from t5ts.analysis import effects, encoder, judgement, validity, words
from t5ts.analysis.arms import PRETRAINED, Arm, Setting
from t5ts.analysis.controls import last_seen
from t5ts.analysis.effects import has
from t5ts.analysis.figures import effect_key, unfreezes
from t5ts.analysis.judgement import DOES_NOT, LOWER_HERE, TRANSFERS, WITHHELD, Findings, Verdict
from t5ts.analysis.pairs import KINDS, Pair
from t5ts.analysis.statistics import Estimate, log_ratio
from t5ts.analysis.study import grouped
from t5ts.analysis.words import NONE, interval, sentence

#: A section that ends after its question.
_EMPTY = re.compile(r"^(\*.*\?\*)\s+(?=## |\Z)", re.MULTILINE)
_SECTION = re.compile(r"^## (\d+)\. (.*)$", re.MULTILINE)
_PICTURE = re.compile(r"!\[(?P<alt>.*)\]\(figures/(?P<name>\w+)\.png\)")
#: Separates two cells of a row; a bar within a cell is escaped.
_BAR = re.compile(r"(?<!\\)\|")
#: The look of the verdict's card (a class of the page's style sheet), if it is not open.
LOOKS = {TRANSFERS: "good", LOWER_HERE: "good", DOES_NOT: "bad", WITHHELD: "broken"}


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """A table; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A picture, figures/NAME.png and .svg: its caption, and its alternative text."""

    name: str
    caption: str
    alt: str


class Section(NamedTuple):
    """A numbered section and the question that it answers."""

    number: int
    title: str
    question: str
    blocks: list[Text | Table | Picture]


def sections(findings: Findings, pictures: Sequence[str] = ()) -> list[Section]:
    """Sections 0 to 7, with those pictures that were drawn."""
    return parse(markdown(findings, pictures))


def parse(text: str) -> list[Section]:
    """The sections of a report from its Markdown, as `report.md.j2` lays it out.

    Paragraphs are separated by blank lines. A table follows its caption, which ends with a colon; a
    picture is followed by its caption.
    """
    _, *parts = _SECTION.split(text)
    found = []
    for number, title, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        question, *paragraphs = [p.strip() for p in body.split("\n\n") if p.strip()]
        blocks: list[Text | Table | Picture] = []
        for paragraph in paragraphs:
            last = blocks[-1] if blocks else None
            plain = _plain(paragraph)
            if paragraph.startswith("| "):
                assert isinstance(last, Text)
                columns, _, *rows = (
                    tuple(_plain(cell.strip()) for cell in _BAR.split(row)[1:-1])
                    for row in paragraph.splitlines()
                )
                blocks[-1] = Table(last.text.removesuffix(":"), columns, rows)
            elif match := _PICTURE.fullmatch(plain):
                blocks.append(Picture(**match.groupdict(), caption=""))
            elif isinstance(last, Picture) and not last.caption:
                blocks[-1] = last._replace(caption=plain)
            else:
                blocks.append(Text(plain))
        found.append(Section(int(number), title, question.strip("*"), blocks))
    return found


def _plain(text: str) -> str:
    return text.replace("\\|", "|")


def markdown(findings: Findings, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with links to the pictures that were drawn."""
    names: dict[str, Any] = {}
    for module in (words, judgement, encoder, validity, effects):
        names |= vars(module)
    # Escaped by `_escape`, as Markdown needs it.
    options: Any = {"autoescape": True, "finalize": _escape, "lstrip_blocks": True}
    report = words.template("report.md.j2", names | globals(), trim_blocks=True, **options)
    text = report.render(header(findings) | _context(findings), pictures=pictures)
    text = _EMPTY.sub("\\1\n\nNothing to show yet.\n\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _escape(value: Any) -> Any:
    """Escape bars and line breaks, which would end a cell or a row; markup is left alone."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return Markup(str(value).replace("|", "\\|").replace("\n", " "))


def header(findings: Findings) -> dict[str, Any]:
    """The values above the sections: badge, headline, reasons."""
    kind = findings.kind
    arms = [arm for v in findings.verdicts for arm in v.condition.arms]
    subjects = dict.fromkeys(arm.pretraining.content for arm in arms if arm.is_pretrained)
    return {
        "badge": "Verdict withheld" if kind == WITHHELD else kind.capitalize(),
        "look": LOOKS.get(kind, "open"),
        "headline": words.without(findings.headline, kind),
        "reasons": findings.reasons,
        "in_short": in_short(findings),
        "arm_words": sentence(
            "arm_words",
            backbones=list(dict.fromkeys(arm.backbone for arm in arms)),
            used={arm.init for arm in arms} | {arm.freeze for arm in arms},
        ),
        "subject": " or ".join(subjects) or PRETRAINED["t5"].content,
        "checks": sentence("checks", statuses=[c.status for c in findings.main.checks]),
    }


def in_short(findings: Findings) -> str:
    """What was read, in one line."""
    arms = {arm.name for v in findings.verdicts for arm in v.condition.arms}
    kinds = Counter(v.kind for v in findings.verdicts)
    return sentence("in_short", findings=findings, study=findings.study, arms=arms, kinds=kinds)


def _context(findings: Findings) -> dict[str, Any]:
    """The values, other than functions, that `report.md.j2` uses."""
    verdicts = findings.verdicts
    arms = [(v, arm) for v in verdicts for arm in v.condition.arms]

    def named(v: Verdict, name: str) -> str:  # with its condition if there are several
        return name if len(verdicts) == 1 else f"{name} · {v.condition.name}"

    def questions(*kinds: str, of: Callable[[Pair], Any] | None = None) -> list[tuple[Any, ...]]:
        """Comparisons of these kinds with finished paired seeds, and what `of` returns for each."""
        compared = [(v, c) for v in verdicts for c in v.comparisons if c.pair.kind in kinds]
        compared = [(v, c) for v, c in compared if c.pair.seeds]
        if of is None:
            return compared
        return [(v, c, found) for v, c in compared if (found := of(c.pair)) is not None]

    return {
        "verdicts": verdicts,
        "main": findings.main.condition,
        "margin": words.percent(findings.main.margin, sign=False),
        "effect_key": effect_key(findings),
        "unfreezes": unfreezes(findings),
        "arms": arms,
        "named": named,
        "questions": questions,
        "comparisons": questions(*KINDS),
        "checkpoints": [
            (v, name, own) for v in verdicts for name, own in v.by_checkpoint.items() if own.main
        ],
        "controls": last_seen(findings.study.runs),
        "in_play": [(v, arm, use) for v, arm in arms if (use := encoder.in_play(arm))],
        "shifted": [v for v in verdicts if any(has(a, "ood_loss") for a in v.condition.arms)],
        "shuffled": [(v, arm) for v, arm in arms if has(arm, "shuffled_loss")],
        "under_shift": [(o, o.verdict, o.comparison) for o in effects.under_shift(findings)],
        "epochs_asked": lambda arm: sum(int(r.config["train.epochs"]) for r in arm.runs),
        "searched": [
            (v, arm, place, tried)
            for v, arm in arms
            if len(arm.settings) > 1
            for place, tried in enumerate(arm.ranked[:5], start=1)
        ],
        "regrets": [(named(v, name), *row) for v in verdicts for name, *row in _regrets(v)],
        "transferred": _transferred(findings),
    }


def p_value(p: float) -> str:
    """A p-value for a column; a dash where it is not known."""
    return words.probability(p).removeprefix("= ") if math.isfinite(p) else NONE


def shown(value: object) -> str:
    """A setting's value in words."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def tuned_values(arm: Arm, setting: Setting) -> str:
    """The tuned keys of an arm and their values in this setting."""
    tuned = (f"{key}={shown(setting.values.get(key))}" for key in sorted(arm.tuned))
    return ", ".join(tuned) or "as given"


def baselines(v: Verdict, split: str) -> dict[str, dict[str, float]]:
    """Metrics of the forecasts that are not trained, the task's own naive one first."""
    results = [run.result for run in v.condition.runs if run.result is not None]
    return next((r.baselines[split] for r in results if split in r.baselines), {})


def against_baseline(arm: Arm, name: str) -> Estimate:
    """Mean log of an arm's test loss over that of a forecast that is not trained."""
    losses = [run.result.baselines["test"][name]["loss"] for run in arm.done if run.result]
    return log_ratio(arm.values("test_loss"), losses)


def _regrets(v: Verdict) -> list[tuple[str, ...]]:
    """For each set of weights: name, best schedule, and the cost of the two simple schedules."""
    rows = []
    arms = [arm for arm in v.condition.arms if arm.best and arm.freeze in ("none", "staged", "all")]
    for (backbone, init), group in grouped(arms, lambda arm: (arm.backbone, arm.init)).items():
        best = min(group, key=lambda arm: arm.loss)
        simple = {arm.freeze: arm.best for arm in reversed(group)}
        # A sweep over the unfreeze epoch has "at once" as one of its settings.
        staged = [s for arm in group if arm.freeze == "staged" for s in arm.settings if s.finished]
        zero = [s for s in staged if s.values.get("freeze.unfreeze_epoch") == 0]
        simple.setdefault("none", min(zero, key=lambda setting: setting.loss, default=None))
        costs = {
            plan: "is the best" if setting is best.best else interval(effects.regret(best, setting))
            for plan, setting in simple.items()
            if setting is not None and plan != "staged"
        }
        if costs and best.best:
            tuned = f" ({tuned_values(best, best.best)})" if best.tuned else ""
            cells = (costs.get(plan, "not run") for plan in ("all", "none"))
            rows.append((f"{backbone}, {init}", best.name + tuned, *cells))
    return rows


def _transferred(findings: Findings) -> list[tuple[str, list[Pair], list[Any]]]:
    """Series trained on several fractions: name, the best pair at each, effective data."""
    best = [(v, c.pair) for v in findings.verdicts for c in v.comparisons if c.pair.kind == "best"]

    def series(item: tuple[Verdict, Pair]) -> tuple[str, str]:
        rest = {k: x for k, x in item[0].condition.config.items() if k != "data.fraction"}
        name = f"{item[1].treatment.backbone} on {rest['data.name']}"
        return name, str(sorted(rest.items()))

    found = []
    for (name, _), group in grouped(best, series).items():
        sized = [pair for _, pair in group if pair.num_windows]
        sized.sort(key=lambda pair: pair.num_windows)
        if len(sized) > 1:
            found.append((name, sized, effects.effective_data_transferred(sized)))
    return found
