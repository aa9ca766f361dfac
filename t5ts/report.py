"""`python -m t5ts.report DIR...`: from run directories to an answer with its uncertainty."""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from t5ts.command import finish
from t5ts.errors import UserError

if TYPE_CHECKING:
    from t5ts.analysis.judgement import Findings
    from t5ts.analysis.page import Written


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    made = argparse.ArgumentParser(
        prog="python -m t5ts.report",
        description="Report whether pretraining helps, by how much and how certain that is, from"
        " the run directories at or below DIR: report.html (one file, works offline), report.md,"
        " results.csv and .parquet, figures/ as PNG and SVG. Works while runs are still training.",
    )
    made.add_argument("dirs", metavar="DIR", nargs="+", type=Path, help="outputs/…, multirun/…")
    made.add_argument(
        "--out",
        type=Path,
        help="folder for the report (default: report/ in the first DIR)",
    )
    made.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="change in test loss that does not matter, in percent (default: %(default)s)",
    )
    made.add_argument(
        "--wandb",
        metavar="[ENTITY/]PROJECT",
        help="also log tables, figures and verdict as a W&B run of job type report",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Write the report; the exit status is 2 for what the user can fix."""
    options = parser().parse_intermixed_args(arguments)
    try:
        _report(options)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace) -> None:
    begun = time.perf_counter()
    if not 0 < options.margin < 100:
        raise UserError(f"--margin {options.margin}: must be a percentage between 0 and 100.")
    from t5ts.analysis import collect, verdict, write_report
    from t5ts.analysis.sections import in_short

    findings = verdict(collect(options.dirs), margin=options.margin / 100)
    out = options.out or options.dirs[0] / "report"
    try:
        written = write_report(findings, out)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {out} ({error.strerror}): choose another folder"
            " with --out DIR."
        ) from error
    repeats = findings.headline.lower().startswith(findings.kind)
    print("\n" + ("" if repeats else f"{findings.kind.upper()}: ") + f"{findings.headline}\n")
    for reason in findings.reasons:
        print(f"  - {reason}")
    print(f"\n{in_short(findings)}")
    print(f"{written.page}  ({time.perf_counter() - begun:.1f} s)")
    if options.wandb:
        print(_log_to_wandb(findings, written, options.wandb))


def _log_to_wandb(findings: "Findings", written: "Written", project: str) -> str:
    """Log the study's summary run; returns where it is."""
    from t5ts.analysis.sections import Table, sections
    from t5ts.tracking import log_report

    study, main = findings.study, findings.main
    runs = study.table()
    log = next(block for block in sections(findings)[3].blocks if isinstance(block, Table))
    numbers: dict[str, float] = {}
    if main.main is not None:
        effect = main.main.effect
        numbers = {
            "effect": math.expm1(effect.value),
            "effect_low": math.expm1(effect.low),
            "effect_high": math.expm1(effect.high),
            "paired_seeds": effect.count,
        }
    entity, _, name = project.rpartition("/")
    out = written.page.parent
    return log_report(
        out,
        project=name,
        entity=entity or None,
        group=study.dirs[0].resolve().name,
        summary={
            "verdict": findings.kind,
            "headline": findings.headline,
            "runs_finished": len(study.finished),
            **{k: v for k, v in numbers.items() if math.isfinite(v)},
        },
        text="\n".join(
            [findings.headline, "", *(f"- {reason}" for reason in findings.reasons)]
            + [f"- BROKEN: {check.name}: {check.detail}" for check in main.broken]
        ),
        tables={
            "runs": (runs.columns, runs.rows()),
            "final_performance": (log.columns, log.rows),
        },
        images=[out / "figures" / f"{picture}.png" for picture in written.pictures],
        page=written.page if any(r.config.get("tracker.artifacts") for r in study.runs) else None,
    )


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
