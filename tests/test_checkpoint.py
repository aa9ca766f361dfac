"""A checkpoint comes back bit for bit, or is refused by name."""

import pytest
import torch

from t5ts.checkpoint import load_checkpoint, read_state, save_checkpoint
from t5ts.errors import ResumeError

TENSORS = {
    "a": torch.randn(5, 3),
    "b": torch.randn(4).to(torch.bfloat16),
    "rng": torch.get_rng_state(),
    "empty": torch.zeros(0),
}
STATE = {"step": 7, "loss": 0.1 + 0.2, "names": ["x"], "none": None}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    tensors, state = load_checkpoint(path)
    assert state == STATE
    assert {n: t.dtype for n, t in tensors.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert all(torch.equal(tensors[n], TENSORS[n]) for n in TENSORS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file left


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    with pytest.raises(TypeError):
        save_checkpoint(path, TENSORS, {"not json": object()})
    assert load_checkpoint(path)[1] == STATE
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_flipped_bit_and_no_cut_is_used(tmp_path, monkeypatch):
    """A third of the header's bits, some of the tensors' (benchmarks.faults does them all)."""
    monkeypatch.setattr("t5ts.checkpoint._CHUNK", 16)
    path = tmp_path / "last.safetensors"
    small = {name: tensor for name, tensor in TENSORS.items() if name != "rng"}
    save_checkpoint(path, small, STATE | {'"crc32":"00000000"': 1})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    bits = [*range(0, 8 * header, 3), *range(8 * header, 8 * len(content), 13)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ResumeError, match=r"train\.resume"):
            (read_state if bit % 5 else load_checkpoint)(path)
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        with pytest.raises(ResumeError, match=str(path)):
            load_checkpoint(path)


def test_a_foreign_or_missing_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    foreign = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(ResumeError, match=str(foreign)):
        load_checkpoint(foreign)
    with pytest.raises(ResumeError, match="nothing"):
        load_checkpoint(tmp_path / "nothing.safetensors")
