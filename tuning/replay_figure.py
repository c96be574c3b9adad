"""What successive halving saves and misses, over many orders of the same trials, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from trainer.atomic import replacing
from tuning.replay import Replayed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WANTED_SHARE = 0.4
"""Of a full search's epochs, with which a search has to do."""

DPI = 150

_COLOUR = "#0072B2"  # Okabe and Ito's blue
_BAND = "#E6E6E6"
_INK = "#222222"
_ORDER = "an order of the trials"
_CROSS = "median; bounds of nine in ten orders"


def draw_replays(replays: Sequence[Replayed], path: Path) -> None:
    """Epochs against regret as a PNG, a panel for each of several replays of one study under several settings.

    A point is an order drawn, a cross the medians with the bounds of nine in ten orders, a diamond the study's own
    order; the shaded band is the interval of the full search's best.
    """
    first = replays[0]
    figure = Figure(figsize=(0.8 + 2.7 * len(replays), 4.2), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(replays), sharey=True, squeeze=False)[0]
    for axes, replayed in zip(panels, replays, strict=True):
        _draw(axes, replayed)
    panels[0].set_ylabel("DSC below the full search's best (points)", fontsize=9, color=_INK)
    figure.suptitle(
        f"Successive halving on {first.trials} recorded trials of {first.epochs} epochs, {first.slots} at once",
        fontsize=11,
        color=_INK,
        x=0.01,
        ha="left",
    )
    figure.legend(handles=_legend(first), loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _draw(axes: Axes, replayed: Replayed) -> None:
    axes.set_title(
        f"1 in {replayed.reduction} goes on, from epoch {replayed.first_rung}", fontsize=9.5, color=_INK, loc="left"
    )
    axes.set_xlabel("epochs trained (% of a full search)", fontsize=8.5, color=_INK)
    axes.set_xlim(0, 103)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    if replayed.interval:
        axes.axhspan(0, 100 * (replayed.full_dsc - replayed.interval[0]), color=_BAND, linewidth=0, zorder=0.5)
    axes.axvline(100 * WANTED_SHARE, color=_INK, linewidth=0.8, dashes=(4, 3))
    share = 100 * np.array([outcome.share for outcome in replayed.orders])
    regret = 100 * np.array([outcome.regret for outcome in replayed.orders])
    # Orders come to few different results: moved a little, equal ones stay visible.
    moved = regret + np.random.default_rng(0).normal(0, 0.012 * max(0.1, regret.max()), len(regret))
    axes.scatter(share, moved, s=9, color=_COLOUR, alpha=0.3, linewidths=0, rasterized=True)
    across, up = (100 * np.array([[s.median - s.low], [s.high - s.median]]) for s in (replayed.share, replayed.regret))
    middle = (100 * replayed.share.median, 100 * replayed.regret.median)
    axes.errorbar(*middle, xerr=across, yerr=up, color=_INK, linewidth=1.6, zorder=4)
    own = (100 * replayed.own.share, 100 * replayed.own.regret)
    axes.plot(*own, marker="D", markersize=7, color="white", markeredgecolor=_INK, linestyle="", zorder=6)


def _legend(first: Replayed) -> list[Line2D | Patch]:
    shown: list[Line2D | Patch] = [
        Line2D([], [], color=_COLOUR, marker="o", markersize=4, linestyle="", alpha=0.6, label=_ORDER),
        Line2D([], [], color=_INK, marker="+", markersize=10, markeredgewidth=1.6, linestyle="", label=_CROSS),
        Line2D([], [], color="white", marker="D", markeredgecolor=_INK, linestyle="", label="the study's own order"),
        Line2D([], [], color=_INK, linewidth=0.8, dashes=(4, 3), label=f"{100 * WANTED_SHARE:.0f} % of the epochs"),
    ]
    if first.interval:
        shown.append(Patch(facecolor=_BAND, label="95 % interval of the full search's best"))
    return shown
