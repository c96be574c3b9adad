import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline import Scan
from trainer.metrics import ScanScore, hd95, score_scan, summarise

MEASURES = ("dsc", "precision", "recall", "jaccard", "rmse", "hd95")

pairs = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def scan_of(truth, spacing=None, key="a", patient="p"):
    return Scan(key, np.zeros(truth.shape, np.uint8), truth, patient, patient, "benign", spacing)


def rectangle(shape, top, left, bottom, right):
    mask = np.zeros(shape, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def score_of(key, patient="p", **changes):
    whole = ScanScore(key, patient, "benign", True, True, 0.5, 0.5, 0.5, 1 / 3, 0.1, 4.0, None)
    return dataclasses.replace(whole, **changes)


def brute_hd95(marked, truth, spacing):
    """Every pair of outline pixels, and outlines by looking at the four neighbours."""

    def outline(mask):
        padded = np.pad(mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inside) * np.array(spacing)

    one, other = outline(marked), outline(truth)
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(axis=2))
    return max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))


def test_measures_of_two_overlapping_squares_are_those_worked_out_by_hand():
    # Truth 4 pixels, marked 6, shared 2.
    truth = rectangle((4, 5), 0, 0, 2, 2)
    probability = np.where(rectangle((4, 5), 0, 1, 2, 4), 0.75, 0.25)

    score = score_scan(scan_of(truth), probability)

    assert score.lesion
    assert score.marked
    assert score.dsc == 2 * 2 / (4 + 6)
    assert score.precision == 2 / 6
    assert score.recall == 2 / 4
    assert score.jaccard == 2 / 8
    # Off by .25 in 2 pixels of the truth and the 12 unmarked outside, by .75 in 2 and 4.
    assert score.rmse == pytest.approx(math.sqrt((14 * 0.25**2 + 6 * 0.75**2) / 20))
    # Every pixel is outline. From marked to truth 0, 1, 2 in each row; from truth to marked 1, 0.
    assert score.hd95_px == pytest.approx(np.percentile([0, 1, 2, 0, 1, 2], 95))
    assert score.hd95_mm is None


def test_a_pixel_is_marked_where_its_probability_reaches_the_threshold():
    truth = np.array([[True, True, False, False]])
    score = score_scan(scan_of(truth), np.array([[0.9, 0.7, 0.7, 0.1]]), threshold=0.7)
    assert (score.precision, score.recall) == (2 / 3, 1.0)


def test_a_perfect_outline_scores_one_and_no_distance():
    truth = rectangle((20, 30), 4, 5, 11, 19)
    score = score_scan(scan_of(truth, spacing=(0.1, 0.2)), truth.astype(np.float32))
    assert (score.dsc, score.precision, score.recall, score.jaccard) == (1.0, 1.0, 1.0, 1.0)
    assert (score.rmse, score.hd95_px, score.hd95_mm) == (0.0, 0.0, 0.0)


def test_a_missed_lesion_scores_nothing_and_the_diagonal():
    truth = rectangle((30, 40), 5, 5, 10, 10)
    score = score_scan(scan_of(truth, spacing=(0.5, 0.5)), np.zeros((30, 40)))
    assert not score.marked
    assert (score.dsc, score.precision, score.recall, score.jaccard) == (0.0, 0.0, 0.0, 0.0)
    assert score.hd95_px == 50.0
    assert score.hd95_mm == 25.0


@given(pairs)
def test_missing_a_lesion_is_never_better_than_marking_anything(pair):
    marked, truth = pair
    truth[0, 0] = True
    anything = score_scan(scan_of(truth), marked.astype(np.float32))
    nothing = score_scan(scan_of(truth), np.zeros(truth.shape))
    for measure in ("dsc", "precision", "recall", "jaccard"):
        assert getattr(nothing, measure) <= getattr(anything, measure)
    assert nothing.hd95_px >= anything.hd95_px


def test_a_normal_scan_has_no_measure_but_whether_a_pixel_was_marked():
    normal = scan_of(np.zeros((8, 8), np.bool_))
    quiet = score_scan(normal, np.zeros((8, 8)))
    alarmed = score_scan(normal, rectangle((8, 8), 1, 1, 2, 2).astype(np.float32))
    assert (quiet.lesion, quiet.marked) == (False, False)
    assert (alarmed.lesion, alarmed.marked) == (False, True)
    assert (alarmed.dsc, alarmed.precision, alarmed.recall, alarmed.jaccard, alarmed.rmse) == (None,) * 5
    assert (alarmed.hd95_px, alarmed.hd95_mm) == (None, None)


def test_hd95_can_be_left_out():
    truth = rectangle((9, 9), 2, 2, 5, 5)
    score = score_scan(scan_of(truth, (1.0, 1.0)), truth.astype(np.float32), surface=False)
    assert (score.hd95_px, score.hd95_mm) == (None, None)
    assert score.dsc == 1.0


def test_a_map_of_another_size_is_not_taken():
    with pytest.raises(ValueError, match="a: a map of"):
        score_scan(scan_of(rectangle((8, 8), 1, 1, 3, 3)), np.zeros((8, 9)))


@given(pairs)
def test_dsc_is_symmetric_bounded_and_follows_from_jaccard(pair):
    one, other = pair
    one[0, 0] = other[-1, -1] = True
    there = score_scan(scan_of(other), one.astype(np.float32))
    back = score_scan(scan_of(one), other.astype(np.float32))
    assert there.dsc == back.dsc
    assert there.hd95_px == back.hd95_px
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.dsc == pytest.approx(2 * there.jaccard / (1 + there.jaccard))
    for measure in ("dsc", "precision", "recall", "jaccard", "rmse"):
        assert 0 <= getattr(there, measure) <= 1
    assert there.jaccard <= min(there.precision, there.recall)


@settings(max_examples=200)
@given(pairs, st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)))
def test_hd95_is_that_of_comparing_every_pair_of_outline_pixels(pair, spacing):
    marked, truth = pair
    marked[-1, 0] = truth[0, 0] = True
    assert hd95(marked, truth, spacing) == pytest.approx(brute_hd95(marked, truth, spacing))
    assert hd95(marked, truth, spacing) < math.hypot(marked.shape[0] * spacing[0], marked.shape[1] * spacing[1])


def test_hd95_of_large_shifted_outlines_is_their_shift_in_each_direction_s_unit():
    truth = rectangle((200, 300), 50, 60, 120, 180)
    down, across = np.roll(truth, 10, axis=0), np.roll(truth, 10, axis=1)
    assert hd95(down, truth, (0.1, 0.4)) == pytest.approx(1.0)
    assert hd95(across, truth, (0.1, 0.4)) == pytest.approx(4.0)


def test_a_summary_takes_means_over_lesions_and_counts_normals_apart():
    scores = [
        score_of("a", "p", dsc=0.9, hd95_px=2.0),
        score_of("b", "q", dsc=0.6, hd95_px=4.0),
        score_of("c", "q", dsc=0.0, hd95_px=30.0, marked=False),
        ScanScore("d", "r", "normal", False, True, *[None] * 7),
        ScanScore("e", "s", "normal", False, False, *[None] * 7),
        ScanScore("f", "s", "normal", False, False, *[None] * 7),
    ]
    summary = summarise(scores)
    assert (summary.cases, summary.missed, summary.unit) == (3, 1, "px")
    assert (summary.normals.cases, summary.normals.false_positive_rate) == (3, pytest.approx(1 / 3))
    assert summary.dsc.mean == pytest.approx(0.5)
    assert summary.dsc.median == 0.6
    assert summary.dsc.sd == pytest.approx(math.sqrt((0.4**2 + 0.1**2 + 0.5**2) / 2))
    assert summary.hd95.mean == pytest.approx(12.0)


def test_a_summary_is_json_by_its_contract():
    told = summarise([score_of("a", "p"), score_of("b", "q")]).as_json()
    assert set(told) == {"cases", "missed", "normals", "unit", *MEASURES}
    assert set(told["normals"]) == {"cases", "false_positive_rate"}
    for measure in MEASURES:
        assert set(told[measure]) == {"mean", "sd", "median", "low", "high"}


def test_without_lesions_there_are_no_means_and_no_nan():
    told = summarise([ScanScore("d", "r", "normal", False, False, *[None] * 7)]).as_json()
    assert told["cases"] == 0
    assert told["normals"] == {"cases": 1, "false_positive_rate": 0.0}
    assert all(value is None for measure in MEASURES for value in told[measure].values())
    assert summarise([]).normals.false_positive_rate is None


def test_one_patient_has_a_mean_and_no_interval():
    dsc = summarise([score_of("a", dsc=0.4), score_of("b", dsc=0.8)]).dsc
    assert dsc.mean == pytest.approx(0.6)
    assert (dsc.low, dsc.high) == (None, None)
    assert summarise([score_of("a", dsc=0.4)]).dsc.sd is None


def test_hd95_that_was_left_out_has_no_mean():
    assert summarise([score_of("a", "p", hd95_px=None), score_of("b", "q", hd95_px=None)]).hd95.mean is None


def test_units_are_never_mixed_in_one_mean():
    in_mm = [score_of("a", "p", hd95_px=10.0, hd95_mm=1.0), score_of("b", "q", hd95_px=30.0, hd95_mm=6.0)]
    assert (summarise(in_mm).unit, summarise(in_mm).hd95.mean) == ("mm", pytest.approx(3.5))
    mixed = [*in_mm, score_of("c", "r", hd95_px=20.0)]
    assert (summarise(mixed).unit, summarise(mixed).hd95.mean) == ("px", pytest.approx(20.0))
    with_normal = [*in_mm, ScanScore("d", "s", "normal", False, False, *[None] * 7)]
    assert summarise(with_normal).unit == "mm"


def many_scores(scans_each):
    draw = np.random.default_rng(5).normal(0.8, 0.1, size=400)
    return [score_of(f"{place:03}", f"p{place // scans_each}", dsc=float(dsc)) for place, dsc in enumerate(draw)]


def test_the_interval_of_independent_scans_is_the_normal_approximation_s():
    dsc = summarise(many_scores(1)).dsc
    half = 1.96 * dsc.sd / math.sqrt(400)
    assert dsc.low == pytest.approx(dsc.mean - half, abs=0.1 * half)
    assert dsc.high == pytest.approx(dsc.mean + half, abs=0.1 * half)


def test_scans_of_one_patient_that_are_alike_do_not_narrow_the_interval():
    once = [score_of(f"{place}", f"p{place}", dsc=place % 10 / 10) for place in range(50)]
    copied = [dataclasses.replace(score, key=f"{score.key}-{copy}") for score in once for copy in range(4)]
    assert summarise(copied).dsc.low == pytest.approx(summarise(once).dsc.low, abs=0.02)
    assert summarise(copied).dsc.high == pytest.approx(summarise(once).dsc.high, abs=0.02)


def test_a_summary_depends_on_the_scores_and_not_on_their_order():
    # Values of very different sizes, whose sum depends on the order in which they are added.
    far = np.exp(np.random.default_rng(6).normal(0, 8, size=400))
    scores = [
        dataclasses.replace(score, hd95_px=float(distance)) for score, distance in zip(many_scores(2), far, strict=True)
    ]
    for seed in range(5):
        shuffled = [scores[place] for place in np.random.default_rng(seed).permutation(len(scores))]
        assert summarise(shuffled) == summarise(scores)
