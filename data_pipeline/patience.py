"""How long a store that fails is tried again: stated in seconds, not in tries."""

from __future__ import annotations

import logging
import random
import time

PATIENCE = 120.0
"""Seconds without a byte from the store after which work on it is given up; the last try adds to them."""

FIRST_PATIENCE = 10.0
"""The same for a store that has not answered yet, whose address is more likely wrong than its server down."""

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds of one try, to connect and without a byte."""

_LONGEST_PAUSE = 5.0
_WORTH_A_WARNING = 10.0

log = logging.getLogger("sonotrain")


class Silence:
    """Since when a store has answered nothing, whichever thread asked.

    Shared by all work on a store, so that work which begins while the store is down does not wait all over again.
    """

    def __init__(self, uri: str, patience: float, answered: bool = False) -> None:
        self.answered = answered
        self._uri, self._patience = uri, patience
        self._since: float | None = None
        self._latest = 0.0
        self._warned = False

    def __reduce__(self) -> tuple[type[Silence], tuple[str, float, bool]]:
        """Pickle without the times, which are this machine's."""
        return Silence, (self._uri, self._patience, self.answered)

    @property
    def patience(self) -> float:
        """Seconds."""
        return self._patience if self.answered else min(self._patience, FIRST_PATIENCE)

    def failed(self, began: float, now: float) -> float:
        """Note a try that began and failed then; give the seconds that the store has been silent for."""
        since = self._since
        # Work that was given up long ago, longer than any pause, says nothing about today.
        if since is None or began - self._latest > self._patience + _LONGEST_PAUSE:
            since = self._since = began
            self._warned = False
        self._latest = now
        silent = now - since
        if silent > _WORTH_A_WARNING and self.answered and not self._warned:
            self._warned = True
            log.warning("%s: no answer for %.0f s; trying for up to %g s", self._uri, silent, self._patience)
        return silent

    def ended(self) -> None:
        """Note that something came."""
        self.answered = True
        self._since = None


class Patience:
    """The tries of one piece of work on a store."""

    def __init__(self, silence: Silence) -> None:
        self.tries = 0
        self._silence = silence
        self._left = silence.patience
        self._heard = self._began = time.monotonic()

    def waited(self) -> float:
        """Seconds since this was asked last, or since something came."""
        now = time.monotonic()
        waited, self._began = now - self._began, now
        return waited

    def heard(self) -> None:
        """Note that what was asked for came, or bytes of it."""
        self._heard = self._began = time.monotonic()
        self.tries = 0
        self._silence.ended()

    def exhausted(self) -> float | None:
        """Note that a try failed; give the seconds in which nothing came where they are enough."""
        now = time.monotonic()
        silent = max(now - self._heard, self._silence.failed(self._began, now))
        self._left = self._silence.patience - silent
        return silent if self._left <= 0 else None

    def pause(self) -> None:
        """Sleep before the next try, longer each time, out of step with others, and no longer than patience lasts."""
        growing = min(_LONGEST_PAUSE, 0.1 * 2 ** min(self.tries, 10)) * random.uniform(0.5, 1.0)
        time.sleep(min(growing, self._left))
        self.tries += 1
