"""The vocabulary: byte-level BPE trained on the train part, T5's special tokens around it.

Ids are laid out as T5's: padding 0, end of text 1, unknown 2, the sentinels at the very end with
<extra_id_0> last. Byte-level, so nothing is ever unknown and decoding gives the text back exactly.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from t5ts.errors import DataError

PAD, EOS, UNK = 0, 1, 2
SPECIALS = ("<pad>", "</s>", "<unk>")
NUM_SENTINELS = 100
#: Sections encoded at once: enough for the tokenizer's threads, little enough for memory.
_BATCH = 512


@dataclass(frozen=True)
class Vocabulary:
    """A trained tokenizer and its layout."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        # "<unk>" or "</s>" written in a text is text, and must not become a special id.
        self.tokenizer.encode_special_tokens = True

    @property
    def size(self) -> int:
        """Number of ids, sentinels included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def first_sentinel(self) -> int:
        """Id of <extra_id_0>; the k-th sentinel has this id minus k."""
        return self.size - 1

    def encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Token ids of each text, (length,) uint16, without an end mark."""
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == _BATCH:
                yield from self._encode(batch)
                batch = []
        yield from self._encode(batch)

    def _encode(self, batch: list[str]) -> Iterator[np.ndarray]:
        for encoding in self.tokenizer.encode_batch(batch, add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=np.uint16)

    def stream(self, texts: Iterable[str]) -> np.ndarray:
        """All texts as one row of ids, (total,) uint16, an end mark after each."""
        end = np.array([EOS], dtype=np.uint16)
        parts = [part for ids in self.encode(texts) for part in (ids, end)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens written out."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def train_vocabulary(texts: Iterable[str], *, size: int = 8192) -> Vocabulary:
    """Train a byte-level BPE of `size` ids in all.

    Raises:
        DataError: if the text is too little for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - NUM_SENTINELS,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != size - NUM_SENTINELS:
        raise DataError(
            f"the text gives only {tokenizer.get_vocab_size()} tokens of the "
            f"{size - NUM_SENTINELS} requested: use a smaller --vocab-size or more text."
        )
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(NUM_SENTINELS))])
    # For those who use the shipped tokenizer: an end mark after each text, as T5's own adds it.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return Vocabulary(tokenizer)


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a `tokenizer.json`.

    Raises:
        DataError: if it is missing or has another layout.
    """
    if not path.is_file():
        raise DataError(f"no vocabulary at {path}: run `python -m tools.pretrain prepare` first.")
    vocabulary = Vocabulary(Tokenizer.from_file(str(path)))
    expected = {"<pad>": PAD, "</s>": EOS, "<extra_id_0>": vocabulary.first_sentinel}
    for token, token_id in expected.items():
        if vocabulary.tokenizer.token_to_id(token) != token_id:
            raise DataError(f"{path}: {token} should have id {token_id}; it is no T5 layout.")
    return vocabulary
