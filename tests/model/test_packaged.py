"""The checkpoint that comes with t5ts: verified like the hub's, refused when altered."""

import pytest
import torch
from omegaconf import OmegaConf

from t5ts.build import build_model, token_scale
from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import checkpoint_folder
from t5ts.model.tensors import count, encoder_shapes
from t5ts.model.weights import load_checkpoint
from t5ts.run import CONF

NAME = "t5_tiny_en"
YAML = OmegaConf.load(CONF / "backbone" / f"{NAME}.yaml")
ARCH = T5Architecture(
    **{key: YAML[key] for key in ("d_model", "d_ff", "d_kv", "num_layers", "num_heads")},
    vocab_size=YAML.vocab_size,
    feed_forward_proj=YAML.feed_forward_proj,
)


def test_packaged_checkpoint_is_verified_like_any_other():
    state, report = load_checkpoint(path=YAML.path, arch=ARCH, expected_sha256=YAML.sha256)
    assert report.source == "packaged:t5_tiny_en"
    assert report.files["model.safetensors"] == YAML.sha256
    assert report.num_params_trained == count(encoder_shapes(ARCH))
    assert 3_000_000 < report.num_params_trained < 4_000_000
    assert report.embedding_rms == pytest.approx(YAML.embedding_rms, rel=1e-3)
    assert any(check.startswith("not a random initialisation") for check in report.checks)
    assert not any(check.startswith("note:") for check in report.checks)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_transformers_loads_the_packaged_folder_as_it_is():
    from transformers import AutoTokenizer, T5EncoderModel

    folder = checkpoint_folder(f"packaged:{NAME}")
    encoder, info = T5EncoderModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, report = load_checkpoint(path=folder)
    theirs = encoder.state_dict()
    assert all(torch.equal(theirs[f"encoder.{name}"].float(), ours[name]) for name in ours)
    assert sum(p.numel() for p in encoder.parameters()) == report.num_params_full
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == YAML.vocab_size
    assert tokenizer.decode(tokenizer("Rain at noon.").input_ids) == "Rain at noon.</s>"


def test_no_two_arms_share_their_noise(composed):
    """At one seed, the draws of matched are not those of random, rescaled."""
    weights = {}
    for init in ("random", "matched", "shuffled"):
        model, _ = build_model(composed(f"backbone={NAME}", f"init={init}"), num_channels=1)
        name = "block.0.layer.0.SelfAttention.q.weight"
        weights[init] = model.encoder.state_dict()[name].flatten()
    correlations = torch.corrcoef(torch.stack(list(weights.values()))) - torch.eye(3)
    assert correlations.abs().max() < 0.03


def test_unknown_packaged_name_is_an_error_that_lists_them():
    with pytest.raises(WeightsError, match=NAME):
        checkpoint_folder("packaged:t5_tiny_fr")


def test_it_is_small_and_says_what_it_is():
    files = list(checkpoint_folder(f"packaged:{NAME}").iterdir())
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in files
    }


@pytest.mark.parametrize(
    ("overrides", "scale"),
    [
        (["init=t5"], YAML.embedding_rms),
        (["init=shuffled"], YAML.embedding_rms),
        (["init=t5", "backbone.embedding_rms=9"], YAML.embedding_rms),  # the file's, not a claim
        (["init=random"], 1.0),
        (["init=random", "init.factor=0.05"], 0.05),
        (["init=random", "backbone=shared"], 1.0),
        (["init=random", "backbone=linear", "task.mask=value", "head=flatten"], None),
    ],
)
def test_native_scale_is_what_the_arms_own_weights_expect(overrides, scale, composed):
    arm = [f"backbone={NAME}", "patch.scale=native", "task=reconstruct", "head=per_patch"]
    model, _ = build_model(composed(*arm, *overrides), num_channels=2)
    assert token_scale(model) == (scale if scale is None else pytest.approx(scale, rel=1e-3))
    paired, _ = build_model(composed(*arm, "init=random"), num_channels=2)
    if model.encoder.d_model == paired.encoder.d_model:
        for part in ("patch", "head"):
            ours, theirs = getattr(model, part).state_dict(), getattr(paired, part).state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
