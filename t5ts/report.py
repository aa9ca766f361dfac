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
    from t5ts.analysis.document import Table
    from t5ts.analysis.judgement import Findings
    from t5ts.analysis.page import Written


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
    made.add_argument(
        "--wandb",
        metavar="[ENTITY/]PROJECT",
        help="also log table, figures and verdict as one W&B run of job type report",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Write the report; the exit status is 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    begun = time.perf_counter()
    try:
        if not 0 < options.margin < 100:
            raise UserError(f"--margin {options.margin}: give per cent between 0 and 100.")
        from t5ts.analysis.conclusions import verdict
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
    repeats = findings.headline.lower().startswith(findings.kind)
    print("\n" + ("" if repeats else f"{findings.kind.upper()}: ") + f"{findings.headline}\n")
    for reason in findings.reasons:
        print(f"  - {reason}")
    _print_tables(findings)
    print(f"\n{in_short(findings)}")
    print(f"{written.page}  ({time.perf_counter() - begun:.1f} s)")
    if options.wandb:
        try:
            print(_log_to_wandb(findings, written, out, options.wandb))
        except UserError as error:
            print(f"t5ts: {error}", file=sys.stderr)
            return 2
    return 0


def _final_tables(findings: "Findings") -> "list[Table]":
    """Section 3's tables: the lab log's of each condition, all metrics, all comparisons."""
    from t5ts.analysis.document import Table
    from t5ts.analysis.sections.final import final_performance

    return [block for block in final_performance(findings).blocks if isinstance(block, Table)]


def _print_tables(findings: "Findings") -> None:
    """The lab log's table of the main condition, and the losses with the baselines'."""
    from rich.console import Console
    from rich.table import Table as RichTable

    log, *others = _final_tables(findings)
    shown = [(log, list(range(len(log.columns))))]
    # Of all the metrics as many as a terminal is wide; the page has the rest.
    losses = ("arm", "seeds", "val MSE", "test MSE", "best epoch")
    for block in others:
        if set(losses) <= set(block.columns):
            shown.append((block, [list(block.columns).index(name) for name in losses]))
    for block, places in shown:
        table = RichTable(title=block.caption, title_justify="left")
        for place in places:
            table.add_column(block.columns[place], no_wrap=place == 0)
        for row in block.rows:
            table.add_row(*(row[place] for place in places))
        Console().print(table)


def _log_to_wandb(findings: "Findings", written: "Written", out: Path, project: str) -> str:
    """Log the study's summary run; returns what to say of it."""
    from t5ts.tracking import log_report

    study, main = findings.study, findings.main
    runs = study.table()
    tables = {"runs": (runs.columns, runs.rows())}
    log = _final_tables(findings)[0]
    tables["final_performance"] = (list(log.columns), [tuple(row) for row in log.rows])
    effect = None if main.main is None else main.main.effect
    numbers = {} if effect is None else {
        "effect": math.expm1(effect.value),
        "effect_low": math.expm1(effect.low),
        "effect_high": math.expm1(effect.high),
        "paired_seeds": effect.count,
    }  # fmt: skip
    entity, _, name = project.rpartition("/")
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
        tables=tables,
        images=[path for path in written.figures if path.suffix == ".png"],
    )


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
