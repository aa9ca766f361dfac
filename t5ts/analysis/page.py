"""The report as files: one self-contained page, Markdown, tables, pictures."""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from t5ts.analysis.figures import save_figures
from t5ts.analysis.judgement import WITHHELD, Findings
from t5ts.analysis.plots import arm_style
from t5ts.analysis.sections import header, markdown, parse
from t5ts.analysis.validity import BROKEN
from t5ts.analysis.words import arm_label, template
from t5ts.provenance import write_parquet, write_text

#: What a cell shows on a second line: an interval, the reason for none, or a name's data set.
_SECOND_LINE = re.compile(r"(?s)(.+?) (\[.*\]|\(no interval .*\)|· .*)")
#: Columns that are folded away.
_IS_FOLDED = re.compile(r"p \(.*\)|for new windows too")
#: Colours in the SVGs that follow the page's light or dark scheme.
_SCHEME = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#e6e6e6": "var(--band)",
    "#d9d9d9": "var(--line)",
    "#4c4c4c": "var(--soft)",
    "#777777": "var(--grey)",
    "#7a3e00": "var(--brown)",
}
#: The dashes of the arms' lines, in SVG.
_DASHES = {"-": "", "--": "6 3", "-.": "7 2 2 2", ":": "2 3"}
#: Numbers with their interval and unit, or a dash.
_FIGURES = re.compile(r"[<>−+–∞\[]?[\d.,∞ ]*[×\u00a0%\[\]\d.,e>−+∞ ]*( vs\. [\d.]+)?")


class Written(NamedTuple):
    """The report's page, and the names of its pictures: figures/NAME.png and .svg."""

    page: Path
    pictures: list[str]


def write_report(findings: Findings, out: Path) -> Written:
    """Write report.html, report.md, results.csv, results.parquet and figures/ into a folder.

    Each file is replaced as a whole: the report of a running sweep can be reloaded at any time. Two
    reports into one folder take turns.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        names = save_figures(findings, out / "figures")
        svgs = {n: (out / "figures" / f"{n}.svg").read_text(encoding="utf-8") for n in names}
        text = markdown(findings, names)
        table = findings.study.table()
        write_parquet(out / "results.parquet", table)
        write_text(out / "results.csv", table.write_csv())
        write_text(out / "report.md", text)
        write_text(out / "report.html", page(findings, text, svgs))
    return Written(out / "report.html", names)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that write there; a process that dies leaves no lock behind."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def page(findings: Findings, text: str, svgs: dict[str, str]) -> str:
    """The self-contained page, from the report's Markdown `text` and its pictures by name."""
    options: Any = {"autoescape": True, "trim_blocks": True, "finalize": _keep_together}
    return template("page.html.j2", {}, **options).render(
        header(findings),
        verdicts=findings.verdicts,
        sections=parse(text),
        svgs={name: _inline(name, svg) for name, svg in svgs.items()},
        arms=[
            (arm_label(arm), _in_scheme(line["color"]), _DASHES[line["linestyle"]], f"arm-{place}-")
            for place, arm in enumerate(findings.main.condition.arms)
            for line in (arm_style(place),)
        ],
        in_red=(BROKEN, WITHHELD),
        parts=_parts,
        lines=_lines,
        is_figure=lambda cell: _FIGURES.fullmatch(cell) is not None,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        directories=[str(d) for d in findings.study.dirs],
    )


def _inline(name: str, svg: str) -> str:
    """An SVG embedded in the page: with its colours, and unique ids except the arms'."""
    own = re.sub(r'(\bid="|href="#|url\(#)(?!arm-)', rf"\g<1>{name}-", svg)
    return _in_scheme(own[own.index("<svg") :])


def _in_scheme(svg: str) -> str:
    return re.sub(r"#[0-9a-fA-F]{6}", lambda m: _SCHEME.get(m[0].lower(), m[0]), svg)


def _parts(columns: Sequence[str]) -> list[list[int]]:
    """Indices of a table's visible columns, and of those folded away in a second table."""
    folded = [place for place, name in enumerate(columns) if _IS_FOLDED.fullmatch(name)]
    shown = [place for place in range(len(columns)) if place not in folded]
    return [shown, [0, *folded]] if folded else [shown]


def _lines(cell: str) -> tuple[str, str]:
    """A cell's first line, and its second line or an empty string."""
    match = _SECOND_LINE.fullmatch(cell)
    return (match[1], match[2].removeprefix("· ")) if match else (cell, "")


def _keep_together(value: Any) -> Any:
    """A percent sign stays on the line of its number; markup is left alone."""
    return re.sub(r"(\d) %", "\\1\u00a0%", value) if type(value) is str else value
