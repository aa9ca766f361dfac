"""`python -m t5ts.report DIR...`: from run directories to an answer with its uncertainty."""

import argparse
import sys
import time
from pathlib import Path

from t5ts.command import finish
from t5ts.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    command_line = argparse.ArgumentParser(
        prog="python -m t5ts.report",
        description="Report whether pretraining helps, by how much and how certain that is, from"
        " the run directories at or below DIR: report.html (one file, works offline), report.md,"
        " results.csv and .parquet, figures/ as PNG and SVG. Works while runs are still training.",
    )
    add = command_line.add_argument
    add("dirs", metavar="DIR", nargs="+", type=Path, help="outputs/…, multirun/…")
    add("--out", type=Path, help="folder for the report (default: report/ in the first DIR)")
    add(
        "--margin",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="change in test loss that does not matter, in percent (default: %(default)s)",
    )
    add(
        "--wandb",
        metavar="[ENTITY/]PROJECT",
        help="also log tables, figures and verdict as a W&B run of job type report",
    )
    return command_line


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
    from t5ts.analysis.words import without

    findings = verdict(collect(options.dirs), margin=options.margin / 100)
    out = options.out or options.dirs[0] / "report"
    try:
        written = write_report(findings, out)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {out} ({error.strerror}): choose another folder"
            " with --out DIR."
        ) from error
    print(f"\n{findings.kind.upper()}: {without(findings.headline, findings.kind)}\n")
    for reason in findings.reasons:
        print(f"  - {reason}")
    print(f"\n{in_short(findings)}")
    print(f"{written.page}  ({time.perf_counter() - begun:.1f} s)")
    if options.wandb:
        from t5ts.tracking import log_report

        print(log_report(findings, written, options.wandb))


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
