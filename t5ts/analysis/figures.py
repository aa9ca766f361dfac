"""The report's pictures as files: PNG to look at, SVG to print."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis import effects
from t5ts.analysis.arms import Arm
from t5ts.analysis.colours import GREY, MPL_DASHES, MPL_MARKERS, ORANGE, style
from t5ts.analysis.judgement import ALIKE, CANNOT_TELL, LOWER, WITHHELD, Comparison, Findings
from t5ts.analysis.statistics import Estimate
from t5ts.analysis.words import percent

#: More comparisons than this are a wall, not a picture; the table has them all.
MOST_EFFECTS = 24
#: Panels of a picture that has one per arm.
MOST_PANELS = 8
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, selectable, read aloud
    "svg.hashsalt": "t5ts",
}


def draw(findings: Findings, name: str) -> Any | None:
    """One picture of a study as a matplotlib figure; None if there is nothing to draw.

    Args:
        findings: From `verdict`.
        name: effects, curves, forecasts, gradients, surface, gap or scale.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        return PICTURES[name](findings)


def save_figures(findings: Findings, folder: Path) -> list[str]:
    """Draw every picture that there is data for as PNG and SVG; returns their names."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(_STYLE):
        for name, picture in PICTURES.items():
            figure = picture(findings)
            if figure is not None:
                figure.savefig(folder / f"{name}.png", dpi=120)
                # Without a date the same runs give the same file.
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                drawn.append(name)
    return drawn


def _figure(rows: int, columns: int, *, width: float, height: float, **kw: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kw)


def shown_effects(findings: Findings) -> list[tuple[str, Comparison]]:
    """The comparisons to draw, the fair ones first, each with its label."""
    several = len(findings.verdicts) > 1
    kinds = (
        ("best", "checkpoint")
        if several
        else ("best", "control", "weights", "frozen_random", "checkpoint", "freezing")
    )
    return [
        (c.pair.name + (f"\n{v.condition.name}" if several else ""), c)
        for kind in kinds
        for v in findings.verdicts
        for c in v.comparisons
        if c.pair.kind == kind and c.pair.seeds and np.isfinite(c.effect.value)
    ][:MOST_EFFECTS]


def effect_percent(effect: Estimate) -> tuple[float, float, float]:
    """A log-ratio and its interval in per cent."""
    value, low, high = (100 * np.expm1(x) for x in (effect.value, effect.low, effect.high))
    return float(value), float(low), float(high)


#: How a comparison's outcome is drawn, in words.
EFFECT_KEY = (
    "Blue circle: the first arm is better; orange square: it is worse; black triangle: no"
    " difference that matters; grey diamond: cannot tell; grey cross: an invariant is broken."
)


def effect_style(c: Comparison) -> tuple[str, str]:
    """Colour and marker: better, worse, alike, not known or withheld; see `EFFECT_KEY`."""
    if c.kind == LOWER:
        return style(0)[0], "o"
    if c.kind == CANNOT_TELL:
        return GREY, "D"
    if c.kind == WITHHELD:
        return GREY, "X"
    if c.kind == ALIKE:
        return "black", "^"
    return ORANGE, "s"


def _effects(findings: Findings) -> Any | None:
    shown = shown_effects(findings)
    if not shown:
        return None
    figure, ((ax,),) = _figure(1, 1, width=5.6, height=1.0 + 0.5 * len(shown))
    margin = 100 * findings.main.margin
    ax.axvspan(-margin, margin, color="0.9", zorder=0)
    ax.axvline(0, color="black", linewidth=0.8)
    for place, (label, c) in enumerate(shown):
        value, low, high = effect_percent(c.effect)
        colour, marker = effect_style(c)
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        ax.plot(value, place, marker=marker, color=colour, markersize=8)
        # Above its line, not beside it: a phone has no room beside it.
        ax.text(
            0, place - 0.25, label.replace("\n", " · "),
            transform=ax.get_yaxis_transform(), fontsize=9, va="bottom",
        )  # fmt: skip
        ax.text(
            1, place - 0.25, f"{percent(value / 100)}", transform=ax.get_yaxis_transform(),
            fontsize=9, va="bottom", ha="right",
        )  # fmt: skip
    ax.set_ylim(len(shown) - 0.4, -0.9)
    ax.set_xlabel("change of the test loss, % (left: the first arm is better)")
    ax.spines["left"].set_visible(False)
    ax.yaxis.set_visible(False)
    return figure


def arm_group(place: int) -> str:
    """Start of the ids of everything that the curves' SVG draws for the arm in this place."""
    return f"arm-{place}-"


def _curves(findings: Findings) -> Any | None:
    condition = findings.main.condition
    curves = [
        (place, arm, {m: effects.learning_curve(arm, m) for m in ("val_loss", "val_corr")})
        for place, arm in enumerate(condition.arms)
    ]
    curves = [entry for entry in curves if entry[2]["val_loss"] is not None]
    if not curves:
        return None
    figure, ((loss,), (corr,)) = _figure(2, 1, width=8, height=7, sharex=True)
    for place, arm, by_metric in curves:
        for ax, metric in ((loss, "val_loss"), (corr, "val_corr")):
            band = by_metric[metric]
            if band is None:
                continue
            label = f"{arm.name} ({band.count})" if ax is loss else None
            artists = _draw_band(ax, band, place, label)
            starts = [e for e in effects.unfreezing(arm.shown) if e <= band.x[-1]]
            heights = np.interp(starts, band.x, band.mean)
            colour = style(place)[0]
            artists += ax.plot(
                starts, heights, "^", ms=10, mfc="white", mec=colour, mew=1.8, zorder=3
            )
            for part, artist in enumerate(artists):
                artist.set_gid(f"{arm_group(place)}{metric}-{part}")
    corr.set_xlabel("epoch")
    naive = naive_loss(findings)
    if naive is not None:
        loss.axhline(naive, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
        label = loss.text(1, naive, "naive forecast ", transform=loss.get_yaxis_transform(),
                          ha="right", va="bottom", fontsize=8, color="0.3")  # fmt: skip
        label.set_in_layout(False)
    loss.set_ylabel("val_loss: MSE, train-standardised")
    corr.set_ylabel("val_corr: Pearson r")
    figure.legend(
        loc="outside lower center", ncols=2, fontsize=9, title="arm (seeds);  △ unfreezing"
    )
    return figure


def _draw_band(ax: Any, band: effects.Band, place: int, label: str | None) -> list[Any]:
    """A curve with its interval in the style of the arm in this place; returns the artists."""
    colour, dash, marker = style(place)
    line = ax.plot(
        band.x,
        band.mean,
        color=colour,
        linestyle=MPL_DASHES[dash],
        marker=MPL_MARKERS[marker],
        markersize=4,
        markevery=max(1, len(band.x) // 10),
        label=label,
    )
    area = ax.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    return [*line, area]


def naive_loss(findings: Findings) -> float | None:
    """The naive forecast's validation loss in the main condition; None before a run is finished."""
    for run in findings.main.condition.runs:
        if run.result is not None:
            return next(iter(run.result.baselines["val"].values()))["loss"]  # the task's naive one
    return None


def _gap(findings: Findings) -> Any | None:
    gaps = gaps_of(findings)
    if not gaps:
        return None
    figure, ((ax,),) = _figure(1, 1, width=8, height=4)
    ax.axhline(0, color="black", linewidth=0.8)
    for place, (name, gap) in enumerate(gaps):
        _draw_band(ax, gap.band, place, f"{name} ({gap.band.count} seeds)")
    ax.set_xlabel("epoch")
    ax.set_ylabel("gap in val_loss\n(random − pretrained)")
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def gaps_of(findings: Findings) -> list[tuple[str, effects.Gap]]:
    """The gaps to draw: each fair pair of the main condition."""
    found = []
    for c in findings.main.comparisons:
        gap = effects.gap(c.pair) if c.pair.kind in ("best", "weights") and c.pair.seeds else None
        if gap is not None:
            found.append((c.pair.name, gap))
    return found


def _panels(arms: Sequence[Any], *, height: float, width: float = 3.6) -> tuple[Any, list[Any]]:
    columns = min(len(arms), 3)
    rows = -(-len(arms) // columns)
    figure, axes = _figure(rows, columns, width=max(6.0, width * columns), height=height * rows)
    flat = list(axes.flat)
    for ax in flat[len(arms) :]:
        ax.set_visible(False)
    return figure, flat[: len(arms)]


def _gradients(findings: Findings) -> Any | None:
    from matplotlib.colors import LogNorm

    maps = [
        (arm, m)
        for arm in findings.main.condition.arms
        if (m := effects.gradient_map(arm)) is not None and (m.norms > 0).any()
    ][:MOST_PANELS]
    if not maps:
        return None
    rows = max(len(m.components) for _, m in maps)
    figure, axes = _panels(maps, height=1.2 + 0.22 * rows)
    positive = np.concatenate([m.norms[m.norms > 0] for _, m in maps])
    norm = LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
    image = None
    for ax, (arm, m) in zip(axes, maps, strict=True):
        image = ax.pcolormesh(
            np.append(m.epochs - 0.5, m.epochs[-1] + 0.5),
            np.arange(len(m.components) + 1) - 0.5,
            np.ma.masked_less_equal(m.norms, 0),
            norm=norm,
            cmap="viridis",
        )
        ax.invert_yaxis()
        ax.set_yticks(range(len(m.components)), m.components, fontsize=8)
        ax.set_xlabel("epoch")
        ax.set_title(arm.name, fontsize=9)
        for start in effects.unfreezing(arm.shown):
            ax.axvline(start + 0.5, color=ORANGE, linewidth=1)
    figure.colorbar(image, ax=axes, label="gradient norm (L2)", shrink=0.8)
    return figure


def _surface(findings: Findings) -> Any | None:
    arms = [arm for arm in findings.main.condition.arms if effects.surface(arm)][:MOST_PANELS]
    surfaces = [(arm, s) for arm in arms if (s := effects.surface(arm))]
    if not surfaces:
        return None
    figure, axes = _panels(surfaces, height=3.6, width=4.2)
    values = np.concatenate([s.values for _, s in surfaces])
    scatter = None
    for ax, (arm, s) in zip(axes, surfaces, strict=True):
        scatter = ax.scatter(
            s.unfreeze,
            s.rates,
            c=s.values,
            s=260,
            marker="s",
            cmap="viridis_r" if arm.maximize else "viridis",
            vmin=values.min(),
            vmax=values.max(),
        )
        best = int(np.argmax(s.values) if arm.maximize else np.argmin(s.values))
        ax.plot(s.unfreeze[best], s.rates[best], "o", ms=24, mfc="none", mec=ORANGE, mew=2.5)
        ax.set_yscale("log")
        ax.margins(0.15)
        ax.set_xlabel("unfreeze epoch")
        ax.set_ylabel(s.rate)
        ax.set_title(arm.name, fontsize=9)
    objective = findings.main.condition.config.get("objective", "objective")
    figure.colorbar(scatter, ax=axes, label=f"{objective} (best epoch, mean over seeds)")
    return figure


def _scale(findings: Findings) -> Any | None:
    audits = [
        (place, arm, effects.scale_audit(arm))
        for place, arm in enumerate(findings.main.condition.arms)
    ]
    audits = [entry for entry in audits if entry[2]]
    if not audits:
        return None
    figure, ((ax,),) = _figure(1, 1, width=8, height=4)
    stages = max((list(audit) for _, _, audit in audits), key=len)
    for place, arm, audit in audits:
        colour, dash, marker = style(place)
        here = [stage for stage in stages if stage in audit]
        ax.plot(
            [stages.index(stage) for stage in here],
            [audit[stage] for stage in here],
            color=colour,
            linestyle=MPL_DASHES[dash],
            marker=MPL_MARKERS[marker],
            label=arm.name,
        )
    ax.set_yscale("log")
    ax.set_xticks(range(len(stages)), stages, rotation=30 if len(stages) > 8 else 0)
    ax.set_ylabel("RMS at step 0 (standardised units)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _forecasts(findings: Findings) -> Any | None:
    samples = effects.forecasts(findings.main.condition)
    if not samples:
        return None
    order: list[Arm] = findings.main.condition.arms
    first = samples[0][1]
    count = len(first["windows"])
    naive = first["naive"]
    figure, axes = _figure(1, count, width=12, height=4.2, sharey=True)
    for number, ax in enumerate(axes[0]):
        window = first["windows"][number]
        context, truth = window["context"], window["truth"]
        # As much context as two horizons, at least a patch: the forecast is what is looked at.
        seen = min(len(context), max(2 * len(truth), 32))
        # A forecast begins after the context, masked steps lie within it.
        start = first["target_start"] - len(context) + 1
        ahead = range(start, start + len(truth))
        for border in first["patch_starts"]:
            if border > len(context) - seen:
                ax.axvline(border - len(context) + 0.5, color="0.85", linewidth=0.8)
        ax.plot(range(1 - seen, 1), context[-seen:], color=GREY, label="context")
        ax.plot(ahead, truth, color="black", linewidth=2, label="truth")
        # Dots without a line: arms have all the dashes.
        ax.plot(ahead, window[naive], ".", color=GREY, ms=3, label=naive.replace("_", " "))
        for arm, sample in samples[:MOST_PANELS]:
            colour, dash, _ = style(order.index(arm))
            ax.plot(ahead, sample["windows"][number]["prediction"], color=colour,
                    linestyle=MPL_DASHES[dash], linewidth=1.5, label=arm.name)  # fmt: skip
        ax.axvline(0.5, color="black", linewidth=0.8)
        ax.set_title(f"from {window['start']}" if window["start"] else f"window {number + 1}")
        ax.set_xlabel("steps from the forecast's start")
    unit = f" ({first['unit']})" if first["unit"] else ""
    axes[0][0].set_ylabel(f"{first['channel']}{unit}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


PICTURES: dict[str, Callable[[Findings], Any | None]] = {
    "effects": _effects,
    "curves": _curves,
    "forecasts": _forecasts,
    "gradients": _gradients,
    "surface": _surface,
    "gap": _gap,
    "scale": _scale,
}


def swatch(place: int) -> str:
    """An arm's line as the plots draw it, in SVG: colour, dash and marker."""
    colour, dash, marker = style(place)
    dashes = {"dashed": "6 3", "dotdash": "7 2 2 2", "dotted": "2 3"}.get(dash, "")
    shape = {
        "circle": '<circle cx="16" cy="7" r="4"/>',
        "square": '<path d="M12 3h8v8h-8z"/>',
        "triangle": '<path d="M16 2l5 9h-10z"/>',
        "diamond": '<path d="M16 2l5 5-5 5-5-5z"/>',
        "inverted_triangle": '<path d="M16 12l5-9h-10z"/>',
        "cross": '<path d="M16 2v10M11 7h10" stroke-width="3"/>',
        "x": '<path d="M12 3l8 8M20 3l-8 8" stroke-width="3"/>',
        "star": '<path d="M16 1l2 5h5l-4 3 2 5-5-3-5 3 2-5-4-3h5z"/>',
    }[marker]
    return (
        f'<svg class="swatch" viewBox="0 0 32 14" width="32" height="14" aria-hidden="true"'
        f' stroke="{colour}" fill="{colour}"><path d="M0 7h32" stroke-width="2"'
        f' stroke-dasharray="{dashes}"/>{shape}</svg>'
    )
