"""transformers as the judge: same init law, same tensors, its fresh models refused."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hub_server import TINY, at, full_model, serve, write_checkpoint

from t5ts.errors import WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import read_architecture
from t5ts.model.tensors import encoder_shapes, init_law
from t5ts.model.weights import load_checkpoint

transformers = pytest.importorskip("transformers")


def t5_config(arch: T5Architecture, **changes: Any) -> Any:
    return transformers.T5Config(**(asdict(arch) | changes))


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("factor", [1.0, 0.05])
def test_init_law_is_transformers(feed_forward, factor):
    arch = T5Architecture(
        d_model=256,
        d_ff=512,
        d_kv=32,
        num_layers=2,
        num_heads=4,
        vocab_size=50,
        feed_forward_proj=feed_forward,
    )
    model = transformers.T5EncoderModel(t5_config(arch, initializer_factor=factor))
    state = {
        name.removeprefix("encoder."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.") and "embed_tokens" not in name
    }
    assert {name: tuple(t.shape) for name, t in state.items()} == encoder_shapes(arch)
    for name, sigma in init_law(arch).items():
        tolerance = 5 / math.sqrt(2 * state[name].numel())
        assert state[name].std().item() == pytest.approx(factor * sigma, rel=tolerance), name


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration", "T5Model"])
@pytest.mark.parametrize("factor", [1.0, 0.05])
def test_transformers_fresh_models_are_refused(kind, factor, tmp_path):
    model = getattr(transformers, kind)(t5_config(TINY, initializer_factor=factor))
    model.save_pretrained(tmp_path)
    assert read_architecture(tmp_path) == TINY
    with pytest.raises(WeightsError, match="looks freshly initialised"):
        load_checkpoint(path=tmp_path, arch=TINY)


def test_transformers_finds_our_download_and_reads_the_same_tensors(tmp_path):
    folder = write_checkpoint(tmp_path / "t5", TINY, full_model(TINY))
    with serve() as hub:
        hub.add("t5-small", folder)
        with at(hub.endpoint, tmp_path / "cache"):
            state, report = load_checkpoint(hub_id="t5-small")
    there = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    model = transformers.T5EncoderModel.from_pretrained("t5-small", **there)
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[f"encoder.{name}"]) for name, tensor in state.items())
    assert report.num_params_encoder == model.num_parameters()
    full = transformers.T5ForConditionalGeneration.from_pretrained("t5-small", **there)
    assert report.num_params_full == full.num_parameters()


@pytest.mark.parametrize(
    ("optimizer", "lr", "steps", "freeze", "barely"),
    [
        ("AdamW", 1e-3, 40, None, True),
        ("SGD", 0.3, 60, None, True),
        ("AdamW", 1e-2, 40, "layer_norm", False),
    ],
)
def test_a_briefly_but_really_trained_t5_passes(optimizer, lr, steps, freeze, barely, tmp_path):
    """Training on copies of random tokens from HF's initialisation; little movement is noted."""
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(t5_config(TINY, decoder_start_token_id=0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = freeze is None or freeze not in name
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimize = getattr(torch.optim, optimizer)(trained, lr=lr)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(2, 20, (16, 8))
        loss = model(input_ids=tokens, labels=tokens).loss
        optimize.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimize.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    _, report = load_checkpoint(path=tmp_path, arch=TINY)
    assert (report.origin == "barely trained") == barely
    constant = [check for check in report.checks if "LayerNorm weights are constant" in check]
    assert bool(constant) == (freeze is not None)
    assert report.num_params_full == model.num_parameters()
