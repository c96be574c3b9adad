import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.faults import Refused, WrongCall
from data_pipeline.layouts import find_scans
from data_pipeline.layouts.pairs import pair_files
from data_pipeline.scan import Findings, ScanFiles, read_scan

LESION = np.zeros((20, 30), bool)
LESION[5:12, 8:20] = True


def write(path: Path, mask: bool | None = None) -> Path:
    """A small image, or a mask whose lesion is LESION or empty; what the suffix asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = np.arange(600).reshape(20, 30) % 251 if mask is None else LESION * 255 * mask
    Image.fromarray(gray.astype(np.uint8)).save(path)
    return path


def write_pair(folder: Path, name: str, images: str = "images", masks: str = "masks") -> None:
    write(folder / images / f"{name}.png")
    write(folder / masks / f"{name}.png", mask=True)


def by_key(findings: Findings) -> dict[str, ScanFiles]:
    return {scan.key: scan for scan in findings.scans}


def found(folder: Path) -> dict[str, ScanFiles]:
    findings = find_scans("folder", folder)
    assert not findings.refused
    return by_key(findings)


# -- pairs by folders ------------------------------------------------------------------------------------------------


def test_images_and_masks_of_one_name_are_pairs_each_a_patient_of_its_own(pairs_folder: Path) -> None:
    scans = found(pairs_folder)
    assert list(scans) == ["a", "b", "c", "d"]
    for key, files in scans.items():
        assert files.masks == (pairs_folder / "masks" / f"{key}.png",)
        assert (files.patient, files.group, files.label) == (key, key, "unknown")
        assert (files.spacing, files.fold, files.fit_masks) == (None, None, False)
        assert read_scan(files).mask.any()


@pytest.mark.parametrize("images", ["images", "Image", "IMGS", "img"])
@pytest.mark.parametrize("masks", ["masks", "Mask", "labels", "label", "annotations", "GT"])
def test_the_folders_have_any_of_their_usual_names(tmp_path: Path, images: str, masks: str) -> None:
    write_pair(tmp_path, "a", images, masks)
    assert np.array_equal(read_scan(found(tmp_path)["a"]).mask, LESION)


@pytest.mark.parametrize("image", [".png", ".PNG", ".jpg", ".JPEG", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("mask", [".png", ".JPG", ".tif", ".bmp"])
def test_image_and_mask_have_any_of_the_usual_suffixes(tmp_path: Path, image: str, mask: str) -> None:
    write(tmp_path / "images" / f"a{image}")
    write(tmp_path / "masks" / f"a{mask}", mask=True)
    assert np.array_equal(read_scan(found(tmp_path)["a"]).mask, LESION)


@pytest.mark.parametrize(
    ("image", "mask", "key"),
    [
        ("images/a.png", "images/masks/a.png", "a"),
        ("a.png", "masks/a.png", "a"),
        ("images/ward 2/a.png", "masks/ward 2/a.png", "ward-2-a"),
        ("ward 2/images/a.png", "ward 2/masks/a.png", "ward-2-a"),
        ("set/x/images/y/a.png", "set/x/masks/y/a.png", "set-x-y-a"),
        ("images/a.png", "masks/a_mask.png", "a"),
        ("images/a.png", "masks/a-seg.tif", "a"),
        ("images/left tumor.png", "masks/left tumor.png", "left-tumor"),
        ("left tumor.png", "left tumor_mask.png", "left-tumor"),
        ("images/a.v2.png", "masks/a.v2.png", "a-v2"),
    ],
)
def test_pairs_are_found_however_the_folders_are_nested(tmp_path: Path, image: str, mask: str, key: str) -> None:
    write(tmp_path / image)
    write(tmp_path / mask, mask=True)
    scans = found(tmp_path)
    assert list(scans) == [key]
    assert scans[key].masks == (tmp_path / mask,)


def test_one_name_in_two_folders_is_two_scans_with_their_own_masks(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_pair(tmp_path / patient, "1")
    scans = found(tmp_path)
    assert list(scans) == ["p1-1", "p2-1"]
    assert [files.masks[0].parts[-3] for files in scans.values()] == ["p1", "p2"]


def test_keys_that_come_out_alike_are_refused_beside_the_first(tmp_path: Path) -> None:
    write_pair(tmp_path, "a b")
    write_pair(tmp_path, "a-b")
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["a-b"]
    assert "has the key a-b, which images/a b.png has already" in findings.refused["images/a-b.png"]


# -- pairs by suffixes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", ["_mask", "-mask", " mask", "_MASK", "_masks", "_seg", "_gt", "_label", "_lesion", "_tumor", ".mask"]
)
def test_a_suffix_tells_a_mask_from_its_image(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "scan 1.png")
    write(tmp_path / f"scan 1{suffix}.png", mask=True)
    write(tmp_path / "scan 2.png")
    write(tmp_path / f"scan 2{suffix}.bmp", mask=True)
    scans = found(tmp_path)
    assert list(scans) == ["scan-1", "scan-2"]
    assert all(np.array_equal(read_scan(files).mask, LESION) for files in scans.values())


def test_numbered_masks_are_united(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    halves = LESION.copy(), LESION.copy()
    halves[0][:9] = halves[1][9:] = False
    Image.fromarray(halves[0]).save(tmp_path / "a_mask_1.png")
    Image.fromarray(halves[1]).save(tmp_path / "a_mask_2.png")
    files = found(tmp_path)["a"]
    assert [mask.name for mask in files.masks] == ["a_mask_1.png", "a_mask_2.png"]
    assert np.array_equal(read_scan(files).mask, LESION)


# -- what leaves open what is meant ----------------------------------------------------------------------------------


def test_two_folders_of_masks_are_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write(tmp_path / "labels" / "a.png", mask=True)
    write_pair(tmp_path, "b")
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["b"]
    reason = "has masks of several kinds, and it is open which is meant: labels/a.png, masks/a.png"
    assert findings.refused == {
        "images/a.png": reason,
        "labels/a.png": f"cannot be used: a.png {reason}",
        "masks/a.png": f"cannot be used: a.png {reason}",
    }


@pytest.mark.parametrize("second", ["images/a.jpg", "img/a.png", "images/A.png", "a.png"])
def test_two_images_of_one_mask_are_both_refused_by_name(tmp_path: Path, second: str) -> None:
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b")
    write(tmp_path / second)
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["b"]
    assert findings.refused.keys() == {"images/a.png", "masks/a.png", second}
    assert all("is one of 2 images of one name" in reason for reason in findings.refused.values())


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (["a_mask.png", "a_seg.png"], "several kinds"),
        (["a_mask.png", "masks/a.png"], "several kinds"),
        (["masks/a.png", "masks/a_mask.png"], "several kinds"),
        (["a_mask.png", "a_mask.bmp"], "several masks of one name"),
        (["masks/a.png", "masks/a.tif"], "several masks of one name"),
        (["a_mask_1.png", "a_mask-1.png"], "several masks of one name"),
    ],
)
def test_masks_of_which_it_is_open_which_is_meant_are_refused(tmp_path: Path, masks: list[str], reason: str) -> None:
    write(tmp_path / "a.png")
    for mask in masks:
        write(tmp_path / mask, mask=True)
    write_pair(tmp_path, "b")
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["b"]
    assert findings.refused.keys() == {"a.png", *masks}
    assert reason in findings.refused["a.png"]
    assert all(mask in findings.refused["a.png"] for mask in masks)


def test_an_image_without_mask_and_masks_without_image_are_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write(tmp_path / "images" / "b.png")
    write(tmp_path / "masks" / "c.png", mask=True)
    write(tmp_path / "d_mask.png", mask=True)
    assert find_scans("folder", tmp_path).refused == {
        "images/b.png": "has no mask",
        "masks/c.png": "has no image: c is missing",
        "d_mask.png": "has no image: d is missing",
    }


def test_a_folder_without_images_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "report.txt").touch()
    with pytest.raises(WrongCall, match=r"looked for images/NAME\.png with masks/NAME\.png, and NAME\.png with"):
        find_scans("folder", tmp_path)


# -- files of other people -------------------------------------------------------------------------------------------


def test_names_with_umlauts_pair_in_either_spelling_and_keep_keys_apart(tmp_path: Path) -> None:
    for name in ("Müller 1", "Möller 1", "Muller 1", "病人"):
        write(tmp_path / "images" / f"{unicodedata.normalize('NFD', name)}.png")
        write(tmp_path / "masks" / f"{unicodedata.normalize('NFC', name)}.png", mask=True)
    scans = found(tmp_path)
    assert len(scans) == 4
    assert all(key.isascii() and key for key in scans)


def test_a_palette_mask_a_class_mask_and_a_16_bit_image_are_read(tmp_path: Path) -> None:
    for name in ("palette", "classes", "wide"):
        write(tmp_path / "images" / f"{name}.png")
    palette = Image.fromarray(LESION.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    (tmp_path / "masks").mkdir()
    palette.save(tmp_path / "masks" / "palette.png")
    classes = LESION.astype(np.uint8)
    classes[:9] *= 2
    Image.fromarray(classes).save(tmp_path / "masks" / "classes.png")
    Image.fromarray(LESION.astype(np.uint16) * 65535).save(tmp_path / "masks" / "wide.tif")
    Image.fromarray(LESION.astype(np.uint16) * 40000).save(tmp_path / "images" / "wide.png")
    scans = {key: read_scan(files) for key, files in found(tmp_path).items()}
    assert all(np.array_equal(scan.mask, LESION) for scan in scans.values())
    np.testing.assert_array_equal(scans["wide"].image, LESION * np.uint8(40000 >> 8))


@pytest.mark.parametrize("broken", ["images/a.png", "masks/a.png"])
@pytest.mark.parametrize("keep", [0, 50])
def test_an_empty_or_truncated_file_is_refused_by_name_when_it_is_read(
    pairs_folder: Path, broken: str, keep: int
) -> None:
    path = pairs_folder / broken
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Refused, match=r"^a\.png "):
        read_scan(found(pairs_folder)["a"])


def test_links_within_the_folder_are_files_and_those_out_of_it_are_refused(pairs_folder: Path, tmp_path: Path) -> None:
    (pairs_folder / "images" / "e.png").symlink_to(pairs_folder / "images" / "a.png")
    (pairs_folder / "masks" / "e.png").symlink_to("a.png")
    outside = write(tmp_path / "outside.png", mask=True)
    (pairs_folder / "masks" / "b.png").unlink()
    (pairs_folder / "masks" / "b.png").symlink_to(outside)
    findings = find_scans("folder", pairs_folder)
    assert list(by_key(findings)) == ["a", "c", "d", "e"]
    assert findings.refused == {"b.png": "is a link that leads out of the source folder", "images/b.png": "has no mask"}


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "images/", "masks/", "gt/", "x/", "x/images/", "x/masks/", "images/x/"]),
            st.sampled_from(["a", "A", "a_mask", "a_mask_1", "a_mask_mask", "a_seg", "a_1", "b", "b_gt"]),
            st.sampled_from([".png", ".PNG", ".jpg"]),
        ).map("".join),
        max_size=12,
    )
)
def test_each_file_is_in_one_pair_or_refused_by_name(names: set[str]) -> None:
    source = Path("source")
    pairs, refused = pair_files([source / name for name in sorted(names)], source)
    used = [path.relative_to(source).as_posix() for pair in pairs for path in (pair.image, *pair.masks)]
    assert sorted([*used, *refused]) == sorted(names)


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{label}/images/{name}", "images/{label}/{name}", "{label}/{name}"])
def test_folders_of_classes_are_labels(tmp_path: Path, form: str) -> None:
    for number, label in enumerate(("benign", "Malignant", "NORMAL")):
        image = form.format(label=label, name=number)
        mask = image.replace("images", "masks") + ("" if "images" in image else "_mask")
        write(tmp_path / f"{image}.png")
        write(tmp_path / f"{mask}.png", mask=label != "NORMAL")
    scans = found(tmp_path)
    assert [(key, scan.label) for key, scan in scans.items()] == [
        ("Malignant-1", "malignant"),
        ("NORMAL-2", "normal"),
        ("benign-0", "benign"),
    ]
    assert not read_scan(scans["NORMAL-2"]).mask.any()


def test_a_normal_image_needs_no_mask(tmp_path: Path) -> None:
    write_pair(tmp_path / "benign", "a")
    write(tmp_path / "normal" / "images" / "b.png")
    assert found(tmp_path)["normal-b"].masks == ()


def test_an_image_in_folders_of_two_classes_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "benign" / "malignant", "a")
    write_pair(tmp_path / "benign", "b")
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["benign-b"]
    assert "folders of several classes: benign, malignant" in findings.refused["benign/malignant/images/a.png"]


# -- the table -------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, *rows: str, name: str = "scans.csv", encoding: str = "utf-8") -> None:
    (folder / name).write_text("\n".join(rows) + "\n", encoding=encoding)


@pytest.mark.parametrize("name", ["scans.csv", "metadata.csv", "Scans.CSV"])
@pytest.mark.parametrize("naming", ["key", "image", "file"])
def test_a_table_tells_whose_a_scan_is(pairs_folder: Path, name: str, naming: str) -> None:
    write_rows(
        pairs_folder,
        f"{naming},patient,group,label,spacing,fold,remark",
        "a,P1,G1,Malignant,0.07,1,x",
        "b.png,P1,,benign,,2,y",
        "images/c.png,P2,,,n/a,,",
        r".\images\D.JPG,P3,G1,normal,-1,2,",
        name=name,
    )
    scans = found(pairs_folder)
    told = [(scan.patient, scan.group, scan.label, scan.spacing, scan.fold) for scan in scans.values()]
    assert told == [
        ("P1", "G1", "malignant", (0.07, 0.07), 1),
        ("P1", "P1", "benign", None, 2),
        ("P2", "P2", "unknown", None, None),
        ("P3", "G1", "normal", None, 2),
    ]


def test_spacing_may_differ_between_rows_and_columns(pairs_folder: Path) -> None:
    write_rows(
        pairs_folder, "image,spacing_row,spacing_column,spacing", "a,0.1,0.2,", "b,,0.2,0.3", "c,0.1,,", "d,inf,0.1,"
    )
    assert [scan.spacing for scan in found(pairs_folder).values()] == [(0.1, 0.2), (0.3, 0.2), None, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_a_spreadsheet_of_another_country_is_read(pairs_folder: Path, encoding: str) -> None:
    rows = ["Image;Patient;Spacing Row;Spacing Column", '"a.png";"Müller; A";0,07;0,08', "b;Möller;;"]
    write_rows(pairs_folder, *rows, "c;x;;", "d;x;;", encoding=encoding)
    scans = found(pairs_folder)
    assert (scans["a"].patient, scans["a"].spacing) == ("Müller; A", (0.07, 0.08))
    assert scans["b"].patient == "Möller"
    assert scans["c"].patient == scans["d"].patient == "x"


def test_a_scan_whose_patient_a_table_leaves_open_is_refused(pairs_folder: Path) -> None:
    write_rows(pairs_folder, "image,patient", "a,P1", "b,", "c,P1")
    findings = find_scans("folder", pairs_folder)
    assert list(by_key(findings)) == ["a", "c"]
    assert findings.refused.keys() == {"images/b.png", "images/d.png"}
    assert all("has no patient in the table" in reason for reason in findings.refused.values())


def test_a_table_without_patients_need_not_name_every_image(pairs_folder: Path) -> None:
    write_rows(pairs_folder, "image,label", "a,benign")
    assert [(scan.patient, scan.label) for scan in found(pairs_folder).values()] == [
        ("a", "benign"),
        *((name, "unknown") for name in "bcd"),
    ]


def test_a_table_goes_before_the_folders_of_classes(tmp_path: Path) -> None:
    write_pair(tmp_path / "benign", "a")
    write(tmp_path / "benign" / "images" / "b.png")
    write_rows(tmp_path, "key,label", "benign-a,malignant", "benign-b,normal")
    scans = found(tmp_path)
    assert [scan.label for scan in scans.values()] == ["malignant", "normal"]
    assert scans["benign-b"].masks == ()


def test_a_row_names_an_image_by_as_much_of_its_path_as_tells_it_apart(tmp_path: Path) -> None:
    for place in ("", "p1", "p2"):
        write_pair(tmp_path / place, "1")
    write_rows(tmp_path, "image,patient", "images/1.png,root", "p1/images/1.png,A", "p2-1,B")
    assert {key: scan.patient for key, scan in found(tmp_path).items()} == {"1": "root", "p1-1": "A", "p2-1": "B"}


def test_images_that_a_row_names_together_are_refused(tmp_path: Path) -> None:
    for place in ("p1", "p2", "p3"):
        write_pair(tmp_path / place, "1" if place != "p3" else "2")
    write_rows(tmp_path, "image,patient", "1.png,A", "2.png,B")
    findings = find_scans("folder", tmp_path)
    assert list(by_key(findings)) == ["p3-2"]
    assert findings.refused.keys() == {"p1/images/1.png", "p2/images/1.png"}
    assert "is one of 2 images that scans.csv calls 1.png" in findings.refused["p1/images/1.png"]


def test_rows_that_contradict_each_other_or_name_nothing_are_refused(pairs_folder: Path) -> None:
    write_rows(pairs_folder, "image,patient", "a,P1", "a.png,P2", "b,P1", "b,P1", "c,P2", "d,P3", "z.png,P4")
    findings = find_scans("folder", pairs_folder)
    assert list(by_key(findings)) == ["b", "c", "d"]
    assert findings.refused == {
        "images/a.png": "has several rows in scans.csv that differ",
        "scans.csv: z.png": "names no image that was found",
    }


@pytest.mark.parametrize("fold", ["0", "-1", "1.5", "train"])
def test_a_fold_that_is_no_number_is_refused(pairs_folder: Path, fold: str) -> None:
    write_rows(pairs_folder, "image,fold", f"a,{fold}", "b,1")
    findings = find_scans("folder", pairs_folder)
    assert findings.refused == {"images/a.png": f"has the fold {fold} in the table, which is no whole number from 1"}


@pytest.mark.parametrize("content", ["", "name,patient\na,P1\n", "image,patient\n", "\x00\x01"])
def test_a_table_that_cannot_be_used_is_a_wrong_call(pairs_folder: Path, content: str) -> None:
    (pairs_folder / "scans.csv").write_text(content)
    with pytest.raises(WrongCall, match=r"table .*scans\.csv cannot be used: ") as told:
        find_scans("folder", pairs_folder)
    assert "\n" not in str(told.value)


def test_two_tables_are_a_wrong_call(pairs_folder: Path) -> None:
    write_rows(pairs_folder, "image", "a")
    write_rows(pairs_folder / "images", "image", "a", name="metadata.csv")
    with pytest.raises(WrongCall, match=r"holds 2 tables, scans\.csv, images/metadata\.csv; leave one"):
        find_scans("folder", pairs_folder)


def test_a_copied_folder_of_pairs_is_found_from_above(pairs_folder: Path) -> None:
    shutil.copytree(pairs_folder, pairs_folder.parent / "more")
    assert list(found(pairs_folder.parent)) == [f"{place}-{name}" for place in ("more", "pairs") for name in "abcd"]
