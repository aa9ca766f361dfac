"""The whole forecaster: shapes, pairing of arms, equivariance, linearity, the scale audit."""

import pytest
import torch
from forecasters import build_model, build_shared, build_t5
from torch import Tensor, nn

from t5ts.model.architecture import T5Architecture
from t5ts.model.encoders import NoEncoder, component_of
from t5ts.model.forecaster import HEAD_INIT_GAIN, scale_audit
from t5ts.model.patching import PatchEmbedding


@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("build", [build_t5, build_shared, NoEncoder])
def test_every_encoder_forecasts_each_channel(build, stride, channels):
    model = build_model(build(), channels=channels, stride=stride)
    y = model(torch.randn(2, 3, 16))
    assert y.shape == (2, 3, 5)
    y.square().sum().backward()
    components = {component_of(name) for name, _ in model.named_parameters()}
    assert "head" in components
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_independent_channels_do_not_see_each_other_and_mixed_ones_do():
    x = torch.randn(2, 3, 16)
    changed = x.clone()
    changed[:, 0] += torch.randn(16)
    for channels, sees in (("independent", False), ("mixing", True)):
        model = build_model(build_t5(), channels=channels).eval()
        difference = (model(changed) - model(x)).abs().amax((0, 2))
        assert difference[0] > 1e-4
        if not sees:  # and share one map
            torch.testing.assert_close(model(x[:, [2, 0, 1]]), model(x)[:, [2, 0, 1]])
        assert (
            (difference[1:] > 1e-6).all() if sees else torch.equal(difference[1:], torch.zeros(2))
        )


def test_same_seed_pairs_patch_and_head_across_encoders():
    """Invariant 3, whatever the global random state was and whatever the encoder drew."""
    encoders = [build_t5(seed=1), build_t5(seed=2), build_shared(d_model=24)]
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    text, *others = (build_model(encoder, norm=True) for encoder in encoders)
    scale_audit(text, torch.ones(1, 3, 16))
    assert torch.equal(before, torch.random.get_rng_state())
    for other in others:
        for part in ("patch", "head"):
            ours, theirs = getattr(text, part).state_dict(), getattr(other, part).state_dict()
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(
        build_model(build_t5(), seed=3).head.weight, build_model(build_t5(), seed=4).head.weight
    )


@pytest.mark.parametrize("build", [build_t5, build_shared, NoEncoder])
def test_forecast_follows_shift_and_scale_of_the_context(build):
    model = build_model(build()).double().eval()
    x = torch.randn(4, 3, 16, dtype=torch.float64)
    scale = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)[:, None]
    shift = torch.tensor([-7.0, 0.0, 1e3], dtype=torch.float64)[:, None]
    # T5's norm takes its statistics in float32, hence 1e-5 and not 1e-9.
    torch.testing.assert_close(
        model(x * scale + shift), model(x) * scale + shift, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("channels", ["independent", "mixing"])
def test_linear_backbone_is_one_linear_map(channels):
    model = build_model(NoEncoder(), channels=channels, normalize="none").double()
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    mixing = channels == "mixing"
    assert model.head.weight.shape == ((15, 48) if mixing else (5, 16))
    with torch.no_grad():
        model.head.bias.normal_()
    x, z = torch.randn(2, 2, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(
        model(2 * x - 3 * z), 2 * model(x) - 3 * model(z) + 2 * model(torch.zeros_like(x))
    )
    if not mixing:
        torch.testing.assert_close(model(x), x @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("seq_len", [16, 14])  # without and with padding
def test_per_patch_head_gives_each_token_its_own_patch_at_its_place(channels, seq_len):
    options = {"seq_len": seq_len, "output_len": seq_len, "channels": channels}
    model = build_model(build_t5(), normalize="none", per_patch=True, **options).eval()
    x, pad = torch.randn(2, 3, seq_len), model.patch.pad
    y = model(x)
    hidden_MND = model.encoder(model.patch(x))
    for b in range(2):
        for c in range(3):
            for t in range(seq_len):
                n, p = divmod(t + pad, 4)
                mixing = channels == "mixing"
                token = hidden_MND[b if mixing else b * 3 + c, n]
                row = c * 4 + p if mixing else p
                expected = model.head.weight[row] @ token + model.head.bias[row]
                torch.testing.assert_close(y[b, c, t], expected)
    # Same names and pairing as the flattened head's.
    other = build_model(build_t5(seed=7), normalize="none", per_patch=True, **options)
    assert [n for n, _ in model.head.named_parameters()] == ["weight", "bias"]
    assert torch.equal(model.head.weight, other.head.weight)
    std = HEAD_INIT_GAIN * model.patch.d_model**-0.5
    assert model.head.weight.std().item() == pytest.approx(std, rel=0.2)


def test_first_forecast_is_near_the_windows_mean():
    model = build_model(build_t5()).eval()
    x = torch.randn(256, 3, 16, generator=torch.Generator().manual_seed(0))
    update = (model(x) - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
    assert 0.3 * HEAD_INIT_GAIN < update.square().mean().sqrt() < 3 * HEAD_INIT_GAIN
    fan_in = model.patch.num_patches * model.patch.d_model
    assert model.head.weight.std().item() == pytest.approx(HEAD_INIT_GAIN * fan_in**-0.5, rel=0.06)


@pytest.mark.parametrize("normalize", ["instance", "none"])
def test_autocast_forecasts_in_the_contexts_dtype(normalize):
    model = build_model(build_t5(), normalize=normalize, norm=True).eval()
    x = torch.randn(2, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, model(x), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("patch", [{}, {"norm": True, "scale": 24**0.5}], ids=["plain", "norm"])
def test_a_constant_window_does_not_blow_up_the_gradients(patch):
    """With zero tokens they would: T5's norms scale the gradient at zero by 1000 (LOG.md)."""
    model = build_model(build_t5(), **patch)
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    norms = []
    for constant in (False, True):
        if constant:
            x[1, 2] = 7.0
        model.zero_grad()
        model(x).square().mean().backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    assert norms[1] < 10 * norms[0]


# ------------------------------------------------------------------------------ scale audit


class _Doubling(nn.Module):
    def forward(self, hidden: Tensor, _: Tensor) -> Tensor:
        return 2.0 * hidden


class _Shifting(nn.Module):
    def forward(self, hidden: Tensor, _: Tensor) -> Tensor:
        return hidden + 3.0


def test_scale_audit_equals_hand_computed_values():
    encoder = build_t5(dropout=0.5)
    encoder.block[1], encoder.block[2] = _Doubling(), _Shifting()
    model = build_model(encoder, normalize="none")
    model.train()
    model.encoder.block[0].eval()  # a frozen block's own mode must survive
    modes = [module.training for module in model.modules()]
    x = torch.randn(2, 3, 16)
    audit = scale_audit(model, x)

    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    tokens = model.patch(x)
    position = encoder.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
    first = encoder.block[0](tokens, position.bias(4))
    expected = {
        "input": rms(tokens),
        "block_0": rms(first),
        "block_1": 2 * rms(first),
        "block_2": rms(2 * first + 3),
        "output": rms(encoder.final_layer_norm(2 * first + 3)),
        "residual_ratio/block_0": rms(first - tokens) / rms(tokens),
        "residual_ratio/block_1": 1.0,
        "residual_ratio/block_2": 3 / (2 * rms(first)),
        "cosine": torch.cosine_similarity(2 * first + 3, tokens, dim=-1).mean().item(),
    }
    assert list(audit) == list(expected)
    assert audit == pytest.approx(expected, rel=1e-5)


def test_bypassed_blocks_pass_the_tokens_to_the_final_norm():
    model = build_model(build_t5(), normalize="none").eval()
    x = torch.randn(2, 3, 16)
    whole = model(x)
    with model.bypassing_blocks():
        bypassed = model(x)
        assert scale_audit(model, x)["cosine"] == pytest.approx(1)
    normed = model.encoder.final_layer_norm(model.patch(x))
    assert torch.equal(bypassed, model.head(normed.flatten(1)).reshape(2, 3, -1))
    assert torch.equal(model(x), whole)
    with build_model(NoEncoder()).bypassing_blocks():
        pass


def test_scale_audit_of_the_other_encoders_and_after_an_error():
    x = torch.randn(2, 3, 16)
    assert list(scale_audit(build_model(NoEncoder()), x)) == ["input", "output"]
    audit = scale_audit(build_model(build_shared()), x)
    assert audit["block_1"] == pytest.approx(1.0, abs=1e-3)  # post-norm
    assert audit["output"] == audit["block_1"]
    model = build_model(build_t5()).train()
    with pytest.raises(RuntimeError):
        scale_audit(model, torch.randn(2, 3, 3))
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # Measured on transformers' own stack: HF's law at factor 1.0, 6 layers, width 512, input
        # N(0, 1) · s. Each block adds about 1, whatever it is given.
        (1.0, {"input": 1.0, "block_0": 1.40, "block_5": 2.80, "output": 1.0}),
        (512**-0.5, {"input": 0.044, "block_0": 0.95, "block_5": 2.78, "output": 1.0}),
    ],
)
def test_scale_audit_shows_the_init_scale_confound(scale, expected):
    arch = T5Architecture(d_model=512, d_ff=2048, d_kv=64, num_layers=6, num_heads=8)
    model = build_model(build_t5(arch), patch_len=4, normalize="none")
    assert isinstance(model.patch, PatchEmbedding)
    model.patch.scale = scale
    nn.init.zeros_(model.patch.projection.bias)  # tokens are then N(0, 1) as the oracle's were
    audit = scale_audit(model, torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)))
    assert {name: audit[name] for name in expected} == pytest.approx(expected, rel=0.06)
    ratio = audit["residual_ratio/block_0"]
    assert ratio > 20 if scale < 1 else ratio < 2


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()
