"""Small folders of phantoms in the layouts of public sets, and file systems that are soon full."""

import csv
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from data_pipeline.phantom import phantom
from data_pipeline.scan import Gray, Mask, Scan
from tests.data_pipeline.dicom_files import write_dicom

BUSI_SCANS = [
    *(("benign", case) for case in (1, 2, 3)),
    *((label, case) for label in ("malignant", "normal") for case in (1, 2)),
]
BUS_UCLM_SCANS = [
    ("ALWI_000", "Benign"),
    ("ALWI_001", "Malignant"),
    ("ANFO_000", "Normal"),
    ("CHCO_004", "Benign"),
    ("CHVI_010", "Malignant"),
    ("HESN_002", "Normal"),
]


@pytest.fixture
def bus_bra_folder(tmp_path: Path) -> Path:
    """Twelve scans of six cases in the layout of BUS-BRA: cases 1 to 6, official folds 1, 2, 3, 1, 2, 3."""
    folder = tmp_path / "bus-bra"
    data: list[tuple[object, ...]] = [("ID", "Case", "Histology", "Pathology", "Side")]
    folds: list[tuple[object, ...]] = [("ID", "Pathology", "kFold", "valid_1")]
    for number, scan in enumerate(_with_lesion(12)):
        case, side = 1 + number // 2, "lr"[number % 2]
        write_image(folder / "Images" / f"bus_{case:04d}-{side}.png", scan.image)
        write_mask(folder / "Masks" / f"mask_{case:04d}-{side}.png", scan.mask)
        name = f"bus_{case:04d}-{side}"
        pathology = "malignant" if case % 3 == 0 else "benign"
        data.append((name, case, "fibroadenoma, of a kind", pathology, side))
        folds.append((name, pathology, 1 + (case - 1) % 3, "NaN"))
    write_table(folder / "bus_data.csv", data)
    write_table(folder / "5-fold-cv.csv", folds)
    return folder


@pytest.fixture
def breast_lesions_folder(tmp_path: Path) -> Path:
    """Five cases in the layout of BrEaST-Lesions-USG: 3 has two further findings, 4 no mask at all, 5 no pixel size."""
    folder = tmp_path / "breast-lesions-usg"
    pictures = folder / "images_and_masks"
    rows: list[tuple[object, ...]] = [
        ("CaseID", "Image_filename", "Mask_tumor_filename", "Mask_other_filename", "Pixel_size", "Classification")
    ]
    for case, scan in enumerate(_with_lesion(5), start=1):
        name = f"case{case:03d}"
        write_image(pictures / f"{name}.png", scan.image, alpha=True)
        if case == 4:
            rows.append((case, f"{name}.png", None, None, 0.008, "normal"))
            continue
        write_mask(pictures / f"{name}_tumor.png", scan.mask, alpha=True)
        for finding in (1, 2) if case == 3 else ():
            write_mask(pictures / f"{name}_other{finding}.png", ~scan.mask, alpha=True)
        pixel_size = "not available" if case == 5 else 0.005 + case / 1000
        label = "malignant" if case == 2 else "benign"
        rows.append((case, f"{name}.png", f"{name}_tumor.png", None, pixel_size, label))
    write_workbook(folder / "clinical-data.xlsx", rows)
    return folder


@pytest.fixture
def busi_folder(tmp_path: Path) -> Path:
    """Seven scans in the layout of BUSI, three benign, two malignant, two normal; the masks in modes 1, RGB and RGBA.

    benign (2) has two masks; each holds half of its lesion.
    """
    folder = tmp_path / "Dataset_BUSI_with_GT"
    for number, scan in enumerate(_with_lesion(7)):
        label, case = BUSI_SCANS[number]
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        name = f"{label} ({case})"
        Image.fromarray(scan.image).convert("RGB").save(place / f"{name}.png")
        mask = scan.mask & (label != "normal")
        parts = [mask]
        if (label, case) == ("benign", 2):
            upper = np.arange(mask.shape[0])[:, None] < np.flatnonzero(mask.any(axis=1)).mean()
            parts = [mask & upper, mask & ~upper]
        for part, suffix in zip(parts, ("", "_1"), strict=False):
            picture = Image.fromarray(part).convert(("1", "RGB", "RGBA")[number % 3])
            picture.save(place / f"{name}_mask{suffix}.png")
    return folder


@pytest.fixture
def bus_uclm_folder(tmp_path: Path) -> Path:
    """Six scans of five names in the layout of BUS-UCLM, with INFO.csv; CHCO and CHVI are one patient."""
    folder = tmp_path / "BUS-UCLM"
    rows = ["Image;Width;Label"]
    for (name, label), scan in zip(BUS_UCLM_SCANS, _with_lesion(6), strict=True):
        write_image(folder / "images" / f"{name}.png", scan.image)
        colours = np.zeros((*scan.mask.shape, 3), np.uint8)
        if label != "Normal":
            colours[scan.mask, 0 if label == "Malignant" else 1] = 255
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(colours).save(folder / "masks" / f"{name}.png")
        rows.append(f"{name}.png;{scan.image.shape[1]};{label}")
    (folder / "INFO.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    return folder


@pytest.fixture
def stu_folder(tmp_path: Path) -> Path:
    """Three scans in the layout of STU-Hospital: mask 1 at its image's size, 2 and 3 larger and with gray edges."""
    folder = tmp_path / "Hospital"
    for number, scan in enumerate(_with_lesion(3), start=1):
        write_image(folder / f"Test_Image_{number}.png", scan.image)
        mask = Image.fromarray(scan.mask).convert("L")
        if number > 1:
            mask = mask.resize((400 + number, 410), Image.Resampling.BILINEAR)
        mask.save(folder / f"mask_{number}.png")
    return folder


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    """Four scans in a plain folder: images/a.png to d.png with masks/a.png to d.png."""
    folder = tmp_path / "pairs"
    for name, scan in zip("abcd", _with_lesion(4), strict=True):
        write_image(folder / "images" / f"{name}.png", scan.image)
        write_mask(folder / "masks" / f"{name}.png", scan.mask)
    return folder


@pytest.fixture
def dicom_folder(tmp_path: Path) -> Path:
    """Two scans as DICOM images a.dcm and b.dcm, with a_mask.png and b_mask.png."""
    folder = tmp_path / "dicom"
    for name, scan in zip("ab", _with_lesion(2), strict=True):
        write_dicom(folder / f"{name}.dcm", scan.image)
        write_mask(folder / f"{name}_mask.png", scan.mask)
    return folder


def write_image(path: Path, image: Gray, alpha: bool = False) -> None:
    """An 8 bit gray PNG, or the same gray as RGBA with a transparent left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opaque = np.arange(image.shape[1]) >= image.shape[1] // 2
    layers = [image, image, image, np.broadcast_to(opaque * np.uint8(255), image.shape)]
    Image.fromarray(np.dstack(layers) if alpha else image).save(path)


def write_mask(path: Path, mask: Mask, alpha: bool = False) -> None:
    """A 1 bit PNG, or an RGBA one that is opaque inside the lesion only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = mask.astype(np.uint8) * 255
    Image.fromarray(np.dstack([layer] * 4) if alpha else mask).save(path)


def write_table(path: Path, rows: list[tuple[object, ...]]) -> None:
    """A CSV file with commas."""
    with path.open("w", newline="") as text:
        csv.writer(text).writerows(rows)


def write_workbook(path: Path, rows: list[tuple[object, ...]]) -> None:
    """An Excel workbook of one sheet."""
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(row)
    workbook.save(path)


def _with_lesion(count: int) -> Iterator[Scan]:
    """The first phantoms that have one, in sizes that differ."""
    found = 0
    number = 0
    while found < count:
        scan = phantom(number, (64 + number % 3, 80 - number % 5))
        number += 1
        if scan.label != "normal":
            found += 1
            yield scan


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A factory of an empty file system in memory, of a size as mount has it. Skips where none may be mounted."""
    place = tmp_path / "mounted"

    def mount(size: str) -> Path:
        place.mkdir()
        call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.getuid() or subprocess.run(call, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)
