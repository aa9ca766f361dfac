"""benchmarks/gpu.py works where it can be tried: every part, tiny, on a CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from runs import Command

from benchmarks import gpu
from benchmarks.step import Outcome, Turn


class Forked(Command):
    """A run as `subprocess.Popen` starts it, without importing torch again."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], **_: object) -> None:
        assert command[:3] == [sys.executable, "-m", "t5ts.run"]
        assert (cwd / "t5ts").is_dir()
        super().__init__(*command[3:], cwd=cwd, **env)

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        return self.wait()


def measured(spec, *, rounds: int, contenders) -> Outcome:
    turn = Turn(steps=10, seconds=0.5, cpu_s=0.5, clocked={})
    assert spec.device == "cpu"
    return Outcome(spec, {name: [turn] * rounds for name in contenders}, {})


def test_every_part_runs_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(Popen=Forked, PIPE=None, STDOUT=None))
    monkeypatch.setattr(gpu, "measure", measured)
    monkeypatch.setattr(gpu.shutil, "which", lambda _name: None)  # no MPS
    assert gpu.main(["--cpu-smoke"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no GPU")
    assert out.count("equal bit for bit") == 2
    assert "| 2 | off | 40 | 40 | 1.00 |" in out  # batch 2: 10 steps in half a second
    assert all(f"| {name} |" in out for name in ("fp32", "fp32 + TF32", "bf16"))
    assert out.count("| 2 | ") >= 3


def test_what_does_not_fit_is_left_out(monkeypatch, capsys):
    lines = gpu.step_table(gpu.SMOKE, None, lambda: 0.0)
    assert "not measured" in lines[-1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("no GPU")
