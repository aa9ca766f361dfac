"""Simulated studies whose truth is known, and ways to damage them, for the tests of this folder."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, verdict
from t5ts.analysis.arms import Arm as StudyArm
from t5ts.analysis.judgement import OUTCOMES, Comparison, Findings

#: True effects by arm: a number, or that and the arm's spread over seeds.
Arms = dict[str, float | tuple[float, float]]
#: Writes or changes the run directories of a study.
Change = Callable[[Path], object]
GAIN: Arms = {"t5-none": -0.06, "random-none": 0}
ZEROS = "0" * 64
#: The files of each run that was written: most studies here have runs of others.
_written: dict[str, dict[str, bytes]] = {}


def write(root: Path, arms: Arms, *, seeds: Iterable[int] = range(5), **changes: Any) -> None:
    """Runs of arms called init-freeze, or backbone-init-freeze, in root/NAME-SEED."""
    for name, effect in arms.items():
        *backbone, init, freeze = name.split("-")
        value, sd = effect if isinstance(effect, tuple) else (effect, 0.002)
        named = {"backbone": backbone[0]} if backbone else {}
        arm = Arm(init=init, freeze=freeze, effect=value, seed_sd=sd, **named)
        for seed in seeds:
            folder = "-".join([name, str(seed), *(str(v) for v in changes.values())])
            _write_run(root / folder.replace("/", "_"), arm, seed, **changes)


def _write_run(folder: Path, arm: Arm, seed: int, **changes: Any) -> None:
    key = repr((arm, seed, changes))
    if key not in _written:
        write_run(folder, arm, seed, **changes)
        _written[key] = {path.name: path.read_bytes() for path in folder.iterdir()}
        return
    folder.mkdir(parents=True)
    for name, content in _written[key].items():
        (folder / name).write_bytes(content)


def found(root: Path) -> Findings:
    """What the report says of the runs below a folder."""
    return verdict(collect([root]))


def judged(root: Path, *changes: Change | Arms) -> Findings:
    """The findings after these changes, of which the first may be the arms to write."""
    for change in changes:
        write(root, change) if isinstance(change, dict) else change(root)
    return found(root)


def runs(arms: Arms, folder: str = "", **options: Any) -> Change:
    """Write more runs, with options of `write`."""
    return lambda root: write(root / folder, arms, **options)


def edit(root: Path, pattern: str, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file of every run that matches."""
    for path in root.glob(f"{pattern}/{name}"):
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))


def about(pattern: str, part: str = "", /, **values: Any) -> Change:
    """Update (a part of) the provenance of runs."""
    return lambda root: edit(
        root, pattern, "provenance.json", lambda p: (p[part] if part else p).update(values)
    )


def results(pattern: str, change: Callable[[Any], Any]) -> Change:
    """Change the results of runs."""
    return lambda root: edit(root, pattern, "result.json", change)


def rewritten(pattern: str, old: str, new: str | Callable[[re.Match[str]], str]) -> Change:
    """Change files by a regular expression, which has to match in each."""

    def change(root: Path) -> None:
        for path in root.glob(pattern):
            text, count = re.subn(old, new, path.read_text())
            assert count
            path.write_text(text)

    return change


def arm_of(findings: Findings, name: str) -> StudyArm:
    """The main condition's arm of a name."""
    return next(arm for arm in findings.main.condition.arms if arm.name == name)


def main(findings: Findings) -> Comparison:
    """The comparison that the headline is about."""
    assert findings.main.main is not None
    return findings.main.main


def shown(findings: Findings) -> dict[tuple[str, str], str]:
    """What the main condition's comparisons show, by the kind and name of their pair."""
    return {(c.pair.kind, c.pair.name): c.kind for c in findings.main.comparisons}


def assert_shows(study: Findings, **expected: Any) -> None:
    """Compare a study's answer: kind, outcome, pair, …; any other name is that of a check."""
    v = study.main
    checks = {check.name: check for check in v.checks}
    answer = {
        "kind": study.kind,
        "kinds": [v.kind for v in study.verdicts],
        "outcome": v.outcome,
        "broken": [check.name for check in v.broken],
        "pair": v.main and v.main.pair.name,
        "seeds": v.main and v.main.pair.seeds,
        "is_provisional": v.is_provisional,
    }
    for name, value in expected.items():
        if name == "headline":
            assert re.search(value, study.headline)
        elif name == "evidence":
            assert value in v.broken[0].detail
        elif name in answer:
            assert answer[name] == value
        else:
            status = checks[name].status if name in checks else "none"
            assert (name, status) == (name, value)
    if len(study.verdicts) == 1:
        assert study.kind == OUTCOMES[v.outcome]
    assert study.headline
    assert not re.search("[{}]", " ".join([study.headline, *study.reasons]))
