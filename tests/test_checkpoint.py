"""A checkpoint comes back bit for bit, or is refused by name."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5ts.checkpoint import load_checkpoint, save_checkpoint
from t5ts.errors import ResumeError

TENSORS = {
    "a": torch.randn(5, 3),
    "b": torch.randn(4).to(torch.bfloat16),
    "rng": torch.get_rng_state(),
    "empty": torch.zeros(0),
}
STATE = {"step": 7, "loss": 0.1 + 0.2, "names": ["x"], "none": None}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    tensors, state = load_checkpoint(path)
    assert state == STATE
    assert {n: t.dtype for n, t in tensors.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert all(torch.equal(tensors[n], TENSORS[n]) for n in TENSORS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file left


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    with pytest.raises(TypeError):
        save_checkpoint(path, TENSORS, {"not json": object()})
    assert load_checkpoint(path)[1] == STATE
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_the_tensors_is_noticed(data, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("c") / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(header, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ResumeError, match=r"corrupted.*train\.resume"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_refused_by_name(share, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ResumeError, match=str(path)):
        load_checkpoint(path)


def test_a_foreign_or_missing_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    foreign = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(ResumeError, match="not a t5ts checkpoint"):
        load_checkpoint(foreign)
    with pytest.raises(ResumeError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing.safetensors")
