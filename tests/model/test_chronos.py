"""`init=chronos`: a T5 encoder pretrained on time series, through the same loader and checks."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from hub_server import HubServer, at, full_model, serve, write_checkpoint
from runs import run
from safetensors.torch import load_file, save_file

from t5ts.build import build_model, token_scale
from t5ts.download import main
from t5ts.errors import InputsChanged, WeightsError
from t5ts.model.architecture import T5Architecture
from t5ts.model.tensors import random_state
from t5ts.model.weights import chronos_source, load_checkpoint

ID = "amazon/chronos-t5-tiny"
ARCH = T5Architecture(d_model=256, d_ff=1024, d_kv=64, num_layers=4, num_heads=4, vocab_size=4096)
SMALLEST = T5Architecture(d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, vocab_size=50)
CONFIG = {"chronos_config": {"n_tokens": 4096}, "initializer_factor": 0.05}


def write(folder: Path, arch: T5Architecture, **changes: Any) -> Path:
    tensors = {name: tensor.bfloat16() for name, tensor in full_model(arch).items()}
    return write_checkpoint(folder, arch, tensors, **CONFIG | changes)


@pytest.fixture(scope="module")
def chronos(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("chronos") / "tiny", ARCH)


@pytest.fixture
def hub(chronos, tmp_path) -> Iterator[HubServer]:
    with serve() as server, at(server.endpoint, tmp_path / "cache"):
        server.add(ID, chronos)
        yield server


def test_the_encoder_arrives_to_the_digit_and_its_controls_are_made_of_it(hub, chronos, composed):
    assert hub.endpoint
    arm = partial(composed, *SMALL, "backbone=t5_efficient_tiny", "patch.scale=native")
    stored = load_file(chronos / "model.safetensors")
    model, report = build_model(arm("init=chronos"), num_channels=2)
    state = model.encoder.state_dict()
    assert all(torch.equal(state[name], stored[f"encoder.{name}"].float()) for name in state)
    assert (report.init, report.origin, report.source) == ("chronos", "time series", ID)
    assert report.num_params_full == 8_394_496
    assert any(check.startswith("note:") for check in report.checks)
    rms = stored["shared.weight"].double().square().mean().sqrt().item()
    assert token_scale(model) == pytest.approx(rms, rel=1e-3)
    for init in ("matched", "shuffled"):
        _, of = build_model(arm(f"init={init}", f"init.checkpoint={ID}"), num_channels=2)
        assert (of.init, of.origin) == (init, "control")
        assert of.checkpoint_sha256 == report.tensors_sha256
    paired, _ = build_model(arm("init=random"), num_channels=2)
    for part in ("patch", "head"):
        ours, theirs = getattr(model, part).state_dict(), getattr(paired, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_download_fetches_the_one_of_the_backbones_shape(hub, capsys):
    chosen = ["backbone=t5_efficient_tiny", "init=chronos"]
    assert main(chosen) == 0
    assert ID in capsys.readouterr().out
    asked = len(hub.requests)
    assert main(["--verify", *chosen]) == 0
    assert len(hub.requests) == asked


def fresh(folder: Path) -> None:
    draw = random_state(ARCH, generator=torch.Generator().manual_seed(0), factor=0.05)[0]
    path = folder / "model.safetensors"
    save_file(load_file(path) | {f"encoder.{n}": t.bfloat16() for n, t in draw.items()}, path)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value}))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (fresh, "freshly"),
        (partial(edit_config, chronos_config=None), "chronos_config"),
        (partial(edit_config, d_ff=512), "d_ff"),
    ],
)
def test_what_is_no_chronos_of_that_shape_is_refused(spoil, named, tmp_path):
    folder = write(tmp_path / "spoilt", ARCH)
    spoil(folder)
    with pytest.raises(WeightsError, match=named):
        load_checkpoint(path=folder, arch=ARCH, must_be_chronos=True)


def test_sizes_that_were_not_published_are_named():
    with pytest.raises(WeightsError, match="256, 384, 512, 768, 1024"):
        chronos_source(None, SMALLEST.d_model)


def test_a_finished_run_is_shown_again_until_the_checkpoint_changes(composed, tmp_path):
    folder = write(tmp_path / "chronos", SMALLEST)
    checkpoint = f"init.checkpoint={folder}"
    config = composed(*SMALL, *TINY_T5, "init=chronos", checkpoint, "train.epochs=1")
    first = run(config, run_dir=tmp_path / "run")
    assert run(config, run_dir=tmp_path / "run") == first
    path = folder / "model.safetensors"
    norm = "encoder.final_layer_norm.weight"
    tensors = load_file(path)
    save_file(tensors | {norm: tensors[norm] * 2}, path)
    with pytest.raises(InputsChanged):
        run(config, run_dir=tmp_path / "run")
