"""BrEaST-Lesions-USG (Pawlowska et al., Scientific Data 2024): case001.png, case001_tumor.png and a clinical table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import openpyxl

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.listing import list_files, with_suffix
from data_pipeline.scan import Findings, ScanFiles, safe_key, without_clashes

_NAME = re.compile(r"(case\d+)(?:_(tumor|other)\w*)?", re.IGNORECASE)

Row = Mapping[str, object]


def find(source: Path) -> Findings:
    """Pair every caseNNN.png with its caseNNN_tumor.png, wherever below the source they lie.

    Each case is one patient. Spacing (Pixel_size, cm) and label (Classification) come from the table; a table that
    cannot be read is refused by name and loses these two only. caseNNN_otherK.png are further findings and no lesions.
    A case without a mask is a normal scan, unless the table names its mask.
    Raises WrongCall where there is no caseNNN.png.
    """
    files, refused = list_files(source)
    images: list[tuple[str, Path]] = []
    masks: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for path in with_suffix(files, ".png"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            refused[path.name] = "is neither caseNNN.png nor caseNNN_tumor.png nor caseNNN_otherK.png"
        elif match[2] is None:
            images.append((match[1].lower(), path))
        else:
            kind = masks if match[2].lower() == "tumor" else others
            kind.setdefault(match[1].lower(), []).append(path)
    if not images:
        raise WrongCall(f"{source} holds no scan of BrEaST-Lesions-USG: looked for caseNNN.png with caseNNN_tumor.png")

    table = _read_tables(with_suffix(files, ".xlsx"), refused)
    found = []
    for case, image in images:
        row = table.get(_number(case), {})
        if case not in masks and row.get("masktumorfilename"):
            refused[image.name] = f"has no mask: {row['masktumorfilename']} of the table is missing"
        else:
            found.append(_scan(case, image, masks.get(case, []), row))
    known = {case for case, _ in images}
    for case, path in ((case, path) for kind in (masks, others) for case, paths in kind.items() for path in paths):
        if case not in known:
            refused[path.name] = f"has no image: {case}.png is missing"
    kept = without_clashes(found)
    return Findings(kept.scans, refused | kept.refused)


def _scan(case: str, image: Path, masks: list[Path], row: Row) -> ScanFiles:
    label = str(row.get("classification") or ("unknown" if masks else "normal")).strip().lower()
    spacing = _spacing(row.get("pixelsize"))
    return ScanFiles(safe_key(image.stem.lower()), image, tuple(masks), case, group=case, label=label, spacing=spacing)


def _spacing(centimetres: object) -> tuple[float, float] | None:
    """Both axes in mm, from the table's cm; None where the cell holds no length."""
    try:
        millimetres = 10.0 * float(str(centimetres))
    except ValueError:
        return None
    return (millimetres, millimetres) if math.isfinite(millimetres) and millimetres > 0 else None


def _read_tables(paths: list[Path], refused: dict[str, str]) -> dict[int, Row]:
    """Rows by the case's number out of every workbook that can be read; the first to name a case tells about it."""
    table: dict[int, Row] = {}
    for path in paths:
        try:
            table = _read_table(path) | table
        except Exception as broken:  # a broken workbook raises whatever its first broken part happens to
            refused[path.name] = f"cannot be used, so spacing and label are unknown: {' '.join(str(broken).split())}"
    return table


def _read_table(path: Path) -> dict[int, Row]:
    workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        rows = workbook.worksheets[0].iter_rows(values_only=True)
        # Headings differ in spelling between the table and its own dictionary: CaseID, Case_ID.
        header = [re.sub(r"[^a-z]", "", str(cell or "").lower()) for cell in next(rows, ())]
        if "caseid" not in header:
            raise ValueError("its first sheet has no column CaseID")
        return dict(_by_number(header, rows))
    finally:
        workbook.close()


def _by_number(header: list[str], rows: Iterable[tuple[object, ...]]) -> Iterable[tuple[int, Row]]:
    for cells in rows:
        row = dict(zip(header, cells, strict=False))
        if (number := _number(str(row["caseid"]))) >= 0:
            yield number, row


def _number(case: str) -> int:
    """The number of a case, written case001, 1 or 1.0; -1 where there is none."""
    match = re.fullmatch(r"(?:case)?(\d+)(?:\.0)?", case.strip(), re.IGNORECASE)
    return int(match[1]) if match else -1
