import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    BasicTextSRStorage,
    MediaStorageDirectoryStorage,
    RLELossless,
    generate_uid,
)

from data_pipeline import open_dataset, read_scan, write_dataset
from data_pipeline.faults import Refused, WrongCall
from data_pipeline.folds import assign_folds
from data_pipeline.layouts import find_scans
from data_pipeline.scan import ScanFiles
from data_pipeline.stream import stream_scans
from tests.data_pipeline.conftest import write_mask
from tests.data_pipeline.dicom_files import region, save_dicom, write_dicom, write_segmentation

GRAY = np.add.outer(np.arange(12) * 15, np.arange(18) * 4).astype(np.uint8)
LOOP = np.stack([GRAY, GRAY // 2, 255 - GRAY, GRAY // 3])
LESION = np.zeros((12, 18), bool)
LESION[3:7, 5:12] = True
OTHER = np.roll(LESION, 4, axis=1)


def write_pair(folder: Path, name: str = "a", **attributes: object) -> None:
    """NAME.dcm with NAME_mask.png."""
    write_dicom(folder / f"{name}.dcm", GRAY, **attributes)  # type: ignore[arg-type]
    write_mask(folder / f"{name}_mask.png", LESION)


def only(source: Path) -> ScanFiles:
    (scan,) = find_scans("dicom", source).scans
    return scan


# -- images ----------------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_its_content_whatever_its_name_and_place(tmp_path: Path) -> None:
    names = ["DICOM/P1/IM0001", "1.2.840.113619.2", "c/d.IMA", "e.dcm"]
    for number, name in enumerate(names):
        write_dicom(tmp_path / name, GRAY + np.uint8(number), patient=f"P{number}")
        stem = name.removesuffix(".dcm").removesuffix(".IMA")
        write_mask(tmp_path / f"{stem}_mask.png", LESION)
    findings = find_scans("dicom", tmp_path)
    assert not findings.refused
    assert {scan.image for scan in findings.scans} == {tmp_path / name for name in names}
    for scan in findings.scans:
        np.testing.assert_array_equal(read_scan(scan).mask, LESION)


def test_a_scan_has_the_pixels_and_the_spacing_of_its_file(tmp_path: Path) -> None:
    regions = Items([region((0, 0, 11, 17), (0.01, 0.02))])
    write_pair(tmp_path, SequenceOfUltrasoundRegions=regions, syntax=RLELossless)
    scan = read_scan(only(tmp_path))
    np.testing.assert_array_equal(scan.image, GRAY)
    assert scan.spacing == pytest.approx((0.1, 0.2))
    assert scan.label == "unknown"


@pytest.mark.parametrize(
    ("folder", "label"), [("Malignant", "malignant"), ("benign/images", "benign"), ("x", "unknown")]
)
def test_the_label_is_the_name_of_a_folder(tmp_path: Path, folder: str, label: str) -> None:
    write_pair(tmp_path / folder)
    assert only(tmp_path).label == label


def test_a_table_goes_before_the_folder(tmp_path: Path) -> None:
    write_pair(tmp_path / "benign", "a")
    write_pair(tmp_path / "benign", "b")
    write_dicom(tmp_path / "c.dcm", GRAY)
    (tmp_path / "scans.csv").write_text("file,label\na.dcm,Malignant\nc.dcm,normal\ngone.dcm,benign\n")
    findings = find_scans("dicom", tmp_path)
    labels = {scan.image.name: scan.label for scan in findings.scans}
    assert labels == {"a.dcm": "malignant", "b.dcm": "benign", "c.dcm": "normal"}
    assert findings.refused == {"scans.csv: gone.dcm": "names no image that was found"}


def test_below_normal_a_frame_needs_no_mask_and_elsewhere_it_does(tmp_path: Path) -> None:
    write_dicom(tmp_path / "normal" / "loop.dcm", LOOP)
    write_dicom(tmp_path / "benign" / "b.dcm", GRAY)
    findings = find_scans("dicom", tmp_path)
    assert findings.refused == {"benign/b.dcm": "has no mask"}
    assert [scan.frame for scan in findings.scans] == [0, 1, 2, 3]
    assert not any(read_scan(scan).mask.any() for scan in findings.scans)


def test_what_is_no_image_is_passed_over_or_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path)
    for name, kind in (("DICOMDIR", MediaStorageDirectoryStorage), ("report.dcm", BasicTextSRStorage)):
        ds = write_dicom(tmp_path / name, GRAY)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
        del ds.PixelData, ds.Rows, ds.Columns
        save_dicom(ds, tmp_path / name)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "text.dcm").write_text("no DICOM")
    write_mask(tmp_path / "preview.png", LESION)
    findings = find_scans("dicom", tmp_path)
    assert findings.refused == {
        "report.dcm": "holds no image",
        "text.dcm": "is no DICOM file",
        "preview.png": "is neither DICOM nor named as a mask is",
    }
    assert len(findings.scans) == 1


def test_a_copy_of_an_image_is_refused_beside_the_first(tmp_path: Path) -> None:
    write_pair(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    findings = find_scans("dicom", tmp_path)
    assert len(findings.scans) == 1
    assert "which one/a.dcm has already" in findings.refused["two/a.dcm"]


def test_an_image_that_is_cut_is_found_and_refused_when_it_is_read(tmp_path: Path) -> None:
    write_pair(tmp_path)
    path = tmp_path / "a.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Refused, match=r"^a\.dcm cannot be read"):
        read_scan(only(tmp_path))


def test_a_header_that_is_cut_is_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, "b")
    path = tmp_path / "b.dcm"
    path.write_bytes(path.read_bytes()[:200])
    refused = find_scans("dicom", tmp_path).refused
    assert refused.keys() == {"b.dcm", "b_mask.png"}


def test_a_folder_without_dicom_is_a_wrong_call(tmp_path: Path) -> None:
    write_mask(tmp_path / "a_mask.png", LESION)
    with pytest.raises(WrongCall, match="holds no DICOM image"):
        find_scans("dicom", tmp_path)


# -- who -------------------------------------------------------------------------------------------------------------


def test_a_patient_is_known_again_by_digest_and_told_from_another_issuers(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", patient="P-1", IssuerOfPatientID="North")
    write_pair(tmp_path, "b", patient="P-1 ", IssuerOfPatientID="North")
    write_pair(tmp_path, "c", patient="P-1", IssuerOfPatientID="South")
    patients = {scan.image.stem: scan.patient for scan in find_scans("dicom", tmp_path).scans}
    assert patients["a"] == patients["b"] != patients["c"]


def test_without_an_identifier_a_study_is_a_patient(tmp_path: Path) -> None:
    study = generate_uid()
    write_pair(tmp_path, "a", patient="", StudyInstanceUID=study)
    write_pair(tmp_path, "b", patient="", StudyInstanceUID=study)
    write_pair(tmp_path, "c", patient="")
    patients = {scan.image.stem: scan.patient for scan in find_scans("dicom", tmp_path).scans}
    assert patients["a"] == patients["b"] != patients["c"]


def test_a_series_is_one_group(tmp_path: Path) -> None:
    series = generate_uid()
    write_pair(tmp_path, "a", patient="P1", series=series)
    write_pair(tmp_path, "b", patient="P2", series=series)
    write_pair(tmp_path, "c", patient="P1")
    groups = {scan.image.stem: scan.group for scan in find_scans("dicom", tmp_path).scans}
    assert groups["a"] == groups["b"] != groups["c"]


def test_an_image_without_a_name_of_its_own_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, "b", SOPInstanceUID="")
    assert "SOPInstanceUID" in find_scans("dicom", tmp_path).refused["b.dcm"]


def test_no_identifier_reaches_a_dataset_in_clear(tmp_path: Path) -> None:
    known = []
    for number in range(4):
        ds = write_dicom(tmp_path / "source" / f"{number}.dcm", GRAY, patient=f"Meier-{number}")
        write_mask(tmp_path / "source" / f"{number}_mask.png", LESION)
        known += [ds.PatientID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, "Erika", "19610214"]
    ds = write_dicom(tmp_path / "source" / "none.dcm", GRAY, patient="Meier-4")
    findings = find_scans("dicom", tmp_path / "source")
    folds = assign_folds(findings.scans, 2)
    write_dataset(str(tmp_path / "dataset"), "d", map(read_scan, findings.scans), folds, findings.refused)
    written = b"".join(path.read_bytes() for path in (tmp_path / "dataset").iterdir())
    assert b"none.dcm" in written
    assert [name for name in [*known, ds.PatientID, ds.SOPInstanceUID] if name.encode() in written] == []


# -- masks -----------------------------------------------------------------------------------------------------------


def test_frames_of_a_loop_are_found_where_a_segmentation_has_them(tmp_path: Path) -> None:
    image = write_dicom(tmp_path / "loop.dcm", LOOP)
    write_segmentation(tmp_path / "elsewhere" / "seg", [LESION, OTHER, OTHER], [(image, 2), (image, 2), (image, 4)])
    findings = find_scans("dicom", tmp_path)
    assert findings.refused == {"loop.dcm": "2 of its 4 frames have no mask and are left out"}
    second, fourth = map(read_scan, findings.scans)
    np.testing.assert_array_equal(second.image, LOOP[1])
    np.testing.assert_array_equal(second.mask, LESION | OTHER)
    np.testing.assert_array_equal(fourth.image, LOOP[3])
    np.testing.assert_array_equal(fourth.mask, OTHER)
    assert second.key.endswith("-f0002")
    assert fourth.key.endswith("-f0004")
    assert second.key[:-6] == fourth.key[:-6]
    assert second.group == fourth.group


def test_one_segmentation_may_cover_several_images(tmp_path: Path) -> None:
    images = [write_dicom(tmp_path / f"{number}.dcm", GRAY) for number in range(3)]
    write_segmentation(tmp_path / "seg.dcm", [LESION, OTHER], [(images[0], None), (images[2], 1)])
    findings = find_scans("dicom", tmp_path)
    masks = {scan.image.name: read_scan(scan).mask for scan in findings.scans}
    np.testing.assert_array_equal(masks["0.dcm"], LESION)
    np.testing.assert_array_equal(masks["2.dcm"], OTHER)
    assert findings.refused == {"1.dcm": "has no mask"}


def test_a_segmentation_that_fits_no_frame_is_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path)
    image = write_dicom(tmp_path / "loop.dcm", LOOP)
    stranger = write_dicom(tmp_path / "stranger.dcm", GRAY)
    (tmp_path / "stranger.dcm").unlink()
    write_segmentation(tmp_path / "all.dcm", [LESION], [(image, None)])
    write_segmentation(tmp_path / "fifth.dcm", [LESION], [(image, 5)])
    write_segmentation(tmp_path / "lost.dcm", [LESION], [(stranger, None)])
    findings = find_scans("dicom", tmp_path)
    assert "which of the 4 frames of loop.dcm" in findings.refused.pop("all.dcm")
    assert "a frame that loop.dcm does not have" in findings.refused.pop("fifth.dcm")
    assert findings.refused == {"lost.dcm": "segments no image that lies here", "loop.dcm": "has no mask"}


@pytest.mark.parametrize("name", ["a_mask.png", "A_MASK_1.PNG", "masks/a.png", "mask/a_mask.png"])
def test_a_mask_is_paired_by_its_name(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY)
    write_mask(tmp_path / name, LESION)
    np.testing.assert_array_equal(read_scan(only(tmp_path)).mask, LESION)


@pytest.mark.parametrize("name", ["a_mask.dcm", "a_mask", "masks/a.dcm", "masks/a"])
def test_a_mask_may_be_dicom_too(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path / "images" / "a.dcm", GRAY)
    write_dicom(tmp_path / ("images" if "/" not in name else ".") / name, LESION.astype(np.uint8))
    np.testing.assert_array_equal(read_scan(only(tmp_path)).mask, LESION)


def test_all_masks_of_an_image_are_united(tmp_path: Path) -> None:
    image = write_dicom(tmp_path / "a.dcm", GRAY)
    write_mask(tmp_path / "a_mask.png", LESION)
    write_mask(tmp_path / "a_mask_1.png", OTHER)
    third = np.roll(LESION, 4, axis=0)
    write_segmentation(tmp_path / "seg.dcm", [third], [(image, None)])
    np.testing.assert_array_equal(read_scan(only(tmp_path)).mask, LESION | OTHER | third)


def test_a_mask_of_a_loop_has_its_frames_or_is_refused(tmp_path: Path) -> None:
    masks = np.stack([LESION, OTHER, LESION, OTHER]).astype(np.uint8)
    write_dicom(tmp_path / "a.dcm", LOOP)
    write_dicom(tmp_path / "a_mask.dcm", masks, syntax=RLELossless)
    write_dicom(tmp_path / "b.dcm", LOOP)
    write_dicom(tmp_path / "b_mask.dcm", masks[:3])
    write_dicom(tmp_path / "c.dcm", LOOP)
    write_mask(tmp_path / "c_mask.png", LESION)
    findings = find_scans("dicom", tmp_path)
    assert findings.refused == {
        "b.dcm": "has no mask",
        "b_mask.dcm": "holds 3 frames, its image b.dcm 4",
        "c.dcm": "has no mask",
        "c_mask.png": "is one mask for the 4 frames of c.dcm; name its frame in its name",
    }
    for scan, image, mask in zip(findings.scans, LOOP, masks, strict=True):
        np.testing.assert_array_equal(read_scan(scan).image, image)
        np.testing.assert_array_equal(read_scan(scan).mask, mask > 0)


def test_a_mask_may_name_its_frame_counted_from_one(tmp_path: Path) -> None:
    write_dicom(tmp_path / "loop.dcm", LOOP)
    write_mask(tmp_path / "loop_frame001_mask.png", LESION)
    write_mask(tmp_path / "masks" / "loop_frame4.png", OTHER)
    write_mask(tmp_path / "loop_frame005_mask.png", LESION)
    findings = find_scans("dicom", tmp_path)
    first, fourth = map(read_scan, findings.scans)
    np.testing.assert_array_equal(first.image, LOOP[0])
    np.testing.assert_array_equal(first.mask, LESION)
    np.testing.assert_array_equal(fourth.image, LOOP[3])
    np.testing.assert_array_equal(fourth.mask, OTHER)
    assert findings.refused.keys() == {"loop_frame005_mask.png", "loop.dcm"}


def test_masks_that_count_frames_from_zero_are_all_refused(tmp_path: Path) -> None:
    """One that is taken for its neighbour's would be worse than none."""
    write_pair(tmp_path)
    write_dicom(tmp_path / "loop.dcm", LOOP)
    for frame in range(4):
        write_mask(tmp_path / f"loop_frame{frame:03d}_mask.png", LESION)
    findings = find_scans("dicom", tmp_path)
    assert len(findings.scans) == 1
    assert all("names frame 0" in findings.refused[f"loop_frame{frame:03d}_mask.png"] for frame in range(4))


def test_an_image_may_itself_be_named_for_a_frame(tmp_path: Path) -> None:
    write_pair(tmp_path, "loop_frame003")
    np.testing.assert_array_equal(read_scan(only(tmp_path)).mask, LESION)


def test_a_mask_without_an_image_or_of_two_is_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_mask(tmp_path / "b_mask.png", LESION)
    write_dicom(tmp_path / "c.dcm", GRAY)
    write_dicom(tmp_path / "images" / "C", GRAY)
    write_mask(tmp_path / "c_mask.png", LESION)
    refused = find_scans("dicom", tmp_path).refused
    assert refused["b_mask.png"] == "has no image"
    assert "2 images at once" in refused["c_mask.png"]


# -- the whole way ---------------------------------------------------------------------------------------------------


def test_loops_become_a_dataset_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.cli import main

    source = tmp_path / "source"
    for number in range(4):
        loop = np.random.default_rng(number).integers(0, 256, LOOP.shape, dtype=np.uint8)
        image = write_dicom(source / "benign" / f"{number}.dcm", loop, patient=f"P{number}")
        write_segmentation(source / f"seg-{number}.dcm", [LESION, OTHER], [(image, 1), (image, 3)])
    monkeypatch.setattr("sys.argv", ["sonotrain", "data", "ingest", "dicom", str(source), str(tmp_path / "dataset"),
                                     "--folds", "2", "--json", str(tmp_path / "told.json")])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["samples"], told["patients"], len(told["refused"])) == (8, 4, 4)
    dataset = open_dataset(str(tmp_path / "dataset"))
    images = {scan.key: scan for scan in stream_scans(dataset, dataset.positions(), readers=1)}
    for scan in find_scans("dicom", source).scans:
        np.testing.assert_array_equal(images[scan.key].image, read_scan(scan).image)
        np.testing.assert_array_equal(images[scan.key].mask, read_scan(scan).mask)
