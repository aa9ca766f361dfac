"""`python -m t5ts.predict RUN... --out FILE`: forecasts of trained models, in data units."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5ts.command import finish
from t5ts.errors import OutputError, UserError
from t5ts.provenance import replacing

if TYPE_CHECKING:
    import polars as pl


#: Channels whose errors are printed.
SHOWN_CHANNELS = 12


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    made = argparse.ArgumentParser(
        prog="python -m t5ts.predict",
        description="Predict what comes after the end of the data, or a span of them with the"
        " errors made there. RUN is the directory of a finished run or an export; several (the"
        " seeds of an arm) give their mean and spread. A run that reconstructs fills gaps.",
    )
    made.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directory or export; also data.KEY=VALUE, for a file written otherwise",
    )
    made.add_argument("--data", metavar="FILE", help="CSV, Parquet or Arrow (default: the run's)")
    span = made.add_mutually_exclusive_group()
    span.add_argument("--last", action="store_true", help="after the end of the data (default)")
    span.add_argument("--from", dest="start", metavar="TIME", help="first time or row to predict")
    made.add_argument(
        "--to",
        dest="end",
        metavar="TIME",
        help="last, a date with its whole day (default: end of the data)",
    )
    made.add_argument(
        "--every", type=int, metavar="ROWS", help="between two forecasts (default: the horizon)"
    )
    made.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="forecast.csv or forecast.parquet"
    )
    made.add_argument("--plot", action="store_true", help="also a picture, FILE with .png")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and write; the exit status is 2 for what the user can fix."""
    options = parser().parse_intermixed_args(arguments)
    # A directory's name may have an equals sign too.
    overrides = [text for text in options.runs if "=" in text and not Path(text).exists()]
    named = {Path(text).resolve(): text for text in options.runs if text not in overrides}
    runs = list(named.values())  # a run that is named twice counts once
    try:
        if not runs:
            raise UserError("give the directory of a finished run: python -m t5ts.predict RUN …")
        if options.out.suffix not in (".csv", ".parquet"):
            raise UserError(f"--out {options.out}: its name must end in .csv or .parquet.")
        if not options.out.parent.is_dir():
            raise UserError(f"--out {options.out}: the folder {options.out.parent} does not exist.")
        from t5ts.forecasting.tables import errors, past, predict
        from t5ts.forecasting.trained import load

        forecasters = [load(run) for run in runs]
        series = forecasters[0].read(options.data, overrides)
        frame = predict(
            forecasters, series, start=options.start, end=options.end, every=options.every
        )
        _write(frame, options.out)
        if options.plot:
            from t5ts.analysis.plots import draw_forecast

            picture = options.out.with_suffix(".png")
            rows = 2 * forecasters[0].config.seq_len
            draw_forecast(frame, past(series, frame, rows=rows), picture)
            print(picture)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    if "actual" in frame.columns:
        _print_errors(errors(forecasters[0], frame))
    print(f"{options.out}  ({len(frame):,} rows)")
    return 0


def _write(frame: "pl.DataFrame", path: Path) -> None:
    try:
        with replacing(path) as temporary:
            if path.suffix == ".csv":
                frame.write_csv(temporary, datetime_format="%Y-%m-%dT%H:%M:%S%.f")
            else:
                frame.write_parquet(temporary)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}): give another --out.") from error


def _print_errors(found: "pl.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="errors (mse, mae, corr: train-standardised; mae CHANNEL: data units)")
    table.add_column("")
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
