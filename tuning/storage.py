"""A study's second place, tune.storage: what it takes to go on from another machine, and no more than that.

Trainings copy their checkpoints there themselves (checkpoints.mirror). Here the journal follows, with what says whose
it is; and copies of trials that have ended, and are not among the best, go.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType

from data_pipeline import Fault, open_store
from trainer.mirror import Mirror
from tuning.journal import NAME, StudyRecord, TrialRecord
from tuning.orders import Desk

FILES = ("study.json", "study.yaml", NAME)
"""In the order in which they are written: a place without a journal holds no study."""

PATIENCE = 60.0
"""Seconds that the last copy may take."""

log = logging.getLogger("sonotrain")


def fetch(storage: str, output: Path) -> None:
    """Bring a study from its second place to a machine that has none of it. Raises Fault where it cannot be read."""
    if not storage or (output / NAME).exists():
        return
    store = open_store(storage)
    store.make()
    if store.exists(NAME):
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            store.download(name, output / name)
        log.warning("going on with the study that %s holds", storage)


class Storage:
    """An onlooker that copies in a thread of its own; a store that is away costs a warning, and is tried again."""

    def __init__(self, desk: Desk, study: StudyRecord) -> None:
        self._desk = desk
        self._study = study
        self._cleared: set[int] = set()
        self._news = threading.Event()
        self._over = False
        self._failed = False
        self._thread = threading.Thread(target=self._follow, name="storage", daemon=True)

    def __enter__(self) -> Storage:
        if self._desk.tuning.tune.storage:
            self._news.set()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def began(self, trial: TrialRecord) -> None:  # noqa: ARG002
        """Something happened."""
        self._news.set()

    reported = failed = exchanged = ended = began

    def _follow(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            over = self._over
            if over:
                self._cleared.clear()  # a trial that was put out may have copied while it stopped
            try:
                self._copy()
                self._failed = False
            except (Fault, OSError) as failed:
                if not self._failed:
                    log.warning("the study's journal is not copied: %s; it is tried again", failed)
                self._failed = True
            if over:
                return

    def _copy(self) -> None:
        store = open_store(self._desk.tuning.tune.storage)
        for name in FILES:
            store.put(name, self._desk.output / name)
        best = {trial.number for trial in self._study.best()[: self._desk.tuning.tune.keep]}
        for trial in list(self._study.trials.values()):
            if trial.how is not None and trial.number not in best | self._cleared:
                for order in self._desk.orders(trial.number, trial.values):
                    Mirror(order.config["checkpoints"]["mirror"], Path(), 1).clear()
                self._cleared.add(trial.number)
