"""The table of a study as people read it: Markdown, CSV, and cells for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.comparison import Comparison, PairedDifference
from trainer.study_table import Row, Spread, StudyTable


@dataclass(frozen=True)
class _Column:
    measure: str
    heading: str
    name: str
    factor: float
    digits: int


_COLUMNS = (
    _Column("dsc", "DSC (%)", "dsc_percent", 100, 2),
    _Column("precision", "Precision (%)", "precision_percent", 100, 2),
    _Column("recall", "Recall (%)", "recall_percent", 100, 2),
    _Column("jaccard", "Jaccard (%)", "jaccard_percent", 100, 2),
    _Column("rmse", "RMSE of the map", "rmse_of_map", 1, 3),
    _Column("rms_surface_distance", "RMS surface distance ({unit})", "rms_surface_distance_{unit}", 1, 2),
    _Column("hd95", "HD95 ({unit})", "hd95_{unit}", 1, 2),
)
"""The paper's columns, of which "RMSE (mm)" may be either of two, and HD95."""

_PUBLISHED = ("DSC (%)", "Precision (%)", "Recall (%)", "Jaccard (%)", "RMSE (mm)")

_RULES = (
    "Measures are means over scans with a lesion, at the scans' own resolution. A missed lesion counts as 0 in the "
    "first four, as 1 in the RMSE of the map, and as the scan's diagonal in distances.",
    'The paper\'s "RMSE (mm)" does not say of what: the RMSE of the map is that of probabilities against the truth, '
    "a fraction of 1; the RMS surface distance is that of distances between outlines.",
)


def headings(table: StudyTable) -> list[str]:
    """What stands above the cells of a row."""
    normals = ["Normal scans marked"] if _has_normals(table) else []
    measures = [column.heading.format(unit=table.unit) for column in _COLUMNS]
    return ["Method", "Folds", *measures, "Missed lesions", *normals, "Parameters (M)", "Minutes a fold"]


def cells(row: Row, table: StudyTable) -> list[str]:
    """A row as text: 80.97 ± 0.88 over several folds, 80.97 [79.10, 82.41] for one."""
    return [
        row.variant,
        ", ".join(map(str, row.folds)),
        *(_spread(row.measures[column.measure], column) for column in _COLUMNS),
        f"{row.missed} of {row.cases}",
        *([f"{row.marked_normals} of {row.normals}"] if _has_normals(table) else []),
        f"{row.parameters / 1e6:.2f}",
        f"{row.minutes:.1f}",
    ]


def compared_headings(table: StudyTable) -> list[str]:
    """What stands above the cells of a comparison."""
    points = [column.heading.format(unit=table.unit).replace("(%)", "(points)") for column in _COLUMNS]
    return ["Method", *points, "p (DSC)", "DSC better / worse on", "Missed by it alone", f"By {table.compare_to} alone"]


def compared_cells(variant: str, comparison: Comparison) -> list[str]:
    """A comparison as text: differences, the variant's mean minus the other's, with their intervals."""
    dsc = comparison.measures["dsc"]
    return [
        variant,
        *(_difference(comparison.measures[column.measure], column) for column in _COLUMNS),
        "-" if dsc.p is None else f"{dsc.p:.4f}",
        f"{dsc.better} / {dsc.worse} scans",
        str(len(comparison.missed.second_only)),
        str(len(comparison.missed.first_only)),
    ]


def meaning(table: StudyTable) -> str:
    """What the figures beside a mean are."""
    several = any(len(row.folds) > 1 for row in table.rows)
    alone = any(len(row.folds) == 1 for row in table.rows)
    kinds = ["mean ± standard deviation over folds"] if several else []
    kinds += ["mean [95 % interval over patients] of one fold"] if alone else []
    return "; ".join(kinds)


def markdown(table: StudyTable) -> str:
    """The whole of a study: its table, each variant against the one it is compared with, and what was published."""
    blocks = [
        f"# {table.title}",
        f"{meaning(table).capitalize()}.",
        _grid(headings(table), [cells(row, table) for row in table.rows]),
        *_RULES,
    ]
    if table.comparisons:
        blocks += [
            f"## Each against {table.compare_to}",
            f"Its mean minus that of {table.compare_to} on the same held-out scans, with the 95 % interval over "
            "patients; p by flipping signs at random, patient by patient, and not adjusted for the number of "
            "comparisons.",
            _grid(compared_headings(table), [compared_cells(*pair) for pair in table.comparisons.items()]),
        ]
    if table.published:
        rows = [[name, *figures] for name, figures in table.published.rows.items()]
        blocks += [
            "## As published",
            f"{table.published.source}: other scans than those above.",
            _grid(["Method", *_PUBLISHED], rows),
        ]
    return "\n\n".join(blocks) + "\n"


def comma_separated(table: StudyTable) -> str:
    """A line a variant: each measure's mean, sd over folds and bounds of its interval, empty where there is none."""
    columns = [column.name.format(unit=table.unit) for column in _COLUMNS]
    parts = [name + suffix for name in columns for suffix in ("", "_sd", "_low", "_high")]
    counts = ("cases", "missed", "normals", "marked_normals", "parameters", "minutes")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["method", "folds", *parts, *counts])
    for row in table.rows:
        values = [
            _rounded(value, column)
            for column in _COLUMNS
            for spread in (row.measures[column.measure],)
            for value in (spread.mean, spread.sd, spread.low, spread.high)
        ]
        folds = " ".join(map(str, row.folds))
        rows.writerow(
            [row.variant, folds, *values, *(getattr(row, name) for name in counts[:-1]), f"{row.minutes:.2f}"]
        )
    return text.getvalue()


def _spread(spread: Spread, column: _Column) -> str:
    if spread.mean is None:
        return "-"
    if spread.sd is not None:
        return f"{_text(spread.mean, column)} ± {_text(spread.sd, column)}"
    return _text(spread.mean, column) + _interval(spread.low, spread.high, column)


def _difference(compared: PairedDifference, column: _Column) -> str:
    if compared.difference is None:
        return "-"
    return _text(compared.difference, column, "+") + _interval(compared.low, compared.high, column, "+")


def _interval(low: float | None, high: float | None, column: _Column, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f" [{_text(low, column, sign)}, {_text(high, column, sign)}]"


def _text(value: float, column: _Column, sign: str = "") -> str:
    return f"{value * column.factor:{sign}.{column.digits}f}"


def _rounded(value: float | None, column: _Column) -> str:
    return "" if value is None else f"{value * column.factor:.{column.digits + 2}f}"


def _has_normals(table: StudyTable) -> bool:
    return any(row.normals for row in table.rows)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
