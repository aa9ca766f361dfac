"""Do the standing controls come out? python scripts/run_controls.py [OVERRIDE...]

experiment=positive_control and negative_control run as they stand, each with its own donor, and are
judged as any study is. If the first transfers and the second does not, the record that every
report quotes is written: when, on which code, and what came out. Otherwise it stays as it is, and
the exit status is 1. OVERRIDEs go to both studies, e.g. hydra.sweeper.n_jobs=1.
"""

import json
import math
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from t5ts.analysis import collect, verdict
from t5ts.analysis.controls import RECORD
from t5ts.analysis.judgement import CANNOT_TELL, DOES_NOT, TRANSFERS
from t5ts.provenance import LOADED_CODE, code_and_machine, json_ready, write_text

#: By control: its donor's process, and whether its verdict is the expected one.
CONTROLS = {
    "positive_control": ("drifting_sine", lambda kind: kind == TRANSFERS),
    "negative_control": ("white_noise", lambda kind: kind in (CANNOT_TELL, DOES_NOT)),
}


def main() -> int:
    """Run and judge them; returns the exit status."""
    found, is_expected = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name, (process, expected) in CONTROLS.items():
            t5ts_run = [sys.executable, "-m", "t5ts.run"]
            donor = ["experiment=donor", f"data.kind={process}"]
            subprocess.run([*t5ts_run, *donor], cwd=folder, check=True)
            study = [f"experiment={name}", f"hydra.sweep.dir={name}"]
            subprocess.run([*t5ts_run, "--multirun", *study, *sys.argv[1:]], cwd=folder, check=True)
            findings = verdict(collect([Path(folder) / name]))
            print(f"{name}: {findings.headline}", *findings.reasons, sep="\n  - ")
            codes = {run.provenance["code"][-1]["t5ts"] for run in findings.study.runs}
            if codes != {LOADED_CODE}:
                print("The code was changed meanwhile: start again.", file=sys.stderr)
                return 1
            is_expected &= expected(findings.kind)
            assert findings.main.main is not None
            effect = findings.main.main.effect
            change = [100 * math.expm1(x) for x in (effect.value, effect.low, effect.high)]
            keys = ("change_percent", "low_percent", "high_percent")
            found.append(
                {"experiment": name, "verdict": findings.kind, "paired_seeds": effect.count}
                | {key: round(value, 1) for key, value in zip(keys, change, strict=True)}
            )
    if not is_expected:
        print("A control did not come out; the record is not touched.", file=sys.stderr)
        return 1
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "git": code_and_machine()["git"]}
    record = json_ready(about | {"code": LOADED_CODE, "controls": found})
    write_text(RECORD, json.dumps(record, indent=2) + "\n")
    print(f"written: {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
