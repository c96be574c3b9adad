"""How well a network outlines lesions: measures of one scan, and their means over many with intervals.

The rules:
- A measure is computed for each scan at the scan's own resolution and then averaged over scans.
- A missed lesion (there is one and no pixel is marked) scores DSC 0, precision 0, recall 0, Jaccard 0, and as HD95
  the scan's diagonal, which no other outline reaches. So missing a lesion improves none of their means. RMSE
  looks at probabilities, not outlines, and needs no such rule.
- A normal scan (no lesion in the truth) has no such measures and is left out of the means. It is judged by
  whether any pixel was marked, a false positive.
- HD95 is in mm when the pixel spacing of every scan with a lesion is known, otherwise in pixels for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_pipeline import Scan

MEASURES = ("dsc", "precision", "recall", "jaccard", "rmse", "hd95")
"""What a Summary holds a distribution of."""

RESAMPLES = 2000
"""Bootstrap samples behind an interval."""


@dataclass(frozen=True, slots=True)
class ScanScore:
    """One scan's measures, as fractions of 1; HD95 in pixels, and in mm where the scan's spacing is known.

    lesion: there is one in the truth; marked: the network marked a pixel. Without a lesion, and for HD95 where it
    was left out, a measure is None. rmse is the root of the mean squared difference between probability and truth
    over the scan's pixels, a fraction of 1. (The paper's tables give "RMSE (mm)" and do not say of what.)
    """

    key: str
    patient: str
    label: str
    lesion: bool
    marked: bool
    dsc: float | None
    precision: float | None
    recall: float | None
    jaccard: float | None
    rmse: float | None
    hd95_px: float | None
    hd95_mm: float | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """A measure over scans; low and high bound the mean's 95 % bootstrap interval over patients.

    None where there are too few: sd needs two scans, the interval two patients, the others one scan.
    """

    mean: float | None
    sd: float | None
    median: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Normals:
    """Scans without a lesion, and the fraction of them in which the network marked one (None without any)."""

    cases: int
    false_positive_rate: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures over all scans with a lesion (`cases`), of which `missed` have a DSC of 0; unit is that of hd95."""

    cases: int
    missed: int
    normals: Normals
    unit: Literal["mm", "px"]
    dsc: Distribution
    precision: Distribution
    recall: Distribution
    jaccard: Distribution
    rmse: Distribution
    hd95: Distribution

    def as_json(self) -> dict[str, Any]:
        """As `evaluate --json` writes it: the same names, None as null."""
        return asdict(self)


def score_scan(
    scan: Scan, probability: NDArray[np.floating], threshold: float = 0.5, surface: bool = True
) -> ScanScore:
    """Compare a scan's truth with a probability map [H, W]; lesion is where the map reaches the threshold.

    surface=False leaves HD95 out, which takes longer than all others together. Raises ValueError when the map
    has another size than the scan.
    """
    truth = scan.mask
    if probability.shape != truth.shape:
        raise ValueError(f"{scan.key}: a map of {probability.shape} for a scan of {truth.shape}")
    marked = probability >= threshold
    who = (scan.key, scan.patient, scan.label, bool(truth.any()), bool(marked.any()))
    if not truth.any():
        return ScanScore(*who, *[None] * 7)
    hit, predicted, real = (int(np.count_nonzero(pixels)) for pixels in (marked & truth, marked, truth))
    return ScanScore(
        *who,
        dsc=2 * hit / (predicted + real),
        precision=hit / predicted if predicted else 0.0,
        recall=hit / real,
        jaccard=hit / (predicted + real - hit),
        rmse=math.sqrt(np.mean(np.square(probability - truth, dtype=np.float64))),
        hd95_px=hd95(marked, truth) if surface else None,
        hd95_mm=hd95(marked, truth, scan.spacing) if surface and scan.spacing else None,
    )


def hd95(marked: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """The 95th percentile Hausdorff distance of two masks [H, W], in the unit of spacing (row, column).

    The distances from each outline's pixels to the other outline; of the two directions' 95th percentiles the
    larger. An outline is a mask's pixels that touch its outside by an edge, the scan's border counted as outside.
    The scan's diagonal when one of the masks is empty.
    """
    if not (marked.any() and truth.any()):
        return math.hypot(truth.shape[0] * spacing[0], truth.shape[1] * spacing[1])
    # All outline pixels lie in the union's box, so that nothing is lost by looking there only.
    (box,) = ndimage.find_objects((marked | truth).astype(np.uint8))
    outlines = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (marked, truth)]
    return max(
        float(np.percentile(ndimage.distance_transform_edt(~other, sampling=spacing)[outline], 95))
        for outline, other in (outlines, reversed(outlines))
    )


def summarise(scores: Sequence[ScanScore]) -> Summary:
    """Means, spread and intervals over scans, by the rules above; the same for the same scores in any order."""
    ordered = sorted(scores, key=lambda score: score.key)
    cases = [score for score in ordered if score.lesion]
    normals = [score for score in ordered if not score.lesion]
    in_mm = bool(cases) and all(score.hd95_mm is not None for score in cases)
    values = {
        "dsc": [score.dsc for score in cases],
        "precision": [score.precision for score in cases],
        "recall": [score.recall for score in cases],
        "jaccard": [score.jaccard for score in cases],
        "rmse": [score.rmse for score in cases],
        "hd95": [score.hd95_mm if in_mm else score.hd95_px for score in cases],
    }
    # A measure that was left out is NaN here and None in the distribution.
    table = np.array([*values.values()], dtype=np.float64).reshape(len(values), len(cases))
    low, high = _intervals(table, [score.patient for score in cases])
    return Summary(
        cases=len(cases),
        missed=sum(score.dsc == 0 for score in cases),
        normals=Normals(len(normals), sum(score.marked for score in normals) / len(normals) if normals else None),
        unit="mm" if in_mm else "px",
        **{
            name: Distribution(*(_number(value) for value in (*_middle(row), low[place], high[place])))
            for place, (name, row) in enumerate(zip(values, table, strict=True))
        },
    )


def _middle(row: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, standard deviation of the sample, and median; NaN where there are too few values."""
    if row.size == 0:
        return math.nan, math.nan, math.nan
    return float(row.mean()), float(row.std(ddof=1)) if row.size > 1 else math.nan, float(np.median(row))


def _intervals(table: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """Bounds [2, measures] of 95 % intervals of the means of measures [measures, scans].

    The percentile bootstrap over patients (Efron & Tibshirani 1993, chapter 13): scans of one patient are alike,
    so patients are drawn with replacement and bring all their scans.
    """
    names, owner = np.unique(np.array(patients, dtype=str), return_inverse=True)
    if len(names) < 2:
        return np.full((2, len(table)), np.nan)
    counted = np.vstack([table, np.ones(table.shape[1])])
    totals = np.zeros((len(names), len(counted)))
    np.add.at(totals, owner, counted.T)
    generator = np.random.default_rng(0)
    drawn = np.stack([totals[generator.integers(len(names), size=len(names))].sum(axis=0) for _ in range(RESAMPLES)])
    bounds: NDArray[np.float64] = np.percentile(drawn[:, :-1] / drawn[:, -1:], (2.5, 97.5), axis=0)
    return bounds


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
