"""`python -m t5ts.report DIR...`: from run directories to an answer with its uncertainty."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from t5ts.errors import UserError

if TYPE_CHECKING:
    from t5ts.analysis.judgement import Findings


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    made = argparse.ArgumentParser(
        prog="python -m t5ts.report",
        description="Say whether pretraining helps, how much and how sure that is, from the run"
        " directories at or below DIR: report.html (one file, works offline), report.md,"
        " results.csv and .parquet, figures/ as PNG and SVG. Works while runs are still going.",
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
        help="change of the test loss that does not matter, in per cent (default: %(default)s)",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Write the report; the exit status is 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    begun = time.perf_counter()
    try:
        if not 0 < options.margin < 100:
            raise UserError(f"--margin {options.margin}: give per cent between 0 and 100.")
        from t5ts.analysis.judgement import verdict
        from t5ts.analysis.page import in_short, write_report
        from t5ts.analysis.study import collect

        findings = verdict(collect(options.dirs), margin=options.margin / 100)
        out = options.out or options.dirs[0] / "report"
        try:
            written = write_report(findings, out)
        except OSError as error:
            raise UserError(
                f"the report cannot be written to {out} ({error.strerror}): give another folder"
                " with --out DIR."
            ) from error
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    shown = findings.main
    print(f"\n{shown.kind.upper()}: {shown.headline}\n")
    for reason in shown.reasons:
        print(f"  - {reason}")
    for check in shown.broken:
        print(f"  ! broken: {check.name}: {check.detail}")
    _print_log_table(findings)
    print(f"\n{in_short(findings)}")
    print(f"{written.page}  ({time.perf_counter() - begun:.1f} s)")
    return 0


def _print_log_table(findings: "Findings") -> None:
    """The lab log's table of the main condition, on the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from t5ts.analysis.document import Table
    from t5ts.analysis.sections import final_performance

    for block in final_performance(findings).blocks:
        if isinstance(block, Table):
            table = RichTable(*block.columns, title=block.caption, title_justify="left")
            for row in block.rows:
                table.add_row(*row)
            Console().print(table)
            return


if __name__ == "__main__":
    sys.exit(main())
