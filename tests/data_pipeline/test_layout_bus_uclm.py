import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faults import Refused
from data_pipeline.layouts import find_scans
from data_pipeline.scan import ScanFiles, read_scan

LABELS = {
    "ALWI_000": "benign",
    "ALWI_001": "malignant",
    "ANFO_000": "normal",
    "CHCO_004": "benign",
    "CHVI_010": "malignant",
    "HESN_002": "normal",
}


def found(folder: Path) -> dict[str, ScanFiles]:
    findings = find_scans("bus_uclm", folder)
    assert not findings.refused
    return {scan.key: scan for scan in findings.scans}


def colour(path: Path, size: tuple[int, int], *stripes: tuple[int, int, int]) -> None:
    """A mask with a row of each colour on black."""
    pixels = np.zeros((*size, 3), np.uint8)
    for row, stripe in enumerate(stripes):
        pixels[row] = stripe
    Image.fromarray(pixels).save(path)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.height, picture.width


def test_bus_uclm_is_found_with_the_labels_of_its_table(bus_uclm_folder: Path) -> None:
    scans = found(bus_uclm_folder)
    assert {key: scan.label for key, scan in scans.items()} == LABELS
    assert all(scan.group == scan.patient for scan in scans.values())
    assert all(scan.spacing is None and scan.fold is None for scan in scans.values())


def test_the_patient_is_the_first_four_letters_and_chco_is_chvi(bus_uclm_folder: Path) -> None:
    scans = found(bus_uclm_folder)
    assert scans["ALWI_000"].patient == scans["ALWI_001"].patient == "ALWI"
    assert scans["CHCO_004"].patient == scans["CHVI_010"].patient
    assert len({scan.patient for scan in scans.values()}) == 4


def test_lesions_of_either_colour_are_read_whole_and_black_is_none(bus_uclm_folder: Path) -> None:
    for key, files in found(bus_uclm_folder).items():
        channels = np.asarray(Image.open(files.masks[0]))
        np.testing.assert_array_equal(read_scan(files).mask, (channels > 0).any(axis=2))
        assert read_scan(files).mask.any() == (LABELS[key] != "normal")


def test_without_the_table_labels_come_from_the_masks_colours(bus_uclm_folder: Path) -> None:
    (bus_uclm_folder / "INFO.csv").unlink()
    assert {key: scan.label for key, scan in found(bus_uclm_folder).items()} == LABELS


def test_the_table_goes_before_the_colours_and_they_fill_its_gaps(bus_uclm_folder: Path) -> None:
    (bus_uclm_folder / "INFO.csv").write_text("Image;Label\nALWI_000.png;Malignant\nANFO_000;\n", encoding="utf-8-sig")
    labels = {key: scan.label for key, scan in found(bus_uclm_folder).items()}
    assert labels == LABELS | {"ALWI_000": "malignant"}


@pytest.mark.parametrize("separator", [";", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_the_table_is_read_with_and_without_a_byte_order_mark(
    bus_uclm_folder: Path, separator: str, encoding: str
) -> None:
    lines = ["Paciente", "Image", "Tamaño", "Label"]
    rows = [["x", name, "1", label.upper()] for name, label in (LABELS | {"ALWI_000": "normal"}).items()]
    text = "\r\n".join(separator.join(row) for row in [lines, *rows])
    (bus_uclm_folder / "INFO.csv").write_bytes(text.encode(encoding))
    assert {key: scan.label for key, scan in found(bus_uclm_folder).items()} == LABELS | {"ALWI_000": "normal"}


@pytest.mark.parametrize(
    ("stripes", "label"),
    [
        ([(0, 255, 0), (255, 0, 0)], "malignant"),
        ([(0, 128, 0)], "benign"),
        ([(128, 0, 0)], "malignant"),
        ([(255, 255, 255)], "unknown"),
        ([], "normal"),
    ],
)
def test_a_mask_of_two_colours_has_the_worse_label_and_white_tells_none(
    bus_uclm_folder: Path, stripes: list[tuple[int, int, int]], label: str
) -> None:
    (bus_uclm_folder / "INFO.csv").unlink()
    mask = bus_uclm_folder / "masks" / "ALWI_000.png"
    colour(mask, size_of(mask), *stripes)
    scan = found(bus_uclm_folder)["ALWI_000"]
    assert scan.label == label
    assert read_scan(scan).mask.any(axis=1).sum() == len(stripes)


def test_hesn_with_a_mask_of_another_size_is_refused_when_it_is_read(bus_uclm_folder: Path) -> None:
    mask = bus_uclm_folder / "masks" / "HESN_002.png"
    colour(mask, (300, 400), (0, 255, 0))
    with pytest.raises(Refused, match=r"mask HESN_002\.png is 300x400, its image"):
        read_scan(found(bus_uclm_folder)["HESN_002"])


def test_an_image_without_mask_and_a_mask_without_image_are_refused_by_name(bus_uclm_folder: Path) -> None:
    (bus_uclm_folder / "masks" / "ALWI_000.png").unlink()
    (bus_uclm_folder / "images" / "CHCO_004.png").unlink()
    findings = find_scans("bus_uclm", bus_uclm_folder)
    assert findings.refused == {
        "images/ALWI_000.png": "has no mask",
        "masks/CHCO_004.png": "has no image: CHCO_004 is missing",
    }
    assert len(findings.scans) == 4


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_truncated_png_is_refused_by_name_when_it_is_read(bus_uclm_folder: Path, part: str) -> None:
    (bus_uclm_folder / "INFO.csv").unlink()
    path = bus_uclm_folder / part / "ALWI_000.png"
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(Refused, match=r"^ALWI_000\.png cannot be read"):
        read_scan(found(bus_uclm_folder)["ALWI_000"])


def test_the_copies_of_its_partitions_are_refused_beside_the_first(bus_uclm_folder: Path) -> None:
    for part in ("images", "masks"):
        shutil.copytree(bus_uclm_folder / part, bus_uclm_folder / "partitions" / "train" / part)
    findings = find_scans("bus_uclm", bus_uclm_folder)
    assert len(findings.scans) == len(findings.refused) == 6
    assert all("partitions" not in scan.image.parts for scan in findings.scans)


def test_it_is_found_from_above_and_images_of_other_names_are_refused(bus_uclm_folder: Path) -> None:
    shutil.copy(bus_uclm_folder / "images" / "ALWI_000.png", bus_uclm_folder / "images" / "figure 1.png")
    findings = find_scans("bus_uclm", bus_uclm_folder.parent)
    assert findings.refused == {"BUS-UCLM/images/figure 1.png": "is no ABCD_NNN.png"}
    assert len(findings.scans) == 6
