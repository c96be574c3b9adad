from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_pipeline.phantom import phantom, phantom_owner
from data_pipeline.scan import Scan

SIZE = (128, 128)


@cache
def series() -> list[Scan]:
    """Enough scans for what is true on average."""
    return [phantom(number, SIZE) for number in range(160)]


def lesions() -> list[Scan]:
    return [scan for scan in series() if scan.label != "normal"]


def mean_gray(scan: Scan, where: np.ndarray) -> float:
    return float(scan.image[where].mean())


def test_a_phantom_depends_on_its_arguments_only() -> None:
    first = phantom(5, SIZE, seed=3)
    phantom(6, SIZE, seed=3)
    again = phantom(5, SIZE, seed=3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, phantom(5, SIZE, seed=4).image)
    assert not np.array_equal(first.image, phantom(7, SIZE, seed=3).image)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(16, 150), st.integers(16, 150), st.integers(0, 2**32))
def test_a_phantom_of_any_size_is_a_scan(number: int, height: int, width: int, seed: int) -> None:
    scan = phantom(number, (height, width), seed)
    assert scan.key == f"phantom-{number:05d}"
    assert scan.image.shape == scan.mask.shape == (height, width)
    assert scan.image.dtype == np.uint8
    assert scan.mask.dtype == np.bool_
    assert scan.mask.any() == (scan.label != "normal")
    assert scan.spacing is not None
    assert 35 <= scan.spacing[0] * height <= 56
    assert scan.spacing[0] == scan.spacing[1]


def test_a_patient_has_two_scans_that_differ() -> None:
    for left, right in zip(series()[::2], series()[1::2], strict=True):
        assert (left.patient, left.group, left.label, left.spacing) == (
            right.patient,
            right.group,
            right.label,
            right.spacing,
        )
        assert not np.array_equal(left.image, right.image)
    assert len({scan.patient for scan in series()}) == 80


def test_whose_a_phantom_is_is_known_before_it_is_drawn() -> None:
    for number, scan in enumerate(series()):
        owner = phantom_owner(number)
        assert (owner.key, owner.patient, owner.group, owner.label) == (scan.key, scan.patient, scan.group, scan.label)
    assert any(phantom_owner(number, seed=1).label != phantom_owner(number).label for number in range(20))


def test_all_labels_appear_and_only_normal_scans_have_no_lesion() -> None:
    counts = Counter(scan.label for scan in series())
    assert counts.keys() == {"benign", "malignant", "normal"}
    assert counts["normal"] < counts["malignant"]
    assert all(scan.mask.any() == (scan.label != "normal") for scan in series())


def test_a_few_scans_show_two_lesions() -> None:
    found = Counter(ndimage.label(scan.mask)[1] for scan in lesions())
    assert found[1] > 5 * found[2] > 0


def test_lesions_are_darker_than_what_surrounds_them_some_by_little() -> None:
    differences = []
    for scan in lesions():
        ring = ndimage.binary_dilation(scan.mask, iterations=12) & ~ndimage.binary_dilation(scan.mask, iterations=3)
        differences.append(mean_gray(scan, ring) - mean_gray(scan, scan.mask))
    assert np.mean(np.array(differences) > 5) > 0.9
    assert np.quantile(differences, 0.1) < 30 < 55 < np.quantile(differences, 0.9)


def test_below_benign_lesions_it_is_brighter_and_below_malignant_ones_darker() -> None:
    """Against the same depths beside the lesion."""
    of_label: dict[str, list[float]] = {"benign": [], "malignant": []}
    for scan in lesions():
        rows, columns = np.nonzero(scan.mask)
        below, beside = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
        start, margin = rows.max() + 4, 6
        below[start : start + 30, columns.min() + margin : columns.max() - margin] = True
        beside[start : start + 30, : max(0, columns.min() - margin)] = True
        beside[start : start + 30, columns.max() + margin :] = True
        if below.any() and beside.any():
            of_label[scan.label].append(mean_gray(scan, below) - mean_gray(scan, beside))
    assert np.median(of_label["benign"]) > 5
    assert np.median(of_label["malignant"]) < -10


def test_malignant_outlines_are_rougher() -> None:
    """By the outline's length against that of a disk of the same area."""

    def roughness(scan: Scan) -> float:
        edge = scan.mask & ~ndimage.binary_erosion(scan.mask)
        return float(edge.sum() / np.sqrt(scan.mask.sum()))

    single = [scan for scan in lesions() if ndimage.label(scan.mask)[1] == 1]
    rough = np.mean([roughness(scan) for scan in single if scan.label == "malignant"])
    assert rough > 1.05 * np.mean([roughness(scan) for scan in single if scan.label == "benign"])


def test_speckle_is_wider_than_deep() -> None:
    image = np.stack([scan.image for scan in series()[:40]]).astype(np.float32)
    fine = image - ndimage.gaussian_filter(image, (0, 6, 6))
    down = (fine[:, 2:] * fine[:, :-2]).mean()
    aside = (fine[:, :, 2:] * fine[:, :, :-2]).mean()
    assert aside > 1.5 * down


def test_depth_attenuates() -> None:
    normal = np.mean([scan.image for scan in series()], axis=0)
    assert normal[20:50].mean() > normal[-30:].mean() + 15


@pytest.mark.parametrize("smoothing", [0, 2, 4])
def test_no_threshold_finds_the_lesions(smoothing: int) -> None:
    scans = lesions()[:80]
    images = [ndimage.gaussian_filter(scan.image, smoothing) for scan in scans]
    best = max(
        np.mean(
            [
                2 * (scan.mask & (image < level)).sum() / (scan.mask.sum() + (image < level).sum())
                for scan, image in zip(scans, images, strict=True)
            ]
        )
        for level in range(8, 248, 8)
    )
    assert 0.1 < best < 0.6
