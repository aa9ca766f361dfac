"""The text in disguise is the named text, rotated, and nothing else."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from t5ts.data.disguise import CHECKPOINT, TEXT_FILE, disguise
from t5ts.data.sources import load_text_in_disguise
from t5ts.errors import DataError

PLAIN = {"num_rows": 500, "num_channels": 256, "noise_std": 0.0, "seed": 0}


def test_the_ids_are_those_that_the_file_beside_them_describes():
    told = json.loads(TEXT_FILE.with_suffix(".json").read_text())
    ids = np.load(TEXT_FILE)["ids"]
    tokenizer = (CHECKPOINT / "tokenizer.json").read_bytes()
    assert ids.dtype == np.uint16
    assert len(ids) == told["tokens"]
    assert hashlib.sha256(ids.tobytes()).hexdigest() == told["ids_sha256"]
    assert hashlib.sha256(tokenizer).hexdigest() == told["tokenizer_sha256"]
    assert TEXT_FILE.stat().st_size < 300_000
    assert "CC0" in told["licence"]


def test_the_ids_are_english_in_the_checkpoints_own_tokens():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text = tokenizer.decode(np.load(TEXT_FILE)["ids"][:40].tolist())
    assert "Call me Ishmael." in text


def test_without_noise_it_is_the_embedding_but_for_a_rotation_and_a_scale():
    ids = np.load(TEXT_FILE)["ids"][:500]
    weights = load_file(CHECKPOINT / "model.safetensors")
    signal_TD = weights["shared.weight"].float().numpy()[ids]
    values_TC = disguise(**PLAIN)
    assert np.square(values_TC).mean() == pytest.approx(1.0, rel=1e-4)
    ours, theirs = values_TC @ values_TC.T, signal_TD @ signal_TD.T
    np.testing.assert_allclose(ours / np.trace(ours), theirs / np.trace(theirs), atol=1e-7)
    assert not np.allclose(values_TC, disguise(**(PLAIN | {"seed": 1})))


def test_fewer_channels_and_more_noise_take_away_and_change_nothing_else():
    values_TC, fewer_TC = disguise(**PLAIN), disguise(**(PLAIN | {"num_channels": 5}))
    np.testing.assert_allclose(fewer_TC, values_TC[:, :5], atol=1e-5)
    small_TC, large_TC = (disguise(**(PLAIN | {"noise_std": std})) for std in (0.1, 1.0))
    np.testing.assert_allclose((small_TC - values_TC) * 10, large_TC - values_TC, atol=1e-5)
    assert (large_TC - values_TC).std() == pytest.approx(1.0, rel=0.02)


def test_a_series_names_its_source_and_refuses_what_the_text_does_not_have():
    small = {**PLAIN, "num_rows": 1000, "num_channels": 3, "splits": [0.8, 0.1, 0.1]}
    told = load_text_in_disguise(**small).fingerprint()
    assert (told["rows"], len(told["channels"])) == (1000, 3)
    assert "Moby-Dick" in told["source"]
    assert "CC0" in told["licence"]
    for changed, named in (
        ({"num_rows": 10**6}, r"data\.num_rows.*172,282"),
        ({"num_channels": 257}, r"data\.num_channels.*256"),
        ({"splits": [0.5, 0.1, 0.1]}, r"data\.splits"),
    ):
        with pytest.raises(DataError, match=named):
            load_text_in_disguise(**(small | changed))
