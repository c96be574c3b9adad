import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline import Scan
from tests.trainer.masks import disc, rectangle
from trainer.metrics import dice
from trainer.serving import Segmenter
from trainer.threshold import THRESHOLDS, choose_threshold, dsc_by_threshold


class Brightness(nn.Module):
    """A network whose probability is the brightness of a pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        return [(self.scale * pixels).logit(eps=1e-6)]


def blurred(key, lesion, threshold, shape=(40, 40)):
    """A scan on which exactly the lesion is as bright as the threshold, a rim is a little less so."""
    image = np.full(shape, 5, np.uint8)
    image[disc(shape, (20, 20), 14)] = int(255 * (threshold - 0.04))
    image[lesion] = int(255 * (threshold + 0.04))
    return Scan(key, image, lesion, key, key, "benign", None)


LESION = disc((40, 40), (20, 20), 9)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(Brightness(), (40, 40))


def test_the_grid_is_that_of_twentieths_with_one_half_in_the_middle():
    assert THRESHOLDS[:2] == (0.05, 0.1)
    assert THRESHOLDS[9] == 0.5
    assert len(THRESHOLDS) == 19


def test_the_threshold_at_which_lesions_are_outlined_best_is_chosen(segmenter):
    scans = [blurred(str(number), LESION, 0.3) for number in range(3)]
    rows = dsc_by_threshold(segmenter, scans, batch=2)
    chosen = choose_threshold(rows)
    assert chosen.threshold == 0.3
    assert chosen.curve[THRESHOLDS.index(0.3)] == 1.0
    assert max(chosen.curve[:5]) < 1.0
    assert set(chosen.curve[7:]) == {0.0}


def test_each_row_is_the_dsc_of_masks_at_each_threshold(segmenter):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 40), dtype=np.uint8)
    scan = Scan("a", image, LESION, "a", "a", "benign", None)
    (row,) = dsc_by_threshold(segmenter, [scan])
    (probability,) = segmenter.probabilities([image])
    assert row == tuple(dice(probability >= threshold, LESION) for threshold in THRESHOLDS)


def test_a_mask_is_made_as_it_will_be_used(segmenter):
    speckled = blurred("a", LESION, 0.3)
    speckled.image[:3, :3] = 250
    (all_of_it,) = dsc_by_threshold(segmenter, [speckled])
    (largest,) = dsc_by_threshold(segmenter.using(largest_component=True), [speckled])
    place = THRESHOLDS.index(0.3)
    assert largest[place] == 1.0
    assert all_of_it[place] == pytest.approx(2 * LESION.sum() / (2 * LESION.sum() + 9))


def test_normal_scans_have_no_row(segmenter):
    nothing = rectangle((40, 40), 0, 0, 0, 0)
    assert len(dsc_by_threshold(segmenter, [blurred("n", nothing, 0.3), blurred("a", LESION, 0.3)])) == 1


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_chosen_and_then_the_lower():
    flat = (0.7,) * 19
    assert choose_threshold([flat]).threshold == 0.5
    beside = tuple(0.8 if threshold in (0.4, 0.6, 0.1) else 0.7 for threshold in THRESHOLDS)
    assert choose_threshold([beside]).threshold == 0.4


def test_parts_gathered_in_any_order_come_to_the_same_bits():
    rows = [tuple(row) for row in np.exp(np.random.default_rng(4).normal(0, 8, (300, 19))).tolist()]
    whole = choose_threshold(rows)
    for world in (2, 3):
        assert choose_threshold([row for rank in range(world) for row in rows[rank::world]]) == whole


def test_without_a_lesion_one_half_stays():
    assert choose_threshold([]).threshold == 0.5
    assert choose_threshold([]).curve == ()
