"""How measures of a network are shown to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.terminal import show_table

MEASURES = {
    "dsc": "DSC",
    "precision": "precision",
    "recall": "recall",
    "jaccard": "Jaccard",
    "rmse": "RMSE of map",
    "rms_surface_distance": "RMS surface distance, {unit}",
    "assd": "ASSD, {unit}",
    "hd95": "HD95, {unit}",
    "surface_dice": "surface Dice, {surface_tolerance:g} {unit}",
}

_DISTANCES = ("rms_surface_distance", "assd", "hd95")


def labelled(about: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """For each measure its name, what it is called in a table, and the digits behind its point.

    about is the JSON form of a Summary or a Comparison, which tells of the unit and the tolerance.
    """
    of_distances = {"mm": 2, "px": 1}[about["unit"]]
    return [
        (name, label.format_map(about), of_distances if name in _DISTANCES else 4) for name, label in MEASURES.items()
    ]


def show_measures(title: str, judged: Mapping[str, Mapping[str, Any]]) -> None:
    """A column for each of those judged on the same scans, as Summary.as_json tells of them: means and intervals."""
    summaries = list(judged.values())
    rows = []
    for name, label, digits in labelled(summaries[0]):
        if summaries[0][name]["mean"] is not None:
            rows.append((label, *(_interval(summary[name], digits) for summary in summaries)))
    rows.append(("scans with a lesion", *(str(summary["cases"]) for summary in summaries)))
    rows.append(("of these missed", *(str(summary["missed"]) for summary in summaries)))
    if summaries[0]["normals"]["cases"]:
        normals = [summary["normals"] for summary in summaries]
        rows.append(("scans without", *(str(of_them["cases"]) for of_them in normals)))
        rows.append(("of these marked", *(f"{of_them['false_positive_rate']:.0%}" for of_them in normals)))
        rows.append(("their area marked", *(f"{of_them['marked_fraction']:.2%}" for of_them in normals)))
    show_table(title, ("measure", *(name.replace("_", " ") for name in judged)), rows, numbers=True)


def _interval(measure: Mapping[str, float | None], digits: int) -> str:
    """0.8123 [0.7901, 0.8345], or what there is of it."""
    mean, low, high = (measure[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
