"""What looks freshly initialised is refused, what was trained passes."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import T5_SMALL, TINY, full_model, trained_looking_encoder, write_checkpoint

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import checkpoint_folder, read_architecture
from t5ts.model.freshness import LAW_LIMIT, Freshness, examine
from t5ts.model.tensors import (
    empty_encoder,
    init_law,
    matched_state,
    random_state,
    shuffled_state,
)
from t5ts.model.weights import LoadReport, load_checkpoint, verified_report


def look(state: dict[str, Tensor], arch: T5Architecture = TINY) -> Freshness:
    law = init_law(arch)
    return examine(state, law, {name: t for name, t in state.items() if name not in law})


def draw(seed: int = 0, arch: T5Architecture = TINY, factor: float = 1.0) -> dict[str, Tensor]:
    return random_state(arch, generator=torch.Generator().manual_seed(seed), factor=factor)[0]


@settings(max_examples=40, deadline=None)
@example(seed=756, factor=1.0, scale_norms=False, others=False, gated=True)  # one seems structured
@given(
    seed=st.integers(0, 2**31),
    factor=st.floats(1e-8, 1e8),
    scale_norms=st.booleans(),
    others=st.booleans(),
    gated=st.booleans(),
)
def test_a_fresh_draw_is_never_taken_for_trained(seed, factor, scale_norms, others, gated):
    """At any common factor, with norms at 1, at the factor, or as in another model."""
    arch = replace(TINY, feed_forward_proj="gated-gelu" if gated else "relu")
    generator = torch.Generator().manual_seed(seed)
    state = random_state(arch, generator=generator, factor=factor, scale_norms=scale_norms)[0]
    if others:
        for name in state.keys() - init_law(arch).keys():
            state[name] = torch.rand(state[name].shape, generator=generator)
    seen = look(state, arch)
    assert seen.verdict is not None
    assert seen.factor == pytest.approx(factor, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_trained_looking_weights_are_never_refused(seed):
    seen = look(trained_looking_encoder(TINY, seed=seed))
    assert seen.verdict is None
    assert seen.law_distance > 10 * LAW_LIMIT


def test_spreads_that_have_drifted_from_the_law_are_a_sign_of_training():
    assert look({n: t * 1.1 if ".q." in n else t for n, t in draw().items()}).verdict is None


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 0.05), (torch.bfloat16, 1.0)])
def test_rounding_does_not_hide_a_fresh_draw(dtype, factor):
    state = {name: t.to(dtype) for name, t in draw(arch=T5_SMALL, factor=factor).items()}
    assert look(state, T5_SMALL).verdict is not None


@pytest.mark.parametrize("init", ["bert", "linear", "xavier", "orthogonal"])
def test_other_initialisers_are_refused(init):
    assert look(initialised(init, TINY)).verdict is not None


def test_fresh_checkpoint_is_refused_with_the_reason(tmp_path):
    fresh = {f"encoder.{name}": t for name, t in draw(factor=0.3).items()}
    folder = write_checkpoint(tmp_path / "t5", TINY, full_model(TINY) | fresh)
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path=folder)
    for part in (str(folder), "freshly initialised", "times 0.3", "constant", "init=random"):
        assert part in str(caught.value)


PACKAGED = checkpoint_folder("packaged:t5_tiny_en")
WI = "block.2.layer.1.DenseReluDense.wi.weight"


@pytest.fixture(scope="module")
def tiny_en() -> dict[str, Tensor]:
    """The packaged encoder, really pretrained on text."""
    return load_checkpoint(path=PACKAGED)[0]


def initialised(init: str, arch: T5Architecture) -> dict[str, Tensor]:
    """A fresh encoder by some library's initialiser."""
    generator = torch.Generator().manual_seed(5)
    factor = 0.05 if init == "chronos" else 1.0
    state = random_state(arch, generator=generator, factor=factor, scale_norms=True)[0]
    for name in init_law(arch):
        if init == "bert":
            state[name].normal_(0.0, 0.02, generator=generator)
        elif init == "linear":
            torch.nn.init.kaiming_uniform_(state[name], a=5**0.5, generator=generator)
        elif init == "xavier":
            torch.nn.init.xavier_normal_(state[name], generator=generator)
        elif init == "orthogonal":
            torch.nn.init.orthogonal_(state[name], generator=generator)
    return state


@pytest.mark.parametrize("make", [matched_state, shuffled_state])
def test_controls_are_told_from_trained_weights(tiny_en, make):
    """A shuffled or redrawn checkpoint keeps its spreads; its evenness is what gives it away."""
    control = make(tiny_en, generator=torch.Generator().manual_seed(0))
    seen = look(control, read_architecture(PACKAGED))
    assert len(seen.structureless) == seen.num_matrices
    assert seen.origin == "control"


def test_while_norms_have_hardly_moved_a_fresh_matrix_may_be_one_that_moves_later(tiny_en):
    arch = read_architecture(PACKAGED)
    law, fresh = init_law(arch), {WI: initialised("hf", arch)[WI]}
    early = {n: t if n in law else 1 + 0.02 * (t - 1) for n, t in tiny_en.items()}
    assert look(tiny_en | fresh, arch).fresh == (WI,)
    assert look(early | fresh, arch).fresh == ()


@pytest.mark.parametrize(
    ("pattern", "init"),
    [
        (r"block\.3\.", "chronos"),
        (r"block\.[123]\.", "bert"),
        ("DenseReluDense", "hf"),
        (r"SelfAttention\.[qkvo]", "hf"),
        (r"\.q\.weight", "hf"),
        (r"block\.1\..*(SelfAttention|DenseReluDense)", "hf"),
        ("final_layer_norm", "hf"),
        (re.escape(WI), "hf"),
        (r"block\.0\.layer\.0\.SelfAttention\.k", "hf"),
    ],
)
def test_partly_fresh_is_refused_and_named(tiny_en, pattern, init):
    fresh = initialised(init, read_architecture(PACKAGED))
    gone = {name for name in tiny_en if re.search(pattern, name)}
    seen = look(
        {name: fresh[name] if name in gone else tensor for name, tensor in tiny_en.items()},
        read_architecture(PACKAGED),
    )
    assert seen.verdict is not None
    assert set(seen.fresh) <= gone
    assert set(seen.fresh) >= {name for name in gone if "bias" not in name}


def zero_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor[: int(0.9 * len(tensor))] = 0
    return tensor


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"final_layer_norm.weight": torch.zeros_like}, "final_layer_norm.weight"),
        ({WI: lambda tensor: torch.full_like(tensor, 0.5)}, f"{WI} is constant"),
        ({WI: zero_rows}, WI),
        ({WI: lambda tensor: zero_rows(tensor.T).T}, WI),
    ],
)
def test_what_no_training_leaves_is_refused(tiny_en, change, named):
    state = tiny_en | {name: make(tiny_en[name]) for name, make in change.items()}
    seen = look(state, read_architecture(PACKAGED))
    assert len(seen.broken) == 1
    assert named in str(seen.verdict)


@pytest.mark.parametrize("copies", [["3"], ["1", "2", "3"]])
def test_copied_blocks_are_refused(tiny_en, copies):
    state = dict(tiny_en)
    for name in tiny_en:
        if name.startswith("block.0.") and "bias" not in name:
            state |= {name.replace("block.0", f"block.{i}"): tiny_en[name] for i in copies}
    broken = look(state, read_architecture(PACKAGED)).broken
    assert {words.split()[0] for words in broken} == {f"block.{number}" for number in copies}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "norms frozen"])
def test_a_pretrained_encoder_passes_in_every_precision(tiny_en, kind):
    def stored(name: str, tensor: Tensor) -> Tensor:
        if kind == "norms frozen":
            return tensor if "norm" not in name else torch.ones_like(tensor)
        if kind == "int8":
            step = tensor.abs().max() / 127
            return (tensor / step).round() * step
        return tensor.to(getattr(torch, kind)).float()

    state = {name: stored(name, tensor) for name, tensor in tiny_en.items()}
    seen = look(state, read_architecture(PACKAGED))
    assert seen.verdict is None
    assert seen.origin == "pretrained"
    assert not seen.structureless


def briefly_trained() -> dict[str, Tensor]:
    """50 steps of AdamW at a low rate, its LayerNorms frozen, from a fresh draw."""
    encoder = empty_encoder(TINY, dropout=0.0, device="cpu")
    encoder.load_state_dict(draw())
    encoder.requires_grad_(True)
    law = init_law(TINY)
    trained = [p for name, p in encoder.named_parameters() if name in law]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens_MND = torch.randn(8, 12, TINY.d_model, generator=torch.Generator().manual_seed(1))
    for _ in range(50):
        optimizer.zero_grad()
        (encoder(tokens_MND).roll(1, 1) - tokens_MND).square().mean().backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("make", [draw, briefly_trained])
def test_what_looks_fresh_is_accepted_only_on_request_and_noted(make, tmp_path):
    state = make()
    tensors = full_model(TINY) | {f"encoder.{name}": tensor for name, tensor in state.items()}
    folder = write_checkpoint(tmp_path / "t5", TINY, tensors)
    with pytest.raises(WeightsError, match=r"init\.allow_untrained=true"):
        load_checkpoint(path=folder)
    loaded, report = load_checkpoint(path=folder, allow_untrained=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert report.origin == "barely trained"
    assert [c for c in report.checks if c.startswith("note: looks freshly initialised")]
    assert not [c for c in report.checks if "not a random" in c]


def test_partly_fresh_is_accepted_on_request_and_broken_never(tiny_en):
    arch = read_architecture(PACKAGED)
    partly = tiny_en | {WI: initialised("hf", arch)[WI]}
    broken = partly | {"final_layer_norm.weight": torch.zeros(arch.d_model)}
    report = verified(partly, arch)
    assert report.origin == "pretrained"
    assert [c for c in report.checks if c.startswith("note: looks freshly")]
    assert WI in report.fresh_tensors
    with pytest.raises(WeightsError) as caught:
        verified(broken, arch)
    assert "allow_untrained" not in str(caught.value)


def verified(state: dict[str, Tensor], arch: T5Architecture) -> LoadReport:
    facts = {"init": "t5", "source": "x", "path": "x", "embedding_rms": 1.0}
    return verified_report(
        state, arch, trained_on="pretrained", checks=[], allow_untrained=True, **facts
    )
