"""Encoder tensors by name, T5's init law, the control arms, and their one entry point."""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import T5_SMALL, TINY, full_model, trained_looking_encoder, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.errors import WeightsError
from t5ts.model import weights
from t5ts.model.architecture import T5Architecture
from t5ts.model.freshness import examine
from t5ts.model.tensors import (
    count,
    encoder_shapes,
    init_law,
    matched_state,
    random_state,
    shuffled_state,
    state_digest,
)
from t5ts.model.weights import describe, encoder_state, load_checkpoint


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", TINY, full_model(TINY))


def test_shapes_have_the_published_counts():
    base = T5Architecture(d_model=768, d_ff=3072, d_kv=64, num_layers=12, num_heads=12)
    shapes = encoder_shapes(T5_SMALL)
    assert count(shapes) == 18_881_280
    assert count(shapes) + T5_SMALL.vocab_size * T5_SMALL.d_model == 35_330_816
    assert len(shapes) == 50
    assert shapes["block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 8)
    assert count(encoder_shapes(base)) == 84_954_240
    gated = encoder_shapes(replace(TINY, feed_forward_proj="gated-gelu"))
    names = {name.split(".")[-2] for name in gated if "DenseReluDense" in name}
    assert names == {"wi_0", "wi_1", "wo"}


@pytest.mark.parametrize("factor", [1.0, 0.05])
@pytest.mark.parametrize("scale_norms", [False, True])
def test_random_state_follows_the_law(factor, scale_norms):
    options: Any = {"factor": factor, "scale_norms": scale_norms}
    state, tokens_rms = random_state(T5_SMALL, generator=generator(), **options)
    assert tokens_rms == factor
    assert {name: tuple(t.shape) for name, t in state.items()} == encoder_shapes(T5_SMALL)
    law = init_law(T5_SMALL)
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        if name not in law:
            assert bool((tensor == torch.tensor(factor if scale_norms else 1.0)).all())
            continue
        sigma = factor * law[name]
        assert tensor.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * tensor.numel()))
        assert abs(tensor.mean().item()) < 5 * sigma / math.sqrt(tensor.numel())


def test_matched_keeps_each_tensors_mean_and_std_exactly():
    state = trained_looking_encoder(TINY) | {"two": torch.tensor([1.0, 3.0]), "one": torch.ones(1)}
    control = matched_state(state, generator=generator())
    for name, tensor in state.items():
        theirs, ours = tensor.double(), control[name].double()
        assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-5, abs=1e-7), name
        assert ours.std(correction=0).item() == pytest.approx(
            theirs.std(correction=0).item(), rel=1e-5
        ), name
        assert torch.equal(ours, theirs) == (name == "one")


@settings(max_examples=50)
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=2), seed=st.integers(0, 2**31))
def test_shuffled_keeps_entries_and_nothing_else(shape, seed):
    tensor = torch.randn(shape, generator=generator(seed))
    (control,) = shuffled_state({"x": tensor}, generator=generator(seed + 1)).values()
    assert control.shape == tensor.shape
    assert torch.equal(control.flatten().sort().values, tensor.flatten().sort().values)


@pytest.mark.parametrize("make", [matched_state, shuffled_state])
def test_controls_depend_on_the_generator_only(make):
    state = trained_looking_encoder(TINY)
    controls = [make(state, generator=generator(seed)) for seed in (1, 1, 2)]
    digests = [state_digest(control) for control in controls]
    assert digests[0] == digests[1] != digests[2]
    assert all(not torch.equal(controls[0][name], state[name]) for name in state)


def test_digest_sees_name_shape_dtype_and_value():
    x = torch.arange(6.0)
    digests = {
        state_digest({"a": x}),
        state_digest({"b": x}),
        state_digest({"a": x.reshape(2, 3)}),
        state_digest({"a": x.to(torch.int32)}),
        state_digest({"a": x + torch.tensor([0, 0, 0, 0, 0, 1e-6])}),
    }
    assert len(digests) == 5
    assert state_digest({"a": x, "b": x}) == state_digest({"b": x, "a": x.clone()})


def test_every_arm_is_what_it_says_and_proves_it(tiny_folder):
    arms: dict[str, Any] = {
        init: encoder_state(
            init=init,
            arch=TINY,
            generator=generator(),
            load=partial(load_checkpoint, path=tiny_folder, arch=TINY),
        )
        for init in ("random", "t5", "pretrained", "run", "chronos", "matched", "shuffled")
    }
    for init, (state, report) in arms.items():
        assert report.init == init
        assert report.tensors_sha256 == state_digest(state)
        assert {name: tuple(t.shape) for name, t in state.items()} == encoder_shapes(TINY)
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in state.values())
        assert report.num_params_trained == count(encoder_shapes(TINY))
        assert report.num_params_encoder == report.num_params_trained + 100 * 64
        json.dumps(asdict(report))
        lines = describe(report)
        assert len(lines) == 5
        assert f"{report.num_params_encoder:,}" in lines[3]
        assert ("verified" in lines[4]) == (init != "random")
    assert len({report.tensors_sha256 for _, report in arms.values()}) == 4
    loaded = arms["t5"][1].tensors_sha256
    assert arms["matched"][1].checkpoint_sha256 == arms["shuffled"][1].checkpoint_sha256 == loaded


def test_a_checkpoint_is_examined_once_and_again_when_it_changes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(weights, "_examined", {})
    monkeypatch.setattr(weights, "examine", lambda *of: seen.append(of) or examine(*of))
    state = full_model(TINY)
    reports = [load_checkpoint(path=write_checkpoint(tmp_path / n, TINY, state))[1] for n in "ab"]
    assert len(seen) == 1
    assert asdict(reports[0])["checks"] == asdict(reports[1])["checks"]
    state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].zero_()
    with pytest.raises(WeightsError):
        load_checkpoint(path=write_checkpoint(tmp_path / "c", TINY, state))
    assert len(seen) == 2


def test_random_reads_nothing(monkeypatch):
    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("init=random asked for a file")

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(Path, "read_text", forbidden)
    before = torch.get_rng_state()
    state, report = encoder_state(init="random", arch=TINY, generator=generator(), load=forbidden)
    assert torch.equal(torch.get_rng_state(), before)
    assert report.files == {}
    assert report.source == "random"
    assert report.embedding_rms == 1.0
    assert len(state) == report.tensors
