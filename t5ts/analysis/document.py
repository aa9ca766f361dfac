"""The parts of a report, parsed from its Markdown: the page shows the same blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_SECTION = re.compile(r"^## (\d+)\. (.*)$", re.MULTILINE)
_PICTURE = re.compile(r"!\[(?P<alt>.*)\]\(figures/(?P<name>\w+)\.png\)")
#: Separates two cells of a row; a bar within a cell is escaped.
_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture.

    Attributes:
        name: figures/NAME.png and .svg.
        caption: What to see.
        alt: Text for a reader who cannot see it.
    """

    name: str
    caption: str
    alt: str


@dataclass(kw_only=True)
class Section:
    """A numbered section and the question that it answers."""

    number: int
    title: str
    question: str
    blocks: list[Text | Table | Picture] = field(default_factory=list)


def parse(markdown: str) -> list[Section]:
    """The sections of a report from its Markdown, as `report.md.j2` lays it out.

    Paragraphs are separated by blank lines. A table follows its caption, which ends with a colon; a
    picture is followed by its caption.
    """
    _, *parts = _SECTION.split(markdown)
    found = []
    for number, title, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        question, *paragraphs = [p for p in body.strip().split("\n\n") if p.strip()]
        section = Section(number=int(number), title=title, question=question.strip("*\n"))
        blocks = section.blocks
        for paragraph in map(str.strip, paragraphs):
            last = blocks[-1] if blocks else None
            if paragraph.startswith("| "):
                assert isinstance(last, Text)
                columns, _, *rows = map(_cells, paragraph.splitlines())
                blocks[-1] = Table(caption=last.text.removesuffix(":"), columns=columns, rows=rows)
                continue
            paragraph = _unescape(paragraph)
            if match := _PICTURE.fullmatch(paragraph):
                blocks.append(Picture(**match.groupdict(), caption=""))
            elif isinstance(last, Picture) and not last.caption:
                blocks[-1] = Picture(name=last.name, alt=last.alt, caption=paragraph)
            else:
                blocks.append(Text(text=paragraph))
        found.append(section)
    return found


def _cells(row: str) -> tuple[str, ...]:
    _, *cells, _ = _BAR.split(row)
    return tuple(_unescape(cell.strip()) for cell in cells)


def _unescape(text: str) -> str:
    return text.replace("\\|", "|")
