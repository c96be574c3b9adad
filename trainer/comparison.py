"""Two models on the same scans: by how much one outlines better, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import WrongCall
from trainer.metrics import LOWER_IS_BETTER, MEASURES, ScanScore, common_unit, measured, missed, number_or_none
from trainer.resampling import intervals, sign_flip_p
from trainer.surfaces import SURFACE_TOLERANCE, Unit


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A measure of two models on the same scans with a lesion.

    first and second are their means, difference is that of second minus first over scans, low and high bound its
    95 % bootstrap interval over patients, p is that of the sign-flip test over patients, not adjusted for the
    number of measures (trainer.resampling tells of both). better, worse and equal count the scans on which the
    second model has the better, worse or same value. None where there are too few scans or patients, or where
    the measure was left out.
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    better: int
    worse: int
    equal: int


@dataclass(frozen=True, slots=True)
class Events:
    """Keys of scans on which something happened to one model only, and to both."""

    first_only: tuple[str, ...]
    second_only: tuple[str, ...]
    both: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the scans that both have judged: `cases` with a lesion, of `patients`, and `normals` without.

    missed: lesions of which nothing was marked; marked_normals: normal scans with a marked pixel. only_in_first
    and only_in_second are the keys of scans that the other model has not judged; they count nowhere else.
    """

    cases: int
    patients: int
    normals: int
    unit: Unit
    surface_tolerance: float
    measures: Mapping[str, PairedDifference]
    missed: Events
    marked_normals: Events
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As `compare --json` writes it: the same names, None as null."""
        return asdict(self)


def compare(first: Sequence[ScanScore], second: Sequence[ScanScore]) -> Comparison:
    """Compare the scores of two models, paired by the scans' keys; the same in any order.

    Raises WrongCall when they have no scan in common, or when a scan has a lesion or a patient in one that it has
    not in the other: then they are not of the same dataset.
    """
    one, other = ({score.key: score for score in scores} for scores in (first, second))
    pairs = [(one[key], other[key]) for key in sorted(one.keys() & other.keys())]
    _require_same_truth(pairs)
    lesions = [pair for pair in pairs if pair[0].lesion]
    normals = [pair for pair in pairs if not pair[0].lesion]
    unit = common_unit([score for pair in lesions for score in pair])
    patients = [score.patient for score, _ in lesions]
    return Comparison(
        cases=len(lesions),
        patients=len(set(patients)),
        normals=len(normals),
        unit=unit,
        surface_tolerance=SURFACE_TOLERANCE[unit],
        measures=_differences(lesions, patients, unit),
        missed=_events(lesions, missed),
        marked_normals=_events(normals, lambda score: score.marked),
        only_in_first=tuple(sorted(one.keys() - other.keys())),
        only_in_second=tuple(sorted(other.keys() - one.keys())),
    )


def _require_same_truth(pairs: Sequence[tuple[ScanScore, ScanScore]]) -> None:
    if not pairs:
        raise WrongCall("the two tables have no scan in common; compare tables of the same scans")
    for what, differ in (
        ("a lesion in one table and none in the other", [a.key for a, b in pairs if a.lesion != b.lesion]),
        ("another patient in one table than in the other", [a.key for a, b in pairs if a.patient != b.patient]),
    ):
        if differ:
            others = f", and so have {len(differ) - 1} more" if len(differ) > 1 else ""
            raise WrongCall(f"{differ[0]} has {what}{others}; compare tables of the same dataset")


def _differences(
    lesions: Sequence[tuple[ScanScore, ScanScore]], patients: Sequence[str], unit: Unit
) -> dict[str, PairedDifference]:
    first, second = (measured([pair[side] for pair in lesions], unit) for side in (0, 1))
    difference = second - first
    low, high = intervals(difference, patients)
    p = sign_flip_p(difference, patients)
    compared = {}
    for place, name in enumerate(MEASURES):
        gain = -difference[place] if name in LOWER_IS_BETTER else difference[place]
        one, other, between = (_mean(table[place]) for table in (first, second, difference))
        compared[name] = PairedDifference(
            first=one,
            second=other,
            difference=between,
            low=number_or_none(low[place]),
            high=number_or_none(high[place]),
            p=number_or_none(p[place]),
            better=int((gain > 0).sum()),
            worse=int((gain < 0).sum()),
            equal=int((gain == 0).sum()),
        )
    return compared


def _mean(row: NDArray[np.float64]) -> float | None:
    return number_or_none(row.mean()) if row.size else None


def _events(pairs: Sequence[tuple[ScanScore, ScanScore]], happened: Callable[[ScanScore], bool]) -> Events:
    told = [(first.key, happened(first), happened(second)) for first, second in pairs]
    return Events(
        first_only=tuple(key for key, one, other in told if one and not other),
        second_only=tuple(key for key, one, other in told if other and not one),
        both=tuple(key for key, one, other in told if one and other),
    )
