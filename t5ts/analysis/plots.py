"""The pictures of one run, forecast and search, and the style that all pictures share."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from t5ts.analysis.results import read_json, read_metrics
from t5ts.provenance import replacing

if TYPE_CHECKING:
    import polars as pl

# Okabe & Ito's colour-blind-safe colours; neighbours also differ in lightness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
ARM_COLOURS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", "#7A3E00", "#000000", ORANGE)
ARM_DASHES = ("-", "--", "-.", ":")
ARM_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: small, selectable, read aloud
    "svg.hashsalt": "t5ts",
}
UNFREEZE = "freeze.unfreeze_epoch"
#: Candidates for the surface's other axis; the first that was searched is used.
RATES = ("optim.encoder_lr_scale", "optim.lr")


#: Name of the arm and of the second axis, (unfreeze epoch, rate, objective) of each setting.
Surface = tuple[str, str, Any]

#: How pictures are saved: without a date the same runs give the same file.
FORMATS: dict[str, dict[str, Any]] = {"png": {"dpi": 120}, "svg": {"metadata": {"Date": None}}}


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib in the style of every picture."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def arm_style(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the arm in this place, as matplotlib's line takes them."""
    turn = place + place // len(ARM_COLOURS)  # else colours that repeat come with the same dash
    return {
        "color": ARM_COLOURS[place % len(ARM_COLOURS)],
        "linestyle": ARM_DASHES[turn % len(ARM_DASHES)],
        "marker": ARM_MARKERS[turn % len(ARM_MARKERS)],
    }


def new_figure(rows: int, columns: int, *, width: float, height: float, **kw: Any) -> Any:
    """A figure and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **kw)


def whole_ticks(ax: Any, label: str) -> None:
    """The x axis counts epochs or trials: integer ticks only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel(label)


def panels(count: int, *, height: float, width: float = 3.6, **kw: Any) -> tuple[Any, list[Any]]:
    """A figure of as many axes, three in a row."""
    columns, rows = min(count, 3), -(-count // 3)
    size: Any = {"width": max(6.0, width * columns), "height": height * rows}
    figure, axes = new_figure(rows, columns, **size, **kw)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:count])


def draw_run(run_dir: Path, *, result_file: Path | None = None) -> list[Path]:
    """Draw every plot of a run into `plots/`; returns their paths.

    Args:
        run_dir: Its directory; a file that a plot needs and is missing is a DataError.
        result_file: Its result, if it is not called result.json yet.
    """
    sample = read_json(run_dir / "forecast_sample.json")
    step_s = read_json(run_dir / "provenance.json")["data"].get("step_s")
    prediction = ("prediction", {"color": BLUE, "lw": 2}, sample)
    with own_style():
        return save_figures(
            {
                "learning_curve": _learning_curve(run_dir, result_file or run_dir / "result.json"),
                "forecast": draw_forecasts([prediction], step_s=step_s),
                "gradient_norms": _gradient_norms(run_dir),
            },
            run_dir / "plots",
        )


def save_figures(figures: dict[str, Any], folder: Path, *kinds: str) -> list[Path]:
    """Write each figure as NAME.KIND (png by default), whole or not at all; returns the paths."""
    paths = []
    for name, figure in figures.items():
        folder.mkdir(parents=True, exist_ok=True)
        for kind in kinds or ("png",):
            paths.append(folder / f"{name}.{kind}")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, format=kind, **FORMATS[kind])
    return paths


def _learning_curve(run_dir: Path, result_file: Path) -> Any:
    rows = [row for row in read_metrics(run_dir, "eval") if "val_loss" in row]
    result = read_json(result_file)
    plan = read_json(run_dir / "provenance.json")["plan"]
    figure, ((loss, corr),) = new_figure(1, 2, width=10, height=3.8)
    epochs = [row["epoch"] for row in rows]
    trained = [(row["epoch"], row["train_loss"]) for row in rows if row.get("train_loss")]
    if trained:
        line: Any = {"color": GREY, "label": "train (mean over the epoch)"}
        loss.plot(*zip(*trained, strict=True), "--", **line)
    loss.plot(epochs, [row["val_loss"] for row in rows], "o-", color=BLUE, label="val")
    # The task's own naive baseline comes first.
    name, baseline = next(iter(result["baselines"]["val"].items()))
    naive, label = baseline["loss"], name.replace("_", " ")
    loss.axhline(naive, color=ORANGE, linestyle=":", label=f"{label} {naive:.3f}")
    loss.set_ylabel("MSE (train-standardised units)")
    corr.plot(epochs, [row["val_corr"] for row in rows], "o-", color=BLUE, label="levels")
    changes = [row["val_corr_delta"] for row in rows]
    corr.plot(epochs, changes, "s-", color=GREEN, label="changes since the last value")
    corr.set_ylabel("val_corr (Pearson r)")
    starts = {line["start_epoch"] for line in plan if (line["start_epoch"] or 0) > 0}
    for axes, place in ((loss, "upper right"), (corr, "lower right")):
        for i, start in enumerate(sorted(s for s in starts if s <= max(epochs))):
            label = "unfreezing" if i == 0 else "_"
            axes.axvline(start, color=GREY, linewidth=0.8, label=label)
        whole_ticks(axes, "epoch")
        axes.legend(loc=place)
    figure.suptitle(f"{result['arm']}, seed {result['seed']}, on {result['data']}", fontsize=11)
    return figure


def draw_forecasts(
    predictions: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], *, step_s: float | None
) -> Any:
    """Test windows of the first channel, with patch borders, in data units.

    Args:
        predictions: Label, line style and forecast_sample.json of each model. A predicted step that
            is visible in the context is not drawn: it is neither trained on nor scored.
        step_s: Seconds between steps, for an axis in time; None where it is not known.
    """
    first = predictions[0][2]
    naive, target_start = first["naive"], first["target_start"]
    figure, (axes,) = new_figure(1, len(first["windows"]), width=12, height=4.2, sharey=True)
    for place, (ax, window) in enumerate(zip(axes, first["windows"], strict=True)):
        context = np.array(window["context"], float)  # null is NaN, where a line breaks
        steps_L = np.arange(len(context)) + 1 - target_start
        steps_H = np.arange(len(window["truth"])) + 1
        is_seen_H = np.isin(steps_H, steps_L[np.isfinite(context)])
        # Show two horizons of context, at least a patch: the forecast is what matters.
        since = 1 - max(2 * len(steps_H), 32) if target_start else 1
        axis = _axis(ax, window["start"], step_s)
        borders = np.array(first["patch_starts"]) - target_start + 0.5
        for border in borders[borders > since]:
            ax.axvline(axis(border), color="0.85", linewidth=0.8)
        ax.axvline(axis(0.5), color="black", linewidth=0.8)
        is_shown_L = steps_L >= since
        ax.plot(axis(steps_L[is_shown_L]), context[is_shown_L], color=GREY, label="context")
        # Dots without a line: the arms use all the dash styles.
        dots: Any = {"color": GREY, "ls": "", "marker": ".", "ms": 3}
        lines = [("truth", {"color": "black", "lw": 2}, window["truth"])]
        lines += [(naive.replace("_", " "), dots, window[naive])]
        lines += [(*look, sample["windows"][place]["prediction"]) for *look, sample in predictions]
        for label, line, values in lines:
            shown = np.where(is_seen_H, math.nan, np.array(values, float))
            ax.plot(axis(steps_H), shown, label=label, **line)
        start = window["start"].replace("T", " ").removesuffix(":00")
        ax.set_title(f"from {start}" if start else f"window {place + 1}")
    unit = f" ({first['unit']})" if first["unit"] else ""
    axes[0].set_ylabel(f"{first['channel']}{unit}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _axis(ax: Any, start: str, step_s: float | None) -> Callable[[Any], Any]:
    """Map steps, 1 at the forecast's start, to the axis: of time if it is known."""
    if not start or step_s is None:
        ax.set_xlabel("steps from the forecast's start")
        return np.asarray
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))

    def moment(steps: Any) -> Any:
        after_ms = np.round((np.asarray(steps) - 1) * step_s * 1000)
        return np.datetime64(start, "ms") + after_ms.astype("timedelta64[ms]")

    return moment


def _gradient_norms(run_dir: Path) -> Any:
    """Gradient norm of each component over the steps, before clipping."""
    from matplotlib import colormaps

    rows = read_metrics(run_dir, "step")
    figure, ((ax,),) = new_figure(1, 1, width=8, height=4)
    names = [key for key in (rows[0] if rows else {}) if key.startswith("step/grad_norm/")]
    blocks = [name for name in names if "/block_" in name]
    shades = dict(zip(blocks, colormaps["viridis"](np.linspace(0, 1, len(blocks))), strict=True))
    known = {"total": "black", "head": ORANGE, "patch": BLUE}
    for name in names:
        part = name.removeprefix("step/grad_norm/")
        line: Any = {"linewidth": 4, "alpha": 0.3} if part == "total" else {"linewidth": 1}
        # 0 is a frozen component: a gap in the curve, not a point on a log axis.
        ax.plot([row["step"] for row in rows], [row[name] or math.nan for row in rows],
                "-" if name in blocks else "--", marker=".", label=part,
                color=shades.get(name, known.get(part, GREY)), **line)  # fmt: skip
    if names:
        ax.set_yscale("log")
        figure.legend(loc="outside right upper")
    ax.set_xlabel("step")
    ax.set_ylabel("L2 gradient norm, before clipping")
    return figure


def _colour_range(values: Any, maximize: bool) -> tuple[float, float]:
    """Limits for the best 90 % of the values: a diverged trial would hide all others."""
    low, high = np.quantile(values, [0.1, 1.0] if maximize else [0.0, 0.9])
    return float(low), float(high)


def surface_of(
    arm: str, tried: Sequence[tuple[dict[str, Any], float]], tuned: Collection[str] = RATES
) -> Surface | None:
    """An arm's surface of (settings, objective) tried; None below two points or without a search.

    `tuned` are the keys that were searched, if the settings have others too.
    """
    known = [rate for rate in RATES if any(rate in settings for settings, _ in tried)]
    rate = next((rate for rate in known if rate in tuned), next(iter(known), None))
    points = [
        (settings[UNFREEZE], settings[rate], value)
        for settings, value in tried
        if rate in settings and settings.get(UNFREEZE) is not None
    ]
    if len(points) < 2 or not {UNFREEZE, rate} & {*tuned}:
        return None
    return arm, str(rate), np.asarray(points, dtype=float)


def draw_surfaces(surfaces: Sequence[Surface], objective: str, *, maximize: bool) -> Any:
    """The objective over unfreeze epoch and learning rate, the best setting ringed."""
    # Two arms' surfaces can be compared only on the same axes.
    same = len({rate for _, rate, _ in surfaces}) == 1
    figure, axes = panels(len(surfaces), width=4.2, height=3.8, sharex=True, sharey=same)
    every = np.concatenate([points_S3[:, 2] for _, _, points_S3 in surfaces])
    low, high = _colour_range(every, maximize)
    for ax, (arm, rate, points_S3) in zip(axes, surfaces, strict=True):
        unfreeze, rates, values = points_S3.T
        shown = ax.scatter(unfreeze, rates, c=values, s=90, vmin=low, vmax=high,
                           cmap="viridis_r" if maximize else "viridis",
                           edgecolors=GREY, linewidths=0.5)  # fmt: skip
        best = int(np.argmax(values) if maximize else np.argmin(values))
        ax.plot(unfreeze[best], rates[best], "o", ms=16, mfc="none", mec=ORANGE, mew=2.5)
        ax.set_yscale("log")
        whole_ticks(ax, "unfreeze epoch")
        ax.set_ylabel(rate)
        ax.set_title("\n".join([*wrap(arm, 42), f"best {values[best]:.4g}"]))
    figure.colorbar(shown, ax=axes, label=objective, extend="min" if maximize else "max")
    return figure


def draw_forecast(frame: "pl.DataFrame", past: "pl.DataFrame", path: Path) -> None:
    """Draw a panel per channel: the past, the forecast or filled values, and the truth.

    Args:
        frame: As `t5ts.forecasting.trained.predict` returns it; the first 6 channels are drawn.
        past: The rows before it: `time`, `channel`, `value`.
        path: Of the PNG.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    channels = frame["channel"].unique(maintain_order=True).to_list()[:6]
    figure = Figure(figsize=(9, 1 + 2 * len(channels)), layout="constrained")
    axes = figure.subplots(len(channels), 1, squeeze=False, sharex=True)[:, 0]
    for ax, channel in zip(axes, channels, strict=True):
        before, rows = (table.filter(table["channel"] == channel) for table in (past, frame))
        time = rows["time"]
        ax.plot(before["time"], before["value"], color=GREY, label="past")
        if "value" in rows.columns:
            ax.plot(time, rows["value"], color=GREY, label="as given")
            filled = rows.filter(rows["is_filled"])
            ax.plot(filled["time"], filled["value"], ".", color=BLUE, label="filled")
        else:
            if "actual" in rows.columns:
                ax.plot(time, rows["actual"], color=GREEN, label="actual")
            ax.plot(time, rows["forecast"], color=BLUE, label="forecast")
        if "spread" in rows.columns:
            low, high = (rows["forecast"] + sign * rows["spread"] for sign in (-1, 1))
            ax.fill_between(time, low, high, color=BLUE, alpha=0.2, label="± 1 sd of the runs")
        ax.set_ylabel(channel)
    if frame["time"].dtype.is_temporal():
        locator = AutoDateLocator(maxticks=8)
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=120, format="png")
