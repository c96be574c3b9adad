"""A search played through by the clock of its trials: who is begun when, what each reports, and where it is stopped."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tuning.settings import Tune, Tuning, legs, trainings, validated_every

GoesOn = Callable[[int, int, float], bool]
"""Told a trial's number, the epoch that it reports and its DSC: whether it goes on."""


class Work(NamedTuple):
    """What a trial has done when it reports an epoch."""

    trainings: int
    """Whose mean it reports."""
    starts: int
    """Of trainings, each of which costs a start-up."""
    trained: int
    """Epochs of all its trainings."""


@dataclass(frozen=True)
class Plan:
    """A search to be carried out: its trials and their scheduler as `tune` says, so many trials at once (slots)."""

    tune: Tune
    slots: int
    epochs: int
    """Of a training."""
    trainings: int = 1
    """Of a trial: one for each fold and seed."""
    every: int = 1
    """Epochs between two reports of a trial; the last epoch has one, too."""
    cores: int = 1
    """Of a trial."""
    gpus: int = 0
    """Of a trial."""

    @property
    def full(self) -> int:
        """Epochs of all trainings of all trials, if none is ended early."""
        return self.tune.trials * self.trainings * self.epochs

    @cached_property
    def reported(self) -> tuple[int, ...]:
        """The epochs that a trial reports."""
        return (*range(self.every, self.epochs, self.every), self.epochs)

    @cached_property
    def work(self) -> tuple[Work, ...]:
        """What a trial has done at each of its reports.

        A trial's trainings run one after another, each to the end of a leg; what an epoch came to is reported when the
        last of them has done it. The one that ran last goes on into the next leg without a start.
        """
        ends = iter(legs(self.tune, self.epochs, self.trainings))
        end, count = next(ends)
        starts, work = count, []
        for epoch in self.reported:
            while epoch > end:
                end, count = next(ends)
                starts += count - 1
            work.append(Work(count, starts, (count - 1) * end + epoch))
        return tuple(work)


def plan_of(tuning: Tuning, slots: int, gpus: int = 0) -> Plan:
    """The search that was asked for, with so many trials at once, and so many GPUs of a process."""
    tune, config = tuning.tune, tuning.config
    processes = tune.nodes * tune.processes
    return Plan(
        tune,
        slots,
        epochs=config.training.epochs,
        trainings=len(trainings(tune, config)),
        every=validated_every(tune, config),
        cores=processes * tune.cpus,
        gpus=processes * gpus,
    )


@dataclass(frozen=True)
class Course:
    """A trial as it would go if nothing ended it early: an entry for each of its reports, in their order."""

    epochs: Sequence[int]
    dsc: Sequence[float]
    seconds: Sequence[float]
    """Since it began."""
    trained: Sequence[int]
    """Epochs of all its trainings since it began."""


@dataclass(frozen=True)
class Played:
    """A search played through."""

    reached: Mapping[int, int]
    """By number, which of its course's reports was a trial's last."""
    seconds: float
    """Until the end of the last trial."""
    busy: float
    """Seconds of all trials together."""
    trained: int
    """Epochs of all trainings of all trials."""


def play(courses: Mapping[int, Course], slots: int, goes_on: GoesOn | None = None) -> Played:
    """Begin the trials in the order of the courses, each as soon as one of the slots is free, until all have ended.

    Without goes_on each goes to its end. Reports at the same moment come in the order in which their trials began.
    """
    waiting = iter(courses.items())
    due: list[tuple[float, int, int, int]] = []  # when, the how manieth trial, its number, which of its reports
    began: dict[int, float] = {}
    reached: dict[int, int] = {}
    now = busy = 0.0
    trained = 0

    def begin() -> None:
        number, course = next(waiting, (0, None))
        if course is not None:
            which = len(course.epochs) - 1 if goes_on is None else 0
            heapq.heappush(due, (now + course.seconds[which], len(began), number, which))
            began[number] = now

    for _ in range(min(slots, len(courses))):
        begin()
    while due:
        now, place, number, which = heapq.heappop(due)
        course = courses[number]
        told = goes_on is None or goes_on(number, course.epochs[which], course.dsc[which])
        if told and which + 1 < len(course.epochs):
            heapq.heappush(due, (began[number] + course.seconds[which + 1], place, number, which + 1))
            continue
        reached[number] = which
        busy += course.seconds[which]
        trained += course.trained[which]
        begin()
    return Played(reached, now, busy, trained)
