"""What a report consists of, whatever it is written as."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Text:
    """A paragraph."""

    text: str
    is_warning: bool = False


@dataclass(kw_only=True)
class Table:
    """A table: the first column names the row, numbers are right-aligned."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: Rows to be shown in red.
    broken: set[int] = field(default_factory=set)


@dataclass(kw_only=True)
class Picture:
    """A picture, by the name of its file.

    Attributes:
        name: figures/NAME.png and .svg.
        caption: What to see.
        alt: What a reader who cannot see it needs to know.
    """

    name: str
    caption: str
    alt: str


Block = Text | Table | Picture


@dataclass(kw_only=True)
class Section:
    """A numbered section."""

    number: int
    title: str
    question: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return f"section-{self.number}"

    def say(self, text: str, *, is_warning: bool = False) -> None:
        """Add a paragraph."""
        self.blocks.append(Text(text=text, is_warning=is_warning))

    def show(self, name: str, caption: str, alt: str) -> None:
        """Add a picture."""
        self.blocks.append(Picture(name=name, caption=caption, alt=alt))

    def tabulate(
        self,
        caption: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        broken: set[int] | None = None,
    ) -> None:
        """Add a table, or say that there is nothing to put into it."""
        if rows:
            self.blocks.append(
                Table(caption=caption, columns=columns, rows=rows, broken=broken or set())
            )
        else:
            self.say(f"{caption}: nothing to show yet.")
