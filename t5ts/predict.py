"""`python -m t5ts.predict RUN... --out FILE`: forecasts of trained models, in data units."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from t5ts.command import finish
from t5ts.errors import OutputError, UserError
from t5ts.provenance import write_parquet, write_text

if TYPE_CHECKING:
    import polars as pl

#: Channels whose errors are printed.
SHOWN_CHANNELS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and write; the exit status is 2 for what the user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m t5ts.predict",
        description="Forecast what comes after the end of the data, or a span of the data and the"
        " errors made there. RUN is the directory of a finished run or an export. Several runs (the"
        " seeds of an arm) give their mean and spread. A reconstruction run fills gaps instead.",
    )
    add = parser.add_argument
    add(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directory or export; also data.KEY=VALUE, how to read FILE if its format differs"
        " from the run's data, or data=NAME for another data set",
    )
    add("--data", metavar="FILE", help="CSV, Parquet or Arrow file (default: the run's own data)")
    span = parser.add_mutually_exclusive_group()
    span.add_argument(
        "--last", action="store_true", help="forecast the rows after the end of the data (default)"
    )
    span.add_argument("--from", dest="start", metavar="TIME", help="first time or row to predict")
    add(
        "--to",
        dest="end",
        metavar="TIME",
        help="last time or row; a date includes its whole day (default: the end of the data)",
    )
    add(
        "--every",
        type=int,
        metavar="ROWS",
        help="rows from the start of one forecast to the start of the next (default: the horizon)",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="ends in .csv or .parquet")
    add("--plot", action="store_true", help="also draw the forecast, as FILE with .png")
    options = parser.parse_intermixed_args(arguments)
    try:
        _predict(options)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    return 0


def _predict(options: argparse.Namespace) -> None:
    # A directory's name may have an equals sign too.
    overrides = [text for text in options.runs if "=" in text and not Path(text).exists()]
    named = {Path(text).resolve(): text for text in options.runs if text not in overrides}
    runs = list(named.values())  # a run that is named twice counts once
    out: Path = options.out
    if not runs:
        raise UserError("give the directory of a finished run: python -m t5ts.predict RUN …")
    if out.suffix not in (".csv", ".parquet") or not out.parent.is_dir():
        raise UserError(f"--out {out}: give a file in an existing folder, ending .csv or .parquet.")
    from t5ts.forecasting.tables import errors, past, predict
    from t5ts.forecasting.trained import load

    forecasters = [load(run) for run in runs]
    first = forecasters[0]
    if options.last and first.fills_gaps:
        raise UserError(
            f"--last: {runs[0]} is a reconstruction run, which fills gaps and forecasts nothing:"
            " leave --last out, or choose a span with --from and --to."
        )
    series = first.read(options.data, overrides)
    frame = predict(forecasters, series, start=options.start, end=options.end, every=options.every)
    try:
        # A folder of its own: another command may be writing the same file.
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            written = [Path(folder) / out.name]
            if out.suffix == ".csv":
                text = frame.write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.f")
                write_text(written[0], text)
            else:
                write_parquet(written[0], frame)
            if options.plot:
                from t5ts.analysis.plots import draw_forecast

                # Of forecasts that overlap (--every) the latest: one line for each channel.
                shown = frame.unique(("time", "channel"), keep="last", maintain_order=True)
                before = past(series, shown, rows=2 * first.config.seq_len)
                written.append(written[0].with_suffix(".png"))
                draw_forecast(shown, before, written[1])
            for path in written:
                path.replace(out.with_name(path.name))
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error}): give another --out.") from error
    if "actual" in frame.columns:
        _print_errors(errors(first, frame))
    if options.plot:
        print(out.with_suffix(".png"))
    print(f"{out}  ({len(frame):,} rows)")


def _print_errors(found: "pl.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table

    title = "errors (mse, mae, corr: train-standardised; mae CHANNEL: data units)"
    table = Table("", title=title)
    for name in found["of"]:
        table.add_column(name.replace("_", " "), justify="right")
    for column in found.columns[1 : 4 + SHOWN_CHANNELS]:
        table.add_row(column, *(f"{value:.4g}" for value in found[column]))
    Console().print(table)


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
