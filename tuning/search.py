"""A search: trials proposed, carried out on a cluster, and the best held against the paper's weights.

Whatever ends it, the same call goes on: the journal knows each trial, and each trial's trainings have checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline import Fault
from trainer.feasible import dataset_of
from tuning.answer import Answer
from tuning.cluster import check_cores, joined_cluster
from tuning.driving import Notes, Onlooker, Proposals
from tuning.final import final_trainings, unseen_folds
from tuning.journal import NAME as JOURNAL
from tuning.journal import Journal, TrialRecord, read_journal
from tuning.keeper import Versions
from tuning.orders import Desk
from tuning.population import run_population
from tuning.progress import Progress, Say
from tuning.results import Results, challenger
from tuning.rungs import Rungs
from tuning.running import Crew
from tuning.settings import Tuning
from tuning.space import paper_values
from tuning.storage import Storage, fetch
from tuning.study_folder import begin, require_same
from tuning.tracked import TrackedStudy
from tuning.training import Start
from tuning.trial import TrialOrder
from tuning.verdict import compared, verdict


@dataclass(frozen=True)
class Launching:
    """How the room above starts trainings: what a search has to be told of it."""

    start: Start
    versions: Versions
    """Tells what is installed where it is called, which has to be the same on all machines."""
    cores: int
    """Of this machine, where there is no cluster to join."""
    collected: Callable[[], AbstractContextManager[Sequence[int]]]
    """Collects the signals that ask to stop."""


def search(tuning: Tuning, launching: Launching, say: Say) -> Results:
    """Carry the search out, or go on with the one in the output folder.

    Raises WrongCall, before anything is written or started, for what cannot be, Stopped when a signal asks to stop,
    and Fault where every trial failed.
    """
    tuning = settled(tuning)
    dataset = dataset_of(tuning.config)
    digest = dataset.index.digest
    desk = Desk(tuning, dataset, unseen_folds(tuning.tune, dataset))
    check_cores(tuning.tune, launching.cores)
    desk.check(paper_values(tuning.space, tuning.config))
    fetch(tuning.tune.storage, desk.output)
    require_same(desk.output, tuning, digest)
    if (over := done(desk)) is not None:
        return over
    # Ray takes SIGTERM for itself when it is joined, so signals are collected afterwards.
    with joined_cluster(launching.cores) as cluster, launching.collected() as received:
        shape = cluster.shape(tuning.tune)
        cluster.check_nodes(tuning.config, digest, tuning.tune.storage or tuning.config.output, launching.versions)
        begin(desk.output, tuning, digest)
        with (
            Journal(desk.output) as journal,
            TrackedStudy(tuning, dataset, journal.study) as tracked,
            Storage(desk, journal.study) as storage,
        ):
            study = journal.study
            at_once = min(cluster.room(shape), tuning.tune.concurrent or tuning.tune.trials)
            crew = Crew(shape, at_once, launching.start, tuning.tune, received, desk.output)
            cluster.keep_scans(tuning.config)
            answer = Answer(desk, study)
            run_trials(desk, journal, crew, [Progress(study, tuning, at_once, say), tracked, answer, storage])
            results = answer.written(verdict(desk, study, crew, say))
            tracked.concluded(results.best, results.final, answer.files())
    return results


def done(desk: Desk) -> Results | None:
    """What a study came to that lacks nothing more, for which no cluster is needed; None where there is more to do."""
    if not (desk.output / JOURNAL).exists():
        return None
    study = read_journal(desk.output)
    ended = [trial for trial in study.trials.values() if trial.how is not None]
    best = challenger(study)
    if len(ended) < max(desk.tuning.tune.trials, len(study.trials)):
        return None
    final = compared(desk.output, best.number) if best else None
    if best and final is None and final_trainings(desk.tuning, best.values, desk.unseen):
        return None
    return Answer(desk, study).written(final)


def settled(tuning: Tuning) -> Tuning:
    """The same with paths that mean one place wherever trials run, and its storage as their mirror."""
    uri, storage = tuning.config.data.uri, placed(tuning.tune.storage)
    config = tuning.config.replace(
        output=placed(tuning.config.output),
        data__uri=placed(uri) if isinstance(uri, str) else tuple(map(placed, uri)),
    )
    if storage:
        config = config.replace(checkpoints__mirror=storage)
    return replace(tuning, config=config, tune=tuning.tune.model_copy(update={"storage": storage}))


def placed(place: str) -> str:
    """A path from the root, since Ray runs trials in directories of its own; a store's prefix, or nothing, as it is."""
    return place if not place or "://" in place else str(Path(place).absolute())


def run_trials(desk: Desk, journal: Journal, crew: Crew, onlookers: Iterable[Onlooker]) -> None:
    """Run what the study lacks. Raises Fault where every trial failed."""
    tuning, study = desk.tuning, journal.study
    epochs, legs = tuning.config.training.epochs, desk.legs()
    scheduler = None
    if tuning.tune.scheduler == "asha":
        scheduler = Rungs(tuning.tune, epochs)
        for number in scheduler.recall(study):
            epoch = study.trials[number].epoch
            journal.write("ended", trial=number, how="stopped", why=f"not among the best after epoch {epoch}")
    for trial in study.trials.values():
        if trial.how is None and trial.epoch >= epochs:  # killed between its last report and its end
            journal.write("ended", trial=trial.number, how="finished", why="")
        elif trial.how is None and len(trial.failures) > tuning.tune.retries:  # likewise after its last failure
            journal.write("ended", trial=trial.number, how="failed", why=trial.failures[-1])

    def order(trial: TrialRecord) -> TrialOrder:
        return crew.order(desk.orders(trial.number, trial.values), legs, trial.epoch)

    left = tuning.tune.trials - sum(trial.how is not None for trial in study.trials.values())
    if tuning.tune.scheduler == "population":
        run_population(desk, journal, crew, onlookers)
    elif left > 0:
        notes = Notes(journal, epochs, crew.received, onlookers)
        crew.run(left, Proposals(journal, tuning, order), scheduler, notes)
    if all(trial.how == "failed" for trial in study.trials.values()):
        first = next(iter(study.trials.values()))
        raise Fault(f"every trial failed, the first with: {first.why}; see {desk.output / 'trials'}")
