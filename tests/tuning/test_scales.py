import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.labels import label, written
from tuning.scales import dsc_ticks, place_of, stretched, ticks_of
from tuning.space import Choices, Range


def test_choices_have_the_middles_of_equal_parts():
    choices = Choices(("batch", [4, 8]))
    assert [place_of(choices, value) for value in choices.values] == [0.25, 0.75]
    assert ticks_of(choices, 4) == [(0.25, "batch"), (0.75, "4, 8")]


@pytest.mark.parametrize(
    ("dimension", "texts"),
    [
        (Range(1e-4, 1e-2, log=True), ["0.0001", "0.001", "0.01"]),
        (Range(0.01, 1.0, log=True, zero=True), ["0", "0.1", "1"]),
        (Range(0.2, 0.4, log=True), ["0.2", "0.4"]),
        (Range(0.0, 0.1), ["0", "0.05", "0.1"]),
        (Range(1, 8, whole=True), ["2", "4", "6", "8"]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(dimension: Range, texts: list[str]):
    ticks = ticks_of(dimension, 4 if dimension.whole else 3)
    assert [text for _, text in ticks] == texts
    assert [place for place, _ in ticks] == pytest.approx([dimension.place(float(text)) for text in texts])


@given(st.floats(0, 0.98), st.floats(0.002, 0.5))
def test_ticks_of_dsc_are_in_order_and_apart(low: float, span: float):
    high = min(low + span, 0.995)
    ticks = dsc_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in ticks)
    places = stretched(ticks)
    assert (np.diff(places) > 0.99 * (stretched([high])[0] - stretched([low])[0]) / 11).all()


def test_what_is_missing_counts_in_decades():
    assert stretched([0.0, 0.9, 0.99]) == pytest.approx([0, 1, 2])
    assert np.isfinite(stretched([1.0])).all()


def test_weights_are_called_as_in_the_paper_and_other_keys_by_their_names():
    names = ["objective.alpha.2", "objective.beta", "optimizer.generator_rate"]
    assert [label(key) for key in names] == ["α₂", "β", names[2]]
    assert [written(value) for value in (0.012345, 3, [4, 8], "batch")] == ["0.0123", "3", "4, 8", "batch"]
