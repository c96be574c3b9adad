import csv
import os
import shutil
from pathlib import Path

import openpyxl
import pytest

from data_pipeline.faults import WrongCall
from data_pipeline.layouts import LAYOUTS, find_scans
from data_pipeline.scan import read_scan


def edit_table(path: Path, change: dict[str, dict[str, str]] | None = None, drop: tuple[str, ...] = ()) -> None:
    """Rewrite rows of a table, found by their ID, or leave them out."""
    with path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    with path.open("w", newline="") as text:
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | (change or {}).get(row["ID"], {}) for row in rows if row["ID"] not in drop)


FOLDERS = {
    "bus_bra": "bus_bra_folder",
    "breast_lesions_usg": "breast_lesions_folder",
    "busi": "busi_folder",
    "bus_uclm": "bus_uclm_folder",
    "stu": "stu_folder",
    "folder": "pairs_folder",
    "dicom": "dicom_folder",
}
"""The fixture with scans of each layout."""


# -- any layout ------------------------------------------------------------------------------------------------------


def test_an_unknown_layout_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match=r"bus-bar is unknown; did you mean bus_bra\?"):
        find_scans("bus-bar", tmp_path)
    with pytest.raises(WrongCall, match=r"known are bus_bra, breast_lesions_usg"):
        find_scans("mri", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_that_is_missing_a_file_or_empty_is_one_line(layout: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("missing", "does not exist"),
        ("file", "is no folder"),
        ("empty", r"holds no .*looked for "),
    ):
        with pytest.raises(WrongCall, match=complaint) as told:
            find_scans(layout, tmp_path / name)
        assert name in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_file_managers_leave_is_passed_over_in_silence(layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(FOLDERS[layout])
    clean = find_scans(layout, folder)
    for place in [path for path in folder.rglob("*") if path.is_dir()]:
        for name in (
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "._bus_0001-l.png",
            "._case001.png",
            "._benign (1).png",
            "._a.png",
            "~$clinical-data.xlsx",
        ):
            (place / name).write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "case009.png").write_bytes(b"junk")
    assert find_scans(layout, folder) == clean
    assert not clean.refused


@pytest.mark.parametrize("layout", ["bus_bra", "breast_lesions_usg", "busi", "bus_uclm", "stu", "dicom"])
def test_a_layout_that_does_not_fit_is_answered_with_the_one_that_does(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(FOLDERS[layout])
    with pytest.raises(WrongCall, match=rf"scans are found there in layout {layout}\b"):
        find_scans("bus_bra" if layout != "bus_bra" else "busi", folder)


def test_a_folder_whose_every_scan_is_refused_says_so(bus_bra_folder: Path) -> None:
    shutil.rmtree(bus_bra_folder / "Masks")
    with pytest.raises(WrongCall, match=r"no usable scan .*12 refused, the first is bus_0001-l\.png, has no mask"):
        find_scans("bus_bra", bus_bra_folder)


def test_no_link_is_followed_out_of_the_source(bus_bra_folder: Path, tmp_path: Path) -> None:
    image, mask = bus_bra_folder / "Images" / "bus_0001-l.png", bus_bra_folder / "Masks" / "mask_0001-l.png"
    outside, inside = tmp_path / "outside", bus_bra_folder / "more"
    outside.mkdir()
    inside.mkdir()
    image.rename(outside / image.name)
    image.symlink_to(outside / image.name)
    mask.rename(inside / mask.name)
    mask.symlink_to(inside / "loop.png")
    (inside / "loop.png").symlink_to(mask)
    (outside / "bus_0009-l.png").touch()
    (bus_bra_folder / "linked").symlink_to(outside)
    findings = find_scans("bus_bra", bus_bra_folder)
    assert "out of the source folder" in findings.refused["bus_0001-l.png"]
    assert "bus_0001-l" not in {scan.key for scan in findings.scans}
    assert "bus_0009-l.png" not in findings.refused
    assert len(findings.scans) == 11


def test_a_pipe_and_a_link_to_nothing_are_refused_and_not_waited_for(pairs_folder: Path) -> None:
    for part in ("images", "masks"):
        os.mkfifo(pairs_folder / part / "pipe.png")
    (pairs_folder / "images" / "gone.png").symlink_to(pairs_folder / "nothing.png")
    for layout in LAYOUTS:
        if layout == "folder":
            findings = find_scans(layout, pairs_folder)
            assert findings.refused == dict.fromkeys(("pipe.png", "gone.png"), "is no file, or a link to none")
            assert len(findings.scans) == 4
        else:
            with pytest.raises(WrongCall):
                find_scans(layout, pairs_folder)


# -- BUS-BRA ---------------------------------------------------------------------------------------------------------


def test_bus_bra_is_found_with_its_patients_labels_and_official_folds(bus_bra_folder: Path) -> None:
    findings = find_scans("bus_bra", bus_bra_folder)
    assert not findings.refused
    assert [scan.key for scan in findings.scans] == [f"bus_{case:04d}-{side}" for case in range(1, 7) for side in "lr"]
    assert [scan.patient for scan in findings.scans] == [f"{case:04d}" for case in range(1, 7) for _ in "lr"]
    assert all(scan.group == scan.patient and scan.spacing is None for scan in findings.scans)
    assert [scan.fold for scan in findings.scans] == [1, 1, 2, 2, 3, 3] * 2
    assert [scan.label for scan in findings.scans] == (["benign"] * 4 + ["malignant"] * 2) * 2
    assert all(read_scan(scan).mask.any() for scan in findings.scans)


def test_bus_bra_without_tables_takes_the_patient_from_the_name(bus_bra_folder: Path) -> None:
    (bus_bra_folder / "bus_data.csv").unlink()
    (bus_bra_folder / "5-fold-cv.csv").unlink()
    findings = find_scans("bus_bra", bus_bra_folder)
    assert not findings.refused
    assert [scan.patient for scan in findings.scans] == [f"{case:04d}" for case in range(1, 7) for _ in "lr"]
    assert {(scan.label, scan.fold) for scan in findings.scans} == {("unknown", None)}


def test_bus_bra_rows_that_are_missing_or_odd_cost_only_what_they_would_have_told(bus_bra_folder: Path) -> None:
    edit_table(bus_bra_folder / "bus_data.csv", {"bus_0002-l": {"Case": "", "Pathology": ""}}, drop=("bus_0001-l",))
    edit_table(bus_bra_folder / "5-fold-cv.csv", {"bus_0002-l": {"kFold": "NaN"}}, drop=("bus_0001-r",))
    scans = {scan.key: scan for scan in find_scans("bus_bra", bus_bra_folder).scans}
    assert (scans["bus_0001-l"].patient, scans["bus_0001-l"].label, scans["bus_0001-l"].fold) == ("0001", "benign", 1)
    assert (scans["bus_0001-r"].patient, scans["bus_0001-r"].label, scans["bus_0001-r"].fold) == (
        "0001",
        "benign",
        None,
    )
    assert (scans["bus_0002-l"].patient, scans["bus_0002-l"].label, scans["bus_0002-l"].fold) == (
        "0002",
        "benign",
        None,
    )


def test_the_case_of_the_table_goes_before_the_number_of_the_name(bus_bra_folder: Path) -> None:
    edit_table(bus_bra_folder / "bus_data.csv", {"bus_0001-r": {"Case": "6"}, "bus_0002-r": {"Case": "K-17"}})
    scans = {scan.key: scan for scan in find_scans("bus_bra", bus_bra_folder).scans}
    assert scans["bus_0001-r"].patient == scans["bus_0006-l"].patient == "0006"
    assert scans["bus_0002-r"].patient == "K-17"


def test_a_table_with_a_byte_order_mark_is_read(bus_bra_folder: Path) -> None:
    table = bus_bra_folder / "5-fold-cv.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert [scan.fold for scan in find_scans("bus_bra", bus_bra_folder).scans] == [1, 1, 2, 2, 3, 3] * 2


def test_a_broken_table_of_bus_bra_is_refused_by_name_and_the_scans_go_on(bus_bra_folder: Path) -> None:
    (bus_bra_folder / "5-fold-cv.csv").write_text("ID;kFold\nbus_0001-l;1\n")
    findings = find_scans("bus_bra", bus_bra_folder)
    assert "no column ID" in findings.refused["5-fold-cv.csv"]
    assert len(findings.scans) == 12
    assert {scan.fold for scan in findings.scans} == {None}


def test_an_image_without_mask_and_a_mask_without_image_are_refused_by_name(bus_bra_folder: Path) -> None:
    (bus_bra_folder / "Masks" / "mask_0003-l.png").unlink()
    (bus_bra_folder / "Images" / "bus_0004-r.png").unlink()
    findings = find_scans("bus_bra", bus_bra_folder)
    assert findings.refused == {
        "bus_0003-l.png": "has no mask: mask_0003-l.png is missing",
        "mask_0004-r.png": "has no image: bus_0004-r.png is missing",
    }
    assert len(findings.scans) == 10


def test_suffixes_and_names_are_found_in_any_case(bus_bra_folder: Path) -> None:
    for path in bus_bra_folder.rglob("*_0001-l.png"):
        path.rename(path.with_name(path.name.upper()))
    findings = find_scans("bus_bra", bus_bra_folder)
    assert not findings.refused
    assert (findings.scans[0].key, findings.scans[0].fold) == ("bus_0001-l", 1)


def test_copies_of_a_scan_are_refused_beside_the_first(bus_bra_folder: Path) -> None:
    shutil.copytree(bus_bra_folder / "Images", bus_bra_folder / "copy of Images")
    shutil.copy(bus_bra_folder / "Masks" / "mask_0001-l.png", bus_bra_folder / "mask_0001-l.png")
    findings = find_scans("bus_bra", bus_bra_folder)
    assert len(findings.scans) == 12
    assert "has the key bus_0001-l" in findings.refused["copy of Images/bus_0001-l.png"]
    assert len(findings.refused) == 13


def test_a_png_of_no_known_name_is_refused(bus_bra_folder: Path) -> None:
    (bus_bra_folder / "Images" / "figure.png").touch()
    assert "neither" in find_scans("bus_bra", bus_bra_folder).refused["figure.png"]


# -- BrEaST-Lesions-USG ----------------------------------------------------------------------------------------------


def test_breast_lesions_are_found_with_their_labels_and_spacing_in_millimetres(breast_lesions_folder: Path) -> None:
    findings = find_scans("breast_lesions_usg", breast_lesions_folder)
    assert not findings.refused
    assert [scan.key for scan in findings.scans] == ["case001", "case002", "case003", "case004", "case005"]
    assert len({scan.patient for scan in findings.scans}) == 5
    assert [scan.label for scan in findings.scans] == ["benign", "malignant", "benign", "normal", "benign"]
    spacings = [
        None if scan.spacing is None else tuple(round(side, 9) for side in scan.spacing) for scan in findings.scans
    ]
    assert spacings == [(0.06, 0.06), (0.07, 0.07), (0.08, 0.08), (0.08, 0.08), None]
    assert {scan.fold for scan in findings.scans} == {None}


def test_further_findings_are_no_lesions_and_a_case_without_mask_is_normal(breast_lesions_folder: Path) -> None:
    scans = {scan.key: scan for scan in find_scans("breast_lesions_usg", breast_lesions_folder).scans}
    assert [path.name for path in scans["case003"].masks] == ["case003_tumor.png"]
    assert 0 < read_scan(scans["case003"]).mask.mean() < 0.5
    assert scans["case004"].masks == ()
    assert not read_scan(scans["case004"]).mask.any()


def test_a_case_whose_mask_the_table_names_is_refused_without_it(breast_lesions_folder: Path) -> None:
    next(breast_lesions_folder.rglob("case002_tumor.png")).unlink()
    findings = find_scans("breast_lesions_usg", breast_lesions_folder)
    assert findings.refused == {"case002.png": "has no mask: case002_tumor.png of the table is missing"}


def test_a_mask_without_its_case_is_refused_by_name(breast_lesions_folder: Path) -> None:
    for case in ("case001", "case003"):
        next(breast_lesions_folder.rglob(f"{case}.png")).unlink()
    refused = find_scans("breast_lesions_usg", breast_lesions_folder).refused
    assert refused.keys() == {"case001_tumor.png", "case003_tumor.png", "case003_other1.png", "case003_other2.png"}
    assert refused["case001_tumor.png"] == "has no image: case001.png is missing"


def test_without_a_table_spacing_and_label_are_unknown(breast_lesions_folder: Path) -> None:
    (breast_lesions_folder / "clinical-data.xlsx").unlink()
    findings = find_scans("breast_lesions_usg", breast_lesions_folder)
    assert not findings.refused
    assert [scan.label for scan in findings.scans] == ["unknown"] * 3 + ["normal", "unknown"]
    assert {scan.spacing for scan in findings.scans} == {None}


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_broken_workbook_is_refused_by_name_and_the_scans_go_on(breast_lesions_folder: Path, keep: int) -> None:
    table = breast_lesions_folder / "clinical-data.xlsx"
    table.write_bytes(table.read_bytes()[:keep])
    findings = find_scans("breast_lesions_usg", breast_lesions_folder)
    assert len(findings.scans) == 5
    assert findings.refused.keys() == {"clinical-data.xlsx"}
    assert "\n" not in findings.refused["clinical-data.xlsx"]
    assert {scan.spacing for scan in findings.scans} == {None}


def test_a_workbook_of_something_else_is_refused_by_name(breast_lesions_folder: Path) -> None:
    openpyxl.Workbook().save(breast_lesions_folder / "rota.xlsx")
    findings = find_scans("breast_lesions_usg", breast_lesions_folder)
    assert "no column CaseID" in findings.refused["rota.xlsx"]
    assert findings.scans[0].spacing is not None


@pytest.mark.parametrize("cell", ["not available", None, 0, -0.01, "nan", "inf"])
def test_a_pixel_size_that_is_no_length_is_left_out(breast_lesions_folder: Path, cell: object) -> None:
    path = breast_lesions_folder / "clinical-data.xlsx"
    workbook = openpyxl.load_workbook(path)
    workbook.active["E2"] = cell
    workbook.save(path)
    first, second, *_ = find_scans("breast_lesions_usg", breast_lesions_folder).scans
    assert (first.key, first.label, first.spacing) == ("case001", "benign", None)
    assert second.spacing is not None
