import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.audit import Audit, Spread, audit
from data_pipeline.facts import read_with_colours
from data_pipeline.phantom import phantom
from data_pipeline.scan import Findings, Gray, Mask, ScanFiles, read_scan
from tests.data_pipeline.conftest import write_image, write_mask
from tests.data_pipeline.dicom_files import write_dicom

SIZE = (96, 120)
LESION = np.hypot(*(np.indices(SIZE) - np.array([48, 60])[:, None, None])) < 20

Write = Callable[..., ScanFiles]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a scan's files: number gives the image, unless one is given; mask None leaves it without a mask file."""

    def made(number: int, *, image: Gray | None = None, mask: Mask | None = LESION, **about: object) -> ScanFiles:
        key = f"scan-{number:02d}"
        pixels = picture(number) if image is None else image
        write_image(tmp_path / f"{key}.png", pixels)
        masks = ()
        if mask is not None:
            write_mask(tmp_path / f"{key}_mask.png", mask)
            masks = (tmp_path / f"{key}_mask.png",)
        owner = f"patient-{number}"
        files = ScanFiles(key, tmp_path / f"{key}.png", masks, patient=owner, group=owner, label="benign")
        return replace(files, **about)

    return made


def picture(number: int, size: tuple[int, int] = SIZE) -> Gray:
    """Of another patient for each number."""
    return phantom(2 * number, size).image


def found_in(scans: list[ScanFiles], refused: dict[str, str] | None = None) -> dict[str, list[tuple[list[str], str]]]:
    """An audit's findings by section: keys and words."""
    audited = audit(Findings(scans, refused or {}), workers=2)
    return {
        section.name: [(list(finding.keys), finding.says) for finding in section.findings]
        for section in audited.sections
    }


def only(section: str, scans: list[ScanFiles]) -> list[tuple[list[str], str]]:
    """What is found in this section, where nothing may be found in any other."""
    found = found_in(scans)
    assert {name for name, findings in found.items() if findings} <= {section}
    return found[section]


def test_nothing_is_found_in_sound_scans(write: Write) -> None:
    scans = [write(number) for number in range(6)]
    scans.append(write(6, label="normal", mask=np.zeros(SIZE, dtype=np.bool_)))
    scans.append(write(7, label="normal", mask=None))
    scans.append(write(8, label="unknown", mask=None))

    found = found_in(scans)

    assert list(found) == [
        "broken", "empty_masks", "missing_masks", "normal_with_lesion", "full_masks", "specks", "odd_sizes",
        "coloured", "flat", "identical", "near_duplicates", "conflicting_labels", "shared_patients", "split_by_folds",
    ]  # fmt: skip
    assert not any(found.values())


# -- broken ----------------------------------------------------------------------------------------------------------


def test_files_that_the_layout_or_the_decoder_refuses_are_broken(write: Write) -> None:
    scans = [write(number) for number in range(4)]
    whole = scans[1].image.read_bytes()
    scans[1].image.write_bytes(whole[: len(whole) // 2])
    write_mask(scans[2].masks[0], LESION[:-1])

    broken = found_in(scans, {"mask_9.png": "has no image"})["broken"]

    assert [keys for keys, _ in broken] == [["mask_9.png"], ["scan-01"], ["scan-02"]]
    assert broken[0][1] == "has no image"
    assert broken[1][1].startswith("scan-01.png cannot be read")
    assert broken[2][1] == "mask scan-02_mask.png is 95x120, its image 96x120"


def test_names_that_no_terminal_should_be_given_are_written_out(write: Write) -> None:
    scans = [write(0, label="\x1b[31mred", patient="\udcff")]

    audited = audit(Findings(scans, {"a\nb\udcfe.png": "is bad\x07"}), workers=1)

    (broken,) = audited.sections[0].findings
    assert (broken.keys, broken.says) == ((r"a\nb\udcfe.png",), r"is bad\x07")
    assert audited.overview.labels == {r"\x1b[31mred": 1}
    assert audited.scans["scan-00"].patient == r"\udcff"


def test_a_set_of_which_nothing_can_be_read_still_has_an_audit(write: Write) -> None:
    scans = [write(0)]
    scans[0].image.unlink()

    audited = audit(Findings(scans), workers=1)

    assert audited.sections[0].findings[0].says == "scan-00.png is missing"
    assert audited.overview.scans == 0
    assert audited.overview.height is None


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["benign", "malignant", "unknown"])
def test_an_empty_mask_is_found_unless_the_label_is_normal(write: Write, label: str) -> None:
    scans = [write(0), write(1, label=label, mask=np.zeros(SIZE, dtype=np.bool_))]

    assert only("empty_masks", scans) == [(["scan-01"], f"its mask is empty, its label is {label}")]


def test_a_lesion_by_label_without_a_mask_file_is_found(write: Write) -> None:
    assert only("missing_masks", [write(0), write(1, mask=None)]) == [(["scan-01"], "has no mask, its label is benign")]


def test_a_normal_scan_with_a_lesion_is_found(write: Write) -> None:
    ((keys, says),) = only("normal_with_lesion", [write(0), write(1, label="normal")])

    assert keys == ["scan-01"]
    assert says == f"its mask covers {LESION.mean():.1%}"


def test_a_full_mask_and_an_inverted_one_are_found(write: Write) -> None:
    scans = [write(0), write(1, mask=np.ones(SIZE, dtype=np.bool_)), write(2, mask=~LESION)]

    assert only("full_masks", scans) == [
        (["scan-01"], "its mask covers 100.0%, and 100% of the border"),
        (["scan-02"], f"its mask covers {1 - LESION.mean():.1%}, and 100% of the border"),
    ]


def test_a_lesion_at_the_border_is_not_taken_for_a_full_mask(write: Write) -> None:
    at_border = np.zeros(SIZE, dtype=np.bool_)
    at_border[:60, :100] = True

    assert only("full_masks", [write(0), write(1, mask=at_border)]) == []


def test_stray_specks_are_found_and_a_second_lesion_is_not(write: Write) -> None:
    specks = LESION.copy()
    specks[5, 5] = specks[90, 100:103] = True
    second = LESION.copy()
    second[5:10, 5:10] = True

    assert only("specks", [write(0, mask=specks), write(1, mask=second)]) == [
        (["scan-00"], "tiny pieces of its mask: 2 of 3")
    ]


def test_a_mask_of_a_few_pixels_is_a_speck(write: Write) -> None:
    dot = np.zeros(SIZE, dtype=np.bool_)
    dot[50, 60:62] = True

    assert only("specks", [write(0, mask=dot)]) == [(["scan-00"], "tiny pieces of its mask: 1 of 1")]


# -- images ----------------------------------------------------------------------------------------------------------


def test_tiny_extreme_and_outlying_sizes_are_found(write: Write) -> None:
    def sized(number: int, *size: int) -> ScanFiles:
        rows, columns = np.indices(size)
        lesion = ((rows - size[0] / 2) / size[0]) ** 2 + ((columns - size[1] / 2) / size[1]) ** 2 < 0.04
        return write(number, image=picture(number, size), mask=lesion)

    usual = [sized(number, 92 + 2 * number, 120 - 2 * number) for number in range(8)]

    found = only("odd_sizes", [*usual, sized(10, 30, 60), sized(11, 80, 250), sized(12, 300, 400)])

    # The medians are 98 and 114 pixels; the others are so alike that 2.5 times these is the limit.
    assert found == [
        (["scan-10"], "30x60: tiny, its height is far from the set's, 39 to 245"),
        (["scan-11"], "80x250: 3.1 times as wide"),
        (
            ["scan-12"],
            "300x400: its height is far from the set's, 39 to 245, its width is far from the set's, 46 to 285",
        ),
    ]


def test_sizes_that_vary_as_in_a_published_set_are_not_odd(write: Write) -> None:
    sides = [(96, 90), (110, 150), (140, 100), (160, 190), (120, 160), (100, 110)]

    assert only(
        "odd_sizes",
        [write(n, image=picture(n, size), mask=np.ones(size) * 0 > 1, label="normal") for n, size in enumerate(sides)],
    ) == []  # fmt: skip


def test_coloured_marks_are_found_and_a_tinted_display_is_not(write: Write) -> None:
    scans = [write(0), write(1), write(2)]
    marked = np.dstack([picture(1)] * 3)
    marked[10, 10:20] = (255, 255, 0)
    Image.fromarray(marked).save(scans[1].image)
    tinted = np.dstack([picture(2), picture(2), picture(2) * 0.85]).astype(np.uint8)
    Image.fromarray(tinted).save(scans[2].image)

    assert only("coloured", scans) == [(["scan-01"], f"{10 / (96 * 120):.2%} of its pixels are coloured")]


def test_colour_is_found_in_dicom_and_gray_dicom_has_none(write: Write, tmp_path: Path) -> None:
    def dicom(number: int, pixels: np.ndarray) -> ScanFiles:
        path = tmp_path / f"{number}.dcm"
        write_dicom(path, pixels, "RGB" if pixels.ndim == 3 else "MONOCHROME2")
        return replace(write(number), image=path)

    doppler = np.dstack([picture(1)] * 3)
    doppler[20:40, 20:40] = (220, 30, 20)

    assert only("coloured", [dicom(0, picture(0)), dicom(1, doppler), dicom(2, np.dstack([picture(2)] * 3))]) == [
        (["scan-01"], f"{400 / (96 * 120):.2%} of its pixels are coloured")
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_and_its_colours_are_read_at_once_as_apart(write: Write, tmp_path: Path, mode: str) -> None:
    files = replace(write(0), image=tmp_path / "image.tif")
    colours = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(files.image)
    else:
        Image.fromarray(colours).convert(mode).save(files.image)

    scan, found = read_with_colours(files)

    np.testing.assert_array_equal(scan.image, read_scan(files).image)
    np.testing.assert_array_equal(scan.mask, LESION)
    if mode in ("P", "RGB", "RGBA", "CMYK"):
        np.testing.assert_array_equal(found, np.asarray(Image.open(files.image).convert("RGB")))
    else:
        assert found is None


def test_black_and_nearly_constant_images_are_found(write: Write) -> None:
    noise = np.random.default_rng(0).integers(100, 110, SIZE, dtype=np.uint8)
    scans = [write(0), write(1, image=np.zeros(SIZE, dtype=np.uint8)), write(2, image=noise)]

    assert only("flat", scans) == [
        (["scan-01"], "contrast 0.0 gray levels"),
        (["scan-02"], f"contrast {noise.std():.1f} gray levels"),
    ]


# -- doubles ---------------------------------------------------------------------------------------------------------


def brighter(image: Gray) -> Gray:
    return (image * 0.8 + 20).astype(np.uint8)


def test_identical_scans_are_found_and_told_from_near_duplicates(write: Write) -> None:
    scans = [write(0), write(1), write(2), write(3, image=picture(0)), write(4, image=brighter(picture(1)))]

    found = found_in(scans)

    assert found["identical"] == [(["scan-00", "scan-03"], "2 equal images, of 2 patients")]
    ((keys, says),) = found["near_duplicates"]
    assert keys == ["scan-01", "scan-04"]
    assert says.startswith(("correlation 0.99", "correlation 1.00"))
    assert says.endswith(", of 2 patients")


def test_doubles_of_one_patient_come_after_those_of_several(write: Write) -> None:
    scans = [write(0), write(1), write(2, image=picture(0), patient="patient-0"), write(3, image=picture(1))]

    assert only("identical", [replace(scan, group="one", patient="one") for scan in scans[::2]]) == [
        (["scan-00", "scan-02"], "2 equal images, of one patient")
    ]
    assert [keys for keys, _ in found_in(scans)["identical"]] == [["scan-01", "scan-03"], ["scan-00", "scan-02"]]


def test_equal_images_with_other_masks_say_so(write: Write) -> None:
    scans = [write(0), write(1, image=picture(0), mask=np.roll(LESION, 5, axis=1))]

    assert found_in(scans)["identical"] == [(["scan-00", "scan-01"], "2 equal images, masks differ, of 2 patients")]


def test_constant_images_are_doubles_only_where_their_pixels_are_equal(write: Write) -> None:
    grays = [0, 0, 9]
    scans = [write(number, image=np.full(SIZE, gray, dtype=np.uint8)) for number, gray in enumerate(grays)]

    audited = audit(Findings(scans), workers=1)

    assert audited.groups == (("scan-00", "scan-01"),)
    assert audited.pairs == (("scan-00", "scan-01", 1.0),)


def test_a_group_of_doubles_gives_the_correlation_of_each_pair(write: Write) -> None:
    image = picture(0)
    noise = np.random.default_rng(0).integers(-12, 12, (2, *SIZE))
    noisy = [np.clip(image + amount, 0, 255).astype(np.uint8) for amount in noise]
    audited = audit(Findings([write(0), write(1, image=noisy[0]), write(2, image=noisy[1]), write(3)]), workers=1)

    (finding,) = next(section for section in audited.sections if section.name == "near_duplicates").findings

    assert audited.groups == (("scan-00", "scan-01", "scan-02"),)
    assert [(i, j) for i, j, _ in audited.pairs] == [
        ("scan-00", "scan-01"), ("scan-00", "scan-02"), ("scan-01", "scan-02"),
    ]  # fmt: skip
    each = ", ".join(f"{i} and {j} {correlation:.3f}" for i, j, correlation in audited.pairs)
    assert finding.says == f"correlations: {each}, of 3 patients"


def test_doubles_with_several_labels_or_patients_are_found(write: Write) -> None:
    scans = [
        write(0),
        write(1, image=brighter(picture(0)), label="malignant"),
        write(2, patient="p"),
        write(3, image=picture(2), patient="p", label="unknown"),
    ]

    found = found_in(scans)

    assert found["conflicting_labels"] == [(["scan-00", "scan-01"], "labels benign (1), malignant (1)")]
    assert found["shared_patients"] == [(["scan-00", "scan-01"], "patients patient-0 (1), patient-1 (1)")]


def test_official_folds_that_tear_a_patient_a_group_or_doubles_apart_are_found(write: Write) -> None:
    scans = [
        write(0, patient="p", group="p", fold=1),
        write(1, patient="p", group="p", fold=2),
        write(2, group="g", fold=1),
        write(3, group="g", fold=3),
        write(4, fold=2),
        write(5, image=picture(4), fold=1),
        write(6, fold=2),
        write(7, patient="q", fold=3),
        write(8, patient="q", fold=None),
    ]

    assert found_in(scans)["split_by_folds"] == [
        (["scan-00", "scan-01"], "patient p: folds 1, 2"),
        (["scan-02", "scan-03"], "group g: folds 1, 3"),
        (["scan-04", "scan-05"], "duplicates of scan-04: folds 1, 2"),
    ]


# -- the whole -------------------------------------------------------------------------------------------------------


def overview_of(scans: list[ScanFiles]) -> Audit:
    return audit(Findings(scans), workers=2)


def test_the_overview_counts_what_could_be_read(write: Write) -> None:
    areas = [100, 200, 300]
    masks = []
    for area in areas:
        mask = np.zeros(SIZE, dtype=np.bool_)
        mask[20 : 20 + area // 10, 30:40] = True
        masks.append(mask)
    scans = [
        write(0, mask=masks[0], patient="a", fold=1, spacing=(0.1, 0.1)),
        write(1, mask=masks[1], patient="a", fold=1),
        write(2, mask=masks[2], patient="b", fold=2),
        write(3, image=picture(3, (120, 100)), mask=None, label="normal"),
        write(4),
    ]
    scans[4].image.unlink()

    overview = overview_of(scans).overview

    assert (overview.scans, overview.patients, overview.with_lesion, overview.with_spacing) == (4, 3, 3, 1)
    assert overview.labels == {"benign": 3, "normal": 1}
    assert overview.folds == {1: 2, 2: 1}
    assert overview.height == Spread(96, 96, 96, 102, 120)
    assert overview.width == Spread(100, 115, 120, 120, 120)
    benign = overview.lesion_area["benign"]
    assert [benign.smallest, benign.median, benign.largest] == pytest.approx([area / (96 * 120) for area in areas])
    assert list(overview.lesion_area) == ["benign"]


def test_the_outcome_does_not_depend_on_the_number_of_threads(write: Write) -> None:
    scans = [write(number, image=picture(number % 4)) for number in range(12)]

    alone, together = (audit(Findings(scans), workers=workers) for workers in (1, 4))

    assert alone == together
    assert len(alone.groups) == 4


def test_every_scan_goes_by_once_and_an_interrupted_audit_leaves_no_thread(write: Write) -> None:
    scans = [write(number) for number in range(8)]
    seen = []

    def watched(outcomes: Iterator) -> Iterator:
        for outcome in outcomes:
            seen.append(outcome)
            yield outcome

    audit(Findings(scans), workers=2, watched=watched)
    assert [facts.key for facts, _ in seen] == [scan.key for scan in scans]

    def interrupted(outcomes: Iterator) -> Iterator:
        yield next(outcomes)
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        audit(Findings(scans), workers=2, watched=interrupted)
    assert threading.active_count() == before
