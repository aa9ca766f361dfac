"""The picture of a forecast, as `t5ts.predict --plot` draws it."""

from pathlib import Path

import polars as pl

from t5ts.analysis.plots import BLUE, GREEN, GREY

#: Most channels that one picture can show.
MAX_CHANNELS = 6


def draw_forecast(frame: pl.DataFrame, past: pl.DataFrame, path: Path) -> None:
    """Draw a panel per channel: the past, the forecast or filled values, and the truth.

    Args:
        frame: As `t5ts.forecasting.trained.predict` returns it.
        past: The rows before it: `time`, `channel`, `value`.
        path: Of the PNG.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    channels = frame["channel"].unique(maintain_order=True).to_list()[:MAX_CHANNELS]
    figure = Figure(figsize=(9, 1 + 2 * len(channels)), layout="constrained")
    panels = figure.subplots(len(channels), 1, squeeze=False, sharex=True)[:, 0]
    for panel, channel in zip(panels, channels, strict=True):
        of_channel = frame.filter(pl.col("channel") == channel)
        before = past.filter(pl.col("channel") == channel)
        panel.plot(before["time"], before["value"], color=GREY, label="past")
        if "value" in frame.columns:
            panel.plot(of_channel["time"], of_channel["value"], color=GREY, label="as given")
            filled = of_channel.filter("is_filled")
            panel.plot(filled["time"], filled["value"], ".", color=BLUE, label="filled")
        else:
            _draw_one(panel, of_channel)
        panel.set_ylabel(channel)
    if isinstance(frame["time"].dtype, pl.Datetime):
        locator = AutoDateLocator(maxticks=8)
        panels[-1].xaxis.set_major_locator(locator)
        panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_one(panel, of_channel: pl.DataFrame) -> None:  # type: ignore[no-untyped-def]
    time, forecast = of_channel["time"], of_channel["forecast"]
    if "actual" in of_channel.columns:
        panel.plot(time, of_channel["actual"], color=GREEN, label="actual")
    panel.plot(time, forecast, color=BLUE, label="forecast")
    if "spread" in of_channel.columns:
        low, high = forecast - of_channel["spread"], forecast + of_channel["spread"]
        panel.fill_between(time, low, high, color=BLUE, alpha=0.2, label="± 1 sd of the runs")
