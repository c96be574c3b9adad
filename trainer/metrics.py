"""How well a network outlines lesions: measures of one scan, and their means over many with intervals.

The rules:
- A measure is computed for each scan at the scan's own resolution and then averaged over scans.
- Two measures are called a root mean square. `rmse` is that of the probability map against the truth, a fraction
  of 1; `rms_surface_distance` is that of the distances between the outlines, in mm or pixels. The paper's tables
  give "RMSE (mm)" and do not say of what: its unit speaks for the second, its words ("matching of the predicted
  maps") for the first. Both are reported, each by its own name.
- A missed lesion never improves a mean. Where there is a lesion and no pixel is marked, every measure takes the
  worst value that it has: DSC, precision, recall, Jaccard and surface Dice 0, the distances the scan's diagonal,
  which no outline reaches, and RMSE 1, that of a map wrong everywhere. The last is a rule, not a computation: by
  its pixels an empty map would look better than one that marks the lesion and much else. Nothing milder keeps the
  promise for every map, so the count of missed lesions stands beside the means.
- A normal scan (no lesion in the truth) has no such measures and is left out of the means. It is judged by
  whether any pixel was marked, a false positive, and by how large a part of it was.
- Surface measures are in mm when the pixel spacing of every scan with a lesion is known, otherwise in pixels for
  all of them. The tolerance of surface Dice depends on that unit and stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import Fault, Scan
from trainer.resampling import intervals
from trainer.surfaces import SURFACE_TOLERANCE, Unit, compare_outlines

REGION_MEASURES = ("dsc", "precision", "recall", "jaccard", "rmse")
SURFACE_MEASURES = ("rms_surface_distance", "assd", "hd95", "surface_dice")
MEASURES = (*REGION_MEASURES, *SURFACE_MEASURES)
"""What a Summary holds a distribution of."""

LOWER_IS_BETTER = frozenset({"rmse", "rms_surface_distance", "assd", "hd95"})


@dataclass(frozen=True, slots=True)
class ScanScore:
    """One scan's measures: fractions of 1, and distances in pixels and, where the spacing is known, in mm.

    lesion: there is one in the truth; marked: the network marked a pixel; marked_fraction: the part of the scan
    that it marked. Without a lesion, and for surface measures where they were left out, a measure is None.
    trainer.surfaces tells of the surface measures; surface_dice_px and surface_dice_mm have different tolerances.
    """

    key: str
    patient: str
    label: str
    lesion: bool
    marked: bool
    marked_fraction: float
    dsc: float | None = None
    precision: float | None = None
    recall: float | None = None
    jaccard: float | None = None
    rmse: float | None = None
    rms_surface_distance_px: float | None = None
    rms_surface_distance_mm: float | None = None
    assd_px: float | None = None
    assd_mm: float | None = None
    hd95_px: float | None = None
    hd95_mm: float | None = None
    surface_dice_px: float | None = None
    surface_dice_mm: float | None = None


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
    """Scans without a lesion; None without any.

    false_positive_rate: the fraction of them in which the network marked a pixel; marked_fraction: the mean part
    of such a scan that it marked.
    """

    cases: int
    false_positive_rate: float | None
    marked_fraction: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures over all scans with a lesion (`cases`), of which `missed` have a DSC of 0.

    unit is that of the surface measures, surface_tolerance that of surface_dice in this unit.
    """

    cases: int
    missed: int
    normals: Normals
    unit: Unit
    surface_tolerance: float
    dsc: Distribution
    precision: Distribution
    recall: Distribution
    jaccard: Distribution
    rmse: Distribution
    rms_surface_distance: Distribution
    assd: Distribution
    hd95: Distribution
    surface_dice: Distribution

    def as_json(self) -> dict[str, Any]:
        """As `evaluate --json` writes it: the same names, None as null."""
        return asdict(self)


def score_scan(
    scan: Scan, probability: NDArray[np.floating], marked: NDArray[np.bool_], surface: bool = True
) -> ScanScore:
    """Compare a scan's truth with a probability map [H, W] and with the pixels that were marked by it [H, W].

    surface=False leaves the surface measures out, which take longer than all others together. Raises ValueError
    when the map has another size than the scan, Fault when it holds what is no number.
    """
    truth = scan.mask
    if not probability.shape == marked.shape == truth.shape:
        raise ValueError(f"{scan.key}: a map of {probability.shape} for a scan of {truth.shape}")
    if not np.isfinite(probability).all():
        raise Fault(f"{scan.key}: the network's map holds values that are no numbers; use an earlier checkpoint")
    hit, predicted, real = (int(np.count_nonzero(pixels)) for pixels in (marked & truth, marked, truth))
    who = (scan.key, scan.patient, scan.label, real > 0, predicted > 0, predicted / truth.size)
    if not real:
        return ScanScore(*who)
    outlines = compare_outlines(marked, truth, scan.spacing) if surface else {}
    return ScanScore(
        *who,
        dsc=2 * hit / (predicted + real),
        precision=hit / predicted if predicted else 0.0,
        recall=hit / real,
        jaccard=hit / (predicted + real - hit),
        rmse=math.sqrt(np.mean(np.square(probability - truth, dtype=np.float64))) if predicted else 1.0,
        **{f"{name}_{unit}": value for unit, score in outlines.items() for name, value in asdict(score).items()},
    )


def dice(marked: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """The Dice similarity coefficient of two masks [H, W], 0..1; None when there is no lesion in the truth."""
    hit, predicted, real = (int(np.count_nonzero(pixels)) for pixels in (marked & truth, marked, truth))
    return 2 * hit / (predicted + real) if real else None


def summarise(scores: Sequence[ScanScore]) -> Summary:
    """Means, spread and intervals over scans, by the rules above; the same for the same scores in any order."""
    ordered = sorted(scores, key=lambda score: score.key)
    cases = [score for score in ordered if score.lesion]
    unit = common_unit(cases)
    table = measured(cases, unit)
    low, high = intervals(table, [score.patient for score in cases])
    return Summary(
        cases=len(cases),
        missed=sum(missed(score) for score in cases),
        normals=_normals([score for score in ordered if not score.lesion]),
        unit=unit,
        surface_tolerance=SURFACE_TOLERANCE[unit],
        **{
            name: Distribution(*(number_or_none(value) for value in (*_middle(row), low[place], high[place])))
            for place, (name, row) in enumerate(zip(MEASURES, table, strict=True))
        },
    )


def missed(score: ScanScore) -> bool:
    """Whether there is a lesion of which the network marked nothing."""
    return score.dsc == 0


def common_unit(cases: Sequence[ScanScore]) -> Unit:
    """The unit in which the surface measures of all these scans with a lesion are known."""
    return "mm" if cases and all(score.hd95_mm is not None for score in cases) else "px"


def measured(cases: Sequence[ScanScore], unit: Unit) -> NDArray[np.float64]:
    """The measures [measures, scans] of scans with a lesion, in the order of MEASURES; NaN where one was left out."""
    columns = (*REGION_MEASURES, *(f"{name}_{unit}" for name in SURFACE_MEASURES))
    rows = [[getattr(score, column) for score in cases] for column in columns]
    return np.array(rows, dtype=np.float64).reshape(len(MEASURES), len(cases))


def number_or_none(value: float) -> float | None:
    """None for NaN, for which JSON has no word."""
    return None if math.isnan(value) else float(value)


def _normals(scores: Sequence[ScanScore]) -> Normals:
    if not scores:
        return Normals(0, None, None)
    parts = [score.marked_fraction for score in scores]
    return Normals(len(scores), sum(score.marked for score in scores) / len(scores), math.fsum(parts) / len(scores))


def _middle(row: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, standard deviation of the sample, and median; NaN where there are too few values."""
    if row.size == 0:
        return math.nan, math.nan, math.nan
    return float(row.mean()), float(row.std(ddof=1)) if row.size > 1 else math.nan, float(np.median(row))
