import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import resize_mask

sides = st.integers(1, 24)


def covered(mask, size):
    """How much of each new pixel is inside, in pieces of which a new pixel has as many as the mask has pixels."""
    height, width = mask.shape
    pieces = np.repeat(np.repeat(mask, size[0], axis=0), size[1], axis=1)
    return pieces.reshape(size[0], height, size[1], width).sum(axis=(1, 3), dtype=np.int64)


@given(sides, sides, sides, sides, st.integers(0, 2**32))
def test_a_resized_mask_is_inside_where_half_of_what_a_pixel_covers_is(height, width, new_height, new_width, seed):
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < random.random()
    found = resize_mask(mask, (new_height, new_width))
    assert found.dtype == np.uint8
    assert np.array_equal(found, 2 * covered(mask, (new_height, new_width)) >= height * width)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.data())
def test_a_lesion_anywhere_even_at_the_border_is_brought_to_size_exactly(before, after, data):
    first, last = (sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for side in before)
    mask = np.zeros(before, bool)
    mask[first[0] : first[1], last[0] : last[1]] = True
    assert np.array_equal(resize_mask(mask, after), 2 * covered(mask, after) >= mask.size)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32))
def test_pixels_that_are_half_covered_are_inside(height, width, seed):
    """Each new pixel covers two old ones, of which often one is inside."""
    mask = np.random.default_rng(seed).random((height, 2 * width)) < 0.5
    assert np.array_equal(resize_mask(mask, (height, width)), mask[:, ::2] | mask[:, 1::2])
    assert np.array_equal(resize_mask(mask.T, (width, height)), (mask[:, ::2] | mask[:, 1::2]).T)


def test_half_covered_pixels_are_inside():
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]], bool)
    assert resize_mask(mask, (2, 2)).tolist() == [[1, 1], [0, 0]]


def test_a_mask_of_the_size_asked_for_stays_as_it_is():
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    assert np.array_equal(resize_mask(mask, (9, 7)), mask)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("before", [(1, 1), (16384, 3), (3, 16384), (5000, 5000)])
@pytest.mark.parametrize("after", [(1, 1), (256, 256), (2, 4096)])
def test_a_mask_that_is_all_inside_or_all_outside_stays_so_at_any_size(before, after, inside):
    found = resize_mask(np.full(before, inside), after)
    assert found.shape == after
    assert (found == inside).all()


def test_a_mask_that_does_not_lie_in_rows_is_brought_to_size_too():
    mask = np.random.default_rng(0).random((40, 30)) < 0.5
    for view in (mask.T, mask[::-1, ::-1], mask[3:30:2, 5:20]):
        assert np.array_equal(resize_mask(view, (7, 9)), resize_mask(view.copy(), (7, 9)))
