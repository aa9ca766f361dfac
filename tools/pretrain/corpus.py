"""Plain text to train on: read, cleaned, without repeats, with a held-out part and a manifest.

A corpus is a folder of sources, each a folder of `.txt` files (paragraphs separated by blank
lines) beside an optional SOURCE.json that states its licence, or simply a `.txt` file.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t5ts.errors import DataError

#: Paragraphs that are held out or trained on together, so that no held-out paragraph has its
#: neighbours in the train part.
SECTION_PARAGRAPHS = 64
#: A paragraph counts as prose if it has at least this many characters, …
MIN_CHARACTERS = 40
#: … at least this share of letters, ignoring spaces (code, tables and numbers have fewer), …
MIN_LETTERS = 0.75
#: … and at least this share of plain Latin ones among them (other languages have fewer).
MIN_LATIN = 0.95


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some consecutive paragraphs of one document, cleaned."""

    source: str
    document: str
    text: str


@dataclass(kw_only=True)
class SourceCount:
    """What one source gave; a line of the manifest."""

    licence: str = "unstated"
    origin: dict[str, Any] = field(default_factory=dict)
    bytes_read: int = 0
    sha256: str = ""
    paragraphs_read: int = 0
    paragraphs_not_prose: int = 0
    paragraphs_repeated: int = 0
    train_bytes: int = 0
    held_out_bytes: int = 0


@dataclass(kw_only=True)
class Corpus:
    """Both parts of the text, and where each byte came from."""

    train: list[Section]
    held_out: list[Section]
    sources: dict[str, SourceCount]

    def manifest(self) -> dict[str, Any]:
        """JSON-able: source, licence, bytes and SHA-256 of everything that was read."""
        return {
            "rules": {
                "prose": f"at least {MIN_CHARACTERS} characters, {MIN_LETTERS:.0%} of them letters",
                "repeats": "first occurrence kept, compared by letters and digits alone",
                "held_out": f"by hash of document and section ({SECTION_PARAGRAPHS} paragraphs)",
            },
            "train_bytes": sum(source.train_bytes for source in self.sources.values()),
            "held_out_bytes": sum(source.held_out_bytes for source in self.sources.values()),
            "sources": {name: vars(source) for name, source in self.sources.items()},
        }


def clean(paragraph: str) -> str:
    """One line of NFC text with single blanks and no control characters."""
    text = unicodedata.normalize("NFC", paragraph).replace("\u00ad", "")
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def is_prose(paragraph: str) -> bool:
    """Whether a cleaned paragraph reads as English text rather than code, a table or a list."""
    if len(paragraph) < MIN_CHARACTERS:
        return False
    letters = sum(map(str.isalpha, paragraph))
    latin = len(re.findall(r"[A-Za-z]", paragraph))
    solid = len(paragraph) - paragraph.count(" ")
    return letters >= MIN_LETTERS * solid and latin >= MIN_LATIN * letters


def fingerprint(paragraph: str) -> bytes:
    """Equal for paragraphs that differ only in case, blanks and punctuation."""
    same = "".join(filter(str.isalnum, paragraph.lower()))
    return hashlib.blake2b(same.encode(), digest_size=12).digest()


def is_held_out(document: str, section: int, *, share: float) -> bool:
    """Whether a section belongs to the held-out part: fixed by its name, whatever else is read."""
    digest = hashlib.sha256(f"{document}#{section}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def read_paragraphs(path: Path) -> list[str]:
    """A text file's cleaned paragraphs.

    Raises:
        DataError: if it cannot be read or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}).") from error
    return [line for part in re.split(r"\n\s*\n", text) if (line := clean(part))]


def build_corpus(
    paths: Iterable[Path], *, held_out_share: float = 0.01, exclude: Iterable[Path] = ()
) -> Corpus:
    """Read sources in order, drop non-prose and duplicates, and split.

    Args:
        paths: Folders of sources, folders of `.txt` files, or `.txt` files.
        held_out_share: Share of the sections that is held out.
        exclude: Files none of whose paragraphs may occur in either part (a foreign test text).

    Raises:
        DataError: if a path does not exist, or nothing is left to train on.
    """
    seen = {fingerprint(line) for path in exclude for line in _lines(path)}
    corpus = Corpus(train=[], held_out=[], sources={})
    for source, folder, files in _sources(paths):
        count = corpus.sources.setdefault(source, SourceCount())
        origin = folder / "SOURCE.json"
        if origin.is_file():
            count.origin = json.loads(origin.read_text(encoding="utf-8"))
            count.licence = str(count.origin.get("licence", count.licence))
        digest = hashlib.sha256()
        for file in files:
            data = file.read_bytes()
            digest.update(data)
            count.bytes_read += len(data)
            _add(corpus, count, source, file, seen, held_out_share)
        count.sha256 = digest.hexdigest()
    if not corpus.train:
        raise DataError(
            "no text to train on: the paths hold no .txt file with a paragraph of prose "
            f"(at least {MIN_CHARACTERS} characters)."
        )
    return corpus


def _add(
    corpus: Corpus, count: SourceCount, source: str, file: Path, seen: set[bytes], share: float
) -> None:
    """Add one document's new prose to the corpus, section by section."""
    paragraphs = read_paragraphs(file)
    count.paragraphs_read += len(paragraphs)
    for start in range(0, len(paragraphs), SECTION_PARAGRAPHS):
        kept = []
        for paragraph in paragraphs[start : start + SECTION_PARAGRAPHS]:
            if not is_prose(paragraph):
                count.paragraphs_not_prose += 1
            elif (mark := fingerprint(paragraph)) in seen:
                count.paragraphs_repeated += 1
            else:
                seen.add(mark)
                kept.append(paragraph)
        if not kept:
            continue
        document = f"{source}/{file.name}"
        section = Section(source=source, document=document, text="\n".join(kept))
        size = len(section.text.encode())
        if is_held_out(document, start // SECTION_PARAGRAPHS, share=share):
            corpus.held_out.append(section)
            count.held_out_bytes += size
        else:
            corpus.train.append(section)
            count.train_bytes += size


def _lines(path: Path) -> Iterator[str]:
    """Paragraphs and lines of a file: foreign texts often have a paragraph a line."""
    yield from read_paragraphs(path)
    for line in path.read_text(encoding="utf-8").splitlines():
        if cleaned := clean(line):
            yield cleaned


def _sources(paths: Iterable[Path]) -> Iterator[tuple[str, Path, list[Path]]]:
    """(name, folder, files) of each source, in a fixed order."""
    for path in paths:
        if path.is_file():
            yield path.stem, path.parent / path.stem, [path]
        elif path.is_dir():
            own = sorted(path.glob("*.txt"))
            if own:
                yield path.name, path, own
            for folder in sorted(child for child in path.iterdir() if child.is_dir()):
                files = sorted(folder.rglob("*.txt"))
                if files:
                    yield folder.name, folder, files
        else:
            raise DataError(f"no such file or folder: {path}")
