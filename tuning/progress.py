"""What a search tells a person: a line an event."""

from __future__ import annotations

from collections.abc import Callable

from tuning.journal import StudyRecord, TrialRecord
from tuning.playing import plan_of
from tuning.results_text import duration
from tuning.settings import Tuning
from tuning.simulator import remaining

Say = Callable[[str], None]


class Progress:
    """An onlooker that tells of each trial. room: how many run at the same time."""

    def __init__(self, study: StudyRecord, tuning: Tuning, room: int, say: Say) -> None:
        self._study = study
        self._tuning = tuning
        self._plan = plan_of(tuning, room)
        self._say = say

    def began(self, trial: TrialRecord) -> None:
        """Where a trial runs, and whose proposal it is."""
        again = f", attempt {trial.attempts}, from epoch {trial.epoch}" if trial.attempts > 1 else ""
        self._say(f"{self._name(trial)}: {trial.origin}, on {trial.node or 'a node'}{again}")

    def reported(self, trial: TrialRecord) -> None:
        """How good it is after an epoch."""
        best = self._study.best()[0]
        leads = "the best so far" if best is trial else f"the best is trial {best.number} with {best.dsc:.4f}"
        epochs = self._tuning.config.training.epochs
        self._say(f"{self._name(trial)}: epoch {trial.epoch} of {epochs}, DSC {trial.dsc:.4f}; {leads}")

    def failed(self, trial: TrialRecord) -> None:
        """Why an attempt failed."""
        self._say(f"{self._name(trial)}: attempt {trial.attempts} failed: {trial.failures[-1]}")

    def exchanged(self, trial: TrialRecord) -> None:
        """Whose weights it goes on from."""
        donor, epoch = trial.donors[-1]
        self._say(f"{self._name(trial)}: goes on from trial {donor} after epoch {epoch}, with other values")

    def ended(self, trial: TrialRecord) -> None:
        """How it ended, and how many have."""
        ended = sum(other.how is not None for other in self._study.trials.values())
        why = f", {trial.why}" if trial.how == "stopped" else ""
        left = remaining(self._study, self._plan)
        time = f", about {duration(left)} left" if left else ""
        self._say(f"{self._name(trial)}: {trial.how}{why}; {ended} of {self._tuning.tune.trials} have ended{time}")

    def _name(self, trial: TrialRecord) -> str:
        return f"trial {trial.number} of {self._tuning.tune.trials}"
