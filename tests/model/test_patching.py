"""Patches against numpy slicing, the padding rule, token scales, prototypes, and refusals."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import local_t5, resumes_as_whole, run
from safetensors.torch import load_file

import t5ts
from t5ts.build import build, build_model, setup_summary
from t5ts.config import Config
from t5ts.errors import WeightsError
from t5ts.export import export
from t5ts.model.patching import PatchEmbedding, WholeContext, token_bank


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


@settings(max_examples=30)
@given(patchings(), st.integers(1, 3), st.integers(1, 3))
def test_patches_equal_numpy_slices(patching, num_windows, num_channels):
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


@pytest.mark.parametrize("channels", ["independent", "mixing"])
def test_plain_tokens_have_about_their_patch_rms(channels):
    patch = build_patch(d_model=512, channels=channels)
    x = 3.0 * torch.randn(64, 3, 16, generator=torch.Generator().manual_seed(1))
    assert patch(x).square().mean().sqrt().item() == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("scale", [1.0, 20.5])
def test_normed_tokens_have_the_scale_asked_for(scale):
    patch = build_patch(d_model=64, norm=True, scale=scale)
    tokens = patch(100.0 * torch.randn(4, 3, 16))
    torch.testing.assert_close(
        tokens.square().mean(-1).sqrt(), torch.full(tokens.shape[:2], scale), rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("channels", ["independent", "mixing"])
def test_whole_context_reshapes_and_learns_nothing(channels):
    patch = WholeContext(seq_len=5, num_channels=3, channels=channels)
    x = torch.randn(2, 3, 5)
    tokens = patch(x)
    assert tokens.shape == ((2, 1, 15) if channels == "mixing" else (6, 1, 5))
    assert tokens.shape[1:] == (patch.num_patches, patch.d_model)
    assert torch.equal(tokens.reshape(x.shape), x)
    x[0, 0, 3] = torch.nan
    whole = WholeContext(seq_len=5, num_channels=3, channels=channels, hidden="value")
    assert torch.equal(whole(x).reshape(x.shape), x.nan_to_num(0.0))
    assert not list(patch.parameters())


# ------------------------------------------------------------------------- hidden steps (NaN)


@pytest.mark.parametrize("channels", ["independent", "mixing"])
@pytest.mark.parametrize("stride", [None, 3])
def test_each_hidden_place_adds_its_vector(channels, stride):
    """Against the rule by hand; 16 steps at stride 3 also overlap, and 4 + 3·4 needs no padding."""
    patch = build_patch(channels=channels, stride=stride, hidden="token").double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    x[torch.rand(x.shape) < 0.3] = torch.nan
    pieces = patch.patches(x)
    expected = pieces.nan_to_num(0.0) @ patch.projection.weight.T + patch.projection.bias
    for place in range(pieces.shape[-1]):
        expected += pieces.isnan()[..., place, None] * patch.mask_token[place]
    torch.testing.assert_close(patch(x), expected)


def test_a_wholly_hidden_patch_is_one_token_and_padding_repeats_the_mark():
    patch = build_patch(norm=True, hidden="token")
    x = torch.randn(2, 3, 16)
    x[..., 4:8] = torch.nan
    tokens = patch(x)[:, 1]
    assert torch.equal(tokens, tokens[:1].expand_as(tokens))
    x[..., 2] = torch.nan  # the first step of the last 14
    assert build_patch(seq_len=14).patches(x[..., 2:])[0, 0].isnan().tolist() == [1, 1, 1, 0]


def test_the_mask_token_leaves_projection_and_visible_tokens_as_they_are():
    """Arms with and without hidden steps are paired: the token is drawn last."""
    x = torch.randn(2, 3, 16)
    plain, value, token = (build_patch(hidden=hidden) for hidden in ("none", "value", "token"))
    assert torch.equal(plain(x), value(x))
    assert torch.equal(plain(x), token(x))
    assert list(plain.state_dict()) == list(value.state_dict())
    assert set(token.state_dict()) - set(plain.state_dict()) == {"mask_token"}


# ------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("hidden", ["none", "token"])
def test_a_token_is_the_softmax_weighted_sum_of_prototypes(hidden):
    bank = np.random.default_rng(0).normal(size=(7, 8))
    prototypes = {"num_prototypes": 5, "bank_SD": torch.from_numpy(bank), "norm": True}
    patch = build_patch(channels="mixing", scale=3.0, hidden=hidden, **prototypes).double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    if hidden == "token":
        x[0, 1, 5] = torch.nan
    tensors = {name: tensor.detach().numpy() for name, tensor in patch.state_dict().items()}
    pieces = patch.patches(x).numpy()
    scores = np.nan_to_num(pieces) @ tensors["projection.weight"].T + tensors["projection.bias"]
    if hidden == "token":
        scores += np.isnan(pieces) @ tensors["mask_token"]
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    tokens = weights @ (tensors["mixture"] @ bank)
    tokens -= tokens.mean(-1, keepdims=True)
    tokens *= 3.0 / np.sqrt(np.square(tokens).mean(-1, keepdims=True))
    np.testing.assert_allclose(patch(x).detach().numpy(), tokens, rtol=1e-6)
    patch(x).square().mul(torch.arange(8.0)).sum().backward()
    trained = dict(patch.named_parameters())
    assert "bank" not in trained
    assert all(tensor.grad.abs().max() > 1e-9 for tensor in trained.values())


@pytest.fixture
def arm(composed, tmp_path) -> Callable[..., Config]:
    """An arm of a checkpoint with 100 tokens of width 64, on prototypes."""
    folder = local_t5(tmp_path / "t5")
    small = [*SMALL, "backbone=local", f"backbone.path={folder}", "patch=prototypes"]
    return lambda *more: composed(*small, "patch.bank_size=100", "train.epochs=2", *more)


def test_arms_share_what_trains_and_have_banks_of_their_own(arm, tmp_path):
    table = load_file(tmp_path / "t5" / "model.safetensors")["shared.weight"].float().numpy()
    banks, summaries = {}, {}
    for init in ("t5", "random", "matched", "shuffled"):
        setup = build(arm(f"init={init}", "init.factor=0.5"))
        tokens = setup.model.patch(torch.randn(4, 2, 32))
        native = 0.5 if init == "random" else np.sqrt(np.square(table).mean())
        assert tokens.square().mean().sqrt().item() == pytest.approx(native, rel=1e-4)
        banks[init] = setup.model.patch.get_buffer("bank").numpy()
        summaries[init] = setup_summary(setup)["initial_sha256"]
    assert [len({s[part] for s in summaries.values()}) for part in ("patch", "head")] == [1, 1]
    assert len({s["bank"] for s in summaries.values()}) == 4

    def ordered(values: np.ndarray) -> np.ndarray:
        return values[np.lexsort(values.T)]

    # The bank is the whole vocabulary here, in another order.
    np.testing.assert_array_equal(ordered(banks["t5"]), ordered(table))
    np.testing.assert_array_equal(np.sort(banks["shuffled"], None), np.sort(table, None))
    assert not np.isin(banks["shuffled"][:, 0], table[:, 0]).all()
    assert banks["matched"].mean() == pytest.approx(table.mean(), abs=1e-6)
    assert banks["matched"].std() == pytest.approx(table.std(), rel=1e-5)
    assert banks["random"].std() == pytest.approx(0.5, rel=0.05)
    for init in ("t5", "shuffled"):  # a sample: the same tokens
        few = build(arm(f"init={init}", "patch.bank_size=9")).model
        np.testing.assert_array_equal(few.patch.get_buffer("bank"), banks[init][:9])
    report = build(arm("init=t5")).report
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 1, 3)]
    first = token_bank(report, num_rows=9, sample=generators[0], own=generators[1])
    again = token_bank(report, num_rows=9, sample=generators[2], own=generators[3])
    assert torch.equal(first, again)  # whatever the arm itself draws
    with pytest.raises(WeightsError, match=r"patch\.bank_size=101"):
        build(arm("init=t5", "patch.bank_size=101"))


def test_a_run_on_prototypes_resumes_reuses_and_predicts_from_its_export(arm, tmp_path):
    staged = ["init=t5", "freeze=staged", "freeze.unfreeze_epoch=1"]
    config = arm(*staged)
    resumes_as_whole(config, tmp_path)
    store = f"train.reuse_dir={tmp_path / 'store'}"
    for name in ("cold", "warm"):
        shared = run(arm(*staged, store), run_dir=tmp_path / name)
    assert shared.reused_epochs == 1
    out = export(tmp_path / "whole", tmp_path / "model")
    donated = arm("init=random", "patch.init=run", f"patch.path={out}")
    again, _ = build_model(donated, num_channels=2)
    shutil.rmtree(tmp_path / "t5")  # the bank travels with the model
    exported, expected = t5ts.load(out), t5ts.load(tmp_path / "whole").predict()
    assert torch.equal(again.patch.get_buffer("bank"), exported.model.patch.get_buffer("bank"))
    assert exported.predict().equals(expected)
    assert t5ts.load(tmp_path / "warm").predict().equals(expected)


def test_weights_come_from_the_generator_alone():
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
