"""A search: trials proposed, carried out on a cluster, and what they came to.

Whatever ends it, the same call goes on: the journal knows each trial, and each trial's trainings have checkpoints.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline import Fault
from trainer.feasible import dataset_of
from trainer.stopping import Stopped
from tuning.cluster import joined_cluster
from tuning.driving import Notes, Onlooker, Proposals, WhenAsked
from tuning.final import unseen_folds
from tuning.journal import Journal, TrialRecord
from tuning.keeper import Versions
from tuning.orders import Desk
from tuning.rungs import Rungs
from tuning.settings import Tuning
from tuning.space import paper_values
from tuning.study_folder import begin, require_same
from tuning.training import Start
from tuning.trial import Trial, TrialOrder

log = logging.getLogger("sonotrain")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Launching:
    """How the room above starts trainings: what a search has to be told of it."""

    start: Start
    versions: Versions
    """Tells what is installed where it is called, which has to be the same on all machines."""
    cores: int
    """Of this machine, where there is no cluster to join."""


def search(tuning: Tuning, launching: Launching, received: Sequence[int], say: Say) -> None:
    """Carry the search out, or go on with the one in the output folder.

    received grows when a signal asks to stop. Raises WrongCall, before anything is written or started, for what cannot
    be, and Stopped when asked to stop.
    """
    dataset = dataset_of(tuning.config)
    digest = dataset.index.digest
    desk = Desk(tuning, dataset, unseen_folds(tuning.tune, dataset))
    desk.check(paper_values(tuning.space, tuning.config))
    require_same(desk.output, tuning, digest)
    with joined_cluster(launching.cores) as cluster:
        shape = cluster.shape(tuning.tune)
        cluster.check_nodes(tuning.config, digest, tuning.tune.storage or str(desk.output), launching.versions)
        begin(desk.output, tuning, digest)
        with Journal(desk.output) as journal:
            cluster.keep_scans(tuning.config)
            progress = Progress(journal, tuning, say)
            run_trials(desk, journal, shape, cluster.room(shape), launching.start, received, [progress])


def run_trials(
    desk: Desk,
    journal: Journal,
    shape: Any,
    room: int,
    start: Start,
    received: Sequence[int],
    onlookers: Iterable[Onlooker],
) -> None:
    """Run what the study lacks. Raises Stopped where a signal has come, and Fault where every trial failed."""
    from ray import tune

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
    left = tuning.tune.trials - sum(trial.how is not None for trial in study.trials.values())
    if left <= 0:
        return

    def order(trial: TrialRecord) -> TrialOrder:
        orders = desk.orders(trial.number, trial.values)
        return TrialOrder(orders, legs, start, tuning.tune.processes, tuning.tune.cpus, trial.epoch)

    at_once = min(room, tuning.tune.concurrent) if tuning.tune.concurrent else room
    with tempfile.TemporaryDirectory(prefix="sonotrain-tune-") as folder:
        ray_quietly()
        tuner = tune.Tuner(
            tune.with_resources(Trial, shape),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(journal, tuning, order),
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=folder,
                stop=WhenAsked(received),
                callbacks=[Notes(journal, epochs, received, onlookers)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=tuning.tune.retries),
                verbose=0,
            ),
        )
        tuner.fit()
    if received:
        name = signal.Signals(received[0]).name
        raise Stopped(f"{name}: stopped; what is done is in {desk.output}; the same call goes on")
    if all(trial.how == "failed" for trial in study.trials.values()):
        first = next(iter(study.trials.values()))
        raise Fault(f"every trial failed, the first with: {first.why}; see {desk.output / 'trials'}")


def _name(trial: Any) -> str:
    """What Ray calls a trial."""
    return f"trial-{trial.config['number']}"


def ray_quietly() -> None:
    """Keep Ray Tune from files and words that nobody reads, and from signals that are ours."""
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


class Progress:
    """Tells a person what happens, a line an event."""

    def __init__(self, journal: Journal, tuning: Tuning, say: Say) -> None:
        self._study = journal.study
        self._tuning = tuning
        self._say = say

    def began(self, trial: TrialRecord) -> None:
        """Where a trial runs, and with which values."""
        again = f", attempt {trial.attempts}, from epoch {trial.epoch}" if trial.attempts > 1 else ""
        self._say(f"{self._name(trial)}: {trial.origin} on {trial.node}{again}")

    def reported(self, trial: TrialRecord) -> None:
        """How good it is after an epoch."""
        best = self._study.best()[0]
        leads = "the best so far" if best is trial else f"the best is trial {best.number} with {best.dsc:.4f}"
        epochs = self._tuning.config.training.epochs
        self._say(f"{self._name(trial)}: epoch {trial.epoch} of {epochs}, DSC {trial.dsc:.4f}; {leads}")

    def failed(self, trial: TrialRecord) -> None:
        """Why an attempt failed, and whether another one follows."""
        self._say(f"{self._name(trial)}: attempt {trial.attempts} failed: {trial.failures[-1]}")

    def ended(self, trial: TrialRecord) -> None:
        """How it ended, and how many are left."""
        ended = sum(other.how is not None for other in self._study.trials.values())
        why = f", {trial.why}" if trial.how == "stopped" else ""
        self._say(f"{self._name(trial)}: {trial.how}{why}; {ended} of {self._tuning.tune.trials} have ended")

    def _name(self, trial: TrialRecord) -> str:
        return f"trial {trial.number} of {self._tuning.tune.trials}"
