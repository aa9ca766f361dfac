"""The report's figures: PNG for viewing, SVG for the page and for print."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from t5ts.analysis import effects, judgement, plots
from t5ts.analysis.encoder import scale_audit
from t5ts.analysis.judgement import Comparison, Findings
from t5ts.analysis.plots import BLUE, GREY, ORANGE, arm_style, new_figure, own_style, whole_ticks
from t5ts.analysis.words import arm_label, in_words, percent, plural, versus

#: More comparisons than this do not fit in a figure; the table has them all.
MOST_EFFECTS = 24
#: Inches of a line in a legend below a figure.
LEGEND_LINE = 0.2
#: Most panels in a figure with one per arm.
MOST_PANELS = 8
#: Colour, marker and description of what a comparison shows.
OUTCOMES = {
    judgement.LOWER: (BLUE, "o", "blue circle: the first arm is better"),
    judgement.HIGHER: (ORANGE, "s", "orange square: it is worse"),
    judgement.ALIKE: ("black", "^", "triangle: no difference that matters"),
    judgement.CANNOT_TELL: (GREY, "D", "grey diamond: cannot tell"),
    judgement.WITHHELD: (GREY, "X", "grey cross: an invariant is broken"),
}


def draw(findings: Findings, name: str) -> Any | None:
    """One picture of a study, by its name in `PICTURES`, as a matplotlib figure; None if empty."""
    with own_style():
        return PICTURES[name](findings)


def save_figures(findings: Findings, folder: Path) -> list[str]:
    """Draw every picture that has data, as PNG and SVG; returns their names."""
    with own_style():
        drawn = {name: f for name, draws in PICTURES.items() if (f := draws(findings)) is not None}
        plots.save_figures(drawn, folder, "png", "svg")
    return list(drawn)


def effect_key(findings: Findings) -> str:
    """The marks that appear in the picture of effects, in words."""
    kinds = {c.kind for _, c in _shown_effects(findings)}
    key = "; ".join(words for kind, (_, _, words) in OUTCOMES.items() if kind in kinds)
    return key[:1].upper() + key[1:]


def _shown_effects(findings: Findings) -> list[tuple[str, Comparison]]:
    """The comparisons to draw, the fair ones first, each with its label."""
    several = len(findings.verdicts) > 1
    kinds = ["best", "checkpoint"]
    if not several:
        kinds = ["best", "control", "weights", "frozen_random", "checkpoint", "freezing"]
    return [
        (f"{versus(c.pair)}\n{v.condition.name}" if several else versus(c.pair), c)
        for kind in kinds
        for v in findings.verdicts
        for c in v.comparisons
        if c.pair.kind == kind and c.pair.seeds and np.isfinite(c.effect.value)
    ][:MOST_EFFECTS]


def _effects(findings: Findings) -> Any | None:
    shown = _shown_effects(findings)
    if not shown:
        return None
    labels = ["\n".join(chain(*(wrap(line, 80) for line in x.split("\n")))) for x, _ in shown]
    height = 0.35 + 0.2 * (1 + max(label.count("\n") for label in labels))  # of a row
    figure, ((ax,),) = new_figure(1, 1, width=5.6, height=1.0 + height * len(shown))
    margin, half = 100 * findings.main.margin, 0.11 / height
    for place, (label, (_, c)) in enumerate(zip(labels, shown, strict=True)):
        value, low, high = (
            float(100 * np.expm1(x)) for x in (c.effect.value, c.effect.low, c.effect.high)
        )
        colour, marker, _ = OUTCOMES[c.kind]
        # The band is drawn behind the line only, so that no label overlaps it.
        ax.barh(place, 2 * margin, left=-margin, height=2 * half, color="0.9", zorder=0)
        ax.plot([0, 0], [place - half, place + half], color="black", linewidth=0.8)
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        ax.plot(value, place, marker=marker, color=colour, markersize=8)
        # Its value where the line ends, on the side away from 0.
        side, end = ("left", high) if value > 0 else ("right", low)
        ax.annotate(percent(value / 100), (value if np.isnan(end) else end, place),
                    (8 if value > 0 else -8, 0), textcoords="offset points", fontsize=9,
                    va="center", ha=side)  # fmt: skip
        # Above its line, not next to it: a phone has no space there.
        text = ax.text(0, place - 1.25 * half, label, transform=ax.get_yaxis_transform(),
                       fontsize=9, va="bottom")  # fmt: skip
        text.set_in_layout(False)  # a long one never narrows the axes
    ax.margins(x=0.15)  # space for the values
    ax.set_ylim(len(shown) - 0.6, -0.9)
    ax.set_xlabel("change in test loss, % (left: the first arm is better)")
    ax.spines["left"].set_visible(False)
    ax.yaxis.set_visible(False)
    return figure


def unfreezes(findings: Findings) -> bool:
    """Whether an arm of the main condition unfreezes something after the start."""
    return any(effects.unfreezing(arm.shown) for arm in findings.main.condition.arms)


def _curves(findings: Findings) -> Any | None:
    arms = findings.main.condition.arms
    if not any(effects.learning_curve(arm, "val_loss") for arm in arms):
        return None
    figure, axes = new_figure(2, 1, width=8, height=6.9 + LEGEND_LINE * len(arms), sharex=True)
    loss, corr = axes[:, 0]
    for ax, metric in ((loss, "val_loss"), (corr, "val_corr")):
        for place, arm in enumerate(arms):
            if (band := effects.learning_curve(arm, metric)) is None:
                continue
            artists = _draw_band(ax, band, place, f"{arm_label(arm)}: {band.seeds}")
            starts = [e for e in effects.unfreezing(arm.shown) if e <= band.x[-1]]
            heights = np.interp(starts, band.x, band.mean)
            line: Any = {"mec": arm_style(place)["color"], "mfc": "white", "mew": 1.8, "ms": 10}
            artists += ax.plot(starts, heights, "^", zorder=3, **line)
            for part, artist in enumerate(artists):
                artist.set_gid(f"arm-{place}-{metric}-{part}")  # which the page can hide
    result = next((r.result for r in findings.main.condition.runs if r.result is not None), None)
    if result is not None:
        naive = next(iter(result.baselines["val"].values()))["loss"]  # the task's naive one
        loss.axhline(naive, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
        # On the left, where untrained curves are far above it.
        label = loss.text(0, naive, " naive forecast", transform=loss.get_yaxis_transform(),
                          va="bottom", fontsize=8, color="0.3")  # fmt: skip
        label.set_in_layout(False)
    whole_ticks(corr, "epoch")
    loss.set_ylabel("val_loss: MSE, train-standardised")
    corr.set_ylabel("val_corr: Pearson r")
    title = "arm: seeds" + (";  △ unfreezing" if unfreezes(findings) else "")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", title=title)
    return figure


def _draw_band(ax: Any, band: effects.Band, place: int, label: str) -> list[Any]:
    """A curve with its interval in the style of the arm in this place; returns the artists."""
    line, every = arm_style(place), max(1, len(band.x) // 10)
    curve = ax.plot(band.x, band.mean, ms=4, markevery=every, label=label, **line)
    style = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
    return [*curve, ax.fill_between(band.x, band.low, band.high, **style)]


def _gap(findings: Findings) -> Any | None:
    pairs = [c.pair for c in findings.main.comparisons if c.pair.kind in ("best", "weights")]
    gaps = [(versus(pair), gap) for pair in pairs if (gap := effects.gap(pair)) is not None]
    if not gaps:
        return None
    figure, ((ax,),) = new_figure(1, 1, width=8, height=3.6 + LEGEND_LINE * len(gaps))
    ax.axhline(0, color="black", linewidth=0.8)
    for place, (name, gap) in enumerate(gaps):
        _draw_band(ax, gap.band, place, f"{name} ({plural(gap.band.seeds, 'seed')})")
    whole_ticks(ax, "epoch")
    ax.set_ylabel("gap in val_loss\n(random − pretrained)")
    figure.legend(loc="outside lower center")
    return figure


def _gradients(findings: Findings) -> Any | None:
    from matplotlib.colors import LogNorm

    maps = [
        (arm, *found)
        for arm in findings.main.condition.arms
        if (found := effects.gradient_map(arm)) is not None and (found[2] > 0).any()
    ][:MOST_PANELS]
    if not maps:
        return None
    rows = max(len(components) for _, components, _, _ in maps)
    figure, axes = plots.panels(len(maps), height=max(2.4, 1.2 + 0.22 * rows))
    positive = np.concatenate([norms[norms > 0] for *_, norms in maps])
    low, high = positive.min(), max(positive.max(), positive.min() * 1.01)
    for ax, (arm, components, epochs, norms) in zip(axes, maps, strict=True):
        borders = np.append(epochs - 0.5, epochs[-1] + 0.5), np.arange(len(components) + 1) - 0.5
        shown: Any = np.ma.masked_less_equal(norms, 0)
        image = ax.pcolormesh(*borders, shown, norm=LogNorm(low, high), cmap="viridis")
        ax.invert_yaxis()
        ax.set_yticks(range(len(components)), components, fontsize=8)
        whole_ticks(ax, "epoch")
        ax.set_title("\n".join(wrap(in_words(arm), 40)), fontsize=9)
        for start in effects.unfreezing(arm.shown):
            ax.axvline(start + 0.5, color=ORANGE, linewidth=1)
    bar = figure.colorbar(image, ax=axes, label="gradient norm (L2)", shrink=0.8, format="%.2g")
    bar.set_ticks(np.geomspace(low, high, 5))
    bar.minorticks_off()
    return figure


def _surface(findings: Findings) -> Any | None:
    condition, surfaces = findings.main.condition, []
    for arm in condition.arms:
        tried = [(s.values, s.objective) for s in arm.settings if s.finished]
        surface = plots.surface_of(in_words(arm), tried, arm.tuned) if arm.tuned else None
        surfaces += [] if surface is None else [surface]
    if not surfaces:
        return None
    label = f"{condition.config.get('objective', 'objective')} (best epoch, mean over seeds)"
    return plots.draw_surfaces(surfaces[:MOST_PANELS], label, maximize=condition.arms[0].maximize)


def _scale(findings: Findings) -> Any | None:
    audits = [(arm, scale_audit(arm)) for arm in findings.main.condition.arms]
    stages = max((list(audit) for _, audit in audits), key=len)
    if not stages:
        return None
    figure, ((ax,),) = new_figure(1, 1, width=8, height=4 + LEGEND_LINE * len(audits))
    for place, (arm, audit) in enumerate(audits):
        here = [(x, audit[stage]) for x, stage in enumerate(stages) if stage in audit]
        if here:
            ax.plot(*zip(*here, strict=True), label=arm_label(arm), **arm_style(place))
    ax.set_yscale("log")
    ax.set_xticks(range(len(stages)), stages, rotation=30 if len(stages) > 8 else 0)
    ax.set_ylabel("RMS at step 0 (standardised units)")
    figure.legend(loc="outside lower center")
    return figure


def _forecasts(findings: Findings) -> Any | None:
    condition = findings.main.condition
    predictions = [
        (arm_label(arm), arm_style(condition.arms.index(arm)) | {"marker": "", "lw": 1.5}, sample)
        for arm, sample in effects.forecasts(condition)[:MOST_PANELS]
    ]
    data: Any = next(filter(None, (run.provenance.get("data") for run in condition.runs)), {})
    return plots.draw_forecasts(predictions, step_s=data.get("step_s")) if predictions else None


PICTURES: dict[str, Callable[[Findings], Any | None]] = {
    "effects": _effects,
    "curves": _curves,
    "forecasts": _forecasts,
    "gradients": _gradients,
    "surface": _surface,
    "gap": _gap,
    "scale": _scale,
}
