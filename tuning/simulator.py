"""What a search will cost, from a few of its trials: it is played through many times by their clock, nothing trained.

A trial to come goes like one that was measured, drawn by chance. What was never measured of that one, for it was
stopped, is made of the gains of another that went further, drawn likewise; beyond what any was measured for, a curve
stays where it is. To each trial's curve comes a constant of its own, so that no two are equal: normal, as wide as
Silverman's rule says for the spread between the measured (1986, equation 3.28). Its epochs take as long as those that
it goes like took. Who is stopped is decided by the scheduler itself. Left out are a searcher that learns from trials,
trials that fail, and the machines' time between two trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.tune.schedulers import TrialScheduler

from data_pipeline import Fault
from tuning.journal import Report, StudyRecord, TrialRecord
from tuning.playing import Course, GoesOn, Plan, play
from tuning.rungs import Rungs

RUNS = 200
"""Searches that are played through for a forecast."""

FEW_RUNS = 5
"""Those for what is left of a search under way, which is asked for after every report."""

EQUAL = 1e-6
"""Standard deviation of the DSC, at least, by which two trials that go like the same one differ."""


@dataclass(frozen=True)
class Spread:
    """The median of all runs, and the bounds between which nine in ten of them lie."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What a search will come to."""

    seconds: Spread
    """From the first trial's beginning to the last one's end."""
    trained: Spread
    """Epochs of all trainings of all trials."""
    share: Spread
    """The same, as a fraction of those of a search that ends no trial early."""
    core_hours: Spread
    """Of trials at work; a core that waits for one counts for nothing."""
    gpu_hours: Spread
    finished: Spread
    """Trials that are trained to their last epoch."""

    def as_json(self) -> dict[str, Any]:
        """All of it, by name."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What trials have come to, by row."""

    curves: NDArray[np.float64]
    """DSC [trials, epochs] after each epoch from 1; NaN after a trial's last."""
    paces: tuple[NDArray[np.float64], ...]
    """Of each trial, seconds of a trained epoch, from report to report."""
    start_seconds: float
    """From the start of a training until it learns."""
    width: float
    """Standard deviation of the constant that tells trials apart."""

    @classmethod
    def of(cls, trials: Iterable[TrialRecord]) -> Measured:
        """What these trials tell, those without a report left out. Raises Fault where none has one."""
        told = [reports for trial in trials if (reports := finite(trial))]
        if not told:
            raise Fault("no trial has reported an epoch, and nothing can be forecast from it; measure two trials first")
        curves = np.full((len(told), max(reports[-1].epoch for reports in told)), np.nan)
        for curve, reports in zip(curves, told, strict=True):
            epochs, dsc = [report.epoch for report in reports], [report.dsc for report in reports]
            curve[: epochs[-1]] = np.interp(range(1, epochs[-1] + 1), epochs, dsc)
        paces = [_paces(reports) for reports in told]
        known = [pace for of_one in paces for pace in of_one]
        usual = median(known or [reports[0].seconds / reports[0].trained for reports in told])
        starts = [
            max(0.0, reports[0].seconds - reports[0].trained * median(of_one or [usual])) / len(reports[0].trainings)
            for reports, of_one in zip(told, paces, strict=True)
        ]
        common = curves[:, np.isfinite(curves).all(axis=0)][:, -1]
        spread = float(common.std(ddof=1)) if len(told) > 1 else 0.0
        return cls(
            curves,
            tuple(np.array(of_one or [usual]) for of_one in paces),
            median(starts),
            max(EQUAL, 1.06 * spread * len(told) ** -0.2),
        )

    @property
    def epoch_seconds(self) -> float:
        """Of a training, the median of all that were measured."""
        return float(np.median(np.concatenate(self.paces)))

    def training_seconds(self, epochs: int) -> float:
        """Of one training from its start to its last epoch."""
        return self.start_seconds + epochs * self.epoch_seconds

    def course(self, plan: Plan, chance: np.random.Generator) -> Course:
        """A trial that goes like one of them, drawn."""
        which = int(chance.integers(len(self.curves)))
        curve = self._to_the_end(which, plan, chance) + chance.normal(0.0, self.width)
        return self._timed(curve, which, plan, chance)

    def rest(self, which: int, done: int, plan: Plan, chance: np.random.Generator) -> Course:
        """What is left of one of them from the report of an epoch on; seconds and trained count from there."""
        whole = self._timed(self._to_the_end(which, plan, chance), which, plan, chance)
        place = sum(epoch <= done for epoch in whole.epochs)
        seconds, trained = (whole.seconds[place - 1], whole.trained[place - 1]) if place else (0.0, 0)
        return Course(
            whole.epochs[place:],
            whole.dsc[place:],
            [at - seconds for at in whole.seconds[place:]],
            [count - trained for count in whole.trained[place:]],
        )

    def _to_the_end(self, which: int, plan: Plan, chance: np.random.Generator) -> NDArray[np.float64]:
        """Its curve [epochs of the plan], with what others gained where it ends before."""
        curve = np.full(plan.epochs, np.nan)
        known = min(plan.epochs, int(np.isfinite(self.curves[which]).sum()))
        curve[:known] = self.curves[which][:known]
        while known < plan.epochs:
            further = np.flatnonzero(np.isfinite(self.curves[:, known:]).any(axis=1))
            if not len(further):
                curve[known:] = curve[known - 1]
                break
            donor = self.curves[int(chance.choice(further))][: plan.epochs]
            curve[known : len(donor)] = curve[known - 1] + donor[known:] - donor[known - 1]
            known = int(np.isfinite(curve).sum())
        return curve

    def _timed(self, curve: NDArray[np.float64], which: int, plan: Plan, chance: np.random.Generator) -> Course:
        """A curve by the clock of one of them."""
        starts = np.array([work.starts for work in plan.work])
        trained = np.array([work.trained for work in plan.work])
        lasting = chance.choice(self.paces[which], trained[-1]).cumsum()
        seconds = self.start_seconds * starts + lasting[trained - 1]
        return Course(plan.reported, curve[np.array(plan.reported) - 1].tolist(), seconds.tolist(), trained.tolist())


def simulate(measured: Measured, plan: Plan, runs: int = RUNS, seed: int = 0) -> Forecast:
    """What the planned search comes to; the same for the same seed. A population costs what a full search does."""
    chance = np.random.default_rng(seed)
    played = []
    for _ in range(runs):
        courses = {number: measured.course(plan, chance) for number in range(plan.tune.trials)}
        played.append(play(courses, plan.slots, scheduled(rungs_of(plan))))
    last = len(plan.reported) - 1
    hours = np.array([run.busy for run in played]) / 3600
    trained = np.array([run.trained for run in played])
    return Forecast(
        seconds=spread([run.seconds for run in played]),
        trained=spread(trained),
        share=spread(trained / plan.full),
        core_hours=spread(hours * plan.cores),
        gpu_hours=spread(hours * plan.gpus),
        finished=spread([sum(which == last for which in run.reached.values()) for run in played]),
    )


def remaining(study: StudyRecord, plan: Plan, runs: int = FEW_RUNS, seed: int = 0) -> float | None:
    """Seconds that a search under way still takes, the median of a few runs; None before the first report.

    It takes some 50 ms for 32 trials, most of them in Ray's scheduler: little beside an epoch.
    """
    told = [trial for trial in study.trials.values() if finite(trial)]
    if not told:
        return None
    measured, rows = Measured.of(told), {trial.number: row for row, trial in enumerate(told)}
    under_way = [trial for trial in study.trials.values() if trial.how is None and trial.epoch < plan.epochs]
    numbers = [trial.number for trial in sorted(under_way, key=lambda trial: not trial.attempts)]
    unused = max(study.trials) + 1
    numbers += range(unused, unused + plan.tune.trials - len(study.trials))
    rungs = rungs_of(plan)
    if rungs is not None:
        rungs.recall(study)
    chance = np.random.default_rng(seed)
    seconds = []
    for _ in range(runs):
        courses = {
            number: measured.rest(rows[number], study.trials[number].epoch, plan, chance)
            if number in rows
            else measured.course(plan, chance)
            for number in numbers
        }
        seconds.append(play(courses, plan.slots, scheduled(deepcopy(rungs))).seconds)
    return median(seconds)


def scheduled(rungs: Rungs | None) -> GoesOn | None:
    """The decisions of Ray's scheduler, asked as Ray asks it."""
    if rungs is None:
        return None

    def goes_on(number: int, epoch: int, dsc: float) -> bool:
        trial = SimpleNamespace(config={"number": number})
        return rungs.on_trial_result(None, trial, {"epoch": epoch, "dsc": dsc}) == TrialScheduler.CONTINUE

    return goes_on


def rungs_of(plan: Plan) -> Rungs | None:
    """The scheduler of a planned search, before any report; None where it ends no trial early."""
    return Rungs(plan.tune, plan.epochs) if plan.tune.scheduler == "asha" else None


def finite(trial: TrialRecord) -> list[Report]:
    """Its reports but those whose DSC is not finite."""
    return [report for report in trial.reports if isfinite(report.dsc)]


def _paces(reports: Sequence[Report]) -> list[float]:
    """Seconds of a trained epoch from each report to the next."""
    return [
        (after.seconds - before.seconds) / (after.trained - before.trained)
        for before, after in pairwise(reports)
        if after.trained > before.trained and after.seconds > before.seconds
    ]


def spread(values: Iterable[float]) -> Spread:
    """The spread of what runs came to."""
    low, middle, high = np.percentile(list(values), (5, 50, 95))
    return Spread(float(middle), float(low), float(high))
