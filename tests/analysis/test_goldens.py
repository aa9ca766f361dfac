"""The report's figures and verdict kinds on three simulated studies, against frozen files.

A change that is meant is frozen with:

    GOLDENS=write python -m pytest tests/analysis/test_goldens.py

Wording may change freely; a number, a verdict's kind, a heading or a table's size may not.
"""

import os
import re
from pathlib import Path

import pytest

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, verdict
from t5ts.analysis.sections import markdown

HERE = Path(__file__).parent / "goldens"
SHARED = Arm(init="random", freeze="none", backbone="shared", effect=0.03)


def demo(root: Path) -> None:
    """Pretrained and random weights under one plan, three seeds."""
    for init, effect in (("t5", -0.04), ("random", 0.0)):
        for seed in range(3):
            arm = Arm(init=init, freeze="staged", effect=effect)
            write_run(root / f"{init}-{seed}", arm, seed, epochs=12)


def seed_log(root: Path) -> None:
    """The lab log's three arms and the two that it lacked, five seeds."""
    arms = [SHARED] + [
        Arm(init=init, freeze=freeze, effect=effect)
        for init, freeze, effect in (
            ("t5", "staged", -0.06),
            ("t5", "none", -0.03),
            ("random", "none", -0.02),
            ("random", "staged", 0.01),
        )
    ]
    for arm in arms:
        for seed in range(5):
            write_run(root / f"{arm.name}-{seed}", arm, seed, epochs=9)


def data_sets(root: Path) -> None:
    """Three data sets that disagree, with a control and several plans."""
    for number, name in enumerate(("etth1", "etth2", "ettm1")):
        for init, effect in (("t5", -0.05 + 0.03 * number), ("random", 0.0), ("matched", 0.0)):
            for freeze in ("staged", "none"):
                arm = Arm(init=init, freeze=freeze, effect=effect + 0.01 * (freeze == "none"))
                for seed in range(4):
                    folder = root / f"{name}-{init}-{freeze}-{seed}"
                    write_run(folder, arm, seed, epochs=10, data__name=name)


@pytest.mark.parametrize("make", [demo, seed_log, data_sets])
def test_the_report_is_the_frozen_one(make, tmp_path):
    make(tmp_path)
    findings = verdict(collect([tmp_path]))
    kinds = "".join(f"- {v.condition.name}: {v.kind}\n" for v in findings.verdicts)
    report = f"{kinds}\n{markdown(findings)}"
    made = {
        "md": report.replace(f"{tmp_path}/", ""),
        "csv": findings.study.table().write_csv().replace(f"{tmp_path}/", ""),
    }
    for suffix, text in made.items():
        golden = HERE / f"{make.__name__}.{suffix}"
        if os.environ.get("GOLDENS") == "write":
            golden.write_text(text, encoding="utf-8")
        expected = golden.read_text(encoding="utf-8")
        assert structure(text) == structure(expected)
        assert_same_figures(text, expected)


def structure(text: str) -> list[str]:
    """Kinds, headings and tables' sizes."""
    lines = text.splitlines()
    kinds = lines[: lines.index("")] if "" in lines else [lines[0]]
    return kinds + [
        line if line.startswith("#") else f"| {line.count('|')} cells"
        for line in lines
        if line.startswith(("#", "| "))
    ]


def assert_same_figures(text: str, expected: str) -> None:
    """Each number, in order, to within one in its last digit (other processors round otherwise)."""
    number = re.compile(r"[−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
    found, frozen = number.findall(text), number.findall(expected)
    assert len(found) == len(frozen)
    for ours, theirs in zip(found, frozen, strict=True):
        if ours != theirs:
            a, b = (float(x.replace("−", "-").replace(",", "")) for x in (ours, theirs))
            decimals = len(theirs.partition("e")[0].partition(".")[2])
            assert a == pytest.approx(b, rel=1e-9, abs=1.01 * 10**-decimals), (ours, theirs)
