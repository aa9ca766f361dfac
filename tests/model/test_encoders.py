"""T5Encoder against transformers' own; the light baseline; parameter names and components."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from t5ts.model import layers
from t5ts.model.architecture import T5Architecture
from t5ts.model.encoders import NoEncoder, SharedEncoder, component_of, store_in_bfloat16
from t5ts.model.layers import drop_out
from t5ts.model.t5_encoder import T5Encoder, _relative_position_bucket

TINY = T5Architecture(d_model=24, d_ff=40, d_kv=6, num_layers=3, num_heads=2, vocab_size=11)


def build_oracle(arch: T5Architecture, *, dropout: float = 0.1) -> nn.Module:
    config = T5Config(**asdict(arch), dropout_rate=dropout, attn_implementation="eager")
    model = T5EncoderModel(config).double()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # norms away from 1, biases that matter
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def encoder_state(oracle: nn.Module) -> dict[str, Tensor]:
    """The oracle's tensors under our names: no leading `encoder.`, no token embedding."""
    state = oracle.encoder.state_dict()
    return {name: tensor for name, tensor in state.items() if name != "embed_tokens.weight"}


def build_pair(arch: T5Architecture, *, dropout: float = 0.1) -> tuple[T5Encoder, nn.Module]:
    oracle = build_oracle(arch, dropout=dropout)
    encoder = T5Encoder(arch, dropout=dropout).double()
    encoder.load_state_dict(encoder_state(oracle), strict=True)
    return encoder, oracle


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
@pytest.mark.parametrize("num_tokens", [1, 4, 256])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_and_gradients_equal_transformers(feed_forward_proj, num_tokens, training):
    arch = replace(TINY, feed_forward_proj=feed_forward_proj)
    # In training mode with dropout 0; in evaluation mode with a dropout that must be off.
    encoder, oracle = build_pair(arch, dropout=0.0 if training else 0.5)
    encoder.train(training)
    oracle.train(training)
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randn(3, num_tokens, arch.d_model, dtype=torch.float64, generator=generator)
    weight = torch.randn(tokens.shape, dtype=torch.float64, generator=generator)

    ours_in = tokens.clone().requires_grad_()
    ours = encoder(ours_in)
    (ours * weight).sum().backward()
    theirs_in = tokens.clone().requires_grad_()
    theirs = oracle(inputs_embeds=theirs_in).last_hidden_state
    (theirs * weight).sum().backward()

    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-9, atol=1e-9)
    expected = {name: p.grad for name, p in oracle.encoder.named_parameters()}
    assert set(expected) - {"embed_tokens.weight"} == {n for n, _ in encoder.named_parameters()}
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_dropout_stands_where_transformers_has_it(monkeypatch):
    """Same places, shapes, probabilities and order: the same random stream gives the same output.

    The explicit attention that training on a CPU takes draws as transformers' eager one does;
    only the faster drawing itself is put aside here.
    """
    monkeypatch.setattr(layers, "drop_out", F.dropout)
    encoder, oracle = build_pair(replace(TINY, feed_forward_proj="gated-gelu"), dropout=0.3)
    encoder.train()
    oracle.train()
    tokens = torch.randn(2, 5, TINY.d_model, dtype=torch.float64)
    torch.manual_seed(11)
    ours = encoder(tokens)
    torch.manual_seed(11)
    theirs = oracle(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (ours == 0).double().mean() == pytest.approx(0.3, abs=0.15)  # the last dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 1e-3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_drops_that_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    num = 400_003  # no multiple of four
    x = torch.ones(num, dtype=dtype, requires_grad=True)
    y = drop_out(x, p)
    kept = y != 0
    noise = (p * (1 - p) / num) ** 0.5
    assert (~kept).double().mean().item() == pytest.approx(p, abs=4 * noise + 2**-16)
    assert y.double().mean().item() == pytest.approx(
        1.0, abs=4 * noise / (1 - p) + 2**-8 * (dtype is torch.bfloat16)
    )
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what was dropped has no gradient, the rest the scale
    # Neighbours share a draw: all lags inside one must be uncorrelated.
    centred = kept.double() - kept.double().mean()
    for lag in (1, 2, 3, 4):
        correlation = (centred[lag:] * centred[:-lag]).mean() / (p * (1 - p))
        assert abs(correlation.item()) < 5 / num**0.5


def test_position_bias_is_shared_by_blocks_and_can_be_frozen():
    encoder, _ = build_pair(TINY, dropout=0.0)
    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    parameter = dict(encoder.named_parameters())[name]
    tokens = torch.randn(2, 6, TINY.d_model, dtype=torch.float64)
    for p in encoder.block[0].parameters():
        p.requires_grad_(False)
    parameter.requires_grad_(True)
    encoder(tokens).sum().backward()
    assert parameter.grad.abs().sum() > 0
    parameter.grad = None
    parameter.requires_grad_(False)
    encoder(tokens).sum().backward()
    assert parameter.grad is None
    assert encoder.block[1].layer[1].layer_norm.weight.grad is not None


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_float16_autocast_survives_a_feed_forward_above_65504(feed_forward_proj):
    arch = replace(TINY, feed_forward_proj=feed_forward_proj)
    encoder, _ = build_pair(arch, dropout=0.0)
    encoder.float()
    with torch.no_grad():
        for block in encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e5)
    tokens = torch.randn(4, 6, arch.d_model)
    exact = encoder(tokens)
    updates: list[Tensor] = []
    for block in encoder.block:
        block.layer[1].DenseReluDense.register_forward_hook(
            lambda _, __, output: updates.append(output)
        )
    with torch.autocast("cpu", dtype=torch.float16):
        assert encoder.block[0].layer[0].SelfAttention.q(tokens).dtype is torch.float16
        half = encoder(tokens.half())
    assert max(update.abs().max().item() for update in updates) > 65504
    assert {update.dtype for update in updates} == {torch.float32}
    assert half.isfinite().all()
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)
    half.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("build", [lambda: T5Encoder(TINY, dropout=0.1), SharedEncoder, NoEncoder])
def test_building_draws_no_randomness_and_marks_weights_as_unset(build):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    encoder = build()
    assert torch.equal(before, torch.random.get_rng_state())
    unset = {name for name, p in encoder.named_parameters() if p.isnan().all()}
    set_from_start = {name for name, _ in encoder.named_parameters()} - unset
    # nn.LayerNorm starts at 1 and 0, which needs no randomness; everything else waits for a load.
    assert all("layer_norm" in name for name in set_from_start)
    assert not set_from_start or isinstance(encoder, SharedEncoder)


def test_shared_encoder_is_a_light_baseline_drawn_from_its_generator_alone():
    encoders = [SharedEncoder() for _ in range(3)]
    for global_seed, seed in enumerate((7, 7, 8)):
        torch.manual_seed(global_seed)
        encoders[global_seed].init_parameters(torch.Generator().manual_seed(seed))
    first, again, other = (encoder.state_dict() for encoder in encoders)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.depthwise.weight"], other["stem.depthwise.weight"])
    assert first["block.0.layer.1.wi.weight"].std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert 0.75e6 < sum(p.numel() for p in encoders[0].parameters()) < 1.25e6
    for num_tokens in (1, 2, 4, 50):
        hidden = encoders[0](torch.randn(3, num_tokens, 128))
        assert hidden.shape == (3, num_tokens, 128)
        assert hidden.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.15)
    hidden.square().sum().backward()
    assert all(p.grad is not None for p in encoders[0].parameters())


@pytest.mark.parametrize("norm_first", [False, True])
def test_shared_encoder_blocks_equal_torchs_layers(norm_first):
    encoder = SharedEncoder(
        d_model=16, num_layers=1, num_heads=2, d_ff=24, dropout=0.0, norm_first=norm_first
    ).double()
    encoder.init_parameters(torch.Generator().manual_seed(0))
    oracle = nn.TransformerEncoderLayer(
        16, 2, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    ).double()
    block = encoder.block[0]
    attention = block.layer[0].SelfAttention
    projections = [attention.q, attention.k, attention.v]
    ours = {
        "self_attn.out_proj": attention.o,
        "linear1": block.layer[1].wi,
        "linear2": block.layer[1].wo,
        "norm1": block.layer[0].layer_norm,
        "norm2": block.layer[1].layer_norm,
    }
    state = {f"{name}.{k}": getattr(m, k) for name, m in ours.items() for k in ("weight", "bias")}
    state["self_attn.in_proj_weight"] = torch.cat([m.weight for m in projections])
    state["self_attn.in_proj_bias"] = torch.cat([m.bias for m in projections])
    oracle.load_state_dict(state)
    hidden = torch.randn(3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(hidden), oracle(hidden), rtol=1e-12, atol=1e-12)


def test_without_stem_and_norms_on_its_path_an_encoder_tells_large_patches_from_small():
    """What PatchTST's batch norm keeps and the log's layer norms take away."""
    tokens = torch.randn(2, 6, 128)

    def growth(encoder: SharedEncoder) -> float:
        encoder.init_parameters(torch.Generator().manual_seed(0))
        return (encoder(10 * tokens).norm() / encoder(tokens).norm()).item()

    assert growth(SharedEncoder(dropout=0.0, stem=False, norm_first=True)) > 2
    assert growth(SharedEncoder(dropout=0.0)) == pytest.approx(1.0, abs=0.01)
    assert not any("stem" in name for name, _ in SharedEncoder(stem=False).named_parameters())


def test_shared_encoder_sees_the_order_of_tokens():
    encoder = SharedEncoder(dropout=0.0)
    encoder.init_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoder.stem.depthwise.weight[:, :, [0, 2]] = 0.0  # a stem blind to neighbours
    tokens = torch.randn(2, 6, 128)
    flipped = encoder(tokens.flip(1)).flip(1)
    assert not torch.allclose(flipped, encoder(tokens), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("patch.projection.weight", "patch"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "block_3"),
        ("encoder.block.11.layer.1.layer_norm.weight", "block_11"),
        ("encoder.stem.depthwise.weight", "stem"),
        ("encoder.final_layer_norm.weight", "final_norm"),
        ("head.bias", "head"),
    ],
)
def test_component_of(name, component):
    assert component_of(name) == component
    with pytest.raises(ValueError, match=repr(f"x{name}")):
        component_of(f"x{name}")


def test_t5_compiles_without_graph_breaks():
    encoder, _ = build_pair(TINY, dropout=0.1)
    tokens = torch.randn(2, 4, TINY.d_model, dtype=torch.float64)
    compiled = torch.compile(encoder.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), encoder(tokens))
    compiled.train()
    compiled(tokens).sum().backward()


def test_a_linear_map_that_ever_trains_is_not_stored_in_bfloat16():
    encoder, _ = build_pair(TINY, dropout=0.0)
    frozen = {name for name, _ in encoder.named_parameters() if name.startswith("block.0.")}
    store_in_bfloat16(encoder, frozen)
    half = {name for name, p in encoder.named_parameters() if p.dtype is torch.bfloat16}
    assert half == {name for name in frozen if "norm" not in name and "bias" not in name}


def test_bfloat16_autocast_keeps_the_residual_stream_in_float32():
    encoder, _ = build_pair(TINY, dropout=0.0)
    encoder.float()
    tokens = torch.randn(4, 6, TINY.d_model)
    streams: list[Tensor] = []
    for block in encoder.block:
        block.register_forward_hook(lambda _, __, output: streams.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(tokens.bfloat16())
    assert {stream.dtype for stream in streams} == {torch.float32}


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 100)])
def test_buckets_equal_transformers_beyond_max_distance(num_buckets, max_distance):
    distance = torch.arange(-5 * max_distance, 5 * max_distance + 1)
    ours = _relative_position_bucket(distance, num_buckets, max_distance)
    theirs = T5Attention._relative_position_bucket(distance, True, num_buckets, max_distance)
    assert torch.equal(ours, theirs)
    # The table that forward uses ends at max_distance: all beyond share its bucket.
    within = distance.clamp(-max_distance, max_distance)
    assert torch.equal(ours, _relative_position_bucket(within, num_buckets, max_distance))
