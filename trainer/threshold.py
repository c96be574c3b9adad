"""The probability from which a pixel is lesion, chosen on scans whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from data_pipeline import Scan
from trainer.metrics import dice
from trainer.serving import Segmenter

THRESHOLDS = tuple(place / 20 for place in range(1, 20))
"""0.05 to 0.95 by 0.05."""


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """The threshold with the highest mean DSC, and the mean at each of THRESHOLDS (empty without a lesion)."""

    threshold: float
    curve: tuple[float, ...]


def dsc_by_threshold(segmenter: Segmenter, scans: Iterable[Scan], batch: int = 8) -> list[tuple[float, ...]]:
    """For each scan with a lesion its DSC at each of THRESHOLDS; the segmenter's own threshold does not count.

    At most `batch` scans are held at a time. Where several ranks judge a part each, their rows are gathered, and
    choose_threshold comes to the same on all of them.
    """
    at_each = [segmenter.using(threshold=threshold) for threshold in THRESHOLDS]
    lesions = (scan for scan in scans if scan.mask.any())
    rows: list[tuple[float, ...]] = []
    while together := list(islice(lesions, batch)):
        maps = segmenter.probabilities([scan.image for scan in together])
        rows += [
            tuple(dice(one.marked(probability), scan.mask) or 0.0 for one in at_each)
            for scan, probability in zip(together, maps, strict=True)
        ]
    return rows


def choose_threshold(rows: Sequence[tuple[float, ...]]) -> ChosenThreshold:
    """The threshold with the highest mean DSC over rows [scans, THRESHOLDS], whatever their order.

    Of equally good ones the nearest to 0.5, and of two equally near the lower, which misses less; 0.5 without a
    row. It is fitted to these scans, so that measures of the same scans flatter it a little.
    """
    if not rows:
        return ChosenThreshold(0.5, ())
    # fsum is exact before it rounds, so that the order in which ranks tell their rows makes no difference.
    curve = tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    best = max(range(len(curve)), key=lambda place: (curve[place], -abs(place - len(curve) // 2), -place))
    return ChosenThreshold(THRESHOLDS[best], curve)
