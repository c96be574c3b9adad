"""What a table tells about the images of a plain folder: scans.csv or metadata.csv."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.pairs import SUFFIXES, below, same
from data_pipeline.layouts.tables import Row, read_rows

NAMES = ("scans.csv", "metadata.csv")

_KEYS = ("key", "image", "file")
_TOLD = ("patient", "group", "label", "spacing", "spacing_row", "spacing_column", "fold")


@dataclass(frozen=True, slots=True)
class FolderTable:
    """Rows by image; images whose rows leave open what is meant, with the reason; and rows that name no image."""

    columns: frozenset[str] = frozenset()
    rows: Mapping[Path, Row] = field(default_factory=dict)
    unclear: Mapping[Path, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def read_folder_table(files: Iterable[Path], images: Mapping[Path, str], source: Path) -> FolderTable:
    """The table among a folder's files, whose rows name images by key, or by the end of the path, suffix or not.

    images: the key of each. Without a table nothing is told. Raises WrongCall for two tables, and for one that cannot
    be read or has no column to name images by.
    """
    tables = [path for path in files if path.name.lower() in NAMES]
    if not tables:
        return FolderTable()
    if len(tables) > 1:
        names = ", ".join(below(source, table) for table in tables)
        raise WrongCall(f"{source} holds {len(tables)} tables, {names}; leave one of them there")
    table = tables[0]
    try:
        rows = read_rows(table)
    except (OSError, ValueError, csv.Error) as broken:
        raise WrongCall(f"table {table} cannot be used: {broken}") from broken
    columns = frozenset(rows[0] if rows else ())
    naming = next((column for column in _KEYS if column in columns), None)
    if naming is None:
        raise WrongCall(f"table {table} cannot be used: it has no row, or none of the columns {', '.join(_KEYS)}")

    whole, ends = _names(images, source)
    told: dict[Path, list[Row]] = defaultdict(list)
    unclear: dict[Path, str] = {}
    refused = {}
    for row in rows:
        cell = row[naming]
        named = whole.get(_comparable(cell)) or ends.get(_comparable(cell), [])
        for image in named:
            told[image].append({column: row.get(column, "") for column in _TOLD})
        if not named:
            refused[f"{table.name}: {cell}"] = "names no image that was found"
        elif len(named) > 1:
            unclear |= dict.fromkeys(named, f"is one of {len(named)} images that {table.name} calls {cell}")
    for image, about in told.items():
        if any(row != about[0] for row in about):
            unclear.setdefault(image, f"has several rows in {table.name} that differ")
    return FolderTable(columns, {image: about[0] for image, about in told.items()}, unclear, refused)


def _names(images: Mapping[Path, str], source: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images by all that a row may call them: by key and whole path, and by the ends of the path."""
    whole: dict[str, list[Path]] = defaultdict(list)
    ends: dict[str, list[Path]] = defaultdict(list)
    for image, key in images.items():
        parts = Path(_comparable(below(source, image))).parts
        for name in {same(key), "/".join(parts)}:
            whole[name].append(image)
        for start in range(1, len(parts)):
            ends["/".join(parts[start:])].append(image)
    return whole, ends


def _comparable(name: str) -> str:
    """A path as names are compared, without an image's suffix."""
    path = PurePosixPath(name.replace("\\", "/"))
    return same((path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix())
