"""The answer of a study, kept up to date in its folder while trials end."""

from __future__ import annotations

import time
from pathlib import Path

from tuning.disk import tidy
from tuning.final import FinalComparison
from tuning.journal import StudyRecord, TrialRecord
from tuning.orders import Desk
from tuning.page import write_report
from tuning.results import Results, write_results

REDRAWN = 600.0
"""Seconds between two drawings of the page, at least: it takes some ten."""


class Answer:
    """An onlooker that writes results down and removes what is not to stay, as trials end."""

    def __init__(self, desk: Desk, study: StudyRecord) -> None:
        self._desk = desk
        self._study = study
        self._drawn = -REDRAWN

    def began(self, trial: TrialRecord) -> None:
        """Nothing is known yet."""

    def reported(self, trial: TrialRecord) -> None:
        """Nothing is decided yet."""

    def failed(self, trial: TrialRecord) -> None:
        """It may yet succeed."""

    def exchanged(self, trial: TrialRecord) -> None:
        """Nothing is decided yet."""

    def ended(self, trial: TrialRecord) -> None:  # noqa: ARG002 - all trials are looked at
        """One more figure."""
        if time.monotonic() - self._drawn > REDRAWN:
            self.written(None)
            self._drawn = time.monotonic()
        else:
            self._tidy()
            write_results(self._desk.output, self._desk.tuning, self._study)

    def written(self, final: FinalComparison | None) -> Results:
        """Write all of it."""
        self._tidy()  # also of trials that were still writing when they ended
        return write_report(self._desk.output, self._desk.tuning, self._study, final)

    def files(self) -> list[Path]:
        """What is worth keeping with the study's run in MLflow."""
        names = ("trials.csv", "best.yaml", "table.md", "report.html", "result.json", "study.yaml")
        return [*(self._desk.output / name for name in names), *sorted(self._desk.output.glob("*.png"))]

    def _tidy(self) -> None:
        tidy(self._desk.output / "trials", self._study, self._desk.tuning.tune.keep)
