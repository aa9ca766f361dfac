"""Gather freely licensed English from Debian's documentation and dictionary packages.

    python -m tools.pretrain.gather_text --out TEXT_DIR [--only NAME ...] [--keep-packages]

Each package is downloaded with `apt-get download` (no root; run `apt-get update` first), unpacked
with `dpkg-deb` into a work folder, and turned into plain text: one file a document, paragraphs
separated by blank lines, in TEXT_DIR/PACKAGE/, beside a SOURCE.json with version, licence and the
SHA-256 of the package and of its copyright file. Only the `main` archive is used, so that
everything is free by Debian's guidelines. Which paragraphs are prose enough to train on is not
decided here but in `tools.pretrain.corpus`, by one rule for all sources.
"""

import argparse
import gzip
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Documents = Iterator[tuple[str, str]]  # (name, text)


@dataclass(frozen=True)
class Package:
    """A Debian package, the licence of its text in short, and how its text is read.

    Attributes:
        licence: Summary of the package's own copyright file, which decides.
        read: Yields its documents from the folder that it was unpacked into.
    """

    licence: str
    read: Callable[[Path], Documents]


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


class _Prose(html.parser.HTMLParser):
    """The text of a page's block elements; code, tables of contents and navigation left out."""

    SKIP = _tags("script style pre nav header footer head form button select svg table title aside")
    BLOCK = _tags(
        "p div li dt dd h1 h2 h3 h4 h5 h6 section article blockquote ul ol dl br hr main body "
        "item note info desc synopsis"
    )
    CODE_CLASSES = ("highlight", "toctree", "sphinxsidebar", "related", "navigation", "toc")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._words: list[str] = []
        self._open: list[tuple[str, bool]] = []  # tags with an end, and whether they are skipped

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCK:
            self.flush()
        if tag in ("br", "hr", "img", "meta", "link", "input", "col", "p", "li", "dt", "dd"):
            return  # void, or often left unclosed: they cannot be relied on to nest
        classes = dict(attrs).get("class") or ""
        skipped = tag in self.SKIP or any(name in classes for name in self.CODE_CLASSES)
        self._open.append((tag, skipped))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCK:
            self.flush()
        if any(name == tag for name, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not any(skipped for _, skipped in self._open):
            self._words.append(data)

    def flush(self) -> None:
        """End the paragraph."""
        text = " ".join("".join(self._words).replace("¶", " ").split())
        if text:
            self.paragraphs.append(text)
        self._words = []


def html_text(page: str) -> str:
    """The prose of an HTML (or Mallard) page as paragraphs separated by blank lines."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    parser.flush()
    return "\n\n".join(parser.paragraphs)


def roff_text(page: str) -> str:
    """A manual page's paragraphs: requests and font changes dropped, examples left out."""
    lines, in_example = [], False
    for line in page.splitlines():
        if re.match(r"[.'](nf|EX|TS)\b", line):
            in_example = True
        elif re.match(r"[.'](fi|EE|TE)\b", line):
            in_example = False
        elif in_example:
            continue
        elif line.startswith((".", "'")):
            inline = re.match(r"\.(B|I|BR|BI|IR|IB|RB|RI|SM) (.*)", line)
            if inline:  # alternating fonts join their arguments
                joined = "" if len(inline[1]) == 2 else " "
                lines.append(joined.join(re.findall(r'"[^"]*"|\S+', inline[2])).replace('"', ""))
            elif not line.startswith('.\\"'):
                lines.append("")
        else:
            lines.append(line)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\[&%|^/,:]", "", "\n".join(lines))
    text = re.sub(r"\\\((?:aq|dq|lq|rq|oq|cq)", "'", text)
    return re.sub(r"\\\(em", " - ", text).replace("\\-", "-").replace("\\e", "\\")


def pod_text(page: str) -> str:
    """Perl's documentation format: ordinary paragraphs, formatting codes unwrapped."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", page):
        if paragraph[:1] not in ("=", " ", "\t", ""):
            for _ in range(3):  # codes nest
                paragraph = re.sub(r"[BCFIX]<(?:<+ )?([^<>]*)(?: >+)?>", r"\1", paragraph)
                paragraph = re.sub(
                    r"L<(?:([^<>|]*)\|)?([^<>]*)>", lambda m: m[1] or m[2], paragraph
                )
            paragraph = paragraph.replace("E<gt>", ">").replace("E<lt>", "<")
            kept.append(paragraph)
    return "\n\n".join(kept)


def markup_text(page: str) -> str:
    """reStructuredText, AsciiDoc or Markdown: unindented blocks, directives and marks dropped."""
    kept = []
    for block in re.split(r"\n\s*\n", page):
        lines = block.splitlines()
        if not lines or lines[0].startswith((".. ", "    ", "\t", "|", "+-", "=", "[", "//", "#")):
            continue
        lines = [x for x in lines if not re.fullmatch(r"\s*[-=~^\"'`*+#.:_]{3,}\s*", x)]
        text = " ".join(line.strip() for line in lines)
        text = re.sub(r":[\w:+-]+:`~?([^`<]*?)(?: ?<[^>]*>)?`", r"\1", text)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"linkgit:(\S+?)\[(\d)\]", r"\1(\2)", text)
        kept.append(re.sub(r"``?([^`]+)``?|\*\*?([^*]+)\*\*?", lambda m: m[1] or m[2], text))
    return "\n\n".join(kept)


def _decode(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pages(*patterns: str, to_text: Callable[[str], str], without: str = "$^") -> Callable:
    """A reader of the files that match the globs, in order, except those matching `without`."""

    def read(root: Path) -> Documents:
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                name = str(path.relative_to(root))
                if path.is_file() and not path.is_symlink() and not re.search(without, name):
                    yield name, to_text(_decode(path))

    return read


def dictionary(pattern: str, clean: Callable[[str], str]) -> Callable:
    """A reader of dictd's format: entries begin in column 0, 2,000 of them to a document."""

    def read(root: Path) -> Documents:
        for path in sorted(root.glob(pattern)):
            entries = re.split(r"\n(?=\S)", _decode(path))
            for start in range(0, len(entries), 2000):
                paragraphs = map(clean, entries[start : start + 2000])
                yield f"{path.stem}-{start:06d}", "\n\n".join(paragraphs)

    return read


def gcide_entry(entry: str) -> str:
    """A definition of Webster's dictionary without pronunciation, sources and cross-marks."""
    entry = re.sub(r"\\[^\\\n]*\\", "", entry, count=1)
    entry = re.sub(
        r"\[(?:1913 Webster|PJC|WordNet 1\.5|Webster[^\]]*|RP|Century[^\]]*)[^\]]*\]", "", entry
    )
    entry = re.sub(r"[{}]", "", re.sub(r"\[\d\]", "", entry))
    parts = re.split(r"\n\s*\n", entry)
    return "\n\n".join(" ".join(part.split()) for part in parts)


def plain_entry(entry: str) -> str:
    """A dictionary entry whose braces mark cross-references."""
    parts = re.split(r"\n\s*\n", re.sub(r"[{}]", "", entry))
    return "\n\n".join(" ".join(part.split()) for part in parts)


def wordnet(root: Path) -> Documents:
    """WordNet's synsets as "words: definition; examples." lines, 2,000 to a document."""
    for path in sorted(root.glob("usr/share/wordnet/data.*")):
        lines = []
        for line in path.read_text(encoding="latin-1").splitlines():
            head, bar, gloss = line.partition(" | ")
            if bar and not line.startswith("  "):
                fields = head.split()
                words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
                lines.append(f"{', '.join(words)}: {gloss.strip()}.")
        for start in range(0, len(lines), 2000):
            yield f"{path.name}-{start:06d}", "\n\n".join(lines[start : start + 2000])


def king_james(root: Path) -> Documents:
    """The Bible, a paragraph a chapter: its data file is read by the program of `bible-kjv`."""
    program = unpack("bible-kjv", root.parent.parent) / "usr/bin/bible"
    command = [str(program), "-p", str(root / "usr/lib"), "gen1:1-rev22:21"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for chapter in re.split(r"\n\n(?=[1-3A-Z][A-Za-z ]* \d+\n\n)", done.stdout):
        title, _, body = chapter.strip().partition("\n")
        yield title, " ".join(re.sub(r"(?m)^ *\d+ ", "", body).split())


def _html(*patterns: str, without: str = r"genindex|py-modindex|search\.html") -> Callable:
    return pages(*patterns, to_text=html_text, without=without)


def _dict(clean: Callable[[str], str] = plain_entry) -> Callable:
    return dictionary("usr/share/dictd/*.dz", clean)


DOC = "usr/share/doc"
_MANUAL = pages("usr/share/man/man*/*.gz", to_text=roff_text)
#: Books first: where a paragraph occurs twice, the corpus keeps the first.
PACKAGES: dict[str, Package] = {
    "dict-gcide": Package("GPL-2+ (Webster 1913 public domain)", _dict(gcide_entry)),
    "wordnet-base": Package("WordNet 3.0 (permissive)", wordnet),
    "dict-foldoc": Package("GFDL-1.1+", _dict()),
    "dict-jargon": Package("public domain", _dict()),
    "dict-devil": Package("public domain", _dict()),
    "anarchism": Package("GPL-2", _html(f"{DOC}/anarchism/html/**/*.html")),
    "bible-kjv-text": Package("public domain (King James Version)", king_james),
    "debian-handbook": Package(
        "GPL-2+ or CC-BY-SA-3.0", _html(f"{DOC}/debian-handbook/html/en-US/**/*.html")
    ),
    "debian-reference-en": Package("GPL-2+", _html("usr/share/debian-reference/*.html")),
    "debian-history": Package("GPL-2+", _html(f"{DOC}/debian-history/docs/*.en.html")),
    "debian-faq": Package(
        "copyleft (its own notice)", _html(f"{DOC}/**/*.en.html", f"{DOC}/**/*.html")
    ),
    "debian-policy": Package("GPL-2+", _html(f"{DOC}/**/*.html")),
    "developers-reference": Package("GPL-2+", _html("usr/share/developers-reference/**/*.html")),
    "debian-kernel-handbook": Package("GPL-2+", _html(f"{DOC}/**/*.html")),
    "maint-guide": Package("GPL-2+", _html(f"{DOC}/**/*.html")),
    "installation-guide-amd64": Package("GPL-2", _html(f"{DOC}/**/en/*.html")),
    "aptitude-doc-en": Package("GPL-2+", _html(f"{DOC}/**/*.html")),
    "apt-doc": Package(
        "GPL-2+", _html(f"{DOC}/apt-doc/**/*.html", without=r"\.(de|fr|es|it|ja|pl|pt|nl)[./]")
    ),
    "gnome-user-docs": Package(
        "CC-BY-SA-3.0", pages("usr/share/help/C/**/*.page", to_text=html_text)
    ),
    "gimp-help-en": Package("GFDL-1.2+", _html("usr/share/gimp/**/en/**/*.html")),
    "libreoffice-help-en-us": Package("MPL-2.0", _html("usr/share/**/en-US/text/**/*.html")),
    "python3.11-doc": Package("PSF-2.0", _html(f"{DOC}/python3.11/html/**/*.html")),
    "python-django-doc": Package("BSD-3-Clause", _html(f"{DOC}/**/*.html", without="_modules")),
    "postgresql-doc-15": Package("PostgreSQL", _html(f"{DOC}/**/*.html")),
    "postgis-doc": Package("CC-BY-SA-3.0 / GPL-2+", _html(f"{DOC}/**/*.html")),
    "sqlite3-doc": Package("public domain", _html(f"{DOC}/**/*.html")),
    "apache2-doc": Package("Apache-2.0", _html(f"{DOC}/apache2-doc/manual/en/**/*.html")),
    "git-doc": Package(
        "GPL-2", pages(f"{DOC}/git-doc/**/*.txt", to_text=markup_text, without="RelNotes/1")
    ),
    "rust-doc": Package(
        "MIT or Apache-2.0",
        _html(
            *(
                f"{DOC}/rust-doc/html/{book}/**/*.html"
                for book in (
                    "book",
                    "reference",
                    "nomicon",
                    "rust-by-example",
                    "edition-guide",
                    "embedded-book",
                    "rustc",
                    "rustdoc",
                    "unstable-book",
                )
            ),
            f"{DOC}/rust-doc/html/std/**/*.html",
            without=r"print\.html|first-edition|second-edition|2018-edition|std/(arch|simd)",
        ),
    ),
    "perl-doc": Package("GPL-1+ or Artistic", pages("usr/share/perl/**/*.pod", to_text=pod_text)),
    "linux-doc-6.1": Package(
        "GPL-2",
        pages(
            f"{DOC}/linux-doc-6.1/Documentation/**/*.rst*",
            f"{DOC}/linux-doc-6.1/Documentation/**/*.txt*",
            to_text=markup_text,
            without="translations|devicetree|/ABI/",
        ),
    ),
    "manpages": Package(
        "free (various, see the package)", pages("usr/share/man/man*/*.gz", to_text=roff_text)
    ),
    "manpages-dev": Package(
        "free (various, see the package)", pages("usr/share/man/man*/*.gz", to_text=roff_text)
    ),
    "octave-doc": Package("GPL-3+", _html(f"{DOC}/octave/**/*.html", without="doxygen|liboctave")),
    "maxima-doc": Package("GPL-2+", _html(f"{DOC}/**/*.html", without=r"/(de|es|pt|ja)/")),
    "racket-doc": Package("MIT or Apache-2.0", _html(f"{DOC}/racket/**/*.html")),
    "libboost1.74-doc": Package("BSL-1.0", _html(f"{DOC}/**/*.html")),
    "libstdc++-12-doc": Package(
        "GFDL-1.2+ / GPL-3+", _html(f"{DOC}/gcc-12-base/libstdc++/manual/*.html")
    ),
    "python-scipy-doc": Package("BSD-3-Clause", _html(f"{DOC}/**/*.html", without="_modules")),
    "python-pandas-doc": Package(
        "BSD-3-Clause", _html(f"{DOC}/**/*.html", without="_modules|_sources")
    ),
}


def unpack(name: str, work: Path) -> Path:
    """Download (once) and unpack a package; returns the folder that contains it.

    Raises:
        subprocess.CalledProcessError: if apt-get or dpkg-deb fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not any(work.glob(f"{name}_*.deb")):
        subprocess.run(["apt-get", "download", "-q", name], cwd=work, check=True)
    root = work / "unpacked" / name
    if not root.exists():
        root.mkdir(parents=True)
        archive = sorted(work.glob(f"{name}_*.deb"))[-1]
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def gather(name: str, *, out: Path, work: Path, keep: bool) -> dict[str, object]:
    """Download, unpack and convert one package; returns its SOURCE.json.

    Raises:
        subprocess.CalledProcessError: if apt-get or dpkg-deb fails.
    """
    package = PACKAGES[name]
    root = unpack(name, work)
    archive = sorted(work.glob(f"{name}_*.deb"))[-1]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = number = 0
    for number, (document, text) in enumerate(package.read(root), start=1):
        data = text.encode()
        size += len(data)
        safe = re.sub(r"[^A-Za-z0-9.-]+", "_", document)[-120:]
        (folder / f"{number:05d}-{safe}.txt").write_bytes(data)
    copyright_file = next(iter(sorted(root.glob(f"{DOC}/*/copyright"))), None)
    source: dict[str, object] = {
        "package": name,
        "version": archive.name.split("_")[1].replace("%3a", ":"),
        "archive_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "licence": package.licence,
        "copyright_sha256": hashlib.sha256(copyright_file.read_bytes()).hexdigest()
        if copyright_file
        else None,
        "documents": number,
        "bytes": size,
    }
    (folder / "SOURCE.json").write_text(json.dumps(source, indent=2) + "\n")
    if not keep:
        shutil.rmtree(root)
    return source


def main() -> None:
    """Gather every requested package, naming those that are unavailable."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the plain text")
    parser.add_argument("--work", type=Path, help="folder for packages (default: OUT/../debs)")
    parser.add_argument("--only", nargs="+", choices=list(PACKAGES), metavar="PACKAGE")
    parser.add_argument("--keep-packages", action="store_true", help="leave the unpacked trees")
    arguments = parser.parse_args()
    work = arguments.work or arguments.out.parent / "debs"
    failed = []
    for name in arguments.only or PACKAGES:
        try:
            source = gather(name, out=arguments.out, work=work, keep=arguments.keep_packages)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {source['documents']} documents, {int(str(source['bytes'])) / 1e6:.1f} MB")
    if failed:
        sys.exit(f"unavailable: {', '.join(failed)} (run apt-get update?)")


if __name__ == "__main__":
    main()
