"""What chance alone would do to a mean over scans: its interval, and how likely a difference is without a cause.

Scans of one patient are alike, so it is patients that are drawn or flipped, and each brings all its scans. The
draws are always the same ones, and so are the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap samples behind an interval."""

FLIPS = 10_000
"""Sign flips behind a p-value, which is therefore never below 1 / 10001."""

_AT_ONCE = 100
"""Draws that are made together, which bounds the memory that they take."""


def intervals(table: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """Bounds [2, measures] of 95 % intervals of the means of measures [measures, scans].

    The percentile bootstrap over patients (Efron & Tibshirani 1993, chapter 13): patients are drawn with
    replacement. patients names the one of each scan; with fewer than two of them the bounds are NaN.
    """
    totals = _totals_by_patient(np.vstack([table, np.ones(table.shape[1])]), patients)
    if len(totals) < 2:
        return np.full((2, len(table)), np.nan)
    generator = np.random.default_rng(0)
    drawn = np.concatenate(
        [
            totals[generator.integers(len(totals), size=(_AT_ONCE, len(totals)))].sum(axis=1)
            for _ in range(RESAMPLES // _AT_ONCE)
        ]
    )
    bounds: NDArray[np.float64] = np.percentile(drawn[:, :-1] / drawn[:, -1:], (2.5, 97.5), axis=0)
    return bounds


def sign_flip_p(differences: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """Two-sided p-values [measures] of the means of paired differences [measures, scans].

    If two models are equally good, each patient's differences could as well have the other sign. p is how often
    randomly flipped signs give a mean as far from 0 as the one seen, itself counted in (Phipson & Smyth 2010, so
    that it is never 0). It is not adjusted for the number of measures. NaN where there is no difference to flip.
    """
    totals = _totals_by_patient(differences, patients)
    if not len(totals):
        return np.full(len(differences), np.nan)
    # Sums of the same numbers with other signs may differ in their last bits.
    seen = np.abs(totals.sum(axis=0)) * (1 - 1e-9)
    generator = np.random.default_rng(0)
    as_far = np.ones(len(differences))
    for _ in range(FLIPS // _AT_ONCE):
        signs = 2.0 * generator.integers(2, size=(_AT_ONCE, len(totals)), dtype=np.int8) - 1
        as_far += (np.abs(signs @ totals) >= seen).sum(axis=0)
    return np.where(np.isnan(seen), np.nan, as_far / (1 + FLIPS))


def _totals_by_patient(table: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """Sums over each patient's scans [patients, measures]."""
    names, owner = np.unique(np.array(patients, dtype=str), return_inverse=True)
    totals = np.zeros((len(names), len(table)))
    np.add.at(totals, owner, table.T)
    return totals
