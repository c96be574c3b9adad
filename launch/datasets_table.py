"""The paper's Table 3 for a person: how a model does on several datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.terminal import show_table

_PERCENT = {"dsc": "DSC %", "precision": "precision %", "recall": "recall %", "jaccard": "Jaccard %"}
_OTHERS = ("RMSE of map", "RMS surface distance", "missed", "normals marked")


def show_datasets(title: str, judged: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each dataset that a model was judged on, as `evaluate --json` tells of it, and below it its baselines'.

    Of each measure the mean and, behind ±, half the width of its 95 % interval over patients. The paper's "RMSE (mm)"
    may be either of two, so both are here.
    """
    rows = []
    for dataset, told in judged.items():
        rows.append((dataset, *_row(told)))
        rows += [(f"- {name.replace('_', ' ')}", *_row(baseline)) for name, baseline in told["baselines"].items()]
    columns = ("dataset", *_PERCENT.values(), *_OTHERS)
    show_table(f"{title}: mean ± half the width of the 95 % interval over patients", columns, rows, numbers=True)


def _row(summary: Mapping[str, Any]) -> list[str]:
    """81.35±2.04 and so on; 12/252 missed, 66/266 marked."""
    cases, normals = summary["cases"], summary["normals"]
    marked = (
        f"{round(normals['false_positive_rate'] * normals['cases'])}/{normals['cases']}" if normals["cases"] else "-"
    )
    return [
        *(_half_width(summary[measure], 100, 2) for measure in _PERCENT),
        _half_width(summary["rmse"], 1, 2),
        f"{_half_width(summary['rms_surface_distance'], 1, 1)} {summary['unit']}",
        f"{summary['missed']}/{cases}" if cases else "-",
        marked,
    ]


def _half_width(measure: Mapping[str, float | None], factor: float, digits: int) -> str:
    mean, low, high = (measure[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{factor * mean:.{digits}f}"
    return f"{factor * mean:.{digits}f}±{factor * (high - low) / 2:.{digits}f}"
