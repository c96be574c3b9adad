"""One terminal for all ranks of a job: their logs as they grow, rank 0's plainly, the others' behind their names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from launch.terminal import ERROR

if TYPE_CHECKING:
    from launch.node import RankState

_LINE_END = re.compile(rb"\r?\n|\r")


class GrowingLog:
    """One rank's log, read on from where the last reading ended. Output of an earlier job in it is passed over."""

    def __init__(self, path: Path, kept: int) -> None:
        self.path = path
        self.last: deque[str] = deque(maxlen=kept)
        """The last lines read."""
        path.touch()
        self._reader = path.open("rb")
        self._reader.seek(0, 2)
        self._unfinished = b""

    def read_lines(self, ended: bool) -> list[str]:
        """Whole lines written since the last time; also an unfinished one where its writer has ended.

        A carriage return ends a line too: progress drawn over itself becomes lines.
        """
        *lines, self._unfinished = _LINE_END.split(self._unfinished + self._reader.read())
        if ended and self._unfinished:
            lines.append(self._unfinished)
            self._unfinished = b""
        read = [line.decode("utf-8", "replace") for line in lines]
        self.last.extend(read)
        return read

    def close(self) -> None:
        """Read no further."""
        self._reader.close()


class Screen:
    """Where all ranks' lines appear. It remembers how far each of them is."""

    def __init__(self, terminal: TextIO) -> None:
        self.states: dict[int, RankState] = {}
        self._terminal = terminal
        self._errors: set[str] = set()

    def show(self, rank: int, lines: Sequence[str]) -> None:
        """Show what is new in a rank's log. An error that every rank reports in the same words appears once."""
        for line in lines:
            if line.startswith(ERROR):
                if line in self._errors:
                    continue
                self._errors.add(line)
                self._terminal.write(f"{line}\n")
            else:
                self._terminal.write(f"[rank {rank}] {line}\n" if rank else f"{line}\n")
        self._terminal.flush()

    def beat(self, states: Sequence[RankState]) -> None:
        """Note how far these ranks are."""
        self.states.update((state.rank, state) for state in states)

    def step_of(self, rank: int | None) -> str:
        """The last step that a rank has done, in words; nothing where it did none."""
        state = None if rank is None else self.states.get(rank)
        return f" after step {state.step}" if state and state.step else ""

    def show_again(self, lines: Sequence[str], headline: str) -> None:
        """Lines that may have scrolled by, indented; nothing where there are none."""
        if not lines:
            return
        self._terminal.write(headline + "\n")
        self._terminal.writelines(f"    {line}\n" for line in lines)
        self._terminal.flush()
