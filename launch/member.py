"""`sonotrain launch node`: one node's share of a job, as a scheduler or a supervisor starts it on each node."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline import Fault
from launch.claim import cores_apart
from launch.control import Control, Line, read_control
from launch.job import STOPPED
from launch.node import Ending, RankState, Share, run_share
from launch.place import place_by
from launch.screen import Screen
from launch.signals import collected

CONTROL = "SONOTRAIN_CONTROL"
"""The variable in which a node finds what its supervisor has to tell it, where no file is named."""

_FAREWELL = 5.0
"""Seconds that a node waits for its supervisor to have heard how it ended."""


def run_member(
    by: str,
    processes: int,
    program: Sequence[str],
    logs: Path,
    control_file: Path | None = None,
    own_cores: int = 0,
) -> int:
    """Run this node's ranks of a program, and give the exit status: 0, 1, 2 or 75.

    A supervisor (in `control_file`, or in SONOTRAIN_CONTROL) is told everything, and its silence ends the ranks;
    without one, lines and failures appear here. Each process has `own_cores` cores that no other launch which asks for
    some has; 0 for a share of all. Raises WrongCall where the node's place cannot be told, and Fault where
    a rank fails or the supervisor is not there.
    """
    place = place_by(by, os.environ)
    told = os.environ.pop(CONTROL, "")  # the ranks need not know it
    control = read_control(control_file) if control_file else Control.from_json(told, CONTROL) if told else None
    environment = control.environment if control else {}
    # Slurm sends SIGTERM to the ranks as well, and they take a second one for an order to end at once.
    stop_by = signal.SIGUSR1 if by == "slurm" else None
    with cores_apart(processes, own_cores) as cores, collected() as received:
        share = Share(program, processes, place, environment, logs, stop_by, cores)
        if control is None:
            return _alone(share, received)
        return _supervised(share, control, received)


def _alone(share: Share, received: Sequence[int]) -> int:
    screen = Screen(sys.stdout)
    ending = run_share(share, screen, received)
    if ending.rank is not None and ending.status == 1:
        screen.show_again(ending.last, f"The last lines of rank {ending.rank}:")
        where = f"rank {ending.rank} on {socket.gethostname()}"
        raise Fault(f"{where} {ending.how}{screen.step_of(ending.rank)}; its log is {ending.log}")
    if received and ending.status != STOPPED:
        raise Fault(f"stopped by {signal.Signals(received[0]).name}; the logs are in {share.logs}")
    return ending.status


def _supervised(share: Share, control: Control, received: list[int]) -> int:
    heard = threading.Event()

    def obey(message: Mapping[str, Any]) -> None:
        if "stop" in message:
            received.append(int(message["stop"]))
        if "bye" in message:
            heard.set()

    def lost() -> None:
        received.append(signal.SIGHUP)
        heard.set()

    hello = {"host": socket.gethostname(), "pid": os.getpid()}
    line = Line(control, share.place.node, hello, obey, lost)
    try:
        ending = run_share(share, _Relay(line), received)
    except Fault as wrong:
        ending = Ending(wrong.exit_status, how=str(wrong))
    line.say({"ended": asdict(ending)})
    heard.wait(_FAREWELL)
    line.close()
    return ending.status


class _Relay:
    """An onlooker who tells a supervisor."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def show(self, rank: int, lines: Sequence[str]) -> None:
        if lines:
            self._line.say({"rank": rank, "lines": list(lines)})

    def beat(self, states: Sequence[RankState]) -> None:
        self._line.say({"ranks": [asdict(state) for state in states]})
