"""The parts of a report, parsed from its Markdown: the page shows the same blocks."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_SECTION = re.compile(r"^## (\d+)\. (.*)$", re.MULTILINE)
_PICTURE = re.compile(r"!\[(?P<alt>.*)\]\(figures/(?P<name>\w+)\.png\)")
#: Separates two cells of a row; a bar within a cell is escaped.
_BAR = re.compile(r"(?<!\\)\|")


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """A table; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A picture, figures/NAME.png and .svg: what to see, and text for whoever cannot see it."""

    name: str
    caption: str
    alt: str


class Section(NamedTuple):
    """A numbered section and the question that it answers."""

    number: int
    title: str
    question: str
    blocks: list[Text | Table | Picture]


def parse(markdown: str) -> list[Section]:
    """The sections of a report from its Markdown, as `report.md.j2` lays it out.

    Paragraphs are separated by blank lines. A table follows its caption, which ends with a colon; a
    picture is followed by its caption.
    """
    _, *parts = _SECTION.split(markdown)
    found = []
    for number, title, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        question, *paragraphs = [p.strip() for p in body.split("\n\n") if p.strip()]
        blocks: list[Text | Table | Picture] = []
        for paragraph in paragraphs:
            last = blocks[-1] if blocks else None
            match = _PICTURE.fullmatch(_unescape(paragraph))
            if paragraph.startswith("| "):
                assert isinstance(last, Text)
                columns, _, *rows = (
                    tuple(_unescape(cell.strip()) for cell in _BAR.split(row)[1:-1])
                    for row in paragraph.splitlines()
                )
                blocks[-1] = Table(last.text.removesuffix(":"), columns, rows)
            elif match:
                blocks.append(Picture(**match.groupdict(), caption=""))
            elif isinstance(last, Picture) and not last.caption:
                blocks[-1] = last._replace(caption=_unescape(paragraph))
            else:
                blocks.append(Text(_unescape(paragraph)))
        found.append(Section(int(number), title, question.strip("*"), blocks))
    return found


def _unescape(text: str) -> str:
    return text.replace("\\|", "|")
