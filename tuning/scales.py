"""The axes of figures: each key on its own scale, on which zero and choices have places too, and DSC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuning.labels import written
from tuning.space import Choices, Range


def place_of(dimension: Range | Choices, value: Any) -> float:
    """Where a value lies from 0 to 1; choices in the middle of equal parts."""
    place = dimension.place(value)
    return (place + 0.5) / len(dimension.values) if isinstance(dimension, Choices) else place


def ticks_of(dimension: Range | Choices, most: int) -> list[tuple[float, str]]:
    """Places from 0 to 1 and what is written there: each choice; or zero, where it is tried, and about so many round
    numbers, without one that lies too close to zero.
    """
    if isinstance(dimension, Choices):
        return [(place_of(dimension, value), written(value)) for value in dimension.values]
    values = _decades(dimension, most) if dimension.log else _steps(dimension, most)
    ticks = [(dimension.place(value), f"{value:g}") for value in values]
    if not dimension.zero:
        return ticks
    zero = dimension.place(0)
    return [(zero, "0"), *(tick for tick in ticks if tick[0] - zero > 0.28 / most)]


def _decades(dimension: Range, most: int) -> list[float]:
    """Powers of ten of a range, also three times these where there is room; its ends where there are too few."""
    powers = range(math.floor(math.log10(dimension.low)), math.ceil(math.log10(dimension.high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{factor * 10.0**power:.1g}") for power in powers for factor in factors]
        inside = [value for value in values if dimension.low <= value <= dimension.high]
        if len(inside) <= most:
            break
    else:
        inside = inside[:: -(-len(inside) // most)]
    return inside if len(inside) > 1 else [dimension.low, dimension.high]


def _steps(dimension: Range, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside a range, whole ones where its values are."""
    span = dimension.high - dimension.low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    step = max(1.0, step) if dimension.whole else step
    first = math.ceil(dimension.low / step - 1e-9)
    return [float(f"{step * number:.6g}") for number in range(first, math.floor(dimension.high / step + 1e-9) + 1)]


def stretched(dsc: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """DSC in decades of what is missing of 1, so that 80 to 90 % takes as much room as 60 to 80 %."""
    return -np.log10(np.maximum(1.0 - np.asarray(dsc, dtype=np.float64), 1e-4))


def dsc_ticks(low: float, high: float) -> list[float]:
    """Round DSC, fractions of 1, between these, which are fractions too: some four to eight of them."""
    for step in (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 6:
            break
    ticks = [round(number * step, 6) for number in range(first, last + 1)]
    kept: list[float] = []
    room = (stretched([high])[0] - stretched([low])[0]) / 11
    for tick in reversed(ticks):  # on a stretched axis the lower ones are the closer
        if not kept or stretched([kept[-1]])[0] - stretched([tick])[0] >= room:
            kept.append(tick)
    return kept[::-1]
