"""One terminal for all ranks of a job: their logs as they grow, rank 0's plainly, the others' behind their names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launch.terminal import ERROR

_LINE_END = re.compile(rb"\r?\n|\r")


class GrowingLog:
    """One rank's log, read on from where the last reading ended. Output of an earlier job in it is passed over."""

    def __init__(self, rank: int, path: Path, kept: int) -> None:
        self.rank, self.path = rank, path
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
    """Where all ranks' lines appear."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._errors: set[str] = set()

    def show(self, log: GrowingLog, ended: bool) -> None:
        """Pass on what is new in a log. An error that every rank reports in the same words appears once."""
        for line in log.read_lines(ended):
            if line.startswith(ERROR):
                if line in self._errors:
                    continue
                self._errors.add(line)
                self._terminal.write(f"{line}\n")
            else:
                self._terminal.write(f"[rank {log.rank}] {line}\n" if log.rank else f"{line}\n")
        self._terminal.flush()

    def show_again(self, lines: Sequence[str], headline: str) -> None:
        """Lines that may have scrolled by, indented."""
        self._terminal.write(headline + "\n")
        self._terminal.writelines(f"    {line}\n" for line in lines)
        self._terminal.flush()
