"""Pictures of one run, drawn from its directory."""

import math
from pathlib import Path
from typing import Any

from t5ts.analysis.results import read_json, read_metrics

# Okabe & Ito's colours: told apart by the colour-blind, and by lightness in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def draw_run(run_dir: Path, *, result_file: Path | None = None) -> list[Path]:
    """Draw every picture of a run into `plots/`; returns their paths.

    Args:
        run_dir: The run directory.
        result_file: Its result, where that is not yet called result.json.

    Raises:
        DataError: if the directory lacks a file that a picture is drawn from.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # files only: there may be no screen
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, figure in (
        ("learning_curve", _learning_curve(run_dir, result_file or run_dir / "result.json")),
        ("forecast", _forecast(run_dir)),
        ("gradient_norms", _gradient_norms(run_dir)),
    ):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        drawn.append(path)
    return drawn


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _learning_curve(run_dir: Path, result_file: Path) -> Any:
    rows = read_metrics(run_dir, "eval")
    result = read_json(result_file)
    plan = read_json(run_dir / "provenance.json")["plan"]
    baselines = result["baselines"]["val"]
    figure, ((loss, corr),) = _figure(1, 2, width=10, height=3.8)
    evaluated = [row for row in rows if "val_loss" in row]
    epochs = [row["epoch"] for row in evaluated]
    trained = [row for row in rows if row.get("train_loss") is not None]
    loss.plot(
        [row["epoch"] for row in trained],
        [row["train_loss"] for row in trained],
        color=GREY,
        linestyle="--",
        label="train (mean over the epoch)",
    )
    loss.plot(epochs, [row["val_loss"] for row in evaluated], color=BLUE, marker="o", label="val")
    name = next(iter(baselines))  # the task's own naive baseline comes first
    naive, label = baselines[name]["loss"], name.replace("_", " ")
    loss.axhline(naive, color=ORANGE, linestyle=":", label=f"{label} {naive:.3f}")
    loss.set_ylabel("MSE (train-standardised units)")
    corr.plot(
        epochs, [row["val_corr"] for row in evaluated], color=BLUE, marker="o", label="levels"
    )
    corr.plot(
        epochs,
        [row["val_corr_delta"] for row in evaluated],
        color=GREEN,
        marker="s",
        label="changes since the last value",
    )
    corr.set_ylabel("val_corr (Pearson r)")
    starts = sorted({line["start_epoch"] for line in plan if (line["start_epoch"] or 0) > 0})
    for axes in (loss, corr):
        for i, start in enumerate(s for s in starts if s <= max(epochs)):
            label = "unfreezing" if i == 0 else None
            axes.axvline(start, color=GREY, linewidth=0.8, label=label)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=8, loc="upper right" if axes is loss else "lower right")
    figure.suptitle(f"{result['arm']}, seed {result['seed']}, on {result['data']}", fontsize=11)
    return figure


def _forecast(run_dir: Path) -> Any:
    """Three test windows of the first channel, with patch borders, in data units.

    What is predicted lies after the context or in its gaps. A predicted step that the context shows
    is not drawn: nothing trains or scores it.
    """
    sample = read_json(run_dir / "forecast_sample.json")
    windows, target_start = sample["windows"], sample["target_start"]
    figure, axes = _figure(1, len(windows), width=12, height=3.6)
    for place, (ax, window) in enumerate(zip(axes[0], windows, strict=True)):
        context = dict(enumerate(_gaps(window["context"]), start=1 - target_start))
        truth, naive, prediction = (
            {
                step: float("nan") if math.isfinite(context.get(step, float("nan"))) else value
                for step, value in enumerate(_gaps(window[line]), start=1)
            }
            for line in ("truth", sample["naive"], "prediction")
        )
        for values, label, style in (
            (context, "context", {"color": GREY}),
            (truth, "truth", {"color": "black"}),
            (naive, sample["naive"].replace("_", " "), {"color": ORANGE, "linestyle": ":"}),
            (prediction, "prediction", {"color": BLUE, "linewidth": 2}),
        ):
            ax.plot(list(values), list(values.values()), label=label, **style)
        for border in sample["patch_starts"]:
            ax.axvline(border - target_start + 0.5, color=GREY, alpha=0.3, linewidth=0.6)
        ax.axvline(0.5, color="black", linewidth=0.8)
        ax.set_title(
            f"from {window['start']}" if window["start"] else f"window {place}", fontsize=9
        )
        ax.set_xlabel("step, 1 at that time" if window["start"] else "step")
    unit = f" ({sample['unit']})" if sample["unit"] else ""
    axes[0][0].set_ylabel(f"{sample['channel']}{unit}")
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def _gaps(values: list[float | None]) -> list[float]:
    """JSON's null as NaN, at which matplotlib breaks a line."""
    return [float("nan") if value is None else value for value in values]


def _gradient_norms(run_dir: Path) -> Any:
    """Gradient norm of each component over the steps, before clipping."""
    rows = read_metrics(run_dir, "step")
    figure, ((ax,),) = _figure(1, 1, width=8, height=4)
    names = [key for key in (rows[0] if rows else {}) if key.startswith("grad_norm/")]
    from matplotlib import colormaps

    shades = colormaps["viridis"]
    blocks = [name for name in names if "/block_" in name]
    for name in names:
        # 0 is a frozen component: a gap in the curve, not a point on a log axis.
        values = [row[name] or None for row in rows]
        color: Any = {"total": "black", "head": ORANGE, "patch": BLUE}.get(name.split("/")[1], GREY)
        if name in blocks:
            color = shades(blocks.index(name) / max(1, len(blocks) - 1))
        ax.plot(
            [row["step"] for row in rows],
            [float("nan") if v is None else v for v in values],
            linestyle="-" if name in blocks else "--",
            color=color,
            label=name.removeprefix("grad_norm/"),
            marker=".",
            linewidth=4 if name.endswith("/total") else 1,
            alpha=0.3 if name.endswith("/total") else 1.0,
        )
    if names:
        ax.set_yscale("log")
        figure.legend(fontsize=8, loc="outside right upper")
    ax.set_xlabel("step")
    ax.set_ylabel("L2 gradient norm, before clipping")
    return figure
