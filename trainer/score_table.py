"""The table of scans' scores as a CSV file: a row a scan, written and read back."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data_pipeline import WrongCall
from trainer.atomic import replacing
from trainer.metrics import REGION_MEASURES, SURFACE_MEASURES, ScanScore

COLUMNS = tuple(field.name for field in fields(ScanScore))
_TEXTS = ("key", "patient", "label")
_FLAGS = ("lesion", "marked")
_DISTANCES = tuple(column for column in COLUMNS if column.endswith(("_px", "_mm")) and "dice" not in column)
_GROUPS = {
    REGION_MEASURES: False,
    tuple(f"{name}_px" for name in SURFACE_MEASURES): True,
    tuple(f"{name}_mm" for name in SURFACE_MEASURES): True,
}
"""Measures of which a scan with a lesion has all, or, where True, all or none; one without a lesion has none."""


def write_csv(path: Path, scores: Sequence[ScanScore]) -> None:
    """One row a scan, with the names of ScanScore's fields above; what does not exist is empty."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(score) for score in scores)


def read_csv(path: Path) -> list[ScanScore]:
    """The scores that write_csv wrote, the same numbers to the bit.

    Raises WrongCall, naming file and line, for a file that is not there, is no such table, or is damaged: cut off
    within a row, a scan twice, or a value that its measure cannot have.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            content = file.read()
    except OSError as missing:
        raise WrongCall(f"{path}: cannot be read ({missing.strerror})") from missing
    except UnicodeDecodeError as damaged:
        raise WrongCall(f"{path}: no table of scores, for it is no text") from damaged
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    scores: dict[str, ScanScore] = {}
    try:
        _check_header(next(rows, []))
        for cells in rows:
            score = _score(cells)
            if score.key in scores:
                raise ValueError(f"{score.key} stands in the table twice")
            scores[score.key] = score
        if not content.endswith("\n"):
            raise ValueError("the last row is cut off")
    except (ValueError, csv.Error) as damaged:
        raise WrongCall(f"{path}, line {rows.line_num}: {damaged}; write it again with evaluate --csv") from damaged
    return list(scores.values())


def _check_header(names: Sequence[str]) -> None:
    if tuple(names) != COLUMNS:
        missing = [column for column in COLUMNS if column not in names]
        raise ValueError(f"not the header of a table of scores ({', '.join(missing) or 'another order'})")


def _score(cells: Sequence[str]) -> ScanScore:
    """The score of a row. Raises ValueError, saying what is wrong with it."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} values instead of {len(COLUMNS)}")
    values = {name: _value(name, text) for name, text in zip(COLUMNS, cells, strict=True)}
    for group, all_or_none in _GROUPS.items():
        there = [name for name in group if values[name] is not None]
        lacking = [name for name in group if values[name] is None]
        if there and not values["lesion"]:
            raise ValueError(f"a scan without a lesion has {', '.join(there)}")
        if lacking and values["lesion"] and (there or not all_or_none):
            raise ValueError(f"a scan with a lesion lacks {', '.join(lacking)}")
    return ScanScore(**values)


def _value(name: str, text: str) -> Any:
    """What a cell says. Raises ValueError for what its column cannot hold."""
    if name in _TEXTS:
        return text
    if name in _FLAGS:
        if text not in ("True", "False"):
            raise ValueError(f"{name} is {text!r}, which is neither True nor False")
        return text == "True"
    if not text and name != "marked_fraction":
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    if not 0 <= number <= (sys.float_info.max if name in _DISTANCES else 1):
        raise ValueError(f"{name} is {text}, which it cannot be")
    return number
