"""The report as files: one self-contained page, Markdown, tables, pictures."""

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from t5ts.analysis.colours import style
from t5ts.analysis.document import Picture, Section, Table, Text
from t5ts.analysis.figures import arm_group, save_figures
from t5ts.analysis.judgement import (
    CANNOT_DISCRIMINATE,
    CANNOT_TELL,
    DOES_NOT,
    LOWER_HERE,
    NOT_LEARNED,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
    Findings,
    Verdict,
)
from t5ts.analysis.sections import sections
from t5ts.analysis.validity import BROKEN, NOTE
from t5ts.analysis.words import plural

#: Figures with their interval and unit; a dash for none.
_FIGURES = re.compile(r"[<−+–∞\[]?[\d.,∞ ]*[×\u00a0%\[\]\d.,e−+∞ ]*( against [\d.]+)?")
#: What the verdict's card says, and its look (a class of the page's style sheet).
BADGES = {
    TRANSFERS: ("Transfers", "good"),
    LOWER_HERE: ("Lower with this checkpoint", "good"),
    DOES_NOT: ("Does not transfer", "bad"),
    CANNOT_TELL: ("Cannot tell", "open"),
    CANNOT_DISCRIMINATE: ("Cannot discriminate", "open"),
    NOT_LEARNED: ("Nothing learned", "open"),
    UNFINISHED: ("Unfinished", "open"),
    WITHHELD: ("Verdict withheld", "broken"),
    NOTHING: ("Nothing to compare", "open"),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where the report's files are."""

    page: Path
    markdown: Path
    tables: list[Path]
    figures: list[Path]


def write_report(findings: Findings, out: Path) -> Written:
    """Write report.html, report.md, results.csv, results.parquet and figures/ into a folder.

    Each file is whole or the earlier one stays, so that a report of running sweeps can be reloaded
    while it is being renewed.

    Args:
        findings: From `verdict`.
        out: The folder; made if missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = save_figures(findings, out / "figures")
    content = sections(findings)
    table = findings.study.table()
    _replace(out / "results.csv", table.write_csv().encode())
    parquet = out / "results.parquet.tmp"
    table.write_parquet(parquet)
    parquet.replace(out / "results.parquet")
    _replace(out / "report.md", markdown(findings, content, names).encode())
    _replace(out / "report.html", page(findings, content, names, out / "figures").encode())
    return Written(
        page=out / "report.html",
        markdown=out / "report.md",
        tables=[out / "results.csv", out / "results.parquet"],
        figures=[out / "figures" / f"{name}.{kind}" for name in names for kind in ("png", "svg")],
    )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def in_short(findings: Findings) -> str:
    """What was read, in one line."""
    study, main = findings.study, findings.main
    arms = {arm.name for v in findings.verdicts for arm in v.condition.arms}
    parts = [
        f"{plural(len(study.runs), 'run')}, {len(study.finished)} finished",
        plural(len(arms), "arm"),
        main.condition.name
        if len(findings.verdicts) == 1
        else f"{len(findings.verdicts)} data sets, tasks or amounts of data, each judged for"
        f" itself: {_kinds(findings)} (section 0)",
    ]
    if study.left_out:
        parts.append(f"{plural(len(study.left_out), 'run')} left out (section 7)")
    return " · ".join(parts)


def _kinds(findings: Findings) -> str:
    kinds = [v.kind for v in findings.verdicts]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


#: What an arm's name says of its weights and of its freezing.
_WORDS = {
    "t5": "t5: pretrained on text",
    "random": "random: T5's or the encoder's own random start",
    "matched": "matched: random with the pretrained tensors' means and spreads",
    "shuffled": "shuffled: the pretrained entries in random order",
    "none": "none: trained from the first step",
    "staged": "staged: frozen at first",
    "all": "all: never trained",
    "norms": "norms: only norms and position biases trained",
}


def arm_words(findings: Findings) -> str:
    """How to read an arm's name."""
    arms = [arm for v in findings.verdicts for arm in v.condition.arms]
    backbones = {arm.backbone for arm in arms}
    order = "weights-freezing" if len(backbones) == 1 else "encoder-weights-freezing"
    if len(backbones) == 1:
        order += f", all on the encoder {next(iter(backbones))}"
    used = {arm.init for arm in arms} | {arm.freeze for arm in arms}
    return f"{order} ({'; '.join(words for key, words in _WORDS.items() if key in used)})"


def checks_in_words(main: Verdict) -> str:
    """How many validity checks hold."""
    noted, broken = (sum(c.status == s for c in main.checks) for s in (NOTE, BROKEN))
    held = len(main.checks) - noted - broken
    rest = f", {noted} with a note" if noted else ""
    return f"{held} of {len(main.checks)} validity checks hold{rest}, {broken or 'none'} broken"


def shown_headline(findings: Findings) -> str:
    """The headline below its badge, less what the badge says."""
    start = f"{BADGES[findings.kind][0]}: "
    if not findings.headline.startswith(start):
        return findings.headline
    rest = findings.headline.removeprefix(start)
    return rest[:1].upper() + rest[1:]


def swatch(place: int) -> str:
    """An arm's line as the plots draw it, in SVG: colour, dash and marker."""
    colour, dash, marker = style(place)
    dashes = {"dashed": "6 3", "dotdash": "7 2 2 2", "dotted": "2 3"}.get(dash, "")
    shape = {
        "circle": '<circle cx="16" cy="7" r="4"/>',
        "square": '<path d="M12 3h8v8h-8z"/>',
        "triangle": '<path d="M16 2l5 9h-10z"/>',
        "diamond": '<path d="M16 2l5 5-5 5-5-5z"/>',
        "inverted_triangle": '<path d="M16 12l5-9h-10z"/>',
        "cross": '<path d="M16 2v10M11 7h10" stroke-width="3"/>',
        "x": '<path d="M12 3l8 8M20 3l-8 8" stroke-width="3"/>',
        "star": '<path d="M16 1l2 5h5l-4 3 2 5-5-3-5 3 2-5-4-3h5z"/>',
    }[marker]
    return (
        f'<svg class="swatch" viewBox="0 0 32 14" width="32" height="14" aria-hidden="true"'
        f' stroke="{colour}" fill="{colour}"><path d="M0 7h32" stroke-width="2"'
        f' stroke-dasharray="{dashes}"/>{shape}</svg>'
    )


def markdown(findings: Findings, content: list[Section], pictures: list[str]) -> str:
    """The report as Markdown, with links to the picture files."""
    lines = [
        "# Does T5's text pretraining help?",
        "",
        f"**{BADGES[findings.kind][0]}.** {shown_headline(findings)}",
        "",
        *(f"- {reason}" for reason in findings.reasons),
        "",
        f"{in_short(findings)}. An arm's name is {arm_words(findings)}.",
        "",
    ]
    for v in findings.verdicts:
        lines += [
            f"> **BROKEN INVARIANT** ({v.condition.name}) {c.name}: {c.detail}\n" for c in v.broken
        ]
    for section in content:
        lines += [f"## {section.number}. {section.title}", "", f"*{section.question}*", ""]
        for block in section.blocks:
            if isinstance(block, Text):
                lines += [block.text, ""]
            elif isinstance(block, Table):
                lines += [f"{block.caption}:", "", *_markdown_table(block), ""]
            elif block.name in pictures:
                lines += [f"![{_cell(block.alt)}](figures/{block.name}.png)", "", block.caption, ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    rows = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page(findings: Findings, content: list[Section], pictures: list[str], figures: Path) -> str:
    """The page: everything that it needs stands in it.

    Args:
        findings: From `verdict`.
        content: From `sections`.
        pictures: Names of the pictures that were drawn.
        figures: Their folder.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_keep_together
    )
    environment.globals["is_number"] = _is_number
    template = environment.from_string(
        (files("t5ts.analysis") / "page.html.j2").read_text(encoding="utf-8")
    )

    def image(block: Picture) -> str:
        data = (figures / f"{block.name}.svg").read_bytes()
        # As an image each SVG has its ids to itself.
        return "data:image/svg+xml;base64," + base64.b64encode(data).decode()

    def inline(block: Picture) -> str:
        # Part of the page, so that its script can hide an arm's lines.
        text = (figures / f"{block.name}.svg").read_text(encoding="utf-8")
        return text[text.index("<svg") :]

    def kind(block: Any) -> str:
        return type(block).__name__.lower()

    badge, look = BADGES[findings.kind]
    return template.render(
        reasons=findings.reasons,
        verdicts=findings.verdicts,
        badge=badge,
        look=look,
        in_short=in_short(findings),
        arm_words=arm_words(findings),
        sections=content,
        pictures=pictures,
        arms=[
            (arm.name, swatch(place), arm_group(place))
            for place, arm in enumerate(findings.main.condition.arms)
        ],
        image=image,
        inline=inline,
        kind=kind,
        headline=shown_headline(findings),
        checks=checks_in_words(findings.main),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        directories=[str(d) for d in findings.study.dirs],
    )


def _keep_together(value: Any) -> Any:
    """A percent sign stays on the line of its number; what is markup already is left alone."""
    return re.sub(r"(\d) %", "\\1\u00a0%", value) if type(value) is str else value


def _is_number(cell: str) -> bool:
    """Whether a cell is set in figures, which are aligned to the right."""
    return _FIGURES.fullmatch(cell) is not None
