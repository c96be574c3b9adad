"""The journal of a study: what happened, a line of JSON an event, in the order in which it happened.

All that a study knows follows from it: which trials there are, how far each is, why one ended, what a rung has seen.
So a study that was killed is read again and goes on. One process writes it, the driver, each event at once and for
good; a line that was cut off by a kill did not happen.

trial     number, values (by key), origin (paper, tpe, random or population)
began     trial, attempt (from 1), node
report    trial, epoch, dsc (mean over its trainings so far), trainings (name to DSC), trained (epochs of all its
          trainings), seconds (of training)
failed    trial, why; one more attempt begins, unless the next event is its end
ended     trial, how (finished, stopped by the search, or failed), why
exchanged trial, donor, epoch, values: a trial of a population went on from another's weights

A line of any other event, as a later version may write, is refused: without it the study would be another.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from data_pipeline import Fault

NAME = "journal.jsonl"

How = Literal["finished", "stopped", "failed"]

_EVENTS = {
    "trial": ("number", "values", "origin"),
    "began": ("trial", "attempt", "node"),
    "report": ("trial", "epoch", "dsc", "trainings", "trained", "seconds"),
    "failed": ("trial", "why"),
    "ended": ("trial", "how", "why"),
    "exchanged": ("trial", "donor", "epoch", "values"),
}
"""What each event tells."""


@dataclass(frozen=True)
class Report:
    """What a trial came to after an epoch. dsc is the mean of trainings, a fraction of 1; seconds those of training
    since the trial began, over all attempts; trained the epochs of all its trainings together.
    """

    trial: int
    epoch: int
    dsc: float
    trainings: Mapping[str, float]
    trained: int
    seconds: float


@dataclass
class TrialRecord:
    """What is known of a trial. It is waiting before its first attempt, and running until it has ended."""

    number: int
    values: dict[str, Any]
    origin: str
    reports: list[Report] = field(default_factory=list)
    attempts: int = 0
    failures: list[str] = field(default_factory=list)
    node: str = ""
    how: How | None = None
    why: str = ""
    donors: list[tuple[int, int]] = field(default_factory=list)
    """Of a population: from which trial it went on, and at which epoch."""

    @property
    def generation(self) -> int:
        """Which of its weights it trains, counted from 1: another one begins with each donor's."""
        return len(self.donors) + 1

    @property
    def epoch(self) -> int:
        """Epochs that it has reported."""
        return self.reports[-1].epoch if self.reports else 0

    @property
    def dsc(self) -> float | None:
        """The measure: the mean DSC of its trainings after the last epoch that it reported."""
        return self.reports[-1].dsc if self.reports else None

    @property
    def trained(self) -> int:
        """Epochs of all its trainings together."""
        return self.reports[-1].trained if self.reports else 0

    @property
    def state(self) -> str:
        """waiting, running, finished, stopped or failed."""
        return self.how or ("running" if self.attempts else "waiting")


class StudyRecord:
    """All that a journal tells."""

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.reports: list[Report] = []
        """Of all trials, in the order in which they came."""
        for event in events:
            self.add(event)

    def check(self, event: Mapping[str, Any]) -> None:
        """Raise ValueError, saying why, for an event that cannot be the next one."""
        kind = event.get("event")
        if kind not in _EVENTS:
            raise ValueError(f"the event {kind!r} is none of {', '.join(_EVENTS)}")
        missing = [name for name in _EVENTS[kind] if name not in event]
        if missing:
            raise ValueError(f"{kind} without {missing[0]}")
        number = event["number" if kind == "trial" else "trial"]
        if (number in self.trials) == (kind == "trial"):
            raise ValueError(f"{kind} of trial {number}, which {'has' if kind == 'trial' else 'has not'} been told of")

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event in. A report of an epoch that was reported before counts for nothing. Raises as check does."""
        self.check(event)
        kind = event["event"]
        if kind == "trial":
            self.trials[event["number"]] = TrialRecord(event["number"], dict(event["values"]), event["origin"])
            return
        trial = self.trials[event["trial"]]
        if kind == "began":
            trial.attempts, trial.node = event["attempt"], event["node"]
        elif kind == "report":
            report = Report(**{name: event[name] for name in _EVENTS["report"]})
            if report.epoch > trial.epoch:
                trial.reports.append(report)
                self.reports.append(report)
        elif kind == "failed":
            trial.failures.append(event["why"])
        elif kind == "ended":
            trial.how, trial.why = event["how"], event["why"]
        elif kind == "exchanged":
            trial.values = dict(event["values"])
            trial.donors.append((event["donor"], event["epoch"]))

    def best(self) -> list[TrialRecord]:
        """Trials with a measure, the best first, but those that failed.

        First come those that are finished, by their measure; then, since a measure after fewer epochs says less, all
        others: those that went further first, those that went equally far by their measure.
        """
        measured = [trial for trial in self.trials.values() if trial.how != "failed" and _measured(trial)]
        return sorted(
            measured,
            key=lambda trial: (
                trial.how != "finished",
                0 if trial.how == "finished" else -trial.epoch,
                -(trial.dsc or 0.0),
                trial.number,
            ),
        )


class Journal:
    """The journal in a folder, open for writing, and what it tells.

    Raises Fault where another process has it open, it is damaged, or the file system refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as failed:
            raise self._refused(failed) from failed
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.study, whole = _read(self.path)
            os.ftruncate(self._file, whole)
        except BaseException as failed:
            os.close(self._file)
            if isinstance(failed, BlockingIOError):
                raise Fault(
                    f"{folder}: another sonotrain tune is at work on this study; wait for it, or stop it"
                ) from failed
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, event: str, **what: Any) -> None:
        """Note what happened: on the disk when this returns.

        Raises Fault where it cannot be, and ValueError for what cannot have happened; the journal is then as it was.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 1), **what}).encode() + b"\n"
        told = json.loads(line)
        self.study.check(told)
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as failed:
            os.ftruncate(self._file, before)
            raise self._refused(failed) from failed
        self.study.add(told)

    def _refused(self, failed: OSError) -> Fault:
        return Fault(f"{self.path} cannot be written: {failed.strerror}; once it can, the same call goes on")


def read_journal(folder: Path) -> StudyRecord:
    """What the journal in a folder tells, also while it is written. Raises Fault where there is none."""
    if not (folder / NAME).is_file():
        raise Fault(f"{folder}: holds no study, which has a {NAME}")
    return _read(folder / NAME)[0]


def _measured(trial: TrialRecord) -> bool:
    return trial.dsc is not None and not math.isnan(trial.dsc)


def _read(path: Path) -> tuple[StudyRecord, int]:
    """What it tells, and how many of its bytes are whole lines."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    study = StudyRecord()
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("no event")
            study.add(event)
        except (ValueError, TypeError) as broken:
            raise Fault(
                f"{path}, line {number}: is damaged ({broken}); name another output, or remove the line"
            ) from broken
    return study, whole
