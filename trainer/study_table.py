"""What a study came to, in numbers: a row a variant, and each variant against the one that it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.comparison import Comparison, compare
from trainer.metrics import MEASURES, ScanScore, common_unit, measured, missed, number_or_none
from trainer.resampling import intervals
from trainer.study import Published, Study
from trainer.surfaces import Unit


@dataclass(frozen=True)
class Trained:
    """One training of a study: the scores of its held-out scans, its network's parameters, and how long it took."""

    scores: Sequence[ScanScore]
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Spread:
    """A measure of a variant: the mean over folds of the means over scans, and how far chance may have moved it.

    With two folds and more, sd is the sample standard deviation over folds, as the paper's tables have it. With one,
    low and high bound the mean's 95 % bootstrap interval over patients. What there is not is None.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """A variant: its folds that are finished, what it did with the scans held out in them, and what it took.

    cases: scans with a lesion, of which it missed so many; normals: scans without, of which it marked so many;
    minutes: the mean of a fold's training.
    """

    variant: str
    folds: tuple[int, ...]
    cases: int
    missed: int
    normals: int
    marked_normals: int
    measures: Mapping[str, Spread]
    parameters: int
    minutes: float


@dataclass(frozen=True)
class StudyTable:
    """A row for each variant of which a fold is finished, in the study's order.

    unit is that of the surface measures, in all rows. comparisons has, for each variant with a fold that compare_to
    has too, the two on all held-out scans of these folds: second is the variant, first is compare_to.
    """

    title: str
    compare_to: str
    unit: Unit
    rows: tuple[Row, ...]
    comparisons: Mapping[str, Comparison]
    published: Published | None

    def as_json(self) -> dict[str, Any]:
        """All numbers in full, by the names of the fields."""
        return asdict(self) | {"published": self.published and self.published.model_dump()}


def tabulate(study: Study, trained: Mapping[str, Mapping[int, Trained]]) -> StudyTable:
    """The table of the trainings that are finished, by variant and fold."""
    done = {name: trained[name] for name in study.variants if trained.get(name)}
    unit = common_unit([score for folds in done.values() for one in folds.values() for score in _cases(one)])
    reference = done.get(study.compare_to, {})
    comparisons = {}
    for name, folds in done.items():
        common = [fold for fold in folds if fold in reference]
        if name != study.compare_to and common:
            comparisons[name] = compare(*(pooled({fold: of[fold] for fold in common}) for of in (reference, folds)))
    rows = tuple(_row(name, folds, unit) for name, folds in done.items())
    return StudyTable(study.table, study.compare_to, unit, rows, comparisons, study.published)


def pooled(folds: Mapping[int, Trained]) -> list[ScanScore]:
    """The scores of all folds' held-out scans: each scan is held out once."""
    return [score for one in folds.values() for score in one.scores]


def _row(name: str, folds: Mapping[int, Trained], unit: Unit) -> Row:
    cases = {fold: _cases(one) for fold, one in sorted(folds.items())}
    every = [score for of_fold in cases.values() for score in of_fold]
    normals = [score for score in pooled(folds) if not score.lesion]
    return Row(
        variant=name,
        folds=tuple(cases),
        cases=len(every),
        missed=sum(map(missed, every)),
        normals=len(normals),
        marked_normals=sum(score.marked for score in normals),
        measures=_measures(list(cases.values()), unit),
        parameters=max(one.parameters for one in folds.values()),
        minutes=statistics.fmean(one.seconds for one in folds.values()) / 60,
    )


def _measures(folds: Sequence[Sequence[ScanScore]], unit: Unit) -> dict[str, Spread]:
    """Each measure's spread over folds that have a scan with a lesion."""
    tables = [measured(cases, unit) for cases in folds if cases]
    if not tables:
        return {name: Spread(None, None, None, None) for name in MEASURES}
    means = np.array([table.mean(axis=1) for table in tables])
    if len(tables) > 1:
        return {
            name: Spread(number_or_none(of_folds.mean()), number_or_none(of_folds.std(ddof=1)), None, None)
            for name, of_folds in zip(MEASURES, means.T, strict=True)
        }
    low, high = intervals(tables[0], [score.patient for cases in folds for score in cases])
    return {
        name: Spread(number_or_none(means[0, place]), None, number_or_none(low[place]), number_or_none(high[place]))
        for place, name in enumerate(MEASURES)
    }


def _cases(one: Trained) -> list[ScanScore]:
    return [score for score in one.scores if score.lesion]
