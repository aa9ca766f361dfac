"""Runs around other architectures: pairing, freezing, bf16, resuming, export, and on a GPU."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from language_models import FAMILIES, generator, hf, save
from runs import read, resumes_as_whole, rows

import t5ts
from t5ts import experiment
from t5ts.analysis.words import model_name, run_words
from t5ts.build import build, build_model
from t5ts.checkpoint import load_checkpoint as load_saved
from t5ts.config import Config
from t5ts.donor import read_donor
from t5ts.errors import WeightsError
from t5ts.export import export
from t5ts.model.checkpoint_file import read_config
from t5ts.model.encoders import store_in_bfloat16
from t5ts.model.hf_encoder import hf_architecture
from t5ts.model.tensors import state_digest
from t5ts.model.weights import load_checkpoint

run = partial(experiment.run, pictures=False)


def test_arms_are_paired_and_native_scale_is_the_checkpoints(
    small: Callable[..., Config], folders: dict[str, Path]
) -> None:
    models, reports = {}, {}
    for init in ("pretrained", "random", "matched", "shuffled"):
        overrides = [*hf(folders["bert"]), f"init={init}", "patch.scale=native"]
        config = small(*overrides)
        models[init], reports[init] = build_model(config, num_channels=2)
        assert run_words(config, reports[init]).startswith("BERT (")
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
    assert f"({model_name(None, {'model_type': kind})}) encoder" in (out / "README.md").read_text()
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
    exported = hf_architecture(read_config(out, model_types=None), num_layers=None, where="x")
    _, again = load_checkpoint(path=out, arch=exported)
    rms = read_donor(out, key="x").token_rms
    assert again.embedding_rms == pytest.approx(rms)  # XGLM scales its tokens
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


def test_a_model_that_fails_in_bf16_is_refused_before_training(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    folder = save("deberta", tmp_path / "model", looks_trained=False)
    arm = [*hf(folder)[:2], "init=random"]
    build(small(*arm, "train.precision=fp32"))
    with pytest.raises(WeightsError, match=r"train\.precision=fp32"):
        run(small(*arm, "train.precision=bf16"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
