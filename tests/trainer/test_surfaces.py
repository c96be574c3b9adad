import math

import numpy as np
import pytest
from hypothesis import given, settings

from tests.trainer.masks import disc, pairs, rectangle, spacings
from trainer.surfaces import SURFACE_TOLERANCE, compare_outlines


def apart(marked, truth, spacing):
    """The two lists of distances, from every pair of outline pixels, and outlines by looking at the four neighbours."""

    def outline(mask):
        padded = np.pad(mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inside) * np.array(spacing)

    one, other = outline(marked), outline(truth)
    distances = np.sqrt(((one[:, None] - other[None]) ** 2).sum(axis=2))
    return distances.min(axis=1), distances.min(axis=0)


def test_measures_of_two_lines_are_those_worked_out_by_hand():
    # Every pixel is outline. The truth is columns 0 and 1, marked is column 7 at the same rows.
    truth, marked = rectangle((3, 9), 0, 0, 3, 2), rectangle((3, 9), 0, 7, 3, 8)
    truth[1, 1] = False
    score = compare_outlines(marked, truth)["px"]
    # From marked 6, sqrt(36 + 1), 6; from the truth 7, 6, 7, 7, 6 (rows 0 and 2 have two columns, row 1 one).
    there, back = [6, math.sqrt(37), 6], [7, 6, 7, 7, 6]
    assert score.assd == pytest.approx((sum(there) + sum(back)) / 8)
    assert score.rms_surface_distance == pytest.approx(math.sqrt((36 + 37 + 36 + 49 + 36 + 49 + 49 + 36) / 8))
    assert score.hd95 == pytest.approx(7.0)
    assert score.surface_dice == 0.0


def test_a_pixel_within_the_tolerance_counts_as_right_and_one_beyond_it_does_not():
    assert SURFACE_TOLERANCE == {"mm": 1.0, "px": 5.0}
    truth = rectangle((1, 40), 0, 0, 1, 1)
    both = compare_outlines(rectangle((1, 40), 0, 5, 1, 7), truth, spacing=(0.125, 0.125))
    # Marked are columns 5 and 6: the first lies 5 pixels off, as the truth does from it; the second 6.
    assert both["px"].surface_dice == pytest.approx(2 / 3)
    # In mm these are 0.625 and 0.75, all within 1 mm; 8 pixels are 1 mm, and 9 are more.
    assert both["mm"].surface_dice == 1.0
    farther = compare_outlines(rectangle((1, 40), 0, 8, 1, 10), truth, spacing=(0.125, 0.125))
    assert farther["mm"].surface_dice == pytest.approx(2 / 3)
    assert farther["px"].surface_dice == 0.0


def test_without_a_spacing_there_is_nothing_in_mm():
    truth = rectangle((9, 9), 2, 2, 5, 5)
    assert set(compare_outlines(truth, truth)) == {"px"}
    assert set(compare_outlines(~truth & truth, truth)) == {"px"}


def test_the_same_mask_has_no_distance():
    truth = disc((40, 40), (20, 20), 9)
    for score in compare_outlines(truth, truth, (0.1, 0.2)).values():
        assert (score.rms_surface_distance, score.assd, score.hd95, score.surface_dice) == (0.0, 0.0, 0.0, 1.0)


def test_outlines_shifted_far_lie_as_far_apart_as_they_were_shifted_in_each_direction_s_unit():
    truth = rectangle((200, 300), 50, 60, 120, 180)
    down, across = np.roll(truth, 10, axis=0), np.roll(truth, 10, axis=1)
    assert compare_outlines(down, truth, (0.1, 0.4))["mm"].hd95 == pytest.approx(1.0)
    assert compare_outlines(across, truth, (0.1, 0.4))["mm"].hd95 == pytest.approx(4.0)


def test_of_concentric_discs_every_pixel_lies_the_radii_apart():
    inner, outer = disc((120, 120), (60, 60), 30), disc((120, 120), (60, 60), 40)
    score = compare_outlines(inner, outer, (0.2, 0.2))["mm"]
    for distance in (score.rms_surface_distance, score.assd, score.hd95):
        assert distance == pytest.approx(2.0, abs=0.15)


@settings(max_examples=200)
@given(pairs, spacings)
def test_measures_are_those_of_comparing_every_pair_of_outline_pixels(pair, spacing):
    marked, truth = pair
    marked[-1, 0] = truth[0, 0] = True
    scores = compare_outlines(marked, truth, spacing)
    for unit, sides in (("px", (1.0, 1.0)), ("mm", spacing)):
        there, back = apart(marked, truth, sides)
        both = [*there, *back]
        assert scores[unit].hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
        assert scores[unit].assd == pytest.approx(np.mean(both))
        assert scores[unit].rms_surface_distance == pytest.approx(math.sqrt(np.mean(np.square(both))))
        assert scores[unit].surface_dice == pytest.approx(np.mean(np.array(both) <= SURFACE_TOLERANCE[unit]))


@given(pairs, spacings)
def test_no_outline_is_as_far_off_as_none_at_all_and_none_is_symmetric(pair, spacing):
    marked, truth = pair
    marked[-1, 0] = truth[0, 0] = True
    some = compare_outlines(marked, truth, spacing)
    none = compare_outlines(np.zeros_like(marked), truth, spacing)
    assert none == compare_outlines(truth, np.zeros_like(marked), spacing)
    for unit, (row, column) in (("px", (1.0, 1.0)), ("mm", spacing)):
        diagonal = math.hypot(row * truth.shape[0], column * truth.shape[1])
        for name in ("rms_surface_distance", "assd", "hd95"):
            assert getattr(some[unit], name) < getattr(none[unit], name) == diagonal
        assert some[unit].surface_dice >= none[unit].surface_dice == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.08, 0.08), (0.05, 0.12)])
def test_where_monai_measures_the_same_it_measures_the_same(spacing):
    # Its surface Dice without subvoxels counts outline pixels, as ours does. It has no RMS surface distance, and for
    # a mask that is empty its distances are infinite or not a number, where ours are the scan's diagonal.
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    generator = np.random.default_rng(3)
    shape = (60, 80)
    for case in range(8):
        truth = disc(shape, generator.integers(10, 50, 2), 12) | disc(shape, generator.integers(0, 60, 2), 6)
        marked = np.roll(truth, tuple(generator.integers(-6, 7, 2)), axis=(0, 1))
        marked ^= generator.random(shape) < 0.02 * (case % 2)
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (marked, truth)]
        settings = {"include_background": True, "spacing": spacing}
        ours = compare_outlines(marked, truth, spacing)["mm"]
        hd95 = compute_hausdorff_distance(*tensors, percentile=95, **settings)
        assert ours.hd95 == pytest.approx(hd95.item(), rel=1e-5)
        assd = compute_average_surface_distance(*tensors, symmetric=True, **settings)
        assert ours.assd == pytest.approx(assd.item(), rel=1e-5)
        dice = compute_surface_dice(*tensors, class_thresholds=[SURFACE_TOLERANCE["mm"]], **settings)
        assert ours.surface_dice == pytest.approx(dice.item(), rel=1e-5)


def test_by_length_instead_of_pixels_the_surface_dice_of_smooth_outlines_hardly_differs():
    # MONAI's subvoxels weigh an outline by its length (Nikolov et al. 2021), which a diagonal line of pixels lacks.
    import torch
    from monai.metrics import compute_surface_dice

    truth, marked = disc((120, 120), (60, 60), 30), disc((120, 120), (63, 61), 33)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (marked, truth)]
    by_length = compute_surface_dice(*tensors, [1.0], include_background=True, spacing=(0.3, 0.3), use_subvoxels=True)
    ours = compare_outlines(marked, truth, (0.3, 0.3))["mm"].surface_dice
    assert 0.2 < ours < 0.9
    assert ours == pytest.approx(by_length.item(), abs=0.05)
