"""Medians, intervals and paired ratios against values worked out by hand."""

import pytest

from launch.benches.rates import Estimate, estimate, paired_ratio


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_than_six_values_have_no_95_percent_interval(count: int):
    values = [float(value) for value in range(count)]

    assert estimate(values) == Estimate((count - 1) / 2, None, None)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [
        (6, 1, 6),  # 1 - 2 * 1 / 2^6 = .969
        (8, 1, 8),  # the second and the seventh: 1 - 2 * (1 + 8) / 2^8 = .930, too little
        (9, 2, 8),  # 1 - 2 * (1 + 9) / 2^9 = .961
        (20, 6, 15),  # 1 - 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) / 2^20 = .959
    ],
)
def test_the_interval_lies_between_the_values_that_a_binomial_table_gives(count: int, low: int, high: int):
    values = [float(value) for value in range(count, 0, -1)]

    assert estimate(values) == Estimate((count + 1) / 2, low, high)


def test_a_ratio_is_taken_round_by_round():
    assert paired_ratio([10.0, 40.0, 30.0], [5.0, 10.0, 10.0]).median == 3.0


def test_what_slows_a_whole_round_cancels_in_a_ratio():
    speed = [1.0, 0.1, 0.7, 0.4, 1.0, 0.9]

    found = paired_ratio([300.0 * factor for factor in speed], [100.0 * factor for factor in speed])

    assert (found.median, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
