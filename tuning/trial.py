"""A trial as Ray runs it: its trainings one after another, each followed epoch by epoch.

Up to a rung only as many of its trainings are taken as the rung asks for; a training that is not needed for now is
stopped with a checkpoint, and goes on when it is. What an epoch came to is told once all that count have done it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from tuning.exchange import put_aside
from tuning.spread import Spread, begun
from tuning.training import GRACE, STOPPED, Order, Running, Start, measured

LOOK = 2.0
"""Seconds after which a step returns in any case, so that nothing waits for a training's next epoch."""

PATIENCE = GRACE + 30.0
"""Seconds for a training that goes on to have ended where it was under way before."""

_PAUSE = 0.5


class TrialFailed(Exception):
    """An attempt of a trial that came to nothing; the text says of what."""


@dataclass(frozen=True)
class TrialOrder:
    """A trial as it is to be carried out."""

    trainings: Sequence[Order]
    legs: Sequence[tuple[int, int]]
    """(epoch, trainings): up to that epoch so many trainings are taken; ascending, the last are all epochs and all."""
    start: Start
    processes: int
    cpus: int
    reported: int = 0
    """Epochs that were told before."""
    exchange_epochs: int = 0
    """After so many epochs, time and again, its weights are put aside for other trials; 0 for never."""

    @property
    def epochs(self) -> int:
        """Of each training."""
        return self.legs[-1][0]

    def counting(self, epoch: int) -> Sequence[Order]:
        """The trainings whose mean is the measure after this epoch."""
        return self.trainings[: next(count for until, count in self.legs if epoch <= until)]


class Trial(tune.Trainable):
    """What Ray's worker does. Its configuration has the trial's number, and its order.

    A result has epoch and dsc, the last that were told (0 and nan before), `trainings` with the DSC of each, `trained`,
    the epochs of all of them together, `busy`, the seconds of this attempt in which one was running, and `scores`, when
    it is done the text of each training's validation.csv.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order; nothing is started yet."""
        self._order: TrialOrder = config["order"]
        self._told: dict[str, Any] = {"epoch": self._order.reported, "dsc": float("nan"), "trainings": {}}
        self._running: Running | Spread | None = None
        self._name = ""
        self._busy = 0.0
        self._kept_out = 0.0

    def step(self) -> dict[str, Any]:
        """The next epoch's result, or after LOOK seconds once more the last one's. Raises TrialFailed."""
        until = time.monotonic() + LOOK
        while True:
            began = time.monotonic()
            dsc = {order.name: measured(order) for order in self._order.trainings}
            if (self._is_put_aside(dsc) and self._is_new(dsc)) or time.monotonic() > until:
                break
            self._keep_going(dsc)
            time.sleep(_PAUSE)
            if self._running is not None:
                self._busy += time.monotonic() - began
        trained = sum(max(told, default=0) for told in dsc.values())
        done = self._told["epoch"] == self._order.epochs
        return {**self._told, "trained": trained, "busy": self._busy, "done": done, "scores": self._scores(done)}

    def cleanup(self) -> None:
        """Stop what runs, with a checkpoint."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _scores(self, done: bool) -> dict[str, str]:
        """Of a trial that is done, each training's table of scores, which only its machine may have."""
        tables = {one.name: one.folder.scores for one in self._order.trainings if done}
        return {name: path.read_text(encoding="utf-8") for name, path in tables.items() if path.exists()}

    def _is_put_aside(self, dsc: dict[str, dict[int, float]]) -> bool:
        """Whether no weights are waited for, of trainings that have come to the next epoch of exchange."""
        every = self._order.exchange_epochs
        if not every:
            return True
        epoch = (self._told["epoch"] // every + 1) * every
        reached = [order for order in self._order.trainings if epoch < self._order.epochs and epoch in dsc[order.name]]
        try:
            return all(put_aside(order, epoch) for order in reached)
        except OSError as refused:
            raise TrialFailed(f"{refused.filename}: {refused.strerror}") from refused

    def _is_new(self, dsc: dict[str, dict[int, float]]) -> bool:
        """Whether a further epoch has been done by all trainings that count for it."""
        for epoch in range(self._told["epoch"] + 1, self._order.epochs + 1):
            counting = [order.name for order in self._order.counting(epoch)]
            if all(epoch in dsc[name] for name in counting):
                values = {name: dsc[name][epoch] for name in counting}
                self._told = {"epoch": epoch, "dsc": statistics.fmean(values.values()), "trainings": values}
                return True
        return False

    def _keep_going(self, dsc: dict[str, dict[int, float]]) -> None:
        """See to it that the training runs whose turn it is."""
        if self._running is not None and (status := self._running.status()) is not None:
            why, self._running = self._running.why(), None
            if status != STOPPED and not self._has_result():  # one that has it may yet have failed to end
                raise TrialFailed(f"{self._name}: {why}")
            return  # what it has come to is looked at first
        wanted = next(self._wanted(dsc), None)
        if wanted is None or (self._running is not None and wanted.name == self._name):
            return
        self.cleanup()
        self._name = wanted.name
        try:
            self._running = begun(self._order.start, wanted, self._order.processes, self._order.cpus)
            self._kept_out = 0.0
        except BlockingIOError as kept_out:  # by a worker that Ray has let go of, and that is still stopping it
            self._kept_out = self._kept_out or time.monotonic()
            if time.monotonic() - self._kept_out > PATIENCE:
                raise TrialFailed(f"{wanted.name}: is still trained by a process before this one") from kept_out
        except OSError as refused:
            raise TrialFailed(f"{wanted.name}: {refused.filename}: {refused.strerror}") from refused

    def _has_result(self) -> bool:
        """Whether the training whose turn it was has finished."""
        return any(order.folder.result.exists() for order in self._order.trainings if order.name == self._name)

    def _wanted(self, dsc: dict[str, dict[int, float]]) -> Iterator[Order]:
        """Trainings that are behind in the first leg that is not done; the one that runs comes first."""
        for until, count in self._order.legs:
            behind = [order for order in self._order.trainings[:count] if max(dsc[order.name], default=0) < until]
            yield from sorted(behind, key=lambda order: order.name != self._name or self._running is None)
