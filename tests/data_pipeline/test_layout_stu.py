import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faults import Refused
from data_pipeline.layouts import find_scans
from data_pipeline.scan import read_scan


def test_stu_is_found_each_image_a_patient_of_its_own(stu_folder: Path) -> None:
    findings = find_scans("stu", stu_folder)
    assert not findings.refused
    keys = ["Test_Image_1", "Test_Image_2", "Test_Image_3"]
    assert [scan.key for scan in findings.scans] == keys
    assert [scan.patient for scan in findings.scans] == [scan.group for scan in findings.scans] == keys
    assert [scan.masks[0].name for scan in findings.scans] == ["mask_1.png", "mask_2.png", "mask_3.png"]
    assert {(scan.label, scan.spacing, scan.fold) for scan in findings.scans} == {("unknown", None, None)}


def test_a_mask_of_another_size_is_cut_above_127_and_brought_to_its_image(stu_folder: Path) -> None:
    for files in find_scans("stu", stu_folder).scans:
        scan = read_scan(files)
        gray = np.asarray(Image.open(files.masks[0]))
        height, width = scan.image.shape
        rows = ((np.arange(height) + 0.5) * gray.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * gray.shape[1] / width).astype(int)
        np.testing.assert_array_equal(scan.mask, (gray > 127)[rows][:, columns])
        assert 0 < scan.mask.mean() < 0.5


def test_the_gray_edges_of_the_fixture_are_gray(stu_folder: Path) -> None:
    gray = np.asarray(Image.open(stu_folder / "mask_2.png"))
    assert ((gray > 0) & (gray < 128)).any()
    assert ((gray > 127) & (gray < 255)).any()


def test_an_image_without_mask_and_a_mask_without_image_are_refused_by_name(stu_folder: Path) -> None:
    (stu_folder / "mask_1.png").unlink()
    (stu_folder / "Test_Image_3.png").unlink()
    findings = find_scans("stu", stu_folder)
    assert findings.refused == {
        "Test_Image_1.png": "has no mask",
        "mask_3.png": "has no image: Test_Image_3.png is missing",
    }
    assert [scan.key for scan in findings.scans] == ["Test_Image_2"]


@pytest.mark.parametrize("broken", ["Test_Image_2.png", "mask_2.png"])
def test_a_truncated_png_is_refused_by_name_when_it_is_read(stu_folder: Path, broken: str) -> None:
    path = stu_folder / broken
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Refused) as told:
        read_scan(find_scans("stu", stu_folder).scans[1])
    assert str(told.value).startswith(f"{broken} ")


def test_other_files_are_refused_and_the_folder_is_found_from_above(stu_folder: Path) -> None:
    shutil.copy(stu_folder / "mask_1.png", stu_folder / "MASK_01.PNG")
    shutil.copy(stu_folder / "mask_1.png", stu_folder / "overview.png")
    findings = find_scans("stu", stu_folder.parent)
    assert findings.refused == {
        "Hospital/mask_1.png": "is a second mask 1 of one folder",
        "Hospital/overview.png": "is neither Test_Image_N.png nor mask_N.png",
    }
    assert len(findings.scans) == 3


def test_a_copy_of_the_folder_keeps_its_own_masks(stu_folder: Path) -> None:
    shutil.copytree(stu_folder, stu_folder.parent / "copy")
    findings = find_scans("stu", stu_folder.parent)
    assert len(findings.scans) == len(findings.refused) == 3
    assert all(scan.image.parent == scan.masks[0].parent for scan in findings.scans)
