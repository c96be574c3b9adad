"""A Job on several nodes: one program on each, watched over TCP from here, all ended when one fails or is gone."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from data_pipeline import Fault, WrongCall
from launch.control import LEASE, Control, Heard, Switchboard
from launch.job import STOPPED, Host, Job, Meeting
from launch.node import GRACE, STOPPING, Ending, RankState, address_towards, precedence
from launch.rank import LAST_LINES
from launch.screen import Screen
from launch.signals import STOPS, collected
from launch.supervise import FIRST_PAUSE, Outcome, supervise, wait
from launch.terminal import say

CALLING = 120.0
"""Seconds in which every node has to have called, after they were started."""

HOST_PATIENCE = 3600.0
"""Seconds that a job waits for machines that are gone, before it gives up."""

_ASKING = (5.0, 60.0)
"""Seconds between two looks whether such a machine is back: at first, and at most."""

_LOOK = 0.05


class NotReady(Fault):
    """Fewer machines than the job needs can be used now."""


class Starter(Protocol):
    """What is particular to a kind of cluster."""

    def ready(self, sizes: range) -> list[Host]:
        """The machines to run on now: as many as can be used of at most sizes[-1], in order.

        Raises NotReady where they are fewer than any of `sizes`, naming those that are missing and why; and WrongCall
        for what waiting does not mend: unequal versions, more processes than a machine has cores for.
        """

    def meeting(self, hosts: Sequence[Host]) -> Meeting:
        """Where the ranks find each other: the first host's address, and a port that is free there."""

    def start(
        self, hosts: Sequence[Host], meeting: Meeting, control: Control, processes: int, verb: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        """Start `sonotrain launch node` once on each host, through a process in a session of its own.

        Its output, stdout and stderr together, is a pipe or a file that `output` of it names; nodes tell all else.
        """

    def clean(self, hosts: Sequence[Host]) -> None:
        """See to it that nothing of an attempt is left on those hosts that can be reached."""


def run_cluster(
    job: Job, starter: Starter, output: Path, terminal: TextIO | None = None, first_pause: float = FIRST_PAUSE
) -> int:
    """Carry a job out on machines, again after failures; gives 0, 2 or 75.

    `output` is where the starter's own words are kept. Raises Fault naming the rank or host that failed, after all
    others have ended, and WrongCall for what cannot work, before anything is started.
    """
    screen = Screen(terminal or sys.stdout)
    with collected(job.time_limit) as received:

        def attempt(before: int) -> Outcome:
            hosts = _usable(starter, job.sizes, received, first=before == 0)
            screen.states.clear()
            return _Attempt(job, starter, hosts, screen, received, output).carry_out()

        return supervise(attempt, job.restarts, received, first_pause)


def _usable(starter: Starter, sizes: range, received: Sequence[int], first: bool) -> list[Host]:
    """Machines to run on; waits for those that are missing, but not before the first attempt."""
    deadline = time.monotonic() + HOST_PATIENCE
    pause = _ASKING[0]
    while True:
        try:
            return starter.ready(sizes)
        except NotReady as missing:
            if first or received or time.monotonic() > deadline:
                raise
            say(f"Waiting for what is missing: {missing}")
        wait(pause, received)
        pause = min(2 * pause, _ASKING[1])


class _Member:
    """A node as its supervisor knows it."""

    def __init__(self, host: Host, node: int, processes: int) -> None:
        self.host = host
        self.ranks = range(node * processes, (node + 1) * processes)
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.called = self.gone = False
        self.ending: Ending | None = None

    @property
    def over(self) -> bool:
        return self.gone or self.ending is not None

    @property
    def failed(self) -> bool:
        """Whether it failed by itself: one that was told to end has no more to say than its status."""
        return self.gone or (self.ending is not None and bool(self.ending.how))


class _Attempt:
    """One start of a job on some machines."""

    def __init__(
        self, job: Job, starter: Starter, hosts: Sequence[Host], screen: Screen, received: Sequence[int], output: Path
    ) -> None:
        self._job, self._starter, self._hosts = job, starter, hosts
        self._screen, self._received, self._output = screen, received, output
        self._members = [_Member(host, node, job.processes) for node, host in enumerate(hosts)]
        self._passed_on = 0

    def carry_out(self) -> Outcome:
        """From the start to the end of every node."""
        meeting = self._starter.meeting(self._hosts)
        with Switchboard(address_towards(self._hosts[-1].address)) as self._board:
            control = self._board.control(self._job.environment)
            with self._started(meeting, control) as process:
                why = self._watch(process)
                self._end(why)
        self._starter.clean(self._hosts)
        return self._outcome(why)

    @contextmanager
    def _started(self, meeting: Meeting, control: Control) -> Iterator[subprocess.Popen[bytes]]:
        """The starter's process, whose whole group is killed at the end."""
        process = self._starter.start(self._hosts, meeting, control, self._job.processes, self._job.verb)
        try:
            yield process
            deadline = time.monotonic() + GRACE
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(_LOOK)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(GRACE)

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Listen until all nodes are over, or one has failed; gives what failed where no node can tell it."""
        called_by = time.monotonic() + CALLING
        stopped_by: float | None = None
        ended_at: float | None = None
        while not all(member.over for member in self._members) and not any(member.failed for member in self._members):
            self._hear()
            for number in self._received[self._passed_on :]:
                self._passed_on += 1
                self._board.tell({"stop": int(number)})
                stopped_by = stopped_by or time.monotonic() + (STOPPING if number in STOPS else GRACE)
            now = time.monotonic()
            silent = [member.host.name for member in self._members if not member.called]
            if process.poll() is not None:
                ended_at = ended_at or now
            # What nodes have said may still be on its way when their starter has ended.
            if ended_at and now > ended_at + GRACE:
                return f"the nodes' starter ended with status {process.returncode}{self._on(silent)}"
            if silent and now > called_by:
                return f"no word within {CALLING:g} s{self._on(silent)}"
            if stopped_by and now > stopped_by:
                return "not all ranks stopped when they were asked to"
            if not self._members[0].called and self._received and ended_at:
                return "stopped before it had begun"
        return ""

    def _end(self, why: str) -> None:
        """Have all nodes end, and hear how they did: those that were cut off are known after LEASE seconds."""
        if why or any(member.failed for member in self._members):
            self._board.tell({"stop": int(signal.SIGINT)})
        deadline = time.monotonic() + LEASE + GRACE
        while time.monotonic() < deadline and not all(member.over or not member.called for member in self._members):
            self._hear()

    def _outcome(self, why: str) -> Outcome:
        states = self._screen.states.values()
        progressed = any(state.kept for state in states)
        gone = [member for member in self._members if member.gone]
        endings = [(member, member.ending) for member in self._members if member.ending is not None]
        failed = [(member, ending) for member, ending in endings if ending.how]
        if not (why or gone or failed):
            statuses = {ending.status for _, ending in endings}
            if self._received and 1 in statuses:
                raise Fault(f"stopped by {signal.Signals(self._received[0]).name}; all nodes have ended")
            return Outcome(STOPPED if STOPPED in statuses else 0)
        if self._received and why:
            raise Fault(f"stopped by {signal.Signals(self._received[0]).name}; {why}")
        if gone:
            names = " and ".join(self._named(member) for member in gone)
            why = f"{names} {'has' if len(gone) == 1 else 'have'} not been heard for {LEASE:g} s"
            self._screen.show_again(gone[0].last, f"The last lines of {gone[0].host.name}:")
        elif failed:
            member, ending = min(failed, key=lambda each: (each[1].rank is None, precedence(each[1].code)))
            if ending.status == WrongCall.exit_status and ending.rank is not None:
                return Outcome(WrongCall.exit_status)
            if ending.status == WrongCall.exit_status:
                raise WrongCall(f"{member.host.name}: {ending.how}")
            why = f"on {member.host.name}: {ending.how}"
            if ending.rank is not None:
                self._screen.show_again(ending.last, f"The last lines of rank {ending.rank} on {member.host.name}:")
                step = self._screen.step_of(ending.rank)
                why = f"rank {ending.rank} on {member.host.name} {ending.how}{step}; its log is {ending.log} there"
        else:
            self._screen.show_again(self._output_lines(), "The last lines of what started the nodes:")
        return Outcome(1, why + self._behind(), moved=bool(gone) or any(s.moves for s in states), progressed=progressed)

    def _behind(self) -> str:
        """Ranks that were behind the others, which so waited for them."""
        states = self._screen.states
        furthest = max((state.moves for state in states.values()), default=0)
        behind = [state.rank for state in states.values() if state.moves < furthest]
        if not behind or len(behind) == len(states):
            return ""
        names = ", ".join(
            f"{rank} on {self._members[rank // self._job.processes].host.name}" for rank in sorted(behind)
        )
        return f"; behind the others: rank {names}"

    def _named(self, member: _Member) -> str:
        ranks = ", ".join(map(str, member.ranks))
        return f"{member.host.name} (rank {ranks}){self._screen.step_of(member.ranks[0])}"

    def _on(self, hosts: Sequence[str]) -> str:
        return f", without a word from {', '.join(hosts)}" if hosts else ""

    def _output_lines(self) -> list[str]:
        with suppress(OSError):
            return self._output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return []

    def _hear(self) -> None:
        """Take in what nodes have said, waiting a moment for it."""
        with suppress(queue.Empty):
            heard = self._board.heard.get(timeout=_LOOK)
            while True:
                self._take(heard)
                heard = self._board.heard.get_nowait()

    def _take(self, heard: Heard) -> None:
        if not 0 <= heard.node < len(self._members):
            return
        member, message = self._members[heard.node], heard.message
        if not member.called:
            member.called = True
            for number in self._received[: self._passed_on]:  # what it was not there to hear
                self._board.tell({"stop": int(number)}, [heard.node])
        if message is None:
            member.gone = member.ending is None
        elif "lines" in message:
            member.last.extend(message["lines"])
            self._screen.show(message["rank"], message["lines"])
        elif "ranks" in message:
            self._screen.beat([RankState(**state) for state in message["ranks"]])
        elif "ended" in message:
            member.ending = _ending_of(message["ended"])
            self._board.tell({"bye": True}, [heard.node])


def _ending_of(told: dict[str, Any]) -> Ending:
    return Ending(**(told | {"last": tuple(told["last"])}))
