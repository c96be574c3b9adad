import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faults import Refused, WrongCall
from data_pipeline.layouts import find_scans
from data_pipeline.scan import Findings, ScanFiles, read_scan

KEYS = ["benign-1", "benign-2", "benign-3", "malignant-1", "malignant-2", "normal-1", "normal-2"]


def by_key(findings: Findings) -> dict[str, ScanFiles]:
    return {scan.key: scan for scan in findings.scans}


def refolder(folder: Path, masks: str = "mask", rename: bool = False) -> Path:
    """The same files as data/CLASS/images/ and data/CLASS/mask/; masks under their images' names if `rename`."""
    target = folder.parent / "data"
    for path in sorted(folder.rglob("*.png")):
        is_mask = "_mask" in path.stem
        place = target / path.parent.name / (masks if is_mask else "images")
        place.mkdir(parents=True, exist_ok=True)
        name = path.name.replace("_mask", "") if rename and is_mask else path.name
        shutil.copy(path, place / name)
    return target


def test_busi_is_found_with_its_labels_each_image_a_patient_of_its_own(busi_folder: Path) -> None:
    findings = find_scans("busi", busi_folder)
    assert not findings.refused
    assert [scan.key for scan in findings.scans] == KEYS
    assert [scan.label for scan in findings.scans] == [key.split("-")[0] for key in KEYS]
    assert [scan.patient for scan in findings.scans] == [scan.group for scan in findings.scans] == KEYS
    assert {(scan.spacing, scan.fold, scan.fit_masks) for scan in findings.scans} == {(None, None, False)}


def test_masks_of_every_mode_are_read_and_those_of_normals_are_empty(busi_folder: Path) -> None:
    scans = by_key(find_scans("busi", busi_folder))
    modes = set()
    for key, files in scans.items():
        scan = read_scan(files)
        assert scan.image.ndim == 2
        assert scan.mask.any() == (not key.startswith("normal"))
        assert scan.mask.mean() < 0.5
        modes |= {Image.open(mask).mode for mask in files.masks}
    assert modes == {"1", "RGB", "RGBA"}


def test_several_masks_of_an_image_are_united(busi_folder: Path) -> None:
    files = by_key(find_scans("busi", busi_folder))["benign-2"]
    assert [mask.name for mask in files.masks] == ["benign (2)_mask.png", "benign (2)_mask_1.png"]
    parts = [np.asarray(Image.open(mask).convert("L")) > 127 for mask in files.masks]
    assert all(part.any() for part in parts)
    assert not (parts[0] & parts[1]).any()
    np.testing.assert_array_equal(read_scan(files).mask, parts[0] | parts[1])


def test_ten_and_more_masks_stay_in_the_order_of_their_numbers(busi_folder: Path) -> None:
    mask = busi_folder / "benign" / "benign (1)_mask.png"
    for number in range(1, 12):
        shutil.copy(mask, mask.with_name(f"benign (1)_mask_{number}.png"))
    files = by_key(find_scans("busi", busi_folder))["benign-1"]
    assert [path.stem.removeprefix("benign (1)_mask") for path in files.masks] == [
        "",
        *(f"_{number}" for number in range(1, 12)),
    ]


@pytest.mark.parametrize("masks", ["mask", "masks", "MASK"])
def test_the_other_foldering_gives_the_same_scans(busi_folder: Path, masks: str) -> None:
    published = find_scans("busi", busi_folder)
    other = find_scans("busi", refolder(busi_folder, masks))
    assert not other.refused
    assert [scan.key for scan in other.scans] == KEYS
    for one, two in zip(published.scans, other.scans, strict=True):
        assert (one.label, one.patient, [mask.name for mask in one.masks]) == (
            two.label,
            two.patient,
            [mask.name for mask in two.masks],
        )
        np.testing.assert_array_equal(read_scan(one).mask, read_scan(two).mask)


def test_a_mask_folder_may_repeat_the_names_of_the_images(busi_folder: Path) -> None:
    second = busi_folder / "benign" / "benign (2)_mask_1.png"
    second.unlink()
    findings = find_scans("busi", refolder(busi_folder, rename=True))
    assert not findings.refused
    assert [scan.key for scan in findings.scans] == KEYS
    assert [scan.masks[0].name for scan in findings.scans] == [scan.image.name for scan in findings.scans]


def test_it_is_found_above_below_and_with_suffixes_in_capitals(busi_folder: Path) -> None:
    for path in sorted((busi_folder / "malignant").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    assert [scan.key for scan in find_scans("busi", busi_folder.parent).scans] == KEYS
    assert [scan.key for scan in find_scans("busi", busi_folder / "malignant").scans] == ["malignant-1", "malignant-2"]


def test_an_image_without_mask_and_a_mask_without_image_are_refused_by_name(busi_folder: Path) -> None:
    (busi_folder / "benign" / "benign (1)_mask.png").unlink()
    (busi_folder / "malignant" / "malignant (2).png").unlink()
    findings = find_scans("busi", busi_folder)
    assert findings.refused == {
        "benign/benign (1).png": "has no mask",
        "malignant/malignant (2)_mask.png": "has no image: malignant (2) is missing",
    }
    assert [scan.key for scan in findings.scans] == [key for key in KEYS if key not in ("benign-1", "malignant-2")]


def test_a_normal_scan_may_lack_its_empty_mask(busi_folder: Path) -> None:
    (busi_folder / "normal" / "normal (1)_mask.png").unlink()
    files = by_key(find_scans("busi", busi_folder))["normal-1"]
    assert files.masks == ()
    assert not read_scan(files).mask.any()


@pytest.mark.parametrize("broken", ["benign (3).png", "benign (3)_mask.png"])
@pytest.mark.parametrize("keep", [0, 60])
def test_a_truncated_or_empty_file_is_refused_by_name_when_it_is_read(
    busi_folder: Path, broken: str, keep: int
) -> None:
    path = busi_folder / "benign" / broken
    path.write_bytes(path.read_bytes()[:keep])
    scans = by_key(find_scans("busi", busi_folder))
    with pytest.raises(Refused) as told:
        read_scan(scans["benign-3"])
    assert str(told.value).startswith(broken)
    assert read_scan(scans["benign-1"]).mask.any()


def test_an_image_in_the_folder_of_another_class_is_refused(busi_folder: Path) -> None:
    for path in sorted((busi_folder / "benign").glob("benign (3)*")):
        path.rename(busi_folder / "malignant" / path.name)
    findings = find_scans("busi", busi_folder)
    assert findings.refused == {"malignant/benign (3).png": "lies in the folder of another class"}


def test_both_folderings_at_once_give_each_scan_once(busi_folder: Path) -> None:
    refolder(busi_folder)
    findings = find_scans("busi", busi_folder.parent)
    assert [scan.key for scan in findings.scans] == KEYS
    assert len(findings.refused) == len(KEYS)
    assert all("has the key" in reason for reason in findings.refused.values())
    assert all({mask.parent for mask in scan.masks} == {scan.image.parent} for scan in findings.scans)


def test_an_image_of_another_name_is_refused(busi_folder: Path) -> None:
    shutil.copy(busi_folder / "benign" / "benign (1).png", busi_folder / "benign" / "benign (1) - Copy.png")
    findings = find_scans("busi", busi_folder)
    assert "is neither CLASS (N).png" in findings.refused["benign/benign (1) - Copy.png"]
    assert len(findings.scans) == len(KEYS)


def test_a_folder_of_other_images_is_told_what_was_looked_for(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(WrongCall, match=r"holds no scan of BUSI: looked for benign \(N\)\.png with"):
        find_scans("busi", tmp_path)
