"""Checkpoints of other architectures: what is read, what is refused, and the presets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from language_models import FAMILIES, SIZES, arch_of, hf, oracle, save
from safetensors.torch import load_file, save_file

from t5ts.build import build_model
from t5ts.config import CONF, FULL_PARAMS, Config
from t5ts.errors import ConfigError, WeightsError
from t5ts.model.checkpoint_file import Checkpoint, read_config
from t5ts.model.hf_encoder import HFEncoder, hf_architecture
from t5ts.model.verify import check_config
from t5ts.model.weights import load_checkpoint


def test_the_first_blocks_of_a_checkpoint(folders: dict[str, Path]) -> None:
    whole, _ = load_checkpoint(path=folders["gpt2"], arch=arch_of("gpt2"))
    state, report = load_checkpoint(path=folders["gpt2"], arch=arch_of("gpt2", 1))
    assert state.keys() == {name for name in whole if not name.startswith("block.1.")}
    assert all(torch.equal(whole[name], tensor) for name, tensor in state.items())
    assert report.architecture["num_layers"] == 1
    with pytest.raises(WeightsError, match="num_layers=3"):
        arch_of("gpt2", 3)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")


def _fresh_block(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.startswith("encoder.layer.1.") and tensor.ndim == 2:
            tensor.normal_(0, 0.02)
        elif name.startswith("encoder.layer.1.") and "LayerNorm.weight" in name:
            tensor.fill_(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.pop("encoder.layer.0.output.dense.bias"), "1 are missing"),
        (lambda held: held.pop("embeddings.word_embeddings.weight"), "missing"),
        (_nan, "NaN"),
        (lambda held: held.update({"encoder.layer.2.x": torch.ones(2)}), "do not belong"),
        (_fresh_block, "untrained among trained"),
    ],
)
def test_broken_checkpoints_are_refused(
    folders: dict[str, Path], tmp_path: Path, change: Callable[..., object], words: str
) -> None:
    tensors = load_file(folders["bert"] / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    with pytest.raises(WeightsError, match=words):
        load_checkpoint(path=tmp_path, arch=arch_of("bert"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_fresh_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="freshly initialised"):
        load_checkpoint(path=save(kind, tmp_path, looks_trained=False), arch=arch_of(kind))


def test_old_names_and_a_heads_prefix_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    expected, _ = load_checkpoint(path=folders["bert"], arch=arch_of("bert"))
    tensors = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): t
        for n, t in load_file(folders["bert"] / "model.safetensors").items()
    }
    tensors["cls.predictions.bias"] = torch.zeros(40)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    state, report = load_checkpoint(path=tmp_path, arch=arch_of("bert"))
    assert report.format == "pytorch"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("kind", ["mra", "granitemoehybrid"])
def test_what_a_file_holds_besides_weights_is_read(kind: str, tmp_path: Path) -> None:
    """Whole numbers (MRA's positions), and an infinity in config.json (a limit of Mamba's)."""
    more = {"mamba_d_head": 16, "mamba_n_heads": 4, "num_key_value_heads": 1}
    theirs = oracle(kind, **(more if kind != "mra" else {}))
    theirs.save_pretrained(tmp_path)
    values = read_config(tmp_path, model_types=None)
    arch = hf_architecture(values, num_layers=None, where="x")
    state, _ = load_checkpoint(path=tmp_path, arch=arch)
    encoder, saved = HFEncoder(arch, dropout=0.0), theirs.state_dict()
    encoder.load_state_dict(state)
    kept = {name: saved[theirs_name] for name, theirs_name in encoder.hf_names.items()}
    assert all(torch.equal(tensor, kept[name].float()) for name, tensor in state.items())


def test_another_architecture_is_refused_with_both_names(
    small: Callable[..., Config], folders: dict[str, Path], tmp_path: Path
) -> None:
    def building(*overrides: str) -> str:
        with pytest.raises((WeightsError, ConfigError)) as refused:
            build_model(small(*overrides), num_channels=2)
        return str(refused.value)

    wrong = building("backbone=minilm_l6", *hf(folders["gpt2"])[1:])
    assert "'gpt2'" in wrong
    assert "'bert'" in wrong
    assert "hidden_size is 32" in building("backbone=bert_base", *hf(folders["bert"])[1:])
    assert "'bert'" in building("backbone=local", *hf(folders["bert"])[1:])
    assert "init=pretrained" in building(*hf(folders["bert"])[:2], "init=t5")
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known", "auto_map": {}}')
    assert "nothing_known" in building(*hf(tmp_path))
    assert "512" in building(*hf(folders["bert"]), "seq_len=520", "patch.patch_len=1")


UNUSABLE = {
    "layoutlm": "",
    "canine": "",
    "xlm": "XLM-RoBERTa",
    "squeezebert": "",
    "xmod": "",
    "flaubert": "CamemBERT",
    "albert": "BERT",
    "beit": "",
    "git": "lists",  # it has an image encoder, too
    "inkling_text": "norm",  # of its token embedding
}


@pytest.mark.parametrize(("kind", "words"), UNUSABLE.items())
def test_what_cannot_encode_embeddings_alone_is_refused(
    small: Callable[..., Config], tmp_path: Path, kind: str, words: str
) -> None:
    sizes = SIZES | {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "n_words": 40}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    with pytest.raises(WeightsError, match=f"{kind}.*{words}"):
        build_model(small(*hf(tmp_path)[:2], "init=random"), num_channels=2)


@pytest.mark.parametrize("kind", ["bert", "xglm"])
def test_prototypes_are_of_the_models_own_tokens(
    small: Callable[..., Config], folders: dict[str, Path], kind: str
) -> None:
    arm = [*hf(folders[kind]), "patch=prototypes", "patch.bank_size=40"]
    banks = {
        init: dict(
            build_model(small(*arm, f"init={init}"), num_channels=2)[0].patch.named_buffers()
        )
        for init in ("pretrained", "shuffled", "random")
    }
    tokens = oracle(kind).get_input_embeddings()(torch.arange(40)).detach()  # XGLM scales them
    ours, mixed, drawn = (next(iter(bank.values())) for bank in banks.values())
    assert {tuple(row) for row in ours.tolist()} == {tuple(row) for row in tokens.tolist()}
    assert torch.equal(mixed.flatten().sort().values, ours.flatten().sort().values)
    assert drawn.std().item() == pytest.approx(0.02 * (32**0.5 if kind == "xglm" else 1), rel=0.1)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("modernbert_base", {"classifier_pooling": "mean", "decoder_bias": True}),
        ("qwen2_5_0_5b", {"sliding_window": 32768, "use_mrope": False, "bos_token_id": 151643}),
        ("opt_125m", {"activation_dropout": 0.0, "prefix": "</s>", "bos_token_id": 2}),
        ("distilbert", {"tie_weights_": True, "seq_classif_dropout": 0.2}),
    ],
)
def test_presets_are_their_published_configuration(name: str, published: dict[str, Any]) -> None:
    preset = yaml.safe_load((CONF / "backbone" / f"{name}.yaml").read_text())
    arch = hf_architecture(preset["sizes"], num_layers=None, where=name)
    checkpoint = Checkpoint(Path(name), preset["sizes"] | published, (), {})
    assert check_config(checkpoint, arch) == arch


@pytest.mark.parametrize("name", ["gpt2", "minilm_l6"])
def test_presets_need_no_network_for_random_weights(
    small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = small(f"backbone={name}", "backbone.num_layers=1", "patch.scale=native")
    model, report = build_model(config, num_channels=2)
    assert report is not None
    assert report.source == "random"
    assert model.encoder.num_blocks == 1
    sizes = config.backbone.sizes  # type: ignore[attr-defined]
    arch = hf_architecture(sizes, num_layers=None, where=name)
    whole = HFEncoder(arch, dropout=0.0, device="meta")
    count = sum(p.numel() for p in whole.parameters()) + arch.vocab_size * arch.d_model
    assert FULL_PARAMS[name] == [count, count]
