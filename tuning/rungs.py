"""Rungs that remember: successive halving on epochs, Ray's own, also across the death of the process that ran it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tuning.journal import StudyRecord
from tuning.settings import Tune
from tuning.settings import milestones as milestones


@dataclass(frozen=True)
class _Numbered:
    """What Ray's scheduler asks of a trial."""

    trial_id: str


class Rungs(AsyncHyperBandScheduler):
    """Ray's asynchronous successive halving (Li et al., 2020), to which a trial is its number in the journal.

    Ray gives a trial that is started again a new name, under which it would be judged, and counted, once more. Of a
    trial only an epoch beyond those before counts; what repeats one, as a sign of life does, or has no measure yet,
    is answered as the last that counted.
    """

    def __init__(self, tune: Tune, epochs: int) -> None:
        super().__init__(
            time_attr="epoch",
            metric="dsc",
            mode="max",
            max_t=epochs,
            grace_period=milestones(tune, epochs)[0],
            reduction_factor=tune.reduction,
        )
        self._last: dict[int, tuple[int, str]] = {}
        """By trial: the last epoch that counted, and what was decided then."""

    def recall(self, study: StudyRecord) -> set[int]:
        """Learn what was reported, in the order in which it was.

        Gives the trials that have not ended and that their last report put out, which nobody heard.
        """
        for report in study.reports:
            self._decide(report.trial, {"epoch": report.epoch, "dsc": report.dsc})
        return {
            number
            for number, (epoch, decision) in self._last.items()
            if decision == TrialScheduler.STOP and epoch < self._max_t and study.trials[number].how is None
        }

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is known from its first report on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Whether it goes on."""
        return self._decide(trial.config["number"], result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Count what it ended with."""
        self._decide(trial.config["number"], result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """What it reported stays."""

    def _decide(self, number: int, result: Mapping[str, Any]) -> str:
        last, decision = self._last.get(number, (0, TrialScheduler.CONTINUE))
        epoch, dsc = result.get("epoch", 0), result.get("dsc", math.nan)
        if epoch > last and not math.isnan(dsc):
            known = _Numbered(str(number))
            if number not in self._last:
                super().on_trial_add(None, known)
            decision = super().on_trial_result(None, known, {"epoch": epoch, "dsc": dsc})
            self._last[number] = epoch, decision
        return decision
