"""The winner of a search against the paper's weights, on folds that no trial learnt from or was judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FinalComparison:
    """DSC of the winner and of the paper's weights on the scans with a lesion of the unseen folds.

    Both sides are trained anew, once for each of those folds and each seed, on all other folds; a scan's score is the
    mean over seeds. best and paper are means over scans, difference is that of best minus paper, low and high bound
    its 95 % bootstrap interval over patients, p is that of the sign-flip test over patients (trainer.resampling tells
    of both); all fractions of 1. None where there are too few patients. winner is the number of its trial. per_fold
    gives by the name of a training the mean DSC of both, the winner's first.
    """

    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    best: float
    paper: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    cases: int
    patients: int
    winner: int
    per_fold: Mapping[str, tuple[float, float]]
