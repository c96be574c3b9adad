import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from trainer.serving.components import keep_largest

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(np.bool_, shape))


def drawn(*rows):
    """A mask in which # is marked."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def kept(mask, probability=None):
    return keep_largest(mask, np.full(mask.shape, 0.5, np.float32) if probability is None else probability)


@given(mask=masks, seed=st.integers(0, 9))
@example(mask=np.array([[True]]), seed=0)
def test_what_stays_is_scipy_s_largest_component_and_of_equal_ones_the_likeliest(mask, seed):
    probability = np.random.default_rng(seed).choice([0.5, 0.625, 0.75], mask.shape).astype(np.float32)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    components = [labels == number for number in range(1, count + 1)]
    best = max(components, key=lambda one: (one.sum(), probability[one].sum()), default=mask)
    np.testing.assert_array_equal(kept(mask, probability), best)


@pytest.mark.parametrize("density", [0.3, 0.41, 0.5])
def test_scan_sized_noise_falls_into_the_components_that_scipy_finds(density):
    mask = np.random.default_rng(0).random((480, 512)) < density
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    assert count > 1
    np.testing.assert_array_equal(kept(mask), labels == 1 + int(np.argmax(sizes)))


def test_pixels_that_touch_by_a_corner_belong_together_and_edges_of_the_scan_do_not_touch():
    mask = drawn("#...##", "......", "......", "..#...", ".#....", "#.....", "......", "##...#")
    np.testing.assert_array_equal(
        kept(mask), drawn("......", "......", "......", "..#...", ".#....", "#.....", "......", "......")
    )


def test_a_spiral_is_one_component():
    mask = drawn("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######", ".......", "##.....")
    assert kept(mask).sum() == mask.sum() - 2


def test_of_equal_components_the_likelier_stays_and_else_the_first():
    mask = drawn("##..##", "......", "##....")
    probability = np.full(mask.shape, 0.5, np.float32)
    np.testing.assert_array_equal(kept(mask, probability), drawn("##....", "......", "......"))
    probability[2, 0] = 0.75
    np.testing.assert_array_equal(kept(mask, probability), drawn("......", "......", "##...."))


def test_nothing_marked_stays_nothing_and_no_mask_is_changed_in_place():
    mask = drawn("#.#", "#..")
    before = mask.copy()
    assert kept(mask).sum() == 2
    np.testing.assert_array_equal(mask, before)
    assert not kept(np.zeros((5, 4), bool)).any()
