"""Encoders of other architectures, built by transformers: forward, freezing, weights, runs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forecasters import build_model as build_forecaster
from runs import read, resumes_as_whole, rows
from safetensors.torch import load_file, save_file

import t5ts
from t5ts import experiment
from t5ts.build import build, build_model
from t5ts.checkpoint import load_checkpoint as load_saved
from t5ts.config import CONF, FULL_PARAMS, Config
from t5ts.donor import read_donor
from t5ts.errors import ConfigError, WeightsError
from t5ts.export import export
from t5ts.model.checkpoint_file import Checkpoint
from t5ts.model.encoders import store_in_bfloat16
from t5ts.model.forecaster import scale_audit
from t5ts.model.hf_encoder import HFEncoder, export_config, hf_architecture, hf_config
from t5ts.model.tensors import random_state, state_digest
from t5ts.model.verify import check_config
from t5ts.model.weights import load_checkpoint

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 40,
    "pad_token_id": 0,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 40}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "vocab_size": 40,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 40},
    "modernbert": SIZES,
    "gpt2": GPT,
    "llama": SIZES | {"num_key_value_heads": 1},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "opt": OPT,
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "vocab_size": 40},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 40},  # tuples
    "roberta-prelayernorm": SIZES | {"pad_token_id": 1},  # its final norm is not beside its blocks
    "mixtral": SIZES | {"num_key_value_heads": 1, "num_local_experts": 2},  # files by expert
}
run = partial(experiment.run, pictures=False)
CAUSAL = ("gpt2", "llama", "qwen2", "opt", "bloom", "xglm", "mixtral")


def arch_of(kind: str, num_layers: int | None = None) -> Any:
    return hf_architecture({"model_type": kind, **FAMILIES[kind]}, num_layers=num_layers, where="x")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle(kind: str, *, looks_trained: bool = True) -> Any:
    """transformers' own model, freshly initialised or as after training."""
    from transformers import AutoModel

    torch.manual_seed(3)
    model = AutoModel.from_config(hf_config(arch_of(kind))).eval()
    return seem_trained(model) if looks_trained else model


@torch.no_grad()
def seem_trained(model: Any) -> Any:
    """Make a model's spreads, rows, columns and norms uneven."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            for shape in ((*p.shape[:-1], 1), (*[1] * (p.ndim - 1), p.shape[-1])):
                p *= torch.randn(shape).mul_(0.4).exp_()
            p *= 2.0 ** (3 * torch.rand(()))
        elif name.endswith("weight"):
            p *= torch.randn(p.shape).mul_(0.3).exp_()
    return model


def save(kind: str, folder: Path, *, looks_trained: bool = True) -> Path:
    oracle(kind, looks_trained=looks_trained).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers saves them."""
    root = tmp_path_factory.mktemp("hf")
    return {kind: save(kind, root / kind) for kind in ("bert", "gpt2", "llama", "xglm")}


@pytest.mark.parametrize("kind", FAMILIES)
def test_forward_and_gradients_are_transformers(kind: str, tmp_path: Path) -> None:
    theirs = oracle(kind)
    theirs.save_pretrained(tmp_path)
    arch = arch_of(kind)
    state, report = load_checkpoint(path=tmp_path, arch=arch)
    ours = HFEncoder(arch, dropout=0.1)
    ours.load_state_dict(state)
    ours.eval()
    assert not any("embed_tokens" in n or "word_embeddings." in n or "wte" in n for n in state)
    x = torch.randn(3, 5, 32, generator=generator())
    y, expected = ours(x), theirs(inputs_embeds=x).last_hidden_state
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, p in ours.named_parameters():
        assert torch.equal(p.grad, grads.pop(ours.hf_names[name])), name
    assert not grads  # none of their tensors is left out
    later = x.clone()
    later[:, -1] += 1
    assert torch.equal(ours(x)[:, 0], ours(later)[:, 0]) == (kind in CAUSAL)
    table = theirs.get_input_embeddings()(torch.arange(40)).double()  # XGLM scales it
    assert report.embedding_rms == pytest.approx(table.square().mean().sqrt().item())
    assert report.origin == "pretrained"
    assert report.num_params_trained == sum(p.numel() for p in ours.parameters())
    norms = [n for n, m in ours.named_modules() if type(m).__name__.endswith("Norm")]
    assert norms
    assert all("layer_norm" in name for name in norms)
    places = {name.split(".")[0] for name, _ in ours.named_parameters()}
    assert places <= {"block", "stem", "final_layer_norm"}
    has_final_norm = ("modernbert", "roberta-prelayernorm", *CAUSAL)
    assert ("final_layer_norm" in places) == (kind in has_final_norm)
    # Rotary and sinusoidal positions have no parameters.
    assert ("stem" in places) == (kind not in ("llama", "qwen2", "xglm", "mixtral"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_bypassed_blocks_pass_on_what_comes_before_them(kind: str) -> None:
    encoder = HFEncoder(arch_of(kind), dropout=0.0)
    encoder.draw(generator())
    model = build_forecaster(encoder).eval()
    entered: list[torch.Tensor] = []
    encoder.block[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    x_BCL = torch.randn(2, 3, 16, generator=generator())
    whole, audit = model(x_BCL), scale_audit(model, x_BCL)
    with model.bypassing_blocks():
        bypassed = encoder(model.patch(x_BCL))
    expected = getattr(encoder, "final_layer_norm", torch.nn.Identity())(entered[-1])
    torch.testing.assert_close(bypassed, expected)
    assert {"block_0", "block_1", "cosine"} <= audit.keys()
    assert torch.equal(model(x_BCL), whole)


@pytest.mark.parametrize("kind", FAMILIES)
def test_random_is_the_architectures_law_and_draws_from_its_generator_alone(kind: str) -> None:
    arch, before = arch_of(kind), torch.get_rng_state()
    state, rms = random_state(arch, generator=generator())
    again, _ = random_state(arch, generator=generator())
    other, its_rms = random_state(arch, generator=generator(1), factor=0.5)
    assert torch.equal(before, torch.get_rng_state())
    model = oracle(kind, looks_trained=False)
    theirs = dict(model.named_parameters())
    tokens = model.get_input_embeddings()(torch.arange(40))
    assert rms == pytest.approx(tokens.std().item(), rel=0.1)
    assert its_rms == 0.5 * rms
    names = HFEncoder(arch, dropout=0.0, device="meta").hf_names
    for name, tensor in state.items():
        assert torch.equal(tensor, again[name])
        expected = theirs[names[name]]
        if tensor.ndim == 2 and min(tensor.shape) > 8:
            assert tensor.std().item() == pytest.approx(expected.std().item(), rel=0.1)
            assert other[name].std().item() == pytest.approx(0.5 * tensor.std().item(), rel=0.1)
        elif tensor.ndim == 1:
            assert torch.equal(tensor, expected)


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


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            "deepseek_v3",
            {"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
            | {"n_group": 1, "topk_group": 1},
        ),
        ("apertus", {}),  # some parameters are set where they are made
    ],
)
def test_buffers_that_a_file_holds_are_weights(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModel

    values = {"model_type": kind, **SIZES, "moe_intermediate_size": 16, **more}
    arch = hf_architecture(values, num_layers=None, where="x")
    theirs = seem_trained(AutoModel.from_config(hf_config(arch)).eval())
    held = theirs.state_dict()
    for name in held.keys() - dict(theirs.named_parameters()).keys():
        held[name] += 0.5
    theirs.save_pretrained(tmp_path)
    state, _ = load_checkpoint(path=tmp_path, arch=arch)
    encoder = HFEncoder(arch, dropout=0.0).eval()
    assert len(state) > len(dict(encoder.named_parameters()))
    encoder.load_state_dict(state)
    x = torch.randn(2, 4, 32, generator=generator())
    assert torch.equal(encoder(x), theirs(inputs_embeds=x).last_hidden_state)
    drawn, _ = random_state(arch, generator=generator())
    assert drawn.keys() == state.keys()
    assert all(torch.isfinite(tensor).all() for tensor in drawn.values())


def test_dropout_on_the_tokens_is_the_models() -> None:
    values = {"model_type": "biogpt", **SIZES}
    encoder = HFEncoder(hf_architecture(values, num_layers=1, where="x"), dropout=0.5)
    encoder.draw(generator())
    entered: list[torch.Tensor] = []
    encoder.block[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    for mode in (True, False):
        encoder.train(mode)(torch.ones(4, 8, 32))
    shares = [(hidden == 0).float().mean().item() for hidden in entered]
    assert shares == [pytest.approx(0.5, abs=0.1), 0.0]


def test_a_block_may_return_a_list_and_the_model_hold_a_buffer() -> None:
    values = {"model_type": "openai-gpt", **GPT}
    encoder = HFEncoder(hf_architecture(values, num_layers=None, where="x"), dropout=0.0)
    encoder.draw(generator())
    audit = scale_audit(build_forecaster(encoder), torch.randn(2, 3, 16, generator=generator()))
    assert math.isfinite(audit["residual_ratio/block_1"])
    assert all(buffer.is_meta for buffer in encoder.to("meta")._model.buffers())


def test_a_norm_of_positions_is_no_final_norm() -> None:
    more = {"relative_attention": True, "norm_rel_ebd": "layer_norm"}
    values = {"model_type": "deberta-v2", **SIZES, **more}
    encoder = HFEncoder(hf_architecture(values, num_layers=None, where="x"), dropout=0.0)
    assert "stem.layer_norm.weight" in encoder.hf_names


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


def hf(folder: Path, *more: str) -> list[str]:
    return ["backbone=hf", f"backbone.path={folder}", "init=pretrained", *more]


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


UNUSABLE = ["layoutlm", "canine", "xlm", "squeezebert", "xmod", "flaubert", "albert", "beit"]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_encode_embeddings_alone_is_refused(
    small: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    sizes = SIZES | {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "n_words": 40}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    with pytest.raises(WeightsError, match=kind):
        build_model(small(*hf(tmp_path)[:2], "init=random"), num_channels=2)


def test_arms_are_paired_and_native_scale_is_the_checkpoints(
    small: Callable[..., Config], folders: dict[str, Path]
) -> None:
    models, reports = {}, {}
    for init in ("pretrained", "random", "matched", "shuffled"):
        overrides = [*hf(folders["bert"]), f"init={init}", "patch.scale=native"]
        models[init], reports[init] = build_model(small(*overrides), num_channels=2)
    one = models["pretrained"]
    for init, model in models.items():
        assert torch.equal(model.head.weight, one.head.weight)
        assert torch.equal(model.patch.projection.weight, one.patch.projection.weight)
        assert model.patch.scale == reports[init].embedding_rms
    assert models["random"].patch.scale == pytest.approx(0.02, rel=0.02)
    checkpoint = reports["pretrained"].tensors_sha256
    assert {r.checkpoint_sha256 for i, r in reports.items() if i in ("matched", "shuffled")} == {
        checkpoint
    }
    name = "stem.embeddings.position_embeddings.weight"
    shuffled = models["shuffled"].encoder.state_dict()[name]
    own = one.encoder.state_dict()[name]
    assert torch.equal(shuffled.flatten().sort().values, own.flatten().sort().values)
    assert not torch.equal(shuffled, own)


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


@pytest.mark.parametrize("freeze", ["all", "norms", "staged"])
def test_frozen_is_frozen_and_keeps_nothing(
    small: Callable[..., Config], folders: dict[str, Path], tmp_path: Path, freeze: str
) -> None:
    staged = (
        ["freeze.unfreeze_epoch=1", "freeze.order=top_down", "freeze.blocks_per_stage=1"]
        if freeze == "staged"
        else []
    )
    config = small(*hf(folders["bert"]), f"freeze={freeze}", *staged, "train.epochs=2")
    before = build(config).model.state_dict()
    run(config, run_dir=tmp_path)
    stored, _ = load_saved(tmp_path / "checkpoint" / "last.safetensors")
    after = {n.removeprefix("model/"): t for n, t in stored.items() if n.startswith("model/")}
    moved = {n for n in before if not torch.equal(before[n], after[n]) and n.startswith("encoder")}
    expected = {
        "all": set(),
        "norms": {n for n in before if n.startswith("encoder") and "layer_norm" in n},
        "staged": {n for n in before if n.startswith("encoder.block.1.")},
    }[freeze]
    assert moved == expected
    kept = {name.split("/")[1] for name in stored if name.startswith("optim/")}
    assert {name for name in kept if name.startswith("encoder")} == expected
    # Twice as many elements as these have: no frozen tensor has a state or a copy.
    sizes = sum(before[n].numel() for n in before if not n.startswith("encoder") or n in expected)
    assert sum(t.numel() for n, t in stored.items() if n.startswith("optim/")) == 2 * sizes
    assert all(row.get("distance_from_init/block_0", 0) == 0 for row in rows(tmp_path)) == (
        freeze != "norms"
    )


@pytest.mark.parametrize(
    ("kind", "freeze"), [("bert", "all"), ("gpt2", "norms"), ("llama", "all"), ("t5", "norms")]
)
def test_what_never_trains_is_kept_in_bfloat16_and_changes_no_number(
    small: Callable[..., Config],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    freeze: str,
) -> None:
    model = ["backbone=t5_micro", "init=random"] if kind == "t5" else hf(folders[kind])
    config = small(*model, f"freeze={freeze}", "train.precision=bf16", "train.epochs=2")
    resumes_as_whole(config, tmp_path)
    monkeypatch.setattr("t5ts.experiment.store_in_bfloat16", lambda *_: None)
    run(config, run_dir=tmp_path / "plain")
    for ours, others in zip(rows(tmp_path / "whole"), rows(tmp_path / "plain"), strict=True):
        for key, value in others.items():  # distances are relative to the weights' rounded norms
            is_relative = key.startswith("distance_from_init")
            assert ours[key] == (pytest.approx(value, rel=1e-2) if is_relative else value), key
    results = [read(tmp_path / name / "result.json") for name in ("plain", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
    plain, kept = (
        {n: t for n, t in load_saved(path)[0].items() if n.startswith("model/encoder.block.")}
        for path in (tmp_path / n / "checkpoint" / "last.safetensors" for n in ("plain", "whole"))
    )
    assert all(kept[n].dtype is torch.bfloat16 for n in kept if is_linear_map(n))
    assert all(kept[n].dtype is torch.float32 for n in kept if "layer_norm" in n)
    assert all(torch.equal(t.to(kept[n].dtype), kept[n]) for n, t in plain.items())
    if freeze == "all":  # by its digest the selected encoder is the one that the run began with
        stored, _ = load_saved(tmp_path / "whole" / "checkpoint" / "best.safetensors")
        prefix = "model/encoder."
        own = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
        about = read(tmp_path / "whole" / "provenance.json")
        assert state_digest(own) == about["initial_sha256"]["encoder_in_bf16"]
    size, half = (sum(t.nbytes for t in tensors.values()) for tensors in (plain, kept))
    assert half < 0.6 * size


def is_linear_map(name: str) -> bool:
    return name.endswith(".weight") and "layer_norm" not in name and "bias" not in name


def test_a_model_whose_code_fails_in_bf16_is_refused_there_alone() -> None:
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 40}
    values = {"model_type": "deberta", "hidden_size": 32, "intermediate_size": 64, **sizes}
    encoder = HFEncoder(hf_architecture(values, num_layers=None, where="x"), dropout=0.0)
    encoder.draw(torch.Generator())
    encoder.try_out()
    with pytest.raises(WeightsError, match=r"train\.precision=fp32"), torch.autocast("cpu"):
        encoder.try_out()


def test_an_export_has_the_row_that_mpnet_pads_with() -> None:
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    values = {"model_type": "mpnet", **sizes, "pad_token_id": 0}
    arch = hf_architecture(values, num_layers=1, where="x")
    with torch.device("meta"):
        AutoModel.from_config(AutoConfig.for_model(**export_config(arch)))


@pytest.mark.parametrize(
    ("kind", "more", "lists"),
    [
        (
            "gpt_neo",
            {"num_layers": 3, "attention_types": [[["global", "local", "local"], 1]]},
            {"attention_layers": ["global", "local"]},
        ),
        ("codegen", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, {}),
        (
            "exaone_moe",
            SIZES | {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]},
            {"mlp_layer_types": ["dense", "sparse"]},
        ),
    ],
)
def test_an_exports_config_is_of_the_blocks_in_use_alone(
    kind: str, more: dict[str, Any], lists: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    values = {"hidden_size": 32, "num_heads": 2, **more} if kind == "gpt_neo" else more
    arch = hf_architecture({"model_type": kind, **values}, num_layers=2, where="x")
    config = AutoConfig.for_model(**export_config(arch))
    assert config.num_hidden_layers == 2
    assert {name: getattr(config, name) for name in lists} == lists


@pytest.mark.parametrize("kind", ["gpt2", "llama", "xglm"])
def test_staged_runs_are_exported_and_read_again(
    small: Callable[..., Config], folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from transformers import AutoModel

    layers = ["backbone.num_layers=1"] if kind == "gpt2" else []
    staged = ["freeze=staged", "freeze.unfreeze_epoch=1", "train.epochs=2", "optim.layer_decay=0.5"]
    config = small(*hf(folders[kind]), *staged, *layers)
    run(config, run_dir=tmp_path / "run")
    out = export(tmp_path / "run", tmp_path / "out")
    forecasters = [t5ts.load(tmp_path / "run"), t5ts.load(out)]
    a, b = (f.model(torch.ones(1, 2, 32)) for f in forecasters)
    assert torch.equal(a, b)
    theirs = AutoModel.from_pretrained(out).eval()
    x = torch.randn(2, 4, 32)
    assert torch.equal(
        theirs(inputs_embeds=x).last_hidden_state, forecasters[0].model.encoder.eval()(x)
    )
    weights = read(tmp_path / "run" / "provenance.json")["weights"]
    assert weights["files"]["model.safetensors"] == weights["weights_sha256"]
    donor = small(*hf(folders[kind]), *layers, "init=run", f"init.path={out}")
    model, report = build_model(donor, num_channels=2)
    assert report is not None
    assert report.origin == "time series"
    tensors = read_donor(out, key="x").part("encoder.")
    assert all(torch.equal(t, tensors[n]) for n, t in model.encoder.state_dict().items())


def test_a_stopped_run_resumes_bit_for_bit(
    small: Callable[..., Config], folders: dict[str, Path], tmp_path: Path
) -> None:
    staged = ["freeze=staged", "freeze.unfreeze_epoch=1", "train.epochs=2"]
    resumes_as_whole(small(*hf(folders["bert"]), *staged), tmp_path)


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
    assert json.dumps(replace(arch).config)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.gpu
def test_runs_on_a_gpu(kind: str, small: Callable[..., Config], tmp_path: Path) -> None:
    """Forward as on the CPU in float32; frozen and then trained under bf16; exported and read."""
    folder = save(kind, tmp_path / kind)
    arm = [*hf(folder), "train.epochs=2"]
    x_BCL = torch.randn(2, 2, 32, generator=generator())
    found = {}
    for device in ("cpu", "cuda"):
        plain = ["train.precision=fp32", "train.tf32=false", f"train.device={device}"]
        model = build(small(*arm, *plain)).model.eval()
        with torch.no_grad():
            found[device] = model(x_BCL.to(device)).cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-3, atol=1e-4)
    for name, freeze in (("frozen", "all"), ("trained", "none")):
        run(small(*arm, f"freeze={freeze}"), run_dir=tmp_path / name)
        assert all(
            map(
                math.isfinite, (r["val_loss"] for r in rows(tmp_path / name) if r["kind"] == "eval")
            )
        )
        export(tmp_path / name, tmp_path / f"{name}-out")
        ours, read_again = (t5ts.load(tmp_path / n) for n in (name, f"{name}-out"))
        with torch.no_grad():
            assert torch.equal(ours.model(x_BCL), read_again.model(x_BCL))


@pytest.mark.gpu
def test_a_frozen_language_model_takes_two_bytes_a_weight(small: Callable[..., Config]) -> None:
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    }
    text = "{" + ",".join(f"{k}:{v}" for k, v in sizes.items()) + "}"
    config = small("backbone=bert_base", "init=random", "freeze=all", f"+backbone.sizes={text}")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    setup = build(config)
    store_in_bfloat16(setup.model.encoder, setup.frozen_in_encoder)
    held = torch.cuda.memory_allocated() - before
    weights = sum(p.numel() for p in setup.model.encoder.parameters())
    assert held < 2.2 * weights + 8 * 2**20


@pytest.mark.gpu
def test_a_model_that_fails_in_bf16_is_refused_before_training(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModel

    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 40}
    values = {"hidden_size": 32, "intermediate_size": 64, **sizes}
    AutoModel.from_config(AutoConfig.for_model("deberta", **values)).save_pretrained(tmp_path / "m")
    with pytest.raises(WeightsError, match=r"train\.precision=fp32"):
        run(small(*hf(tmp_path / "m")[:2], "init=random"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
