"""Encoders of other architectures, built by transformers: forward, draws, names, exports."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from forecasters import build_model
from language_models import CAUSAL, FAMILIES, GPT, arch_of, generator, oracle

from t5ts.errors import WeightsError
from t5ts.model.forecaster import scale_audit
from t5ts.model.hf_encoder import HFEncoder, check_export, export_config
from t5ts.model.tensors import random_state
from t5ts.model.weights import load_checkpoint


@pytest.mark.parametrize("kind", FAMILIES)
def test_forward_and_gradients_are_transformers(kind: str, tmp_path: Path) -> None:
    theirs = oracle(kind)
    theirs.save_pretrained(tmp_path)
    arch = arch_of(kind)
    state, report = load_checkpoint(path=tmp_path, arch=arch)
    ours = HFEncoder(arch, dropout=0.1)
    ours.load_state_dict(state)
    ours.eval().try_out()  # its last norm is the final one, too
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
    model = build_model(encoder).eval()
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


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("deepseek_v3", {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1}),
        ("apertus", {}),  # some parameters are set where they are made
    ],
)
def test_buffers_that_a_file_holds_are_weights(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    more = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "topk_group": 1, **more}
    arch, theirs = arch_of(kind, **more), oracle(kind, **more)
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


@pytest.mark.parametrize(
    ("kind", "more", "final_norm"),
    [
        ("openai-gpt", GPT, None),  # its blocks return a list, and the model holds a buffer
        ("deberta-v2", {"relative_attention": True, "norm_rel_ebd": "layer_norm"}, None),
        ("esm", {"emb_layer_norm_before": True}, "encoder.emb_layer_norm_after.weight"),
        ("lfm2", {"num_key_value_heads": 1, "full_attn_idxs": [1]}, "embedding_norm.weight"),
    ],
)
def test_unusual_models_are_audited_and_their_final_norm_is_found(
    kind: str, more: dict[str, Any], final_norm: str | None
) -> None:
    encoder = HFEncoder(arch_of(kind, **more), dropout=0.0)
    encoder.draw(generator())
    encoder.try_out()
    assert encoder.hf_names.get("final_layer_norm.weight") == final_norm
    audit = scale_audit(build_model(encoder), torch.randn(2, 3, 16, generator=generator()))
    assert math.isfinite(audit["residual_ratio/block_1"])
    assert all(buffer.is_meta for buffer in encoder.to("meta")._model.buffers())


def test_tokens_are_left_as_they_are() -> None:
    arch = arch_of("ctrl", n_embd=32, n_layer=2, n_head=2, dff=64)  # its code scales them in place
    encoder = HFEncoder(arch, dropout=0.0).eval()
    encoder.draw(generator())
    tokens = torch.ones(1, 3, 32)
    assert torch.equal(encoder(tokens), encoder(tokens))
    assert torch.equal(tokens, torch.ones(1, 3, 32))


def test_a_norm_in_the_wrong_place_is_noticed() -> None:
    encoder = HFEncoder(arch_of("gpt2"), dropout=0.0)
    encoder.draw(generator())
    encoder.stem["ln_f"] = encoder.final_layer_norm
    del encoder.final_layer_norm
    with pytest.raises(WeightsError, match="LayerNorm"):
        encoder.try_out()


def test_dropout_on_the_tokens_is_the_models() -> None:
    encoder = HFEncoder(arch_of("biogpt", 1), dropout=0.5)
    encoder.draw(generator())
    entered: list[torch.Tensor] = []
    encoder.block[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    for mode in (True, False):
        encoder.train(mode)(torch.ones(4, 8, 32))
    shares = [(hidden == 0).float().mean().item() for hidden in entered]
    assert shares == [pytest.approx(0.5, abs=0.1), 0.0]


@pytest.mark.parametrize("kind", ["mpt", "diffllama"])
def test_a_model_whose_dropout_cannot_be_set_has_none(kind: str) -> None:
    arch = arch_of(kind, **({"d_model": 32, "n_layers": 2, "n_heads": 2} if kind == "mpt" else {}))
    HFEncoder(arch, dropout=0.0)
    with pytest.raises(WeightsError, match=r"backbone\.dropout=0"):
        HFEncoder(arch, dropout=0.1)


@pytest.mark.parametrize(
    ("kind", "more", "lists"),
    [
        ("mpnet", {}, {}),  # it pads with row 1, whatever its config says
        (
            "gpt_neo",
            {"num_hidden_layers": 3, "attention_types": [[["global", "local", "local"], 1]]},
            {"attention_layers": ["global", "local"]},
        ),
        ("codegen", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, {}),
        (
            "exaone_moe",
            {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]},
            {"mlp_layer_types": ["dense", "sparse"]},
        ),
    ],
)
def test_an_exports_config_is_of_the_blocks_in_use_alone(
    kind: str, more: dict[str, Any], lists: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoModel

    arch = arch_of(kind, 2, **more)
    config = AutoConfig.for_model(**export_config(arch))
    assert config.num_hidden_layers == 2
    assert {name: getattr(config, name) for name in lists} == lists
    with torch.device("meta"):
        AutoModel.from_config(config)


RANKS = {"q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 8, "v_head_dim": 16} | {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("kind", "more", "in_use", "is_refused"),
    [
        ("minicpm3", RANKS, 1, True),  # scaled by its depth
        ("minicpm3", RANKS, 3, False),
        ("gpt_neox_japanese", {}, 1, True),  # only its last block has a bias
        ("embedding_gemma2_text", {"num_key_value_heads": 1}, 1, True),  # settings by block
        (
            "granite_swa",
            {"num_key_value_heads": 1},
            1,
            False,
        ),  # another list has one module, without parameters
    ],
)
def test_an_export_that_would_compute_something_else_is_refused(
    kind: str, more: dict[str, Any], in_use: int, is_refused: bool
) -> None:
    arch = arch_of(kind, in_use, num_hidden_layers=3, **more)
    encoder = HFEncoder(arch, dropout=0.0)
    encoder.draw(generator())
    told = (
        pytest.raises(WeightsError, match=r"backbone\.num_layers") if is_refused else nullcontext()
    )
    with told:
        check_export(arch, export_config(arch), encoder.state_dict())
