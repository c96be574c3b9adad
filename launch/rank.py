"""One process of a job: in a session of its own, bound to its cores, its output in a log, ended with its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launch.job import bound
from launch.screen import GrowingLog
from trainer.pulse import PULSE, Seen, read_pulse

LAST_LINES = 5
"""Lines of a failed rank's log that are shown again at the end."""


class Rank:
    """A process that runs or has run. number counts over all nodes."""

    def __init__(
        self,
        number: int,
        program: Sequence[str],
        environment: Mapping[str, str],
        cores: Sequence[int],
        logs: Path,
        pulse: Path,
    ) -> None:
        self.number = number
        self.log = GrowingLog(logs / f"rank-{number}.log", LAST_LINES)
        self.seen: Seen | None = None
        """What it last told of its progress."""
        self._pulse = pulse
        self._told = time.monotonic()
        # A rank writes straight to its log, which so is whole whatever becomes of the launcher.
        with self.log.path.open("ab") as sink:
            self._process = subprocess.Popen(
                bound(program, cores),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**environment, PULSE: str(pulse)},
                start_new_session=True,
            )
        self._status: int | None = None

    def status(self) -> int | None:
        """The exit status, the negative number of the signal that killed it, or None while it runs.

        An ended process is left unreaped until `kill`, so that no other process can get its number.
        """
        if self._status is None:
            end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if end is not None:
                self._status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return self._status

    def how_it_ended(self) -> str:
        """In words, for a process that has ended."""
        status = self.status() or 0
        return f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def silent_for(self) -> float:
        """Seconds since it last told that it lives; 0 before it first did, and after its end."""
        before = self.seen
        self.seen = read_pulse(self._pulse) or before
        if self.seen != before or self.seen is None or self.status() is not None:
            self._told = time.monotonic()
        return time.monotonic() - self._told

    def new_lines(self) -> list[str]:
        """What it has written since the last time."""
        return self.log.read_lines(ended=self.status() is not None)

    def ask_to_end(self, number: int) -> None:
        """A signal to the whole group, if the rank still runs."""
        if self.status() is None:
            os.killpg(self._process.pid, number)

    def kill(self, patience: float) -> None:
        """Kill what is left of the group and reap the rank, waiting for the system at most `patience` seconds."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._status = self._process.wait(patience)
