"""The page's interactive plots, by Bokeh: hover for values, drag to zoom, arms shown and hidden."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t5ts.analysis import effects
from t5ts.analysis.colours import GREY, ORANGE, style
from t5ts.analysis.figures import effect_percent, effect_style, gaps_of, naive_loss, shown_effects
from t5ts.analysis.judgement import Findings
from t5ts.analysis.words import number, percent_interval, probability

#: A grid of more learning rates than this has its axis's own ticks.
MOST_TICKS = 8
_BOKEH_MARKERS = {"o": "circle", "D": "diamond", "s": "square", "^": "triangle", "X": "x"}


@dataclass(kw_only=True)
class Plots:
    """Interactive plots, ready to be embedded.

    Attributes:
        divs: By the picture's name: the element that the plot appears in.
        script: The script that draws all of them.
        library: Bokeh's own script and nothing else, to stand in the page.
        switches: By arm, in the order of their colours: names of what its switch shows and hides.
    """

    divs: dict[str, str] = field(default_factory=dict)
    script: str = ""
    library: str = ""
    switches: dict[str, list[str]] = field(default_factory=dict)


def plots(findings: Findings) -> Plots:
    """Every interactive plot that there is data for."""
    from bokeh.embed import components
    from bokeh.models import GlyphRenderer
    from bokeh.resources import Resources

    roots: dict[str, Any] = {
        name: root for name, plot in PLOTS.items() if (root := plot(findings)) is not None
    }
    if not roots:
        return Plots()
    script, divs = components(roots, wrap_script=False)
    return Plots(
        divs=dict(divs),
        script=script,
        # The core alone: no widgets, tables, WebGL or MathJax (2 MB less).
        library="\n".join(Resources(mode="inline", components=["bokeh"]).js_raw),
        switches={
            arm.name: [
                renderer.name
                for renderer in roots["curves"].select({"type": GlyphRenderer})
                if renderer.name.split("-")[1] == str(place)
            ]
            for place, arm in enumerate(findings.main.condition.arms)
        }
        if "curves" in roots
        else {},
    )


def _figure(**kw: Any) -> Any:
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        toolbar_location="above",
        output_backend="canvas",
        **kw,
    )
    plot.toolbar.logo = None
    plot.toolbar.active_scroll = None  # scrolling scrolls the page
    plot.toolbar.autohide = True
    plot.outline_line_color = None
    plot.grid.grid_line_color = "#eeeeee"
    for axis in plot.axis:
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "13px"
        axis.major_label_text_font_size = "12px"
    return plot


def _curves(findings: Findings) -> Any | None:
    from bokeh.layouts import gridplot

    condition = findings.main.condition
    panels = []
    for metric, label in (
        ("val_loss", "val_loss: MSE, train-standardised"),
        ("val_corr", "val_corr: Pearson r"),
    ):
        bands = [
            (i, arm, effects.learning_curve(arm, metric)) for i, arm in enumerate(condition.arms)
        ]
        drawn = [(i, arm, band) for i, arm, band in bands if band is not None]
        if not drawn:
            continue
        plot = _figure(height=360, x_axis_label="epoch", y_axis_label=label, min_width=280)
        for place, arm, band in drawn:
            before = len(plot.renderers)
            _draw_band(plot, band, place, arm.name, metric)
            starts = [e for e in effects.unfreezing(arm.shown) if e <= band.x[-1]]
            plot.scatter(
                starts,
                list(np.interp(starts, band.x, band.mean)),
                marker="triangle",
                size=13,
                fill_color="white",
                line_color=style(place)[0],
                line_width=2,
            )
            for part, renderer in enumerate(plot.renderers[before:]):
                renderer.name = f"{metric}-{place}-{part}"  # what the page's switches look for
        naive = naive_loss(findings)
        if metric == "val_loss" and naive is not None:
            from bokeh.models import Label, Span

            plot.add_layout(
                Span(location=naive, dimension="width", line_color=GREY, line_dash="dotted")
            )
            last = max(float(band.x[-1]) for _, _, band in drawn)
            plot.add_layout(
                Label(
                    x=last,
                    y=naive,
                    text="naive forecast",
                    text_align="right",
                    text_font_size="11px",
                    text_color="#555555",
                )
            )
        panels.append(plot)
    if not panels:
        return None
    if len(panels) == 2:
        panels[1].x_range = panels[0].x_range
    # Each on its own row: as wide as the page on a screen and on a telephone.
    return gridplot([[p] for p in panels], sizing_mode="stretch_width", toolbar_location="right")


def _draw_band(plot: Any, band: effects.Band, place: int, name: str, metric: str) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    colour, dash, marker = style(place)
    known = np.isfinite(band.low)
    if known.any():
        plot.varea(
            band.x[known], band.low[known], band.high[known],
            fill_color=colour, fill_alpha=0.14,
        )  # fmt: skip
    source = ColumnDataSource(
        {
            "x": band.x,
            "y": band.mean,
            "interval": [
                f"{number(float(low))} to {number(float(high))}" if np.isfinite(low) else "one seed"
                for low, high in zip(band.low, band.high, strict=True)
            ],
        }
    )
    plot.line("x", "y", source=source, color=colour, line_dash=dash, line_width=2)
    points = plot.scatter("x", "y", source=source, color=colour, marker=marker, size=6)
    plot.add_tools(
        HoverTool(
            renderers=[points],
            tooltips=[
                ("", f"{name}, {band.count} seeds"),
                ("epoch", "@x"),
                (metric, "@y{0.0000}"),
                ("95 % interval", "@interval"),
            ],
            visible=False,
        )
    )


def _gap(findings: Findings) -> Any | None:
    from bokeh.models import Legend, LegendItem, Span

    gaps = gaps_of(findings)
    if not gaps:
        return None
    plot = _figure(
        height=340, x_axis_label="epoch", y_axis_label="gap in val_loss (random − pretrained)"
    )
    plot.add_layout(Span(location=0, dimension="width", line_color="black"))
    items = []
    for place, (name, gap) in enumerate(gaps):
        before = len(plot.renderers)
        _draw_band(plot, gap.band, place, name, "gap")
        items.append(LegendItem(label=name, renderers=plot.renderers[before:]))
    plot.add_layout(
        Legend(
            items=items, click_policy="hide", border_line_color=None, label_text_font_size="12px"
        ),
        "below",
    )
    return plot


def _surface(findings: Findings) -> Any | None:
    from bokeh.layouts import gridplot
    from bokeh.models import (
        BasicTicker,
        ColorBar,
        ColumnDataSource,
        HoverTool,
        LinearColorMapper,
        PrintfTickFormatter,
    )
    from bokeh.palettes import Viridis256

    found = [(arm, effects.surface(arm)) for arm in findings.main.condition.arms]
    surfaces = [(arm, s) for arm, s in found if s is not None]
    if not surfaces:
        return None
    values = np.concatenate([s.values for _, s in surfaces])
    objective = str(findings.main.condition.config.get("objective"))
    panels = []
    for arm, s in surfaces:
        mapper = LinearColorMapper(
            palette=Viridis256[::-1] if arm.maximize else Viridis256,
            low=float(values.min()),
            high=float(values.max()),
        )
        plot = _figure(
            height=320,
            title=arm.name,
            x_axis_label="unfreeze epoch",
            y_axis_label=s.rate,
            y_axis_type="log",
            min_width=280,
        )
        plot.y_range.range_padding = plot.x_range.range_padding = 0.2
        if len(set(s.rates)) <= MOST_TICKS:  # a grid: name its lines
            plot.yaxis.ticker = sorted(set(s.rates))
        plot.yaxis.formatter = PrintfTickFormatter(format="%.1e")
        source = ColumnDataSource({"x": s.unfreeze, "y": s.rates, "value": s.values})
        squares = plot.scatter(
            "x", "y", source=source, marker="square", size=24, line_color=None,
            fill_color={"field": "value", "transform": mapper},
        )  # fmt: skip
        best = int(np.argmax(s.values) if arm.maximize else np.argmin(s.values))
        plot.scatter(
            [s.unfreeze[best]], [s.rates[best]], marker="circle", size=38,
            fill_color=None, line_color=ORANGE, line_width=3,
        )  # fmt: skip
        plot.add_tools(
            HoverTool(
                renderers=[squares],
                tooltips=[
                    ("unfreeze epoch", "@x"),
                    (s.rate, "@y{0.0e+0}"),
                    (objective, "@value{0.0000}"),
                ],
            )
        )
        bar = ColorBar(color_mapper=mapper, ticker=BasicTicker(), width=12, title=objective)
        plot.add_layout(bar, "right")
        panels.append(plot)
    return gridplot([[p] for p in panels], sizing_mode="stretch_width", toolbar_location=None)


def _effects(findings: Findings) -> Any | None:
    from bokeh.models import BoxAnnotation, ColumnDataSource, HoverTool, Label, Span

    shown = shown_effects(findings)
    if not shown:
        return None
    labels = [label.replace("\n", " · ") for label, _ in shown]
    places = list(range(len(shown)))
    plot = _figure(
        height=90 + 44 * len(shown),
        y_range=(len(shown) - 0.6, -0.8),
        min_width=280,
        x_axis_label="change of the test loss, % (left: first arm better)",
    )
    margin = findings.main.margin
    plot.add_layout(
        BoxAnnotation(
            left=-100 * margin,
            right=100 * margin,
            fill_color="#cccccc",
            fill_alpha=0.5,
            level="underlay",
        )
    )
    plot.add_layout(Span(location=0, dimension="height", line_color="black"))
    values = [effect_percent(c.effect) for _, c in shown]
    looks = [effect_style(c) for _, c in shown]
    source = ColumnDataSource(
        {
            "y": places,
            "label": labels,
            "x": [value for value, _, _ in values],
            "low": [low for _, low, _ in values],
            "high": [high for _, _, high in values],
            "colour": [colour for colour, _ in looks],
            "marker": [_BOKEH_MARKERS[marker] for _, marker in looks],
            "effect": [percent_interval(c.effect) for _, c in shown],
            "seeds": [str(c.effect.count) for _, c in shown],
            "p": [probability(c.p_holm) for _, c in shown],
        }
    )
    plot.segment("low", "y", "high", "y", source=source, color="colour", line_width=4)
    points = plot.scatter(
        "x", "y", source=source, color="colour", marker="marker", size=12, line_width=2
    )
    for place, label in zip(places, labels, strict=True):
        # Above its line and not beside it: a telephone has no room beside it.
        plot.add_layout(
            Label(
                x=2,
                x_units="screen",
                y=place - 0.28,
                text=label,
                text_font_size="12px",
                text_baseline="bottom",
                background_fill_color="white",
                background_fill_alpha=0.75,
            )
        )
    plot.add_tools(
        HoverTool(
            renderers=[points],
            tooltips=[("", "@label"), ("change", "@effect"), ("paired seeds", "@seeds"),
                      ("p (Holm)", "@p")],
        )
    )  # fmt: skip
    plot.ygrid.grid_line_color = None
    plot.yaxis.visible = False
    return plot


PLOTS: dict[str, Callable[[Findings], Any | None]] = {
    "effects": _effects,
    "curves": _curves,
    "surface": _surface,
    "gap": _gap,
}
