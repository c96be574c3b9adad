"""How measures of a network are shown to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.terminal import show_table

MEASURES = {"dsc": "DSC", "precision": "precision", "recall": "recall", "jaccard": "Jaccard", "rmse": "RMSE"}


def show_measures(title: str, judged: Mapping[str, Mapping[str, Any]]) -> None:
    """A column for each of those judged on the same scans, as Summary.as_json tells of them: means and intervals."""
    summaries = list(judged.values())
    rows = [(label, *(_interval(summary[name]) for summary in summaries)) for name, label in MEASURES.items()]
    if summaries[0]["hd95"]["mean"] is not None:
        rows.append((f"HD95, {summaries[0]['unit']}", *(_interval(summary["hd95"], digits=1) for summary in summaries)))
    rows.append(("scans with a lesion", *(str(summary["cases"]) for summary in summaries)))
    rows.append(("of these missed", *(str(summary["missed"]) for summary in summaries)))
    if summaries[0]["normals"]["cases"]:
        rows.append(("scans without", *(str(summary["normals"]["cases"]) for summary in summaries)))
        rates = [summary["normals"]["false_positive_rate"] for summary in summaries]
        rows.append(("of these marked", *(f"{rate:.0%}" for rate in rates)))
    show_table(title, ("measure", *judged), rows, numbers=True)


def _interval(measure: Mapping[str, float | None], digits: int = 4) -> str:
    """0.8123 [0.7901, 0.8345], or what there is of it."""
    mean, low, high = (measure[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
