"""Trials run by Ray Tune: as many at a time as there is room for."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from data_pipeline import Fault
from trainer.stopping import Stopped
from tuning.driving import WhenAsked
from tuning.settings import Tune
from tuning.stopping import InTime
from tuning.training import Order, Start
from tuning.trial import Trial, TrialOrder


@dataclass(frozen=True)
class Crew:
    """What trials are run with: the shape of one for Ray, how many have room at once, how trainings are started."""

    shape: tune.PlacementGroupFactory
    at_once: int
    start: Start
    asked: Tune
    """The branch tune of the configuration."""
    received: Sequence[int]
    """Grows when a signal asks to stop."""
    output: Path

    def order(self, trainings: Sequence[Order], legs: Sequence[tuple[int, int]], reported: int = 0) -> TrialOrder:
        """A trial of these trainings."""
        return TrialOrder(trainings, legs, self.start, self.asked.processes, self.asked.cpus, reported)

    def run(
        self, count: int, searcher: Any, scheduler: Any, notes: tune.Callback, together: dict[str, Any] | None = None
    ) -> None:
        """Run so many trials as the searcher proposes them, or without one so often those of together, all at once.

        Raises Stopped where a signal has come, and Fault where what happens cannot be written down.
        """
        _quiet()
        with tempfile.TemporaryDirectory(prefix="sonotrain-tune-", ignore_cleanup_errors=True) as folder:
            tuner = tune.Tuner(
                tune.with_resources(Trial, self.shape),
                param_space=together,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=count,
                    max_concurrent_trials=self.at_once if searcher else None,
                    reuse_actors=False,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="study",
                    storage_path=folder,
                    stop=WhenAsked(self.received),
                    callbacks=[notes, InTime(self.received)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    failure_config=tune.FailureConfig(max_failures=self.asked.retries),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError as failed:  # whose text is the trace of what a callback raised
                raise Fault(str(failed).strip().rpartition("\n")[2].rpartition("Fault: ")[2]) from failed
        if self.received:
            name = signal.Signals(self.received[0]).name
            raise Stopped(f"{name}: stopped; what is done is in {self.output}; the same call goes on")


def _name(trial: Any) -> str:
    """What Ray calls a trial."""
    return f"trial-{trial.config['number']}"


def _quiet() -> None:
    """Keep Ray Tune from files and words that nobody reads, and from signals that are ours."""
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
