"""BUS-UCLM (Vallez et al., Scientific Data 2025): images/ALWI_000.png, masks/ALWI_000.png in colour, and INFO.csv."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.listing import list_files
from data_pipeline.layouts.pairs import CLASSES, Pair, below, findings_of, pair_files
from data_pipeline.layouts.tables import read_rows
from data_pipeline.pixels import UnreadableImage, opened_image
from data_pipeline.scan import Findings, ScanFiles, safe_key

_NAME = re.compile(r"([A-Z]{4})_\d+", re.IGNORECASE)
_TABLE = "info.csv"

_SAME_PATIENT = {"CHVI": "CHCO"}
"""Two names of which images are identical to the pixel."""


def find(source: Path) -> Findings:
    """Pair every images/ABCD_NNN.png with masks/ABCD_NNN.png, wherever below the source they lie.

    The patient and the group are the four letters. The label is that of INFO.csv; where it tells none, the worst of
    the mask's colours (red malignant, green benign, black normal), for which the mask is decoded here.
    Thirteen images of HESN have masks of another size that do not fit them; they are refused when they are read.
    Raises WrongCall where there is no ABCD_NNN.png.
    """
    files, refused = list_files(source)
    pairs, unpaired = pair_files(files, source)
    refused |= unpaired
    labels = _read_labels([path for path in files if path.name.lower() == _TABLE], source, refused)
    scans = []
    for pair in pairs:
        name = _NAME.fullmatch(pair.image.stem)
        if name is None:
            refused[below(source, pair.image)] = "is no ABCD_NNN.png"
        else:
            scans.append(_scan(pair, name[1].upper(), labels.get(pair.image.stem.upper())))
    if not scans:
        raise WrongCall(f"{source} holds no scan of BUS-UCLM: looked for images/ABCD_NNN.png with masks/ABCD_NNN.png")
    return findings_of(scans, refused, source)


def _scan(pair: Pair, letters: str, label: str | None) -> ScanFiles:
    key = safe_key(pair.image.stem)
    patient = _SAME_PATIENT.get(letters, letters)
    return ScanFiles(key, pair.image, pair.masks, patient, group=patient, label=label or _label_of_colours(pair.masks))


def _label_of_colours(masks: Sequence[Path]) -> str:
    """The worst that the masks' colours say; "unknown" without a mask that can be read in colour."""
    try:
        return min((_label_of_mask(mask) for mask in masks), key=_worst_first, default="unknown")
    except UnreadableImage:
        return "unknown"  # the scan is refused, and the file named, when it is read


def _label_of_mask(path: Path) -> str:
    with opened_image(path) as picture:
        red, green, _ = np.asarray(picture.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
    if ((red > 127) & (red > green)).any():
        return "malignant"
    if ((green > 127) & (green > red)).any():
        return "benign"
    return "unknown" if red.any() else "normal"


def _worst_first(label: str) -> int:
    return ("malignant", "benign", "unknown", "normal").index(label)


def _read_labels(tables: list[Path], source: Path, refused: dict[str, str]) -> dict[str, str]:
    """The worst label of each image by its stem, out of the tables that can be read."""
    told: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        try:
            for row in read_rows(table):
                cells = [Path(cell).stem for cell in row.values()]
                for stem in filter(_NAME.fullmatch, cells):
                    told[stem.upper()] |= {cell.lower() for cell in cells} & set(CLASSES)
        except (OSError, ValueError, csv.Error) as broken:
            refused[below(source, table)] = f"cannot be used, so labels come from the masks: {broken}"
    return {stem: min(labels, key=_worst_first) for stem, labels in told.items() if labels}
