"""How far a rank is and that it lives, told each second through a small file to the launcher that watches it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

PULSE = "SONOTRAIN_PULSE"
"""The variable that names the file; without it nothing is told."""

SECONDS = 1.0
"""Between two beats."""

_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file holds."""

    beat: int
    """Grows each second while the process lives."""
    step: int
    """The last training step done."""
    steps: int
    """Steps of the training, 0 before it is known."""
    moves: int
    """Grows whenever something was done: a batch read, a step, a scan validated."""
    kept: int
    """Checkpoints that this process has published."""


class Pulse:
    """One for a process. What is noted costs an assignment; a thread writes it down while the context is open."""

    def __init__(self, path: Path | None = None) -> None:
        self.step = 0
        """The last training step done."""
        self._path = path
        self._steps = self._moves = self._kept = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def moved(self, step: int | None = None, steps: int | None = None) -> None:
        """Note that something was done, and the step where one was."""
        self._moves += 1
        self.step = self.step if step is None else step
        self._steps = self._steps if steps is None else steps

    def kept(self) -> None:
        """Note that a checkpoint has been published."""
        self._kept += 1

    def __enter__(self) -> Pulse:
        if self._path is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()

    def _beat(self) -> None:
        assert self._path is not None
        beat, file = 0, -1
        while True:
            beat += 1
            now = Seen(beat, self.step, self._steps, self._moves, self._kept)
            with suppress(OSError):  # a full disk is no reason to stop
                if file < 0:
                    file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
                # Always in the same place, for which there is room when the disk is full, and never half of it.
                os.pwrite(file, json.dumps(asdict(now)).ljust(_LENGTH).encode(), 0)
            if self._end.wait(SECONDS):
                return


def pulse_of(environment: Mapping[str, str] = os.environ) -> Pulse:
    """The pulse of this process, where its launcher has named a file."""
    named = environment.get(PULSE)
    return Pulse(Path(named) if named else None)


def read_pulse(path: Path) -> Seen | None:
    """What a rank has last told; None before it did."""
    try:
        return Seen(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
