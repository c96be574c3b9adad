"""A study in MLflow: a parent run, and below it a run for each trial, all written by the driver.

What is written follows from the study's record, as it does for the journal: where the study goes on, its runs do, and
what a tracker has missed while it was away is written when it is back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from data_pipeline import Dataset
from trainer.atomic import replacing
from trainer.stopping import Stopped
from trainer.tracking import Run, Status, start_run
from tuning.child_run import ChildRun, Numbers
from tuning.final import FinalComparison
from tuning.journal import StudyRecord, TrialRecord
from tuning.settings import Tuning

NAME = "tracking.json"
"""In the study's folder: the id of its run, under which it goes on."""

STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
"""MLflow's word for how a trial ended; the tag `state` has ours."""


class TrackedStudy:
    """Told what happens, as an onlooker. No call raises or waits but the first and the last, both with a bound."""

    def __init__(self, tuning: Tuning, dataset: Dataset, study: StudyRecord) -> None:
        """Begin the study's run, or go on with the one of its folder, and write what the tracker lacks."""
        self._study = study
        self._note = Path(tuning.config.output) / NAME
        self._noted = json.loads(self._note.read_text(encoding="utf-8"))["run_id"] if self._note.exists() else None
        self._run: Run = start_run(
            name=Path(tuning.config.output).absolute().name,
            experiment=tuning.config.tracking.experiment,
            params=_params(tuning),
            tags={"dataset.name": dataset.index.name, "dataset.digest": dataset.index.digest, "kind": "search"},
            resume=self._noted,
        )
        self._numbers = Numbers()
        self._children: dict[int, _Trial] = {}
        self._write_all()

    def __enter__(self) -> TrackedStudy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        self._write_all()
        for child in self._children.values():
            child.leave()
        self._run.finish("FINISHED" if error is None else "KILLED" if stopped else "FAILED")
        self._keep_id()

    def began(self, trial: TrialRecord) -> None:
        """An attempt has begun."""
        self._write(trial)

    def reported(self, trial: TrialRecord) -> None:
        """An epoch was done."""
        self._write(trial)

    def failed(self, trial: TrialRecord) -> None:
        """An attempt has failed."""
        self._write(trial)

    def exchanged(self, trial: TrialRecord) -> None:
        """A trial of a population has gone on from another's weights."""
        self._write(trial)

    def ended(self, trial: TrialRecord) -> None:
        """The trial has ended."""
        self._write(trial)

    def concluded(self, best: int | None, final: FinalComparison | None, files: Iterable[Path]) -> None:
        """What the search came to: the number of the best trial, and files of which those that exist are kept."""
        trials = self._study.trials.values()
        winner = None if best is None else self._study.trials[best]
        measures = {f"best/{name}": value for name, value in _measures(winner).items()}
        measures |= {f"paper/{name}": value for name, value in _measures(_paper(trials)).items()}
        if final is not None:
            of_final = {name: getattr(final, name) for name in ("best", "paper", "difference", "low", "high", "p")}
            measures |= {f"unseen/{name}": value for name, value in of_final.items() if value is not None}
        ended = sum(trial.how is not None for trial in trials)
        self._run.write(partial(_write_numbers, self._numbers, measures, ended))
        self._run.tags({"best_trial": "none" if best is None else str(best)})
        for path in files:
            if path.exists():
                self._run.artifact(path)

    def _write_all(self) -> None:
        for trial in self._study.trials.values():
            self._write(trial)

    def _write(self, trial: TrialRecord) -> None:
        if trial.number not in self._children:
            self._children[trial.number] = _Trial(self._run, trial)
        self._children[trial.number].write(trial)
        self._keep_id()

    def _keep_id(self) -> None:
        """Note the run's id, which a tracker that was away gives late; on a full disk, the next time."""
        run_id = self._run.id
        if run_id and run_id != self._noted:
            with suppress(OSError), replacing(self._note) as partial_file:
                partial_file.write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
                self._noted = run_id


class _Trial:
    """A trial's run, and how much of the trial has been given to it."""

    def __init__(self, parent: Run, trial: TrialRecord) -> None:
        self._run = ChildRun(parent, f"trial-{trial.number:04d}", trial.values)
        self._reports = 0
        self._exchanges = 0
        self._tags: dict[str, str] = {}
        self._ended = False

    def write(self, trial: TrialRecord) -> None:
        """Give it what is new."""
        for report in trial.reports[self._reports :]:
            of_trainings = {f"dsc/{name}": dsc for name, dsc in report.trainings.items()}
            self._run.metrics({"dsc": report.dsc, **of_trainings, "seconds": report.seconds}, report.epoch)
        self._reports = len(trial.reports)
        if len(trial.donors) > self._exchanges:
            numbers = {key: float(value) for key, value in trial.values.items() if isinstance(value, int | float)}
            self._run.metrics(numbers, trial.donors[-1][1])
            self._exchanges = len(trial.donors)
        tags = _tags(trial)
        if tags != self._tags:
            self._run.tags({key: value for key, value in tags.items() if self._tags.get(key) != value})
            self._tags = tags
        if trial.how is not None and not self._ended:
            self._run.finish(STATUS[trial.how])
            self._ended = True

    def leave(self) -> None:
        """Close the run of a trial that will go on when the study does."""
        if not self._ended:
            self._run.finish("KILLED")


def _params(tuning: Tuning) -> dict[str, Any]:
    tune = tuning.tune.model_dump(mode="json", exclude={"space"})
    space = {f"tune.space.{key}": dimension for key, dimension in tuning.space.dimensions.items()}
    return {**tuning.config.flat(), **{f"tune.{key}": value for key, value in tune.items()}, **space}


def _tags(trial: TrialRecord) -> dict[str, str]:
    told = {
        "trial": str(trial.number),
        "origin": trial.origin,
        "state": trial.state,
        "why": trial.why,
        "node": trial.node,
        "failures": "; ".join(trial.failures),
        "went_on_from": "; ".join(f"trial {donor} after epoch {epoch}" for donor, epoch in trial.donors),
    }
    return {key: text for key, text in told.items() if text}


def _paper(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    return next((trial for trial in trials if trial.origin == "paper"), None)


def _measures(trial: TrialRecord | None) -> dict[str, float]:
    if trial is None or trial.dsc is None:
        return {}
    return {"dsc": trial.dsc, "epoch": trial.epoch}


def _write_numbers(numbers: Numbers, values: dict[str, float], step: int, client: Any, run_id: str) -> None:
    numbers.write(values, step, client, run_id)
