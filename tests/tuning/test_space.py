"""The way from a searcher's cube to values and back, and what a space cannot be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline import WrongCall
from trainer.config import Config, load_config
from tuning.space import Choices, Range, nested, paper_values, space_of, usual_space, with_values

PLACES = st.floats(0, 1)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    whole, log = draw(st.booleans()), draw(st.booleans())
    zero = draw(st.booleans())
    ends: st.SearchStrategy[float] = st.integers(1, 500).map(float) if whole else st.floats(1e-6, 1e3)
    low, high = sorted((draw(ends), draw(ends)))
    assume(high - low > 1e-6 * high)
    return Range(low, high, log, zero, whole)


@given(ranges(), PLACES, PLACES)
def test_a_value_is_of_its_range_grows_with_its_place_and_comes_back_from_where_it_lies(
    span: Range, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert span.value(low) <= span.value(high)
    for place in (low, high):
        value = span.value(place)
        assert span.holds(value)
        assert isinstance(value, int) == span.whole
        assert 0 <= span.place(value) <= 1
        assert span.value(span.place(value)) == value
    assert span.value(1.0) == pytest.approx(span.high, rel=1e-3)
    assert span.value(0.0) == (0 if span.zero else pytest.approx(span.low, rel=1e-3))


@pytest.mark.parametrize(
    ("span", "place", "value"),
    [
        (Range(0.01, 1.0, log=True), 0.5, 0.1),
        (Range(0.01, 1.0), 0.5, 0.505),
        (Range(0.01, 1.0, log=True, zero=True), 0.0999, 0.0),
        (Range(0.01, 1.0, log=True, zero=True), 0.1, 0.01),
        (Range(0.01, 1.0, log=True, zero=True), 0.55, 0.1),  # half of what is left
        (Range(0.999, 0.9999), 0.123456, 0.9991111),  # four digits of the range, not of the number
        (Range(1e-5, 1e-2, log=True), 1 / 7, 2.683e-05),  # 10 ** (3 / 7 - 5) = 2.68269e-05
    ],
)
def test_values_by_hand(span: Range, place: float, value: float) -> None:
    assert span.value(place) == value


def test_whole_numbers_are_equally_likely() -> None:
    drawn = Counter(Range(1, 4, whole=True).value((place + 0.5) / 4000) for place in range(4000))
    assert drawn == {1: 1000, 2: 1000, 3: 1000, 4: 1000}
    doubled = Counter(Range(2, 16, log=True, whole=True).value((place + 0.5) / 4000) for place in range(4000))
    assert set(doubled) == set(range(2, 17))
    assert doubled[2] > doubled[4] > doubled[16]


def test_a_value_outside_lies_at_the_end_and_is_not_held() -> None:
    assert Range(1, 2).place(7.0) == 1.0
    assert Range(1, 2).place(0.5) == 0.0
    assert not Range(1, 2).holds(7.0)
    assert Range(1, 2, zero=True).holds(0)
    assert not Range(1, 2).holds(0)
    assert Choices(("a", "b")).place("c") == 0
    assert not Choices(("a", "b")).holds("c")


def test_a_stage_s_weight_changes_that_stage_alone() -> None:
    config = with_values(
        load_config("quick"),
        {"objective.alpha.2": 0.7, "objective.alpha.4": 0, "optimizer.clip": 2, "network.widths": [8, 16]},
    )
    assert config.objective.alpha == (1.0, 0.7, 0.1, 0.0)
    assert config.optimizer.clip == 2.0
    assert config.network.widths == (8, 16)
    assert config.training == load_config("quick").training


def test_the_first_trial_has_the_paper_s_weights_and_the_configuration_s_rates() -> None:
    config = load_config("demo", ["objective.alpha=[1, .5, .5, .5]"])
    assert config.objective.beta[0] == 0.01
    values = paper_values(space_of({}, config), config)
    assert {key: value for key, value in values.items() if key.startswith("objective.")} == {
        **{f"objective.alpha.{stage}": 0.1 for stage in (2, 3, 4)},
        **{f"objective.beta.{stage}": 0.05 for stage in (1, 2, 3, 4)},
    }
    assert values["optimizer.generator_rate"] == config.optimizer.generator_rate == 5e-3
    whole = space_of({"objective.beta": [[0, 0, 0, 0], [0.1, 0, 0, 0]], "objective.smoothing": [0, 0.1]}, config)
    assert paper_values(whole, config) == {"objective.beta": [0.05] * 4, "objective.smoothing": 0.0}


@pytest.mark.parametrize("preset", ["quick", "paper", "demo"])
def test_the_usual_space_has_all_that_the_supervised_stages_are_weighted_with(preset: str) -> None:
    config = load_config(preset, ["objective.stages=3"])
    space = space_of({}, config)
    assert set(space.dimensions) == {
        *("objective.alpha.2", "objective.alpha.3", "objective.beta.1", "objective.beta.2", "objective.beta.3"),
        *("optimizer.generator_rate", "optimizer.discriminator_rate"),
        *("discriminators.widths", "discriminators.norm", "discriminators.input"),
    }
    assert set(usual_space(config)) == set(space.dimensions)
    assert space.values(space.point(space.of(config))) == space.of(config)


def test_choices_are_as_the_configuration_has_them() -> None:
    space = space_of({"data.size": ["64x64", [128, 96]], "optimizer.clip": [0, 1, 5]}, Config())
    assert space.dimensions["data.size"] == Choices(([64, 64], [128, 96]))
    assert space.dimensions["optimizer.clip"] == Choices((0.0, 1.0, 5.0))
    assert space.of(Config()) == {"data.size": [512, 480], "optimizer.clip": 0.0}


def test_keys_may_be_written_with_dots_or_one_below_the_other() -> None:
    span, choices = {"low": 0.5, "high": 2}, ["batch", "group"]
    dotted = {"objective.alpha.2": span, "objective.alpha.3": span, "network.norm": choices}
    below = {"objective": {"alpha": {2: span, 3: span}}, "network": {"norm": choices}}
    assert (
        nested(dotted)
        == nested(below)
        == {"objective": {"alpha": {"2": span, "3": span}}, "network": {"norm": choices}}
    )
    assert space_of(dotted, Config()) == space_of(below, Config()) == space_of(nested(dotted), Config())


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"objective.alpha.2": [0, 1], "objective": {"alpha": {2: [0, 1]}}}, "objective.alpha.2"),
        ({"objective.alpha": [[1, 1, 1, 1], [1, 0, 0, 0]], "objective.alpha.2": [0, 1]}, "objective.alpha.2"),
        ({"objective.alpha.2": [0, 1], "objective.alpha": [[1, 1, 1, 1], [1, 0, 0, 0]]}, "objective.alpha"),
    ],
)
def test_a_key_that_is_named_twice_is_refused(asked: dict[str, Any], key: str) -> None:
    with pytest.raises(WrongCall, match=rf"^tune\.space\.{key}: .* in the space as well"):
        nested(asked)


@pytest.mark.parametrize(
    ("key", "what", "words"),
    [
        ("optimiser.clip", {"low": 0, "high": 1}, "no key optimiser.clip; the nearest is optimizer.clip"),
        ("objective.alpha.5", [0, 1], "no key objective.alpha.5"),
        ("objective.alpha.0", [0, 1], "no key objective.alpha.0"),
        ("optimizer", [0, 1], "no key optimizer"),
        ("optimizer.clip", {"low": 1, "high": 1}, "from 1 to 1 is empty"),
        ("optimizer.clip", {"low": 2, "high": 1}, "from 2 to 1 is reversed"),
        ("optimizer.clip", {"low": -1, "high": 1}, "clip=-1.0: input should be greater than or equal to 0"),
        ("optimizer.generator_rate", {"low": 1, "high": 2, "log": True, "zero": True}, "should be greater than 0"),
        ("objective.smoothing", {"low": 0, "high": 0.5}, "should be less than 0.5"),
        ("objective.alpha.2", {"low": -1, "high": 1}, "input should be greater than or equal to 0"),
        ("optimizer.clip", {"low": "much", "high": 1}, "both have to be numbers"),
        ("optimizer.clip", {"low": 0, "high": float("inf")}, "both have to be numbers"),
        ("optimizer.clip", {"low": False, "high": 1}, "both have to be numbers"),
        ("optimizer.clip", {"low": 0, "high": 1, "log": True}, "cannot begin at 0"),
        ("optimizer.clip", {"low": 0, "high": 1, "zero": True}, "this one begins at 0"),
        ("optimizer.clip", {"low": 1, "high": 2, "log": 10}, "true or false"),
        ("optimizer.clip", {"low": 1, "high": 2, "step": 1}, "neither {low, high}"),
        ("optimizer.clip", {"low": 1}, "neither {low, high}"),
        ("optimizer.clip", {}, "neither {low, high}"),
        ("optimizer.clip", 3, "neither {low, high}"),
        ("optimizer.clip", None, "neither {low, high}"),
        ("optimizer.clip", [1], "two choices or more, each once"),
        ("optimizer.clip", [1, 1.0], "two choices or more, each once"),
        ("optimizer.clip", [1, "much"], "clip='much': input should be a valid number"),
        ("network.name", ["unet", "vnet"], "name='vnet': input should be 'unet'"),
        ("network.widths", [[8, 16], [8]], "at least 2 items"),
        ("network.widths", {"low": 8, "high": 16}, "write a list of choices"),
        ("training.channels_last", {"low": 0, "high": 1}, "write a list of choices"),
        ("training.batch", {"low": 1.5, "high": 3}, "whole numbers"),
        ("training.batch", {"low": 0, "high": 3}, "batch=0: input should be greater than or equal to 1"),
        ("training.epochs", [5, 10], "cannot vary: it is what rungs are counted in"),
        ("training.patience", [5, 10], "cannot vary"),
        ("output", ["a", "b"], "cannot vary"),
        ("seed", [1, 2], "cannot vary: name several under tune.seeds"),
        ("folds", [[1], [2]], "cannot vary"),
        ("data.uri", ["a", "b"], "cannot vary"),
        ("data.fold", [1, 2], "cannot vary"),
        ("data.unseen", [[1], [2]], "cannot vary"),
        ("data.readers", [1, 2], "cannot vary"),
        ("validation.threshold", ["half", "chosen"], "cannot vary"),
        ("validation.every_epochs", [1, 2], "cannot vary"),
        ("checkpoints.keep", [1, 2], "cannot vary"),
        ("tracking.experiment", ["a", "b"], "cannot vary"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line_that_begins_with_its_key(key: str, what: Any, words: str) -> None:
    with pytest.raises(WrongCall) as refused:
        space_of({key: what}, Config())
    text = str(refused.value)
    assert text.startswith(f"tune.space.{key}: ")
    assert words in text
    assert text.count("tune.space") == 1
    assert "\n" not in text
