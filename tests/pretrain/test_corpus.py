"""The corpus: what is prose, what is a repeat, and that no held-out text is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.errors import DataError
from tools.pretrain.corpus import build_corpus, clean, fingerprint, is_prose
from tools.pretrain.vocabulary import EOS, load_vocabulary, train_vocabulary


def sentence(i: int) -> str:
    words = np.random.default_rng(i).choice(WORDS, size=12)
    return " ".join(words).capitalize() + "."


WORDS = ["river", "stone", "under", "walked", "green", "house", "never", "little", "they", "sang"]


def write_source(folder: Path, paragraphs: list[str], *, files: int = 4) -> None:
    folder.mkdir(parents=True)
    for k in range(files):
        (folder / f"{k}.txt").write_text("\n\n".join(paragraphs[k::files]))


def test_prose_and_what_is_not():
    assert is_prose("The quick brown fox jumps over the lazy dog, and nobody minds it.")
    assert not is_prose("Too short.")
    assert not is_prose("x[i] = {0: (1, 2), 3: [4, 5]}; y += z * 7; print(x[i], y, 1 << 20)")
    assert not is_prose("Съешь ещё этих мягких французских булок, да выпей же чаю, друг мой.")


def test_repeats_are_dropped_whatever_their_case_and_marks(tmp_path):
    first = "A paragraph that is long enough to be counted as prose here."
    write_source(tmp_path / "a", [first, first.upper().replace(".", "!!"), sentence(1)], files=1)
    write_source(tmp_path / "b", [f"  {first} ", sentence(2)], files=1)
    corpus = build_corpus([tmp_path], held_out_share=0.0)
    text = "\n".join(section.text for section in corpus.train)
    assert text.lower().count("long enough to be counted") == 1
    assert corpus.sources["b"].paragraphs_repeated == 1


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.9))
@settings(max_examples=10)
def test_parts_are_disjoint_and_nothing_is_lost(tmp_path_factory, seed, share):
    root = tmp_path_factory.mktemp("corpus")
    paragraphs = [sentence(1000 * seed + i % 150) for i in range(300)]
    write_source(root / "s", paragraphs, files=30)
    corpus = build_corpus([root], held_out_share=share)
    train, held_out = (
        {fingerprint(line) for s in part for line in s.text.split("\n")}
        for part in (corpus.train, corpus.held_out)
    )
    assert not train & held_out
    assert train | held_out == {fingerprint(clean(p)) for p in paragraphs}


def test_a_foreign_test_text_is_never_trained_on(tmp_path):
    write_source(tmp_path / "s", [sentence(i) for i in range(40)])
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("\n".join(sentence(i).upper() for i in range(10)))
    corpus = build_corpus([tmp_path / "s"], exclude=[foreign])
    kept = {fingerprint(line) for s in corpus.train for line in s.text.split("\n")}
    assert not kept & {fingerprint(sentence(i)) for i in range(10)}
    assert fingerprint(sentence(11)) in kept


def test_manifest_names_source_licence_bytes_and_hash(tmp_path):
    write_source(tmp_path / "s", [sentence(i) for i in range(40)])
    (tmp_path / "s" / "SOURCE.json").write_text(json.dumps({"licence": "CC0", "version": "1"}))
    source = build_corpus([tmp_path]).manifest()["sources"]["s"]
    assert source["licence"] == "CC0"
    assert source["bytes_read"] == sum(p.stat().st_size for p in (tmp_path / "s").glob("*.txt"))
    assert len(source["sha256"]) == 64


def test_no_text_and_no_path_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text to train on"):
        build_corpus([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file or folder"):
        build_corpus([tmp_path / "absent"])


def test_vocabulary_has_t5s_layout_and_gives_every_text_back(tmp_path):
    vocabulary = train_vocabulary((sentence(i) for i in range(200)), size=400)
    vocabulary.tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = load_vocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.size == 400
    assert vocabulary.first_sentinel == 399
    assert vocabulary.tokenizer.token_to_id("<extra_id_99>") == 300
    for text in ("The river sang.", "naïve 東京 <unk> </s> <extra_id_0>\n\t{x}"):
        (ids,) = vocabulary.encode([text])
        assert vocabulary.decode(ids) == text
        assert ids.min() > 2
        assert ids.max() < 300  # what is written in a text never becomes a special id
    assert vocabulary.stream(["a", "b"])[-1] == EOS


def test_too_little_text_for_the_vocabulary_is_an_error():
    with pytest.raises(DataError, match="--vocab-size"):
        train_vocabulary(["river stone"], size=4000)
