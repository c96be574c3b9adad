"""BUS-BRA (Gomez-Flores et al., Medical Physics 2024): Images/bus_0001-l.png, Masks/mask_0001-l.png and two tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.listing import list_files, with_suffix
from data_pipeline.scan import Findings, ScanFiles, safe_key, without_clashes

_NAME = re.compile(r"(bus|mask)_(.+)", re.IGNORECASE)
_DATA_TABLE = "bus_data.csv"
_FOLD_TABLE = "5-fold-cv.csv"

Table = Mapping[str, Mapping[str, str]]


def find(source: Path) -> Findings:
    """Pair every bus_NAME.png with its mask_NAME.png, wherever below the source they lie.

    Patient (Case), label (Pathology) and official fold (kFold) come from the tables; without a row there the patient
    is the number in the name, the label "unknown" and the fold None. Both images of a case are one group.
    Raises WrongCall where there is no bus_NAME.png.
    """
    files, refused = list_files(source)
    tables = _read_tables(with_suffix(files, ".csv"), refused)
    images: list[tuple[str, Path]] = []
    masks: dict[str, Path] = {}
    for path in with_suffix(files, ".png"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            refused[path.name] = "is neither bus_NAME.png nor mask_NAME.png"
        elif match[1].lower() == "bus":
            images.append((match[2].lower(), path))
        elif masks.setdefault(match[2].lower(), path) != path:
            refused[path.relative_to(source).as_posix()] = "is a second mask of this name"
    if not images:
        raise WrongCall(f"{source} holds no scan of BUS-BRA: looked for bus_NAME.png with mask_NAME.png")

    found = []
    for name, image in images:
        if name in masks:
            found.append(_scan(name, image, masks[name], tables.get(_DATA_TABLE, {}), tables.get(_FOLD_TABLE, {})))
        else:
            refused[image.name] = f"has no mask: mask_{name}.png is missing"
    for name in masks.keys() - {name for name, _ in images}:
        refused[masks[name].name] = f"has no image: bus_{name}.png is missing"
    kept = without_clashes(found)
    return Findings(kept.scans, refused | kept.refused)


def _scan(name: str, image: Path, mask: Path, data: Table, folds: Table) -> ScanFiles:
    key = safe_key(image.stem.lower())
    row, fold_row = data.get(f"bus_{name}", {}), folds.get(f"bus_{name}", {})
    number = re.search(r"\d+", name)
    patient = row.get("Case") or (number[0] if number else name)
    patient = f"{int(patient):04d}" if patient.isdecimal() else patient
    label = (row.get("Pathology") or fold_row.get("Pathology") or "unknown").lower()
    fold = fold_row.get("kFold", "")
    official = int(fold) if fold.isdecimal() and int(fold) > 0 else None
    return ScanFiles(key, image, (mask,), patient, group=patient, label=label, fold=official)


def _read_tables(paths: list[Path], refused: dict[str, str]) -> dict[str, Table]:
    """The two tables by file name, their rows by ID; a broken one is refused and loses what it would have told."""
    tables: dict[str, Table] = {}
    for path in paths:
        name = path.name.lower()
        if name not in (_DATA_TABLE, _FOLD_TABLE) or name in tables:
            continue
        try:
            tables[name] = _read_table(path)
        except (OSError, ValueError, csv.Error) as broken:
            refused[path.name] = f"cannot be used: {broken}"
    return tables


def _read_table(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        rows = csv.DictReader(text)
        if "ID" not in (rows.fieldnames or []):
            raise ValueError("it has no column ID between commas")
        # A short row has None for its last columns, a long one a list under None.
        return {
            (row["ID"] or "").strip().lower(): {
                column: (value or "").strip() for column, value in row.items() if column
            }
            for row in rows
        }
