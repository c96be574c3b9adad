"""The asking end of the doctor's process on a node."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from data_pipeline import Fault

PROGRAM = (sys.executable, "-P", "-m", "launch.doctor.node")
"""What answers on a node."""

ENDING_SECONDS = 15.0
"""For which a node may end what it has begun, when nobody asks any more."""

_LAST_ERRORS = 20


class Conversation:
    """Questions to one node and its answers, one after another, until the end of the block.

    `command` starts PROGRAM there, which ends when its input does: with the block, or with this process, however it
    ends. A node that was silent once is not asked again.
    """

    def __init__(self, host: str, command: Sequence[str]) -> None:
        self.host = host
        self._errors: deque[str] = deque(maxlen=_LAST_ERRORS)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lost = ""
        self._listeners = [threading.Thread(target=each, name=f"doctor {host}") for each in (self._hear, self._note)]
        for listener in self._listeners:
            listener.daemon = True
            listener.start()

    def say(self, wish: str, **arguments: Any) -> None:
        """Ask; `answer` gives what the node says."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, which its answer tells
            self._process.stdin.write(json.dumps({"do": wish, **arguments}).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, seconds: float) -> Mapping[str, Any]:
        """What the node says. Raises Fault where it has a fault to tell, or is silent for so long."""
        if self._lost:
            raise Fault(self._lost)
        try:
            line = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self._lost = f"no answer after {seconds:.0f} s"
            raise Fault(self._lost) from None
        if not line:
            self._lost = self._last_error() or "ended without a word"
            raise Fault(self._lost)
        told: dict[str, Any] = json.loads(line)
        if "fault" in told:
            raise Fault(told["fault"])
        return told

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the node's process see its input end, at which it ends all that it has begun."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if self._lost else ENDING_SECONDS)
        self._process.kill()
        self._process.wait(ENDING_SECONDS)

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._answers.put(line)
        self._answers.put(b"")

    def _note(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as said:
            for line in said:
                self._errors.append(line.decode(errors="replace").strip())

    def _last_error(self) -> str:
        self._listeners[1].join(ENDING_SECONDS)
        return next(filter(None, reversed(self._errors)), "")
