"""A sweep's pictures: how the search went, what mattered, and the surface that it found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis.colours import GREY, MPL_MARKERS, ORANGE, style

UNFREEZE = "freeze.unfreeze_epoch"
#: What the surface has on its other axis, the first that was searched.
RATES = ("optim.encoder_lr_scale", "optim.lr")


@dataclass(frozen=True, kw_only=True)
class History:
    """One arm's complete trials.

    Attributes:
        slots, values, params: Of each trial; the first objective's values.
        importances: Share of each parameter, empty where it cannot be told.
    """

    arm: str
    maximize: bool
    slots: Sequence[int]
    values: Sequence[float]
    params: Sequence[dict[str, Any]]
    importances: dict[str, float]


def draw_sweep(histories: Sequence[History], objective: str, folder: Path) -> list[Path]:
    """Draw what there is something to draw of, as PNG files.

    Args:
        histories: One for each arm that has a complete trial.
        objective: Its name, for the axes.
        folder: The sweep's; pictures go to `plots/`.

    Returns:
        The files.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, draw in (
        ("history", _history),
        ("importances", _importances),
        ("surface", _surface),
    ):
        figure = draw(histories, objective)
        if figure is None:
            continue
        path = folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _history(histories: Sequence[History], objective: str) -> Any | None:
    """Each trial's value, and the best so far; an arrow where the value is far beyond."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if not histories:
        return None
    figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    low, high = _most(histories)
    room = 0.5 * (high - low)
    for place, history in enumerate(histories):
        colour, _, marker = style(place)
        order = np.argsort(history.slots)
        slots = np.asarray(history.slots)[order]
        values = np.asarray(history.values)[order]
        best = np.maximum.accumulate(values) if history.maximize else np.minimum.accumulate(values)
        shown = np.clip(values, low - room, high + room)
        is_beyond = shown != values
        ax.plot(slots, shown, MPL_MARKERS[marker], color=colour, ms=5, alpha=0.6)
        for beyond, arrow in (
            (is_beyond & (values > high), "^"),
            (is_beyond & (values < low), "v"),
        ):
            ax.plot(slots[beyond], shown[beyond], arrow, color=colour, ms=9)
        best = np.clip(best, low - room, high + room)
        ax.step(slots, best, where="post", color=colour, lw=2, label=f"{history.arm}: best so far")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(objective)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _importances(histories: Sequence[History], _objective: str) -> Any | None:
    """Bars by parameter, one group for each arm."""
    import matplotlib.pyplot as plt

    told = [history for history in histories if history.importances]
    if not told:
        return None
    keys = sorted({key for history in told for key in history.importances})
    figure, ax = plt.subplots(
        figsize=(6.4, 1.2 + 0.35 * len(keys) * len(told)), layout="constrained"
    )
    height = 0.8 / len(told)
    for place, history in enumerate(told):
        shares = [history.importances.get(key, 0.0) for key in keys]
        places = np.arange(len(keys)) + place * height
        ax.barh(places, shares, height=height * 0.9, color=style(place)[0], label=history.arm)
    ax.set_yticks(np.arange(len(keys)) + (len(told) - 1) * height / 2, keys)
    ax.set_xlabel("importance (PED-ANOVA, shares add up to 1)")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _most(histories: Sequence[History]) -> tuple[float, float]:
    """The best value and the nine tenths that follow: a diverged trial would swallow all others."""
    values = np.concatenate([history.values for history in histories])
    low, high = np.quantile(values, [0.1, 1.0] if histories[0].maximize else [0.0, 0.9])
    return float(low), float(high)


def _surface(histories: Sequence[History], objective: str) -> Any | None:
    """The objective over unfreeze epoch and learning rate, the best point ringed."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[History, str, Any]] = []
    for history in histories:
        rate = next((key for key in RATES if any(key in p for p in history.params)), None)
        points = [
            (p[UNFREEZE], p[rate], value)
            for p, value in zip(history.params, history.values, strict=True)
            if rate is not None and UNFREEZE in p and rate in p
        ]
        if rate is not None and len(points) > 1:
            panels.append((history, rate, np.asarray(points, dtype=float)))
    if not panels:
        return None
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.2 + 4.2 * len(panels), 3.8),
        layout="constrained",
        squeeze=False,
        sharex=True,  # so that two arms' surfaces can be held against each other
        sharey=len({rate for _, rate, _ in panels}) == 1,
    )
    maximize = panels[0][0].maximize
    low, high = _most([history for history, _, _ in panels])
    for ax, (history, rate, points) in zip(axes[0], panels, strict=True):
        shown = ax.scatter(
            points[:, 0],
            points[:, 1],
            c=points[:, 2],
            s=90,
            cmap="viridis_r" if maximize else "viridis",
            vmin=low,
            vmax=high,
            edgecolors=GREY,
            linewidths=0.5,
        )
        best = int(np.argmax(points[:, 2]) if maximize else np.argmin(points[:, 2]))
        ax.plot(*points[best, :2], "o", ms=16, mfc="none", mec=ORANGE, mew=2.5)
        ax.set_yscale("log")
        ax.set_xlabel("unfreeze epoch")
        ax.set_ylabel(rate)
        ax.set_title(f"{history.arm}: best {points[best, 2]:.4g}", loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    beyond = "min" if maximize else "max"
    figure.colorbar(shown, ax=list(axes[0]), label=objective, extend=beyond)
    return figure
