import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline import Fault
from tests.trainer.masks import disc, pairs, rectangle, scan_of, spacings
from trainer.metrics import (
    LOWER_IS_BETTER,
    MEASURES,
    REGION_MEASURES,
    SURFACE_MEASURES,
    ScanScore,
    dice,
    score_scan,
    summarise,
)

ZERO = ("dsc", "precision", "recall", "jaccard", "surface_dice_px", "surface_dice_mm")
DISTANCES = ("rms_surface_distance", "assd", "hd95")


def scored(scan, probability, threshold=0.5, surface=True):
    return score_scan(scan, probability, probability >= threshold, surface)


def score_of(key, patient="p", **changes):
    whole = ScanScore(key, patient, "benign", True, True, 0.2, 0.5, 0.5, 0.5, 1 / 3, 0.1)
    surface = {f"{name}_px": 4.0 for name in SURFACE_MEASURES} | {"surface_dice_px": 0.5}
    return dataclasses.replace(whole, **(surface | changes))


def normal_score(key, patient, fraction=0.0):
    return ScanScore(key, patient, "normal", False, fraction > 0, fraction)


def test_measures_of_two_overlapping_squares_are_those_worked_out_by_hand():
    # Truth 4 pixels, marked 6, shared 2.
    truth = rectangle((4, 5), 0, 0, 2, 2)
    probability = np.where(rectangle((4, 5), 0, 1, 2, 4), 0.75, 0.25)

    score = scored(scan_of(truth), probability)

    assert score.lesion
    assert score.marked
    assert score.dsc == 2 * 2 / (4 + 6)
    assert score.precision == 2 / 6
    assert score.recall == 2 / 4
    assert score.jaccard == 2 / 8
    # Off by .25 in 2 pixels of the truth and the 12 unmarked outside, by .75 in 2 and 4.
    assert score.marked_fraction == 6 / 20
    assert score.rmse == pytest.approx(math.sqrt((14 * 0.25**2 + 6 * 0.75**2) / 20))
    # Every pixel is outline. From marked to truth 0, 1, 2 in each row; from truth to marked 1, 0.
    assert score.hd95_px == pytest.approx(np.percentile([0, 1, 2, 0, 1, 2], 95))
    assert score.hd95_mm is None


def test_what_is_marked_decides_on_regions_and_the_map_on_rmse():
    truth = np.array([[True, True, False, False]])
    probability = np.array([[0.9, 0.7, 0.7, 0.1]])
    score = scored(scan_of(truth), probability, threshold=0.7)
    assert (score.precision, score.recall) == (2 / 3, 1.0)
    assert score.rmse == pytest.approx(math.sqrt((0.1**2 + 0.3**2 + 0.7**2 + 0.1**2) / 4))
    assert scored(scan_of(truth), probability, threshold=0.1).rmse == score.rmse


def test_a_perfect_outline_scores_one_and_no_distance():
    truth = rectangle((20, 30), 4, 5, 11, 19)
    score = scored(scan_of(truth, spacing=(0.1, 0.2)), truth.astype(np.float32))
    assert (score.dsc, score.precision, score.recall, score.jaccard, score.rmse) == (1.0, 1.0, 1.0, 1.0, 0.0)
    for unit in ("px", "mm"):
        assert [getattr(score, f"{name}_{unit}") for name in SURFACE_MEASURES] == [0.0, 0.0, 0.0, 1.0]


def test_a_missed_lesion_scores_the_worst_of_everything():
    truth = rectangle((30, 40), 5, 5, 10, 10)
    score = scored(scan_of(truth, spacing=(0.5, 0.5)), np.full((30, 40), 0.4))
    assert not score.marked
    assert [getattr(score, name) for name in ZERO] == [0.0] * 6
    assert score.rmse == 1.0
    assert [getattr(score, f"{name}_px") for name in DISTANCES] == [50.0] * 3
    assert [getattr(score, f"{name}_mm") for name in DISTANCES] == [25.0] * 3


def test_marking_beside_a_lesion_is_judged_by_what_was_marked():
    truth = rectangle((30, 40), 5, 5, 10, 10)
    score = scored(scan_of(truth), np.roll(truth, 12, axis=1).astype(np.float32))
    assert score.dsc == 0.0
    assert score.rmse == pytest.approx(math.sqrt(50 / 1200))
    assert score.hd95_px <= 12


maps = arrays(np.float32, (7, 9), elements=st.floats(0, 1, width=32))
judged = st.lists(st.tuples(arrays(np.bool_, (7, 9)), maps, st.none() | spacings), min_size=1, max_size=4)


@given(judged, st.data())
def test_a_prediction_replaced_by_an_empty_one_never_improves_a_mean(cases, data):
    scans = []
    for number, (truth, _, spacing) in enumerate(cases):
        truth[3, 4] = True
        scans.append(scan_of(truth, spacing, key=str(number), patient=str(number)))
    before = [scored(scan, probability) for scan, (_, probability, _) in zip(scans, cases, strict=True)]
    emptied = data.draw(st.integers(0, len(cases) - 1))
    after = [*before]
    after[emptied] = scored(scans[emptied], data.draw(maps) * np.float32(0.49))
    assert not after[emptied].marked
    was, becomes = summarise(before), summarise(after)
    assert becomes.unit == was.unit
    assert becomes.cases == was.cases
    assert becomes.missed >= was.missed
    for name in MEASURES:
        one, other = getattr(was, name).mean, getattr(becomes, name).mean
        assert other >= one if name in LOWER_IS_BETTER else other <= one


def test_a_missed_lesion_is_worse_than_a_map_that_covers_half_the_scan():
    # By its pixels the empty map would be nearer the truth.
    truth = disc((60, 60), (30, 30), 8)
    half = rectangle((60, 60), 0, 0, 30, 60).astype(np.float32)
    assert np.square(half - truth).mean() > truth.mean()
    assert scored(scan_of(truth), half).rmse < scored(scan_of(truth), np.zeros((60, 60))).rmse


def test_a_normal_scan_has_no_measure_but_how_much_was_marked():
    normal = scan_of(np.zeros((8, 8), np.bool_), spacing=(0.1, 0.1))
    quiet = scored(normal, np.zeros((8, 8)))
    alarmed = scored(normal, rectangle((8, 8), 1, 1, 2, 3).astype(np.float32))
    assert (quiet.lesion, quiet.marked, quiet.marked_fraction) == (False, False, 0.0)
    assert (alarmed.lesion, alarmed.marked, alarmed.marked_fraction) == (False, True, 2 / 64)
    columns = [*REGION_MEASURES, *(f"{name}_{unit}" for name in SURFACE_MEASURES for unit in ("px", "mm"))]
    assert [getattr(alarmed, column) for column in columns] == [None] * 13


def test_surface_measures_can_be_left_out():
    truth = rectangle((9, 9), 2, 2, 5, 5)
    score = scored(scan_of(truth, (1.0, 1.0)), truth.astype(np.float32), surface=False)
    assert [getattr(score, f"{name}_{unit}") for name in SURFACE_MEASURES for unit in ("px", "mm")] == [None] * 8
    assert score.dsc == 1.0


def test_a_map_of_another_size_is_not_taken():
    with pytest.raises(ValueError, match="a: a map of"):
        scored(scan_of(rectangle((8, 8), 1, 1, 3, 3)), np.zeros((8, 9)))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_map_of_what_is_no_number_is_a_fault_that_names_the_scan(broken):
    # It would pass for a quiet network on a normal scan.
    probability = np.zeros((8, 8))
    probability[3, 3] = broken
    with pytest.raises(Fault, match="a: the network's map"):
        scored(scan_of(np.zeros((8, 8), np.bool_)), probability)


@given(pairs)
def test_dsc_is_symmetric_bounded_and_follows_from_jaccard(pair):
    one, other = pair
    one[0, 0] = other[-1, -1] = True
    there = scored(scan_of(other), one.astype(np.float32))
    back = scored(scan_of(one), other.astype(np.float32))
    assert there.dsc == back.dsc
    assert dice(one, other) == there.dsc
    for name in SURFACE_MEASURES:
        assert getattr(there, f"{name}_px") == pytest.approx(getattr(back, f"{name}_px"))
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.dsc == pytest.approx(2 * there.jaccard / (1 + there.jaccard))
    for measure in ("dsc", "precision", "recall", "jaccard", "rmse"):
        assert 0 <= getattr(there, measure) <= 1
    assert there.jaccard <= min(there.precision, there.recall)


def test_a_summary_takes_means_over_lesions_and_counts_normals_apart():
    scores = [
        score_of("a", "p", dsc=0.9, hd95_px=2.0),
        score_of("b", "q", dsc=0.6, hd95_px=4.0),
        score_of("c", "q", dsc=0.0, hd95_px=30.0, marked=False),
        normal_score("d", "r", 0.3),
        normal_score("e", "s"),
        normal_score("f", "s"),
    ]
    summary = summarise(scores)
    assert (summary.cases, summary.missed, summary.unit) == (3, 1, "px")
    assert (summary.normals.cases, summary.normals.false_positive_rate) == (3, pytest.approx(1 / 3))
    assert summary.normals.marked_fraction == pytest.approx(0.1)
    assert summary.dsc.mean == pytest.approx(0.5)
    assert summary.dsc.median == 0.6
    assert summary.dsc.sd == pytest.approx(math.sqrt((0.4**2 + 0.1**2 + 0.5**2) / 2))
    assert summary.hd95.mean == pytest.approx(12.0)


def test_a_summary_is_json_by_its_contract():
    told = summarise([score_of("a", "p"), score_of("b", "q")]).as_json()
    assert set(told) == {"cases", "missed", "normals", "unit", "surface_tolerance", *MEASURES}
    assert set(told["normals"]) == {"cases", "false_positive_rate", "marked_fraction"}
    assert {"dsc", "precision", "recall", "jaccard", "rmse", "hd95"} < set(MEASURES)
    for measure in MEASURES:
        assert set(told[measure]) == {"mean", "sd", "median", "low", "high"}


def test_without_lesions_there_are_no_means_and_no_nan():
    told = summarise([normal_score("d", "r")]).as_json()
    assert told["cases"] == 0
    assert told["normals"] == {"cases": 1, "false_positive_rate": 0.0, "marked_fraction": 0.0}
    assert all(value is None for measure in MEASURES for value in told[measure].values())
    assert summarise([]).normals.false_positive_rate is None


def test_one_patient_has_a_mean_and_no_interval():
    dsc = summarise([score_of("a", dsc=0.4), score_of("b", dsc=0.8)]).dsc
    assert dsc.mean == pytest.approx(0.6)
    assert (dsc.low, dsc.high) == (None, None)
    assert summarise([score_of("a", dsc=0.4)]).dsc.sd is None


def test_a_surface_measure_that_was_left_out_has_no_mean():
    left_out = dict.fromkeys((f"{name}_px" for name in SURFACE_MEASURES), None)
    summary = summarise([score_of("a", "p", **left_out), score_of("b", "q", **left_out)])
    assert [getattr(summary, name).mean for name in SURFACE_MEASURES] == [None] * 4


def test_units_are_never_mixed_in_one_mean():
    in_mm = {f"{name}_mm": 1.0 for name in SURFACE_MEASURES}
    known = [score_of("a", "p", **in_mm), score_of("b", "q", **(in_mm | {"hd95_px": 30.0, "hd95_mm": 6.0}))]
    summary = summarise(known)
    assert (summary.unit, summary.surface_tolerance, summary.hd95.mean) == ("mm", 1.0, pytest.approx(3.5))
    assert [getattr(summary, name).mean for name in ("assd", "surface_dice")] == [1.0, 1.0]
    summary = summarise([*known, score_of("c", "r", hd95_px=20.0)])
    assert (summary.unit, summary.surface_tolerance, summary.hd95.mean) == ("px", 5.0, pytest.approx(18.0))
    assert [getattr(summary, name).mean for name in ("assd", "surface_dice")] == [4.0, 0.5]
    with_normal = [*known, normal_score("d", "s")]
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
