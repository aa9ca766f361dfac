"""Simulated studies whose truth is known, for the tests of this folder."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, verdict
from t5ts.analysis.arms import Arm as StudyArm
from t5ts.analysis.judgement import Comparison, Findings

#: Of an arm: its true effect, or that and its spread over seeds.
Effect = float | tuple[float, float]


def write(
    root: Path, arms: dict[str, Effect], *, seeds: Iterable[int] = range(5), **changes: Any
) -> None:
    """Runs of arms called init-freeze, or backbone-init-freeze, in root/NAME-SEED."""
    for name, effect in arms.items():
        *backbone, init, freeze = name.split("-")
        value, sd = effect if isinstance(effect, tuple) else (effect, 0.002)
        named = {"backbone": backbone[0]} if backbone else {}
        arm = Arm(init=init, freeze=freeze, effect=value, seed_sd=sd, **named)
        for seed in seeds:
            folder = "-".join([name, str(seed), *(str(v) for v in changes.values())])
            write_run(root / folder.replace("/", "_"), arm, seed, **changes)


def found(root: Path) -> Findings:
    """What the report says of the runs below a folder."""
    return verdict(collect([root]))


def arm_of(findings: Findings, name: str) -> StudyArm:
    """The main condition's arm of a name."""
    return next(arm for arm in findings.main.condition.arms if arm.name == name)


def main(findings: Findings) -> Comparison:
    """The comparison that the headline is about."""
    assert findings.main.main is not None
    return findings.main.main


def edit(root: Path, pattern: str, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file of every run that matches."""
    for path in root.glob(f"{pattern}/{name}"):
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
