import io
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_pipeline import duplicates
from data_pipeline.duplicates import (
    SIDE,
    Pair,
    duplicate_groups,
    near_duplicates,
    pixel_digest,
    thumbnail,
    with_identical,
)
from data_pipeline.phantom import phantom
from data_pipeline.scan import Gray


def picture(number: int = 0, size: tuple[int, int] = (240, 320)) -> Gray:
    return phantom(2 * number, size).image


def correlation(first: Gray, second: Gray) -> float:
    return float(thumbnail(first) @ thumbnail(second))


def coverage(length: int) -> np.ndarray:
    """[48, length]: the share that each pixel has in each of 48 equal parts of a line, part by part."""
    shares = np.zeros((SIDE, length))
    for part in range(SIDE):
        start, end = part * length / SIDE, (part + 1) * length / SIDE
        for pixel in range(length):
            shares[part, pixel] = max(0.0, min(end, pixel + 1) - max(start, pixel))
    return shares / shares.sum(axis=1, keepdims=True)


def jpeg(image: Gray, quality: int) -> Gray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# -- thumbnails ------------------------------------------------------------------------------------------------------


@given(st.integers(48, 130), st.integers(48, 130), st.integers(0, 5))
def test_a_thumbnail_is_the_area_mean_with_zero_mean_and_unit_norm(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    means = coverage(height) @ image @ coverage(width).T
    expected = (means - means.mean()) / np.linalg.norm(means - means.mean())

    found = thumbnail(image)

    assert found.dtype == np.float32
    assert found.shape == (SIDE * SIDE,)
    np.testing.assert_allclose(found, expected.ravel(), atol=2e-6)


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (20, 300), (300, 20)])
def test_an_image_smaller_than_its_thumbnail_equals_itself_alone(size: tuple[int, int]) -> None:
    first, second = (np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8) for seed in (1, 2))

    assert np.isfinite(thumbnail(first)).all()
    if size != (1, 1):
        assert correlation(first, first) == pytest.approx(1.0, abs=1e-6)
        assert correlation(first, second) < 0.5


@pytest.mark.parametrize("gray", [0, 1, 77, 255])
@pytest.mark.parametrize("size", [(48, 48), (101, 67), (333, 251), (20, 31)])
def test_a_constant_image_resembles_nothing_not_even_itself(gray: int, size: tuple[int, int]) -> None:
    assert not thumbnail(np.full(size, gray, dtype=np.uint8)).any()


def test_a_pattern_too_fine_for_a_thumbnail_counts_as_constant() -> None:
    chequered = (np.indices((480, 480)).sum(axis=0) % 2 * 255).astype(np.uint8)

    assert not thumbnail(chequered).any()


# -- what counts as a near-duplicate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "double",
    [
        pytest.param(lambda image: image.copy(), id="identical"),
        pytest.param(lambda image: jpeg(image, 40), id="re-encoded as JPEG"),
        pytest.param(lambda image: (image * 0.6 + 30).astype(np.uint8), id="brighter and flatter"),
        pytest.param(lambda image: np.roll(image, (1, -1), axis=(0, 1)), id="shifted by a pixel"),
        pytest.param(
            lambda image: np.asarray(Image.fromarray(image).resize((211, 173), Image.Resampling.BILINEAR)),
            id="at another size",
        ),
    ],
)
def test_a_double_is_found(double) -> None:
    image = picture()
    thumbnails = np.stack([thumbnail(picture(1)), thumbnail(image), thumbnail(picture(2)), thumbnail(double(image))])

    ((first, second, found),) = near_duplicates(thumbnails)

    assert (first, second) == (1, 3)
    assert 0.97 < found <= 1.0


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda image: image[:, ::-1], id="mirrored"),
        pytest.param(lambda image: image[::-1], id="upside down"),
        pytest.param(lambda image: 255 - image, id="inverted"),
        pytest.param(lambda image: np.roll(image, 40, axis=1), id="shifted by an eighth"),
        pytest.param(lambda _: picture(1), id="of another patient"),
    ],
)
def test_what_is_no_double_is_not_found(other) -> None:
    image = picture()

    assert near_duplicates(np.stack([thumbnail(image), thumbnail(other(image))])) == []


# -- all pairs -------------------------------------------------------------------------------------------------------


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(0, 2)),
    st.integers(1, 9),
    st.sampled_from([0.31, 0.713, 0.97]),
)
def test_pairs_are_those_of_comparing_each_with_each(values: np.ndarray, block: int, threshold: float) -> None:
    # Images of four flat quarters: few enough that many are alike.
    thumbnails = np.array(
        [thumbnail(np.kron(row.reshape(2, 2) * 100, np.ones((24, 24))).astype(np.uint8)) for row in values],
        dtype=np.float32,
    ).reshape(-1, SIDE * SIDE)
    exact = thumbnails.astype(np.float64)
    expected = {
        (i, j): float(exact[i] @ exact[j])
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if exact[i] @ exact[j] > threshold
    }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        found = near_duplicates(thumbnails, threshold)

    assert [(i, j) for i, j, _ in found] == sorted(expected)
    assert [c for *_, c in found] == pytest.approx([expected[pair] for pair in sorted(expected)], abs=1e-5)


def test_no_thumbnail_and_a_single_one_make_no_pair() -> None:
    assert near_duplicates(np.empty((0, SIDE * SIDE), dtype=np.float32)) == []
    assert near_duplicates(thumbnail(picture())[None]) == []


def test_memory_does_not_grow_with_the_number_of_correlations() -> None:
    random = np.random.default_rng(0)
    thumbnails = random.standard_normal((9000, SIDE * SIDE), dtype=np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    thumbnails[8999] = thumbnails[3]

    tracemalloc.start()
    try:
        pairs = near_duplicates(thumbnails)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [(i, j) for i, j, _ in pairs] == [(3, 8999)]
    assert peak < 9000 * 9000 * 4 / 6  # all correlations at once would be 324 MB


def test_scans_of_equal_digest_join_the_first_of_them_once() -> None:
    digests = [b"a", b"b", b"a", b"c", b"b", b"a"]

    assert with_identical([(0, 3, 0.98), (1, 4, 0.999)], digests) == [
        (0, 2, 1.0), (0, 3, 0.98), (0, 5, 1.0), (1, 4, 0.999),
    ]  # fmt: skip


def test_a_digest_tells_pixels_and_size() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)

    assert pixel_digest(image) == pixel_digest(np.asfortranarray(image))
    assert pixel_digest(image) != pixel_digest(image.reshape(4, 3))
    assert pixel_digest(image) != pixel_digest(image[::-1])


# -- groups ----------------------------------------------------------------------------------------------------------


def test_a_chain_of_pairs_is_one_group_and_groups_are_numbered_by_their_first_scans() -> None:
    assert duplicate_groups(7, [(1, 4, 0.98), (4, 6, 0.99), (2, 3, 1.0)]) == [0, 1, 2, 2, 1, 3, 1]
    assert duplicate_groups(3, []) == [0, 1, 2]
    assert duplicate_groups(0, []) == []


def merged(count: int, pairs: Sequence[Pair]) -> list[int]:
    """Groups by renaming the larger of two names everywhere, pair by pair, then numbering in order."""
    names = list(range(count))
    for first, second, _ in pairs:
        low, high = sorted((names[first], names[second]))
        names = [low if name == high else name for name in names]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


@given(st.integers(1, 25), st.data())
def test_groups_are_those_of_merging_pair_by_pair(count: int, data: st.DataObject) -> None:
    ends = st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True).map(sorted)
    pairs = [(i, j, 1.0) for i, j in data.draw(st.lists(ends, max_size=20))] if count > 1 else []

    assert duplicate_groups(count, pairs) == merged(count, pairs)
