"""The scale of an arm's tokens, and the files that its weights are read from."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import TINY, full_model, write_checkpoint
from runs import local_t5
from torch import Generator

from t5ts.arm import _checkpoint, _token_factor, build_encoder, build_patch, weight_files
from t5ts.errors import ConfigError, WeightsError
from t5ts.model.checkpoint_file import file_sha256
from t5ts.model.tensors import random_state


@pytest.mark.parametrize(
    ("scale", "own", "fixed", "factor"),
    [
        ("none", 0.25, 3.0, 1.0),
        ("div_sqrt_d", 0.25, 3.0, 1 / 8),
        ("mul_sqrt_d", 0.25, 3.0, 8.0),
        ("native", 0.25, 3.0, 0.25),  # the arm's own
        ("native", None, None, 1.0),
        ("match_embedding", 0.25, 3.0, 3.0),  # equal in every arm
        ("match_embedding", 0.25, None, 0.25),
        ("native", 0.0, 3.0, None),
        ("match_embedding", math.inf, None, None),
    ],
)
def test_token_scales(scale, own, fixed, factor):
    patch, backbone = SimpleNamespace(scale=scale), SimpleNamespace(embedding_rms=fixed)
    config: Any = SimpleNamespace(patch=patch, backbone=backbone)
    report: Any = None if own is None else SimpleNamespace(embedding_rms=own)
    if factor is None:
        with pytest.raises(ConfigError, match=scale):
            _token_factor(config, 64, report)
    else:
        assert _token_factor(config, 64, report) == factor


def test_the_files_of_an_arms_weights(composed, tmp_path):
    folder = local_t5(tmp_path / "t5")
    own = {p.name: file_sha256(p) for p in (folder / "config.json", folder / "model.safetensors")}
    runs = []
    for name in ("a", "b"):
        runs.append(tmp_path / name / "checkpoint" / "best.safetensors")
        runs[-1].parent.mkdir(parents=True)
        runs[-1].write_text(name)
    donor = ["init=run", f"init.path={tmp_path / 'a'}"]
    patch = ["patch.init=run", f"patch.path={tmp_path / 'b'}"]
    of_a, of_b = ({"best.safetensors": file_sha256(runs[0])}, {"patch": file_sha256(runs[1])})

    def files(*overrides: str) -> dict[str, str] | None:
        return weight_files(composed("backbone=local", f"backbone.path={folder}", *overrides))

    assert files("init=t5") == files("init=shuffled") == own
    assert files("init=random") == {}
    assert files("init=random", "init.keep=[bias]") == own
    assert files("init=t5", *patch) == own | of_b
    assert files(*donor, *patch) == of_a | of_b
    assert files("init=random", donor[1], *patch) == of_b  # nothing is kept from the donor
    runs[1].unlink()
    assert files(*donor) == of_a
    assert files(*donor, *patch) is None


def test_what_an_arm_loads(composed):
    pin = ["backbone.revision=abc", f"backbone.sha256={'0' * 64}"]
    hub = _checkpoint(composed("backbone=t5_small", "init=t5", *pin))
    assert hub == {
        "hub_id": "t5-small", "path": None, "revision": "abc", "expected_sha256": "0" * 64
    }  # fmt: skip
    local = _checkpoint(composed("backbone=t5_small", "init=t5", "backbone.path=DIR", *pin))
    assert local == hub | {"hub_id": None, "path": "DIR"}
    chronos = {"hub_id": "amazon/chronos-t5-small", "path": None, "must_be_chronos": True}
    assert _checkpoint(composed("backbone=t5_small", "init=chronos")) == chronos


def test_as_many_patches_as_an_encoder_has_positions(composed):
    config = composed("seq_len=32", "patch.patch_len=8")

    def build(max_tokens: int) -> Any:
        encoder: Any = SimpleNamespace(d_model=8, max_tokens=max_tokens)
        return build_patch(config, encoder, None, num_channels=1, hidden="none")

    assert build(4).num_patches == 4
    with pytest.raises(ConfigError, match="4 patches"):
        build(3)


def test_weights_that_look_fresh_need_the_setting(composed, tmp_path):
    fresh, _ = random_state(TINY, generator=Generator().manual_seed(0))
    tensors = full_model(TINY) | {f"encoder.{name}": tensor for name, tensor in fresh.items()}
    folder = write_checkpoint(tmp_path / "fresh", TINY, tensors)
    arm = ["backbone=local", f"backbone.path={folder}", "init=matched"]
    with pytest.raises(WeightsError, match=r"init\.allow_untrained"):
        build_encoder(composed(*arm))
    _, report = build_encoder(composed(*arm, "init.allow_untrained=true"))
    assert report is not None
    assert "looks freshly initialised" in " ".join(report.checks)
