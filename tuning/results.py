"""What a search came to, at any time of it: which configuration is best, how all trials did, and files that say so.

trials.csv    a row a trial
best.yaml     the best trial's whole configuration, for `sonotrain crossval`; there from the first finished trial on
table.md      the best configurations beside the paper's
result.json   the same numbers for machines
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.atomic import replacing
from trainer.config import Config
from tuning.final import FinalComparison
from tuning.importance import Importance
from tuning.journal import Report, StudyRecord, TrialRecord
from tuning.labels import percent
from tuning.settings import Tuning, trainings
from tuning.space import with_values

SHOWN = 10
"""Trials of the table, at most, beside the paper's."""


@dataclass(frozen=True)
class Row:
    """A trial of the table: its mean DSC after the last epoch that it reported, and what it was trained with.

    sd is the sample standard deviation over its trainings (folds and seeds), None for one. difference is its DSC
    minus that of the paper's trial after the same epoch, over the trainings that both have; better counts those in
    which it was higher. Both are None for the paper's trial itself, and where there is nothing in common. All DSC are
    fractions of 1.
    """

    trial: int
    origin: str
    state: str
    epoch: int
    dsc: float | None
    sd: float | None
    trainings: Mapping[str, float]
    difference: float | None
    better: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What a search came to. best and paper are numbers of trials: best is None until one has finished.

    asked: trials that were asked for; states: how many there are of each; epochs: those of a whole training; trained:
    epochs of all trainings together, and full what they would be without stopping any, for the trials begun;
    seconds: of all trials' trainings; failures: by trial, why its attempts failed.
    """

    output: str
    asked: int
    states: Mapping[str, int]
    epochs: int
    trained: int
    full: int
    seconds: float
    best: int | None
    paper: int | None
    rows: tuple[Row, ...]
    failures: Mapping[int, tuple[str, ...]]
    importance: Importance | None
    final: FinalComparison | None

    def row(self, trial: int | None) -> Row | None:
        """The row of a trial, if it is shown: the best one's and the paper's are."""
        return next((row for row in self.rows if row.trial == trial), None)

    def as_json(self) -> dict[str, Any]:
        """All numbers in full, by the names of the fields."""
        return asdict(self)


def write_results(
    output: Path,
    tuning: Tuning,
    study: StudyRecord,
    final: FinalComparison | None = None,
    importance: Importance | None = None,
) -> Results:
    """Write what is known by now into the study's folder, each file whole or not there. Raises Fault on a full disk."""
    from tuning.results_text import markdown

    results = results_of(output, tuning, study, final, importance)
    texts = {
        "trials.csv": comma_separated(tuning, study),
        "table.md": markdown(results),
        "result.json": json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n",
    }
    if results.best is not None:
        texts["best.yaml"] = _best_yaml(output, tuning, study.trials[results.best])
    for name, text in texts.items():
        with replacing(output / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return results


def results_of(
    output: Path,
    tuning: Tuning,
    study: StudyRecord,
    final: FinalComparison | None = None,
    importance: Importance | None = None,
) -> Results:
    """The same, nothing written."""
    trials = [study.trials[number] for number in sorted(study.trials)]
    best, paper = winner(study), paper_trial(study)
    ranked = study.best()
    shown = ranked[:SHOWN] if paper is None or paper in ranked[:SHOWN] else [*ranked[:SHOWN], paper]
    epochs = tuning.config.training.epochs
    of_trial = len(trainings(tuning.tune, tuning.config))
    return Results(
        output=str(output),
        asked=tuning.tune.trials,
        states=dict(Counter(trial.state for trial in trials)),
        epochs=epochs,
        trained=sum(trial.trained for trial in trials),
        full=epochs * of_trial * sum(1 for trial in trials if trial.attempts),
        seconds=round(sum(trial.reports[-1].seconds for trial in trials if trial.reports), 1),
        best=best.number if best else None,
        paper=paper.number if paper else None,
        rows=tuple(_row(trial, paper) for trial in shown),
        failures={trial.number: tuple(trial.failures) for trial in trials if trial.failures},
        importance=importance,
        final=final,
    )


def winner(study: StudyRecord) -> TrialRecord | None:
    """The finished trial with the highest measure, of equal ones the first; None while none is finished."""
    return next((trial for trial in study.best() if trial.how == "finished"), None)


def challenger(study: StudyRecord) -> TrialRecord | None:
    """The trial to hold against the paper's at the end: the winner, or if that is the paper's own the next best.

    Where no other has finished, it is the one that went furthest. None where there is none.
    """
    others = [trial for trial in study.best() if trial.origin != "paper"]
    return others[0] if others else None


def paper_trial(study: StudyRecord) -> TrialRecord | None:
    """The trial with the paper's weights."""
    return next((trial for trial in study.trials.values() if trial.origin == "paper"), None)


def best_config(output: Path, tuning: Tuning, trial: TrialRecord) -> Config:
    """The configuration to train on all folds with a trial's values, into a folder beside the study's trials."""
    mirror = tuning.config.checkpoints.mirror
    return with_values(tuning.config, trial.values).replace(
        output=str(output / "best-crossval"),
        folds=(),
        data__unseen=(),
        checkpoints__mirror=mirror and f"{mirror.rstrip('/')}/best-crossval",
    )


def comma_separated(tuning: Tuning, study: StudyRecord) -> str:
    """A line a trial, in order; DSC are fractions of 1, a list is written as JSON, and what there is not is empty."""
    trials = [study.trials[number] for number in sorted(study.trials)]
    names = [training.name for training in trainings(tuning.tune, tuning.config)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    of_training = [f"dsc/{name}" for name in names]
    of_work = ["trained", "seconds", "attempts", "why"]
    rows.writerow(["number", "origin", "state", "epoch", "dsc", *of_training, "sd", *of_work, *tuning.space.dimensions])
    for trial in trials:
        last = trial.reports[-1] if trial.reports else None
        of_each = last.trainings if last else {}
        cells = [trial.number, trial.origin, trial.state, trial.epoch, trial.dsc]
        cells += [of_each.get(name) for name in names]
        cells += [_sd(of_each), trial.trained, round(last.seconds, 1) if last else 0, trial.attempts]
        cells += [trial.why or (trial.failures[-1] if trial.failures else "")]
        cells += [trial.values.get(key) for key in tuning.space.dimensions]
        rows.writerow([_cell(cell) for cell in cells])
    return text.getvalue()


def _best_yaml(output: Path, tuning: Tuning, best: TrialRecord) -> str:
    tree = best_config(output, tuning, best).model_dump(mode="json")
    measured = (
        f"# Trial {best.number} of a search: mean validation DSC {percent(best.dsc)} % after {best.epoch} epochs."
    )
    lines = [measured, "# Train it on every fold: sonotrain crossval with this file."]
    if best.donors:
        donor, epoch = best.donors[-1]
        lines.append(f"# Of a population: from epoch {epoch} on with these values, from trial {donor}'s weights.")
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _row(trial: TrialRecord, paper: TrialRecord | None) -> Row:
    last = trial.reports[-1] if trial.reports else None
    pairs = _pairs(last, paper) if last and paper and paper is not trial else []
    return Row(
        trial=trial.number,
        origin=trial.origin,
        state=trial.state,
        epoch=trial.epoch,
        dsc=trial.dsc,
        sd=_sd(last.trainings) if last else None,
        trainings=dict(last.trainings) if last else {},
        difference=statistics.fmean(own - other for own, other in pairs) if pairs else None,
        better=sum(own > other for own, other in pairs) if pairs else None,
        values=dict(trial.values),
    )


def _pairs(report: Report, paper: TrialRecord) -> list[tuple[float, float]]:
    """DSC of a trial and of the paper's after the same epoch, training by training."""
    others = next((other.trainings for other in paper.reports if other.epoch == report.epoch), {})
    return [(dsc, others[name]) for name, dsc in report.trainings.items() if name in others]


def _sd(trainings: Mapping[str, float]) -> float | None:
    return statistics.stdev(trainings.values()) if len(trainings) > 1 else None


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
