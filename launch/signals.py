"""Signals that ask a launcher to end: collected, so that its processes can be ended in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that training answers with a checkpoint and the status 75."""


@contextmanager
def collected(time_limit: timedelta | None = None) -> Iterator[list[int]]:
    """Collect the signals that ask this process to end, instead of ending; those it ignores stay ignored.

    When the time limit is over, SIGUSR1 is among them.
    """
    received: list[int] = []

    def collect(number: int, _frame: FrameType | None) -> None:
        received.append(signal.SIGUSR1 if number == signal.SIGALRM else number)

    # Where a parent left this ignored, the system would forget how a process ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = (signal.SIGINT, signal.SIGHUP, signal.SIGALRM, *STOPS)
    before = {number: signal.getsignal(number) for number in asked if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, collect)
    if time_limit is not None:
        signal.signal(signal.SIGALRM, collect)
        signal.setitimer(signal.ITIMER_REAL, time_limit.total_seconds())
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
