"""Every scan's scores by several networks side by side, as the paper's Fig. 3 shows its four."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from trainer.atomic import replacing
from trainer.metrics import MEASURES, ScanScore, common_unit, measured, missed
from trainer.resampling import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

PANELS = {
    "dsc": "DSC (%)",
    "precision": "Precision (%)",
    "recall": "Recall (%)",
    "jaccard": "Jaccard (%)",
    "rmse": "RMSE of the probability map",
    "rms_surface_distance": "RMS surface distance ({unit})",
}
"""The paper's five measures, the last of which may be either of two, and what is written at their axes."""

DPI = 150

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F7F7F")
_INK = "#222222"


def draw_scores(scores: Mapping[str, Sequence[ScanScore]], compare_to: str, title: str, path: Path) -> None:
    """One panel a measure, one column a network, one point a scan with a lesion, as a PNG at `path`.

    Boxes are quartiles and median, diamonds means with their 95 % intervals over patients; the mean of compare_to,
    where it is among them, goes on as a line through all columns. Distances have a logarithmic axis from 1 upwards.
    A network without a scan with a lesion keeps its column, empty.
    """
    cases = {name: [score for score in of_one if score.lesion] for name, of_one in scores.items()}
    unit = common_unit([score for of_one in cases.values() for score in of_one])
    tables = {name: measured(of_one, unit) for name, of_one in cases.items()}
    bounds = {name: intervals(tables[name], [score.patient for score in of_one]) for name, of_one in cases.items()}
    # Inches: room for each column, and below a panel for its name.
    width = 1.0 + max(2.4, 0.42 * len(cases))
    figure = Figure(figsize=(3 * width, 8.2), dpi=DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=12, color=_INK, x=0.01, ha="left")
    for place, (measure, label) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(2, 3, place)
        row, factor = MEASURES.index(measure), 100.0 if "%" in label else 1.0
        _set_up(axes, label.format(unit=unit), list(cases), distances=measure == "rms_surface_distance", factor=factor)
        for column, (name, colour) in enumerate(zip(cases, cycle(_COLOURS), strict=False)):
            _draw_column(axes, column, factor * tables[name][row], factor * bounds[name][:, row], colour)
        if cases.get(compare_to):
            axes.axhline(factor * float(tables[compare_to][row].mean()), color=_INK, linewidth=0.8, dashes=(4, 3))
        if measure == "dsc":
            for column, of_one in enumerate(cases.values()):
                _tell_missed(axes, column, of_one)
        if measure == "rms_surface_distance":
            axes.set_ylim(bottom=0)
    figure.legend(handles=_legend(compare_to), loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _set_up(axes: Axes, label: str, names: Sequence[str], distances: bool, factor: float) -> None:
    axes.set_title(label, fontsize=10, color=_INK, loc="left")
    long = len(names) * max(map(len, names)) > 40
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(names)), names, fontsize=9, **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    if distances:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(-0.09 * factor, 1.03 * factor)


def _draw_column(
    axes: Axes, column: int, values: NDArray[np.float64], bounds: NDArray[np.float64], colour: str
) -> None:
    """Points spread sideways at random, always alike, and over them box, mean and interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(values))
    size = float(np.clip(900 / len(values), 1.5, 12))
    axes.scatter(column + spread, values, s=size, color=colour, alpha=0.35, linewidths=0, rasterized=True)
    axes.boxplot(
        values,
        positions=[column],
        widths=0.62,
        whis=0.0,
        showfliers=False,
        showcaps=False,
        manage_ticks=False,
        medianprops={"color": _INK, "linewidth": 1.6},
        boxprops={"color": _INK, "linewidth": 0.9},
        whiskerprops={"linewidth": 0},
    )
    mean = float(values.mean())
    if np.isfinite(bounds).all():
        axes.plot([column, column], bounds, color=_INK, linewidth=1.6, zorder=4)
    axes.plot([column], [mean], marker="D", markersize=5, color="white", markeredgecolor=_INK, zorder=5)


def _tell_missed(axes: Axes, column: int, cases: Sequence[ScanScore]) -> None:
    if cases:
        text = f"{sum(map(missed, cases))} missed"
        axes.annotate(text, (column, -2), ha="center", va="top", fontsize=6.5, color=_INK)


def _legend(compare_to: str) -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=_COLOURS[0], marker="o", markersize=3, linestyle="", alpha=0.6, label="a scan"),
        Patch(facecolor="none", edgecolor=_INK, linewidth=0.9, label="quartiles, median"),
        Line2D([], [], color=_INK, marker="D", markerfacecolor="white", markersize=5, label="mean, 95 % interval"),
        Line2D([], [], color=_INK, linewidth=0.8, dashes=(4, 3), label=f"mean of {compare_to}"),
    ]
