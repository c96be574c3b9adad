"""A full search searched once more with successive halving: what it would have saved, and what it would have missed.

A training is the same to the bit whenever it is repeated, so the curves of a study in which no trial was ended early
are those that any other search of the same trials would see. They are given to Ray's scheduler in the order in which
the study began its trials, and in others drawn by chance, for its decisions depend on who came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from data_pipeline import Fault
from trainer.metrics import summarise
from trainer.score_table import read_csv
from tuning.journal import StudyRecord, TrialRecord
from tuning.playing import Course, Plan, play
from tuning.settings import milestones
from tuning.simulator import Spread, finite, rungs_of, scheduled, spread

ORDERS = 1000
"""Orders of the trials that are drawn."""


@dataclass(frozen=True)
class Outcome:
    """What a search of these trials, in one order, came to."""

    share: float
    """Epochs that it trained, as a fraction of the full search's."""
    best: int
    """The trial that it would name as the best: of those trained to the end the one with the highest DSC."""
    dsc: float
    """Of that trial, after its last epoch."""
    regret: float
    """By which the full search's best is higher; 0 where it is the same trial."""
    finished: int
    """Trials that it trained to the end."""
    hours: float
    """From the first trial's beginning to the last one's end."""


@dataclass(frozen=True)
class Replayed:
    """A study replayed under one setting of the scheduler."""

    trials: int
    left_out: tuple[int, ...]
    """Trials of the study that were not trained to the end, of which nothing beyond is known."""
    epochs: int
    slots: int
    first_rung: int
    reduction: int
    full_best: int
    full_dsc: float
    interval: tuple[float, float] | None
    """Of the full search's best: the 95 % interval of its DSC over patients."""
    own: Outcome
    """In the order in which the study began its trials."""
    orders: Sequence[Outcome]
    """In those that were drawn."""

    @property
    def share(self) -> Spread:
        """Over the orders drawn."""
        return spread(outcome.share for outcome in self.orders)

    @property
    def regret(self) -> Spread:
        """Over the orders drawn."""
        return spread(outcome.regret for outcome in self.orders)

    @property
    def within(self) -> float | None:
        """The fraction of orders whose best reaches the interval; None without one."""
        return fmean(self.reaches(outcome) for outcome in self.orders) if self.interval else None

    def reaches(self, outcome: Outcome) -> bool:
        """Whether its best is within the interval of the full search's."""
        return self.interval is not None and outcome.dsc >= self.interval[0]

    def as_json(self) -> dict[str, Any]:
        """All of it but the single orders, of which it tells medians, bounds of nine in ten, and extremes."""
        told = asdict(self)
        orders = told.pop("orders")
        return told | {
            "own_within": self.reaches(self.own) if self.interval else None,
            "orders": len(orders),
            "share": asdict(self.share) | {"most": max(order["share"] for order in orders)},
            "regret": asdict(self.regret) | {"most": max(order["regret"] for order in orders)},
            "same_best": fmean(order["best"] == self.full_best for order in orders),
            "within": self.within,
        }


def replay(
    study: StudyRecord,
    plan: Plan,
    orders: int = ORDERS,
    seed: int = 0,
    interval: tuple[float, float] | None = None,
) -> Replayed:
    """Search a full study once more, as planned; the number of its trials is the study's.

    interval is that of the full search's best (`interval_of_best`). Raises Fault where fewer than two trials of the
    study were trained for all epochs of the plan, or one of them tells less than the plan asks of it.
    """
    begun = [trial for _, trial in sorted(study.trials.items())]
    whole = [trial for trial in begun if (reports := finite(trial)) and reports[-1].epoch >= plan.epochs]
    if len(whole) < 2:
        raise Fault(
            f"{len(whole)} of {len(begun)} trials were trained for {plan.epochs} epochs; "
            "replay a study with tune.scheduler=none"
        )
    plan = replace(plan, tune=plan.tune.model_copy(update={"trials": len(whole)}))
    courses = {trial.number: _course(trial, plan) for trial in whole}
    best = _best(courses, courses)
    chance = np.random.default_rng(seed)

    def outcome(order: Sequence[int]) -> Outcome:
        played = play({number: courses[number] for number in order}, plan.slots, scheduled(rungs_of(plan)))
        last = [number for number, which in played.reached.items() if which + 1 == len(courses[number].epochs)]
        named = _best(courses, last)
        dsc = courses[named].dsc[-1]
        regret = courses[best].dsc[-1] - dsc
        return Outcome(played.trained / plan.full, named, dsc, regret, len(last), played.seconds / 3600)

    numbers = list(courses)
    return Replayed(
        trials=len(whole),
        left_out=tuple(trial.number for trial in begun if trial not in whole),
        epochs=plan.epochs,
        slots=plan.slots,
        first_rung=milestones(plan.tune, plan.epochs)[0],
        reduction=plan.tune.reduction,
        full_best=best,
        full_dsc=courses[best].dsc[-1],
        interval=interval,
        own=outcome(numbers),
        orders=[outcome(chance.permutation(numbers).tolist()) for _ in range(orders)],
    )


def interval_of_best(folder: Path, study: StudyRecord) -> tuple[float, float] | None:
    """The 95 % interval of the DSC of a study's best trial, over the patients of the scans that its trainings judged.

    folder is the study's. None where there are too few patients. Raises Fault where none of its trials has a measure,
    WrongCall where the best one's tables of scores are not there.
    """
    best = next(iter(study.best()), None)
    if best is None:
        raise Fault(f"{folder}: no trial has a measure yet")
    trainings = best.reports[-1].trainings
    tables = [folder / "trials" / f"{best.number:04d}" / name / "validation.csv" for name in trainings]
    dsc = summarise([score for table in tables for score in read_csv(table)]).dsc
    return None if dsc.low is None or dsc.high is None else (dsc.low, dsc.high)


def _course(trial: TrialRecord, plan: Plan) -> Course:
    """What the plan's search would see of a trial, and when."""
    told = {report.epoch: report for report in finite(trial)}
    dsc = []
    for epoch, work in zip(plan.reported, plan.work, strict=True):
        trainings = list(told[epoch].trainings.values()) if epoch in told else []
        if len(trainings) < work.trainings:
            raise Fault(f"trial {trial.number} tells nothing of {work.trainings} trainings after epoch {epoch}")
        dsc.append(fmean(trainings[: work.trainings]))
    trained = [work.trained for work in plan.work]
    if trained == [told[epoch].trained for epoch in plan.reported]:
        seconds = [told[epoch].seconds for epoch in plan.reported]
    else:
        last = told[plan.epochs]
        seconds = [last.seconds / last.trained * count for count in trained]
    return Course(plan.reported, dsc, seconds, trained)


def _best(courses: Mapping[int, Course], numbers: Iterable[int]) -> int:
    """Of these trials, trained to the end, the one with the highest DSC."""
    return min(numbers, key=lambda number: (-courses[number].dsc[-1], number))
