"""A plain folder of pairs: images/NAME.png with masks/NAME.png, or NAME.png with NAME_mask.png; and perhaps a table."""

from __future__ import annotations

import math
from pathlib import Path

from data_pipeline.faults import Refused, WrongCall
from data_pipeline.layouts.folder_table import FolderTable, read_folder_table
from data_pipeline.layouts.listing import list_files
from data_pipeline.layouts.pairs import Pair, below, class_folders, findings_of, pair_files
from data_pipeline.scan import Findings, ScanFiles, safe_key


def find(source: Path) -> Findings:
    """Pair images and masks by their names (see pair_files), wherever below the source they lie.

    The key is the path below the source, without images/. Of a table scans.csv or metadata.csv these columns are read:
    key, image or file (the first that is there), and any of patient, group, label, spacing (mm) or spacing_row and
    spacing_column, and fold. A row names an image by its key or by as much of the end of its path as tells it apart.

    What no table tells: each image is a patient of its own, its group is its patient, and its label is the folder
    benign, malignant or normal that it lies in, or else "unknown". An image without a mask is used if its label is
    normal. Beside a column patient, an image whose patient is not told is refused: it could come into two folds.
    Raises WrongCall where there is no image, and for a table that cannot be used, or of which there are two.
    """
    files, refused = list_files(source)
    pairs, unpaired = pair_files(files, source)
    refused |= unpaired
    if not pairs and not unpaired:
        raise WrongCall(
            f"{source} holds no scan: looked for images/NAME.png with masks/NAME.png, and NAME.png with NAME_mask.png"
        )
    table = read_folder_table(files, {pair.image: _key(pair) for pair in pairs}, source)
    refused |= table.refused
    scans = []
    for pair in pairs:
        try:
            scans.append(_scan(pair, table))
        except Refused as reason:
            refused[below(source, pair.image)] = str(reason)
    return findings_of(scans, refused, source)


def _scan(pair: Pair, table: FolderTable) -> ScanFiles:
    """Raises Refused where it is open what the table or the folders mean."""
    if pair.image in table.unclear:
        raise Refused(table.unclear[pair.image])
    row = table.rows.get(pair.image, {})
    key = _key(pair)
    patient = row.get("patient") or key
    if "patient" in table.columns and not row.get("patient"):
        raise Refused("has no patient in the table beside others that have; a patient could come into two folds")
    classes = class_folders(pair.home)
    if len(classes) > 1 and not row.get("label"):
        raise Refused(f"lies in folders of several classes: {', '.join(sorted(classes))}")
    return ScanFiles(
        key,
        pair.image,
        pair.masks,
        patient,
        group=row.get("group") or patient,
        label=row.get("label", "").lower() or next(iter(classes), "unknown"),
        spacing=_spacing(row.get("spacing_row") or row.get("spacing"), row.get("spacing_column") or row.get("spacing")),
        fold=_fold(row.get("fold")),
    )


def _key(pair: Pair) -> str:
    return safe_key("/".join((*pair.home, pair.image.stem)))


def _spacing(row: str | None, column: str | None) -> tuple[float, float] | None:
    """Both in mm, or None where a cell holds no length."""
    down, across = _length(row), _length(column)
    return None if down is None or across is None else (down, across)


def _length(cell: str | None) -> float | None:
    try:
        length = float((cell or "").replace(",", "."))
    except ValueError:
        return None
    return length if math.isfinite(length) and length > 0 else None


def _fold(cell: str | None) -> int | None:
    if not cell:
        return None
    if not cell.isdecimal() or int(cell) < 1:
        raise Refused(f"has the fold {cell} in the table, which is no whole number from 1")
    return int(cell)
