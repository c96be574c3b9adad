"""Counts of what a store was asked for and what went wrong on the way, kept apart for each process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

COUNTED = (
    "requests",
    "bytes_read",
    "bytes_written",
    "retries",
    "resumptions",
    "timeouts",
    "throttled",
    "seconds_waiting",
)
"""retries: tries after a failure, resumptions those of them that went on inside a body, timeouts and throttled the
failures that were silence or a server too busy. seconds_waiting: from requests to the beginning of their answers,
in silence until a failure, and in the pauses before another try, summed over threads."""


class Counters:
    """Sums since the process began to use a store. Threads may add at once."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(COUNTED, 0.0)
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Raise some of the sums."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    def snapshot(self) -> dict[str, float]:
        """All sums as they are at one moment."""
        with self._lock:
            return dict(self._sums)


class PerProcess(Generic[T]):
    """What each process has to make for itself, because locks and connections do not survive a fork.

    Two threads may both make one; the first one stays.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def here(self) -> T:
        """The one of this very process."""
        process = os.getpid()
        if process not in self._made:
            self._made.setdefault(process, self._make())
        return self._made[process]
