import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import WrongCall
from trainer.comparison import compare
from trainer.metrics import LOWER_IS_BETTER, MEASURES, SURFACE_MEASURES, ScanScore, summarise


def lesion(key, dsc, patient=None, mm=True, **changes):
    """A score of which all measures follow from the DSC; without one, of a missed lesion."""
    off = 100 * (1 - dsc)
    surface = {f"{name}_px": off for name in SURFACE_MEASURES} | {"surface_dice_px": dsc}
    if mm:
        surface |= {f"{name}_mm": off / 10 for name in SURFACE_MEASURES} | {"surface_dice_mm": dsc}
    score = ScanScore(key, patient or f"p-{key}", "benign", True, dsc > 0, 0.1, dsc, dsc, dsc, dsc, 1 - dsc, **surface)
    return dataclasses.replace(score, **changes)


def normal(key, fraction=0.0):
    return ScanScore(key, f"p-{key}", "normal", False, fraction > 0, fraction)


def test_a_comparison_of_four_scans_is_that_worked_out_by_hand():
    first = [lesion("a", 0.8), lesion("b", 0.5), lesion("c", 0.0), lesion("d", 0.6)]
    second = [lesion("d", 0.6), lesion("a", 0.7), lesion("c", 0.75), lesion("b", 0.75)]
    told = compare(first, second)
    assert (told.cases, told.patients, told.normals, told.unit, told.surface_tolerance) == (4, 4, 0, "mm", 1.0)
    dsc = told.measures["dsc"]
    assert (dsc.first, dsc.second) == (pytest.approx(0.475), pytest.approx(0.7))
    assert dsc.difference == pytest.approx((-0.1 + 0.25 + 0.75 + 0) / 4)
    assert (dsc.better, dsc.worse, dsc.equal) == (2, 1, 1)
    # Of the 16 ways to flip signs, as many twice because d is 0: |+-.1 +-.25 +-.75| >= .9 in 4 of 8.
    assert dsc.p == pytest.approx(0.5, abs=0.02)
    assert dsc.low < dsc.difference < dsc.high
    # Where less is better, the same scans are better ones.
    assert told.measures["hd95"].difference == pytest.approx(-2.25)
    assert (told.measures["hd95"].better, told.measures["hd95"].worse) == (2, 1)
    assert told.missed.first_only == ("c",)
    assert told.missed.second_only == told.missed.both == ()


def test_means_are_those_of_each_model_s_summary():
    generator = np.random.default_rng(1)
    tables = [[lesion(str(place), value) for place, value in enumerate(generator.random(30))] for _ in range(2)]
    told = compare(*tables)
    first, second = map(summarise, tables)
    for name in MEASURES:
        measure = told.measures[name]
        assert measure.first == pytest.approx(getattr(first, name).mean)
        assert measure.second == pytest.approx(getattr(second, name).mean)
        assert measure.difference == pytest.approx(measure.second - measure.first)


def test_pairing_finds_a_difference_that_two_separate_intervals_hide():
    generator = np.random.default_rng(2)
    hard = generator.uniform(0.3, 0.9, 60)
    first = [lesion(str(place), value) for place, value in enumerate(hard)]
    second = [lesion(str(place), value + generator.normal(0.02, 0.01)) for place, value in enumerate(hard)]
    dsc = compare(first, second).measures["dsc"]
    assert summarise(first).dsc.high > summarise(second).dsc.low
    assert dsc.low > 0.015
    assert dsc.p < 0.001


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=8))
def test_the_other_way_round_everything_is_the_other_way_round(values):
    first, second = (
        [lesion(str(place), value[side], patient=str(value[2])) for place, value in enumerate(values)]
        for side in (0, 1)
    )
    there, back = compare(first, second), compare(second[::-1], first)
    for name in MEASURES:
        one, other = there.measures[name], back.measures[name]
        assert (one.first, one.better, one.worse, one.equal) == (other.second, other.worse, other.better, other.equal)
        assert one.difference == -other.difference
        assert one.p == other.p
        if one.low is not None:
            assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert there.missed.first_only == back.missed.second_only


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_missing_one_more_lesion_never_makes_a_model_compare_better(values, data):
    first = [lesion(str(place), 0.5) for place in range(len(values))]
    second = [lesion(str(place), value) for place, value in enumerate(values)]
    emptied = data.draw(st.integers(0, len(values) - 1))
    worse = [*second]
    worse[emptied] = lesion(str(emptied), 0.0)
    was, becomes = compare(first, second), compare(first, worse)
    for name in MEASURES:
        one, other = was.measures[name].difference, becomes.measures[name].difference
        assert other >= one if name in LOWER_IS_BETTER else other <= one
    assert len(becomes.missed.second_only) >= len(was.missed.second_only)


def test_scans_of_one_model_only_are_named_and_count_nowhere():
    told = compare([lesion("a", 0.5), lesion("z", 0.9), normal("n")], [lesion("a", 0.6), lesion("b", 0.1), normal("m")])
    assert told.only_in_first == ("n", "z")
    assert told.only_in_second == ("b", "m")
    assert (told.cases, told.normals, told.measures["dsc"].second) == (1, 0, 0.6)


def test_normal_scans_are_compared_by_whether_they_were_marked():
    told = compare(
        [normal("a"), normal("b", 0.1), normal("c", 0.1), normal("d")],
        [normal("a", 0.2), normal("b"), normal("c", 0.3), normal("d")],
    )
    assert (told.cases, told.normals) == (0, 4)
    assert told.marked_normals.first_only == ("b",)
    assert told.marked_normals.second_only == ("a",)
    assert told.marked_normals.both == ("c",)
    assert told.measures["dsc"].difference is None
    assert told.measures["dsc"].p is None


def test_units_are_never_mixed():
    known = [lesion("a", 0.5), lesion("b", 0.6)]
    told = compare(known, [lesion("a", 0.5), lesion("b", 0.5, mm=False)])
    assert (told.unit, told.surface_tolerance) == ("px", 5.0)
    assert told.measures["hd95"].difference == pytest.approx(5.0)


def test_a_measure_that_one_table_has_left_out_is_not_compared():
    left_out = {f"{name}_{unit}": None for name in SURFACE_MEASURES for unit in ("px", "mm")}
    told = compare([lesion("a", 0.5), lesion("b", 0.6)], [lesion(key, 0.5, **left_out) for key in "ab"])
    assert told.measures["hd95"].difference is None
    assert (told.measures["hd95"].better, told.measures["hd95"].equal) == (0, 0)
    assert not math.isnan(told.measures["dsc"].difference)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([lesion("z", 0.5)], "no scan in common"),
        (
            [lesion("a", 0.5), normal("b"), normal("c")],
            "b has a lesion in one table and none in the other, and so have 1",
        ),
        ([lesion("a", 0.5, patient="q")], "a has another patient in one table than in the other; compare"),
    ],
)
def test_tables_of_different_truths_are_a_wrong_call(second, reason):
    with pytest.raises(WrongCall, match=reason):
        compare([lesion("a", 0.5), lesion("b", 0.5), lesion("c", 0.5)], second)
