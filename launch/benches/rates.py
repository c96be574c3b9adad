"""Medians of repeated measurements, with intervals that assume nothing of how they scatter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its 95 % interval; low and high are None where there are too few values for one."""

    median: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The median of independent values, between two of them as far out as 95 % confidence needs.

    The interval is that of order statistics (Conover, Practical Nonparametric Statistics, 3.2): the k-th smallest and
    k-th largest value enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < k). Below 6 values even the
    smallest and the largest do not reach 95 %.
    """
    ordered = sorted(values)
    outermost = 0
    while _coverage(len(ordered), outermost + 1) >= CONFIDENCE:
        outermost += 1
    if not outermost:
        return Estimate(statistics.median(ordered), None, None)
    return Estimate(statistics.median(ordered), ordered[outermost - 1], ordered[-outermost])


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """The ratio of two measurements of the same rounds, taken round by round, so that what slows a round cancels."""
    return estimate([above / below for above, below in zip(numerators, denominators, strict=True)])


def _coverage(count: int, rank: int) -> float:
    """How probably the median lies between the rank-th smallest and the rank-th largest of so many values."""
    if 2 * rank > count:
        return 0.0
    return float(1 - 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count)
