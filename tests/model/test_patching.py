"""Patches against numpy slicing, the padding rule, token scales, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.model.patching import PatchEmbedding, WholeContext


def build_patch(seed: int = 0, **changes: Any) -> PatchEmbedding:
    arguments = {
        "seq_len": 16,
        "num_channels": 3,
        "d_model": 8,
        "patch_len": 4,
        "stride": None,
        "channels": "independent",
        "norm": False,
        "generator": torch.Generator().manual_seed(seed),
    }
    return PatchEmbedding(**(arguments | changes))


@st.composite
def patchings(draw: st.DrawFn) -> tuple[int, int, int]:
    seq_len = draw(st.integers(1, 40))
    patch_len = draw(st.integers(1, seq_len))
    return seq_len, patch_len, draw(st.integers(1, patch_len))


@settings(max_examples=30, deadline=None)
@given(patchings(), st.integers(1, 3), st.integers(1, 3))
def test_patches_equal_numpy_slices(
    patching: tuple[int, int, int], num_windows: int, num_channels: int
) -> None:
    seq_len, patch_len, stride = patching
    x = np.random.default_rng(0).normal(size=(num_windows, num_channels, seq_len))
    expected: list[list[list[float]]] = []
    for row in x.reshape(-1, seq_len):
        # Backwards from the last observation; what is missing in front repeats the first value.
        ends = list(range(seq_len, 0, -stride))
        padded = np.concatenate([np.full(patch_len, row[0]), row])
        patches = [padded[patch_len + end - patch_len : patch_len + end] for end in ends]
        # The first patch is the one that reaches back to the first observation.
        first = next(i for i, end in enumerate(ends) if end - patch_len <= 0)
        expected.append(patches[: first + 1][::-1])
    rows = np.array(expected)  # (B·C, N, P)

    for channels in ("independent", "mixing"):
        patch = build_patch(
            seq_len=seq_len,
            num_channels=num_channels,
            patch_len=patch_len,
            stride=stride,
            channels=channels,
        )
        ours = patch.patches(torch.from_numpy(x)).numpy()
        if channels == "mixing":
            by_window = rows.reshape(num_windows, num_channels, *rows.shape[1:])
            wanted = np.stack(
                [np.concatenate(list(window), axis=-1) for window in by_window]
            )  # (B, N, C·P)
        else:
            wanted = rows
        np.testing.assert_array_equal(ours, wanted)
        assert patch.num_patches == rows.shape[1]
        tokens = patch(torch.from_numpy(x).float())
        assert tokens.shape == (wanted.shape[0], patch.num_patches, 8)


def test_token_is_the_projection_of_its_patch() -> None:
    patch = build_patch(channels="mixing")
    x = torch.randn(2, 3, 16)
    by_hand = torch.cat([x[1, c, 4:8] for c in range(3)]) @ patch.projection.weight.T
    torch.testing.assert_close(patch(x)[1, 1], by_hand + patch.projection.bias)


@pytest.mark.parametrize("channels", ["independent", "mixing"])
def test_plain_tokens_have_about_their_patch_rms(channels: str) -> None:
    patch = build_patch(d_model=512, channels=channels)
    x = 3.0 * torch.randn(64, 3, 16, generator=torch.Generator().manual_seed(1))
    assert patch(x).square().mean().sqrt().item() == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("scale", [1.0, 20.5])
def test_normed_tokens_have_the_scale_asked_for(scale: float) -> None:
    patch = build_patch(d_model=64, norm=True, scale=scale)
    tokens = patch(100.0 * torch.randn(4, 3, 16))
    torch.testing.assert_close(
        tokens.square().mean(-1).sqrt(), torch.full(tokens.shape[:2], scale), rtol=1e-4, atol=0.0
    )


def test_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_patch(seed=5, norm=True)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = build_patch(seed=5, norm=True), build_patch(seed=6, norm=True)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.projection.weight, other.projection.weight)
    assert bool((first.projection.bias != 0).all())  # zero tokens blow up T5's gradients


@pytest.mark.parametrize("channels", ["independent", "mixing"])
def test_whole_context_reshapes_and_learns_nothing(channels: str) -> None:
    patch = WholeContext(seq_len=5, num_channels=3, channels=channels)
    x = torch.randn(2, 3, 5)
    tokens = patch(x)
    assert tokens.shape == ((2, 1, 15) if channels == "mixing" else (6, 1, 5))
    assert tokens.shape[1:] == (patch.num_patches, patch.d_model)
    assert torch.equal(tokens.reshape(x.shape), x)
    assert not list(patch.parameters())


# ------------------------------------------------------------------------- hidden steps (NaN)


@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("stride", [None, 3])
def test_each_hidden_place_adds_its_vector(channels: str, stride: int | None) -> None:
    """Against the rule by hand; 16 steps at stride 3 also overlap, and 4 + 3·4 needs no padding."""
    patch = build_patch(channels=channels, stride=stride, hidden="token").double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    x[torch.rand(x.shape) < 0.3] = torch.nan
    pieces = patch.patches(x)
    assert patch.mask_token is not None
    expected = pieces.nan_to_num(0.0) @ patch.projection.weight.T + patch.projection.bias
    for place in range(pieces.shape[-1]):
        expected += pieces.isnan()[..., place, None] * patch.mask_token[place]
    torch.testing.assert_close(patch(x), expected)


def test_a_wholly_hidden_patch_is_one_token_and_padding_repeats_the_mark() -> None:
    patch = build_patch(norm=True, hidden="token")
    x = torch.randn(2, 3, 16)
    x[..., 4:8] = torch.nan
    tokens = patch(x)[:, 1]
    assert torch.equal(tokens, tokens[:1].expand_as(tokens))
    x[..., 2] = torch.nan  # the first step of the last 14
    assert build_patch(seq_len=14).patches(x[..., 2:])[0, 0].isnan().tolist() == [1, 1, 1, 0]


def test_the_mask_token_leaves_projection_and_visible_tokens_as_they_are() -> None:
    """Arms with and without hidden steps are paired: the token is drawn last."""
    x = torch.randn(2, 3, 16)
    plain, value, token = (build_patch(hidden=hidden) for hidden in ("none", "value", "token"))
    assert torch.equal(plain(x), value(x))
    assert torch.equal(plain(x), token(x))
    assert list(plain.state_dict()) == list(value.state_dict())
    assert set(token.state_dict()) - set(plain.state_dict()) == {"mask_token"}


def test_whole_context_fills_with_zero_and_has_no_token() -> None:
    x = torch.randn(2, 3, 16)
    x[0, 0, 3] = torch.nan
    whole = WholeContext(seq_len=16, num_channels=3, channels="independent", hidden="value")
    assert torch.equal(whole(x), x.nan_to_num(0.0).flatten(0, 1)[:, None])
