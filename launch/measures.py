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
"""What a measure is called in a table; a Summary or a Comparison tells its unit and tolerance."""


def digits_of(label: str) -> int:
    """Digits behind the point that a measure of that label is shown with: distances have fewer than fractions."""
    return {"px": 1, "mm": 2}.get(label.rpartition(", ")[2], 4)


def show_measures(title: str, judged: Mapping[str, Mapping[str, Any]]) -> None:
    """A column for each of those judged on the same scans, as Summary.as_json tells of them: means and intervals."""
    summaries = list(judged.values())
    rows = []
    for name, label in ((name, label.format_map(summaries[0])) for name, label in MEASURES.items()):
        if summaries[0][name]["mean"] is not None:
            rows.append((label, *(_interval(summary[name], digits_of(label)) for summary in summaries)))
    rows.append(("scans with a lesion", *(str(summary["cases"]) for summary in summaries)))
    rows.append(("of these missed", *(str(summary["missed"]) for summary in summaries)))
    if summaries[0]["normals"]["cases"]:
        normals = [summary["normals"] for summary in summaries]
        rows.append(("scans without", *(str(of_them["cases"]) for of_them in normals)))
        rows.append(("of these marked", *(f"{of_them['false_positive_rate']:.0%}" for of_them in normals)))
        rows.append(("their area marked", *(f"{of_them['marked_fraction']:.2%}" for of_them in normals)))
    show_table(title, ("measure", *(name.replace("_", " ") for name in judged)), rows, numbers=True)


def _interval(measure: Mapping[str, float | None], digits: int = 4) -> str:
    """0.8123 [0.7901, 0.8345], or what there is of it."""
    mean, low, high = (measure[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
