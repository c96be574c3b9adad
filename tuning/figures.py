"""Pictures of a search: curves of its trials, what each key had to do with how they did, and which keys mattered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from trainer.atomic import replacing
from tuning.importance import Importance
from tuning.journal import StudyRecord, TrialRecord
from tuning.labels import label, percent
from tuning.results import paper_trial, winner
from tuning.scales import dsc_ticks, place_of, stretched, ticks_of
from tuning.settings import Tuning, milestones
from tuning.space import Choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
WIDTH = 9.0
"""Inches of each figure: some 900 pixels in a README, at which its letters are those of the text."""

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
_BEST, _OTHER, _STOPPED = "#D55E00", "#56B4E9", "#B5B5B5"
_TELLING, _INK, _LINE = "#0072B2", "#222222", "#E4E4E4"
_MARKS = {"finished": "o", "stopped": "v", "failed": "X", "running": ">"}
_COLUMNS = 4


def draw_curves(tuning: Tuning, study: StudyRecord, path: Path) -> None:
    """DSC by epoch of each trial, as a PNG: stopped and failed ones faint and ending with a mark, the best one and the
    paper's above all others, rungs as thin lines. The axis of DSC is logarithmic in what is missing of 1.
    """
    figure = _figure(5.2, "DSC by epoch, of each trial")
    axes = figure.add_subplot()
    epochs = tuning.config.training.epochs
    trials = [trial for trial in study.trials.values() if trial.reports]
    rungs = milestones(tuning.tune, epochs)[:-1] if tuning.tune.scheduler == "asha" else []
    for rung in rungs:
        axes.axvline(rung, color=_INK, linewidth=0.6, dashes=(1, 3), zorder=1)
    for trial in _in_order(trials, study):
        colour, emphasis = _look(trial, study)
        steps = [report.epoch for report in trial.reports]
        heights = stretched([report.dsc for report in trial.reports])
        early = trial.how != "finished"
        alpha = 1.0 if emphasis or not early else 0.75
        style: dict[str, Any] = {"dashes": (4, 1.5)} if colour == _INK else {}
        axes.plot(
            steps,
            heights,
            color=colour,
            linewidth=2.4 if emphasis else 1.1,
            alpha=alpha,
            zorder=4 if emphasis else 3 - early,
            **style,
        )
        if early or len(steps) == 1 or emphasis:
            mark = _MARKS[trial.state]
            axes.plot(
                steps[-1:],
                heights[-1:],
                mark,
                color=colour,
                markersize=5.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=5 if emphasis else 3,
            )
    axes.set_xlim(0.5 if epochs > 1 else 0, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    _set_up(axes)
    _dsc_axis(axes, [report.dsc for trial in trials for report in trial.reports])
    handles = _legend(study, trials)
    if rungs:
        handles.append(
            Line2D([], [], color=_INK, linewidth=0.6, dashes=(1, 3), label=f"rungs: epoch {', '.join(map(str, rungs))}")
        )
    _finish(figure, handles, path)


def draw_slices(tuning: Tuning, study: StudyRecord, path: Path) -> None:
    """DSC against each key on its own scale, as a PNG: a point a trial, the paper's value as a line."""
    trials = [trial for trial in study.trials.values() if trial.reports]
    keys = list(tuning.space.dimensions)
    columns = min(_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = _figure(0.95 + 2.05 * rows, "DSC against each key; each trial after the last epoch that it was trained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    paper = paper_trial(study)
    # Those of one choice lie beside each other in no order, the paper's in the middle.
    aside = {trial.number: 2 * ((0.5 + 0.618 * trial.number) % 1) - 1 for trial in trials}
    for axes, key in zip(panels.flat, keys, strict=False):
        dimension = tuning.space.dimensions[key]
        if paper:
            axes.axvline(place_of(dimension, paper.values[key]), color=_INK, linewidth=0.9, dashes=(4, 3), zorder=1)
        for trial in _in_order(trials, study):
            colour, emphasis = _look(trial, study)
            axes.plot(
                _place(tuning, key, trial, aside),
                stretched([trial.dsc or 0.0])[0],
                _MARKS[trial.state],
                color=colour,
                markersize=7 if emphasis else 5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=4 if emphasis else 3 - (trial.how != "finished"),
            )
        axes.set_title(label(key), fontsize=9, color=_INK, loc="left")
        _set_up(axes)
        axes.set_xlim(-0.04, 1.04)
        places, texts = zip(*ticks_of(dimension, 3), strict=True)
        axes.set_xticks(places, [_folded(text) for text in texts])
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    _dsc_axis(panels[0, 0], [trial.dsc or 0.0 for trial in trials])
    for axes in panels[1:, 0]:
        axes.set_ylabel("DSC (%)", fontsize=9, color=_INK)
    _finish(figure, _legend(study, trials), path)


def draw_parallel(tuning: Tuning, study: StudyRecord, path: Path) -> None:
    """Parallel coordinates as a PNG: an axis for each key and, last, DSC; a line a trial, the darker the better."""
    trials = [trial for trial in study.trials.values() if trial.reports]
    keys = list(tuning.space.dimensions)
    figure = _figure(1.5 + 0.52 * (len(keys) + 1), "What was tried, and what it came to; the darker, the better")
    axes = figure.add_subplot()
    low, high = _bounds([trial.dsc or 0.0 for trial in trials])
    ends = stretched([low, high])
    for row, key in enumerate(keys):
        dimension = tuning.space.dimensions[key]
        _draw_scale(axes, row, ticks_of(dimension, 6), gap=getattr(dimension, "zero", False))
    ticks = dsc_ticks(low, high)
    places = (stretched(ticks) - ends[0]) / (ends[1] - ends[0])
    _draw_scale(axes, len(keys), [(place, f"{100 * tick:g}") for place, tick in zip(places, ticks, strict=True)])
    shades = colormaps["viridis_r"]
    aside = _aside(trials)
    for trial in _in_order(trials, study):
        colour, emphasis = _look(trial, study)
        end = float(np.clip((stretched([trial.dsc or 0.0])[0] - ends[0]) / (ends[1] - ends[0]), 0, 1))
        points = [_place(tuning, key, trial, aside) for key in keys]
        width, alpha = (2.4, 1.0) if emphasis else (1.1, 0.75 if trial.how == "finished" else 0.4)
        style: dict[str, Any] = {"dashes": (4, 1.5)} if colour == _INK else {}
        x, y = _smooth([*points, end])
        if emphasis:
            axes.plot(x, y, color="white", linewidth=width + 2, zorder=4)
        axes.plot(
            x,
            y,
            color=colour if emphasis else shades(0.1 + 0.9 * end),
            linewidth=width,
            alpha=alpha,
            zorder=5 if emphasis else 2 + end,
            **style,
        )
    axes.set_ylim(len(keys) + 0.45, -0.35)
    axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(keys) + 1), [*map(label, keys), "DSC (%)"], fontsize=9, color=_INK)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    handles = _legend(study, [])
    if any(trial.how != "finished" for trial in trials):
        handles.append(
            Line2D(
                [],
                [],
                color=colormaps["viridis_r"](0.4),
                linewidth=1.1,
                alpha=0.4,
                label="faint: not trained to the end",
            )
        )
    _finish(figure, handles, path)


def draw_importance(importance: Importance, path: Path) -> None:
    """The share of each key with its interval, and what chance alone gives, as a PNG; or why nothing can be shown."""
    keys = list(importance.keys)
    if not keys:
        figure = _figure(0.8, "What decides how well a trial does")
        figure.text(0.01, 0.3, importance.says, fontsize=9, color=_INK)
        _finish(figure, [], path)
        return
    figure = _figure(
        1.6 + 0.32 * max(1, len(keys)), f"What decides how well a trial does, by {importance.trials} trials"
    )
    axes = figure.add_subplot()
    telling = set(importance.telling)
    for row, key in enumerate(keys):
        share = importance.keys[key]
        colour = _TELLING if key in telling else _STOPPED
        axes.barh(row, 100 * share.share, color=colour, height=0.62, zorder=2)
        axes.plot([100 * share.low, 100 * share.high], [row, row], color=_INK, linewidth=1.4, zorder=3)
    axes.axvline(100 * importance.chance, color=_BEST, linewidth=1.4, dashes=(4, 2), zorder=4)
    axes.set_yticks(range(len(keys)), [label(key) for key in keys])
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(
        "part of the variance of the trials' ranks that the key explains by itself (%)", fontsize=9, color=_INK
    )
    _set_up(axes, along="x")
    axes.tick_params(axis="y", labelsize=9, length=0)
    handles = [
        *([Line2D([], [], color=_TELLING, linewidth=7, label="more than chance")] if telling else []),
        Line2D([], [], color=_STOPPED, linewidth=7, label="no more than chance"),
        Line2D([], [], color=_INK, linewidth=1.4, label="95 % interval"),
        Line2D(
            [], [], color=_BEST, linewidth=1.4, dashes=(4, 2), label="the highest that chance alone gives, in 19 of 20"
        ),
    ]
    _finish(figure, handles, path)


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=11, color=_INK, x=0.01, ha="left")
    return figure


def _set_up(axes: Axes, along: str = "y") -> None:
    axes.tick_params(labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color=_LINE, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _bounds(measures: Sequence[float]) -> tuple[float, float]:
    """Of DSC on an axis, with some room on both sides."""
    if not measures:
        return 0.0, 0.9
    low, high = stretched([max(0.0, min(measures))])[0], stretched([max(measures)])[0]
    room = max(0.04 * (high - low), 0.01)
    return max(0.0, float(1 - 10 ** (room - low))), float(1 - 10 ** -(high + room))


def _dsc_axis(axes: Axes, measures: Sequence[float]) -> None:
    low, high = _bounds(measures)
    ticks = dsc_ticks(low, high)
    axes.set_yticks(stretched(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set_ylim(*stretched([low, high]))
    axes.set_ylabel("DSC (%)", fontsize=9, color=_INK)


def _in_order(trials: Iterable[TrialRecord], study: StudyRecord) -> list[TrialRecord]:
    """The best one and the paper's last, so that they lie above the others."""
    last = [paper_trial(study), winner(study)]
    return sorted(trials, key=lambda trial: (last.index(trial) if trial in last else -1, trial.how == "finished"))


def _look(trial: TrialRecord, study: StudyRecord) -> tuple[str, bool]:
    """Its colour, and whether it is to be seen first."""
    if trial is winner(study):
        return _BEST, True
    if trial is paper_trial(study):
        return _INK, True
    return (_OTHER if trial.how == "finished" else _STOPPED), False


def _aside(trials: Sequence[TrialRecord]) -> dict[int, float]:
    """By trial, from -1 for the worst to 1 for the best: so that lines through one choice do not cross."""
    ranked = sorted(trials, key=lambda trial: trial.dsc or 0.0)
    return {trial.number: 2 * (rank + 0.5) / len(ranked) - 1 for rank, trial in enumerate(ranked)}


def _place(tuning: Tuning, key: str, trial: TrialRecord, aside: Mapping[int, float]) -> float:
    dimension = tuning.space.dimensions[key]
    shift = 0.3 * aside[trial.number] / len(dimension.values) if isinstance(dimension, Choices) else 0.0
    return place_of(dimension, trial.values[key]) + shift


def _draw_scale(axes: Axes, row: int, ticks: Sequence[tuple[float, str]], gap: bool = False) -> None:
    """A key's axis from left to right; with a gap between zero and the rest."""
    axes.plot([0.1 if gap else 0, 1], [row, row], color="#9A9A9A", linewidth=0.9, zorder=1)
    for place, text in ticks:
        axes.plot([place, place], [row - 0.06, row + 0.06], color="#9A9A9A", linewidth=0.9, zorder=1)
        axes.annotate(
            text,
            (place, row),
            (0, -5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=_INK,
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _smooth(places: Sequence[float]) -> tuple[Any, Any]:
    """A line down through these places, upright at each, which the eye follows more easily than corners."""
    down = np.linspace(0, 1, 24)
    eased = down * down * (3 - 2 * down)
    pieces = [before + (after - before) * eased for before, after in pairwise(places)]
    return np.concatenate(pieces), np.concatenate([row + down for row in range(len(pieces))])


def _folded(text: str) -> str:
    """A long name on two lines."""
    if len(text) <= 8:
        return text
    middle = min(
        (at for at, letter in enumerate(text) if letter in "_ "), key=lambda at: abs(at - len(text) / 2), default=0
    )
    return f"{text[: middle + 1].rstrip()}\n{text[middle + 1 :]}" if middle else text


def _legend(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[Line2D]:
    best, paper = winner(study), paper_trial(study)
    handles = []
    if best:
        name = "the paper's, is the best" if best is paper else "the best"
        handles.append(
            Line2D([], [], color=_BEST, linewidth=2.4, label=f"trial {best.number}, {name}: {percent(best.dsc)} %")
        )
    if paper and paper is not best and paper.reports:
        ending = "" if paper.how == "finished" else f", {paper.state} at epoch {paper.epoch}"
        handles.append(
            Line2D(
                [],
                [],
                color=_INK,
                linewidth=2.4,
                dashes=(2.6, 1),
                label=f"trial {paper.number}, the paper's{ending}: {percent(paper.dsc)} %",
            )
        )
    for state, mark in _MARKS.items():
        count = sum(trial.state == state for trial in trials)
        if count:
            colour = _OTHER if state == "finished" else _STOPPED
            handles.append(
                Line2D([], [], color=colour, marker=mark, markersize=5.5, linewidth=1.1, label=f"{state} ({count})")
            )
    return handles


def _finish(figure: Figure, handles: list[Line2D], path: Path) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))
