"""How Ray Tune is driven by the journal: what it is to try comes from there, and what it tells is written there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from tuning.journal import Journal, TrialRecord
from tuning.searcher import propose
from tuning.settings import Tuning
from tuning.trial import TrialOrder


class Onlooker(Protocol):
    """Who is told what happens, when the journal has it."""

    def began(self, trial: TrialRecord) -> None:
        """An attempt has begun."""

    def reported(self, trial: TrialRecord) -> None:
        """An epoch was done; the trial's last report has it."""

    def failed(self, trial: TrialRecord) -> None:
        """An attempt has failed; the trial's last failure says why."""

    def exchanged(self, trial: TrialRecord) -> None:
        """It goes on from another trial's weights; its last donor says from whose."""

    def ended(self, trial: TrialRecord) -> None:
        """The trial has ended."""


class Proposals(Searcher):
    """What Ray is to run: first the trials that have not ended, then new ones, until there are as many as asked for."""

    def __init__(self, journal: Journal, tuning: Tuning, order: Callable[[TrialRecord], TrialOrder]) -> None:
        super().__init__(metric="dsc", mode="max")
        self._journal = journal
        self._tuning = tuning
        self._order = order
        self._unfinished = deque(number for number, trial in journal.study.trials.items() if trial.how is None)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration for Ray."""
        study = self._journal.study
        if self._unfinished:
            number = self._unfinished.popleft()
        elif len(study.trials) < self._tuning.tune.trials:
            number = len(study.trials)
            values, origin = propose(self._tuning, study)
            self._journal.write("trial", number=number, values=values, origin=origin)
        else:
            return Searcher.FINISHED
        return {"number": number, "order": self._order(study.trials[number])}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The journal knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what there is to know is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray writes its searcher down for a restore of its own, which is not used


class Notes(Callback):
    """Writes down what Ray tells, once. received grows when a signal comes, after which trials end unfinished."""

    def __init__(self, journal: Journal, epochs: int, received: Sequence[int], onlookers: Iterable[Onlooker]) -> None:
        self._journal = journal
        self._epochs = epochs
        self._received = received
        self._onlookers = tuple(onlookers)
        self._seconds: dict[int, float] = {}
        """Of training, by trial, before its attempt that is under way; none for one of which nothing was heard yet."""
        trials = journal.study.trials
        self._failed_before = {number: len(trial.failures) for number, trial in trials.items() if trial.failures}
        """How often, by trial, before this process, of which Ray knows nothing."""

    def on_trial_start(self, trial: Any, **_: Any) -> None:
        """An attempt begins. Attempts in earlier processes count among those that a trial has."""
        before = self._failed_before.pop(trial.config["number"], 0)
        trial.max_failures = max(0, trial.max_failures - before)

    def on_trial_result(self, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        """A sign of life, or a further epoch."""
        record = self._begun(trial, result)
        if result["epoch"] > record.epoch:
            self._journal.write(
                "report",
                trial=record.number,
                epoch=result["epoch"],
                dsc=result["dsc"],
                trainings=dict(result["trainings"]),
                trained=result["trained"],
                seconds=round(self._seconds[record.number] + result["busy"], 1),
            )
            for onlooker in self._onlookers:
                onlooker.reported(record)

    def on_trial_recover(self, trial: Any, **_: Any) -> None:
        """A failure after which it is tried again."""
        self._failed(trial)

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """The last failure."""
        record = self._failed(trial)
        self._end(record, "failed", record.failures[-1])

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """All epochs done, or put out at a rung."""
        if self._received:
            return
        record = self._journal.study.trials[trial.config["number"]]
        if record.epoch >= self._epochs:
            self._end(record, "finished", "")
        else:
            self._end(record, "stopped", f"not among the best after epoch {record.epoch}")

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _begun(self, trial: Any, result: Mapping[str, Any]) -> TrialRecord:
        """The trial's record, in which the attempt is noted that this result is the first of."""
        record = self._journal.study.trials[trial.config["number"]]
        if record.number not in self._seconds:
            node = result.get("hostname", "")
            self._journal.write("began", trial=record.number, attempt=record.attempts + 1, node=node)
            self._seconds[record.number] = record.reports[-1].seconds if record.reports else 0.0
            for onlooker in self._onlookers:
                onlooker.began(record)
        return record

    def _failed(self, trial: Any) -> TrialRecord:
        record = self._begun(trial, {})
        self._journal.write("failed", trial=record.number, why=why(trial))
        del self._seconds[record.number]
        for onlooker in self._onlookers:
            onlooker.failed(record)
        return record

    def _end(self, record: TrialRecord, how: str, why: str) -> None:
        self._journal.write("ended", trial=record.number, how=how, why=why)
        for onlooker in self._onlookers:
            onlooker.ended(record)


class WhenAsked(Stopper):
    """Ends Ray's loop when a signal has come; its trials stop with a checkpoint."""

    def __init__(self, received: Sequence[int]) -> None:
        self._received = received

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether one has come."""
        return bool(self._received)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def why(trial: Any) -> str:
    """In one line, of what Ray says that a trial's attempt has failed."""
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2]
    except (OSError, TypeError):
        return "failed without a word"
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    said = [line.partition("TrialFailed: ")[2] for line in lines if "TrialFailed: " in line]
    if said:
        return said[-1]
    if any("worker process has died" in line for line in lines):
        return "its Ray worker died"
    if any("node has died" in line or "node was terminated" in line for line in lines):
        return "its machine was lost"
    return lines[-1] if lines else "failed without a word"
