"""A search that is asked to stop: signals reach it though Ray wants them, and its trials have time for a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import ray
from ray.tune import Callback

from tuning.training import GRACE

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_PATIENCE = GRACE + 30.0
"""Seconds that trials have to stop: as long as their trainings, and what they are at before they hear of it."""


class InTime(Callback):
    """Has all trials stop when a signal has come. By itself Ray would kill them ten seconds after it asked them to.

    received grows when a signal comes; what handles them is what did when this was made.
    """

    def __init__(self, received: Sequence[int]) -> None:
        self._received = received
        self._handlers = {number: signal.getsignal(number) for number in _ASKING}
        self._asked = False

    def setup(self, **_: Any) -> None:
        """Take signals back, just before the first trial: Ray has SIGUSR1 end it without a word."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_step_begin(self, trials: Sequence[Any], **_: Any) -> None:
        """Once a signal has come, wait until all have stopped."""
        if self._received and not self._asked:
            self._asked = True
            actors = [trial.temporary_state.ray_actor for trial in trials]
            asked = [actor.cleanup.remote() for actor in actors if actor is not None]
            if asked:
                ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE)

    def __getstate__(self) -> dict[str, Any]:
        return {}
