"""One node's share of a job: a process for each of its ranks, watched together; when one fails, all are ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from data_pipeline import WrongCall
from launch.cores import Cores, cores_for
from launch.job import STOPPED
from launch.rank import Rank
from launch.signals import STOPS

GRACE = 10.0
"""Seconds that a process has to end by itself before its whole group is killed."""

STOPPING = 600.0
"""Seconds that ranks have which were asked to stop: to finish a step, write its checkpoint and copy it away."""

FROZEN = 60.0
"""Seconds without a sign of life after which a rank that gave one before is taken for frozen."""

_LOOK = 0.05
_BETWEEN_BEATS = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands in its job, and where the job's first rank is to be found. node counts from 0."""

    node: int
    nodes: int
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class RankState:
    """What a node knows of one of its ranks. step is the last one done, None before the first sign of life."""

    rank: int
    step: int | None = None
    moves: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a node's share ended. status: 0 done, 1 failed, 2 called wrongly, 75 stopped to go on."""

    status: int
    rank: int | None = None
    """The rank that failed first, if one did."""
    code: int = 0
    """Its exit status, or the negative number of the signal that killed it; 0 where it was frozen."""
    how: str = ""
    """In words: was killed by SIGKILL, exited with status 1, gave no sign of life for 60 s; empty where told to end."""
    log: str = ""
    last: Sequence[str] = ()
    """The last lines of its log."""


class Onlooker(Protocol):
    """Who is shown what the ranks write and how far they are."""

    def show(self, rank: int, lines: Sequence[str]) -> None:
        """New lines of a rank's log."""

    def beat(self, states: Sequence[RankState]) -> None:
        """Each second, all ranks of the node."""


@dataclass(frozen=True)
class Share:
    """What a node runs."""

    program: Sequence[str]
    """A program with its arguments, once for each rank."""
    processes: int
    """Ranks on this node, at least 1."""
    place: Place
    environment: Mapping[str, str]
    """Variables set over what this process has."""
    logs: Path
    """The folder in which each rank's output is kept, as rank-K.log."""
    stop_by: signal.Signals | None = None
    """The signal that asks ranks to stop, whichever came to this process; None for the same."""
    cores: Cores | None = None
    """The cores that its ranks share; None for all that may be used here."""


def run_share(
    share: Share,
    onlooker: Onlooker,
    received: Sequence[int],
    grace: float = GRACE,
    stopping: float = STOPPING,
    frozen: float = FROZEN,
) -> Ending:
    """Run a node's ranks until all are done, one has failed or frozen, or signals are received.

    `received` grows while this runs. SIGTERM and SIGUSR1 in it are handed on to every rank, and so are SIGINT and
    SIGHUP; after the former ranks have `stopping` seconds to end, after the latter `grace`. What is left of them is
    killed. Raises WrongCall for more processes than cores, and for logs that cannot be written.
    """
    cores = share.cores or cores_for(share.processes)
    try:
        share.logs.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise WrongCall(f"{share.logs} cannot be made a folder for logs: {refused.strerror}") from refused
    ranks: list[Rank] = []
    with tempfile.TemporaryDirectory(prefix="sonotrain-", ignore_cleanup_errors=True) as pulses:
        watch = _Watch(ranks, onlooker, received, frozen, share.stop_by)
        try:
            for local in range(share.processes):
                ranks.append(_started(share, local, cores, Path(pulses)))
            watch.until_one_ends()
            watch.let_stop(stopping)
            failed, how = watch.first_failed()
        finally:
            watch.end(grace)
    statuses = {rank.status() for rank in ranks}
    if STOPPED in statuses and statuses <= {0, STOPPED}:
        return Ending(STOPPED)
    if failed is not None:
        if watch.was_asked_too_early(failed):
            return Ending(STOPPED)
        wrong_call = failed.status() == WrongCall.exit_status
        status = WrongCall.exit_status if wrong_call else 1
        code = 0 if failed is watch.frozen else failed.status() or 0
        return Ending(status, failed.number, code, how, str(failed.log.path), tuple(failed.log.last))
    return Ending(1 if received else 0)


class _Watch:
    """Looks at ranks, and passes on what they write and what they are asked."""

    def __init__(
        self,
        ranks: Sequence[Rank],
        onlooker: Onlooker,
        received: Sequence[int],
        frozen: float,
        stop_by: signal.Signals | None,
    ) -> None:
        self._ranks = ranks
        self._stop_by = stop_by
        self._onlooker = onlooker
        self._received = received
        self._frozen_after = frozen
        self.frozen: Rank | None = None
        self._next_beat = time.monotonic()

    def until_one_ends(self) -> None:
        """Watch until all are done, one has failed, frozen or stopped, or a signal comes."""
        while not self._received and not any(statuses := self._look()) and None in statuses and not self.frozen:
            time.sleep(_LOOK)

    def let_stop(self, stopping: float) -> None:
        """Where ranks have been asked to stop, by a signal to them or to this process, wait until all have."""
        deadline = time.monotonic() + stopping
        passed_on = 0
        while time.monotonic() < deadline and self.first_failed()[0] is None and set(self._received) <= set(STOPS):
            for number in self._received[passed_on:]:
                for rank in self._ranks:
                    rank.ask_to_end(self._stop_by or number)
                passed_on += 1
            statuses = self._look()
            if None not in statuses or not (self._received or STOPPED in statuses):
                return
            time.sleep(_LOOK)

    def first_failed(self) -> tuple[Rank | None, str]:
        """Of those that have failed the one that the others followed, and how; one that a signal killed has hardly."""
        if self.frozen:
            return self.frozen, f"gave no sign of life for {self._frozen_after:g} s"
        failed = [rank for rank in self._ranks if rank.status() not in (None, 0, STOPPED)]
        if failed:
            first = min(failed, key=lambda rank: precedence(rank.status() or 0))
            return first, first.how_it_ended()
        return None, ""

    def was_asked_too_early(self, rank: Rank) -> bool:
        """Whether it was killed by what asks it to stop, as before it listens, with nothing done that could be lost."""
        asked = {each for number in self._received if number in STOPS for each in (number, self._stop_by)}
        return -(rank.status() or 0) in asked and not (rank.seen and rank.seen.moves)

    def end(self, grace: float) -> None:
        """Ask every rank that still runs to end, kill what is left of its group, and show its last words."""
        hard = [number for number in self._received if number not in STOPS]
        for rank in self._ranks:
            rank.ask_to_end(hard[0] if hard else signal.SIGTERM)
        deadline = time.monotonic() + grace
        # Whoever sends a second signal will not wait.
        while None in self._look() and time.monotonic() < deadline and len(self._received) < 2:
            time.sleep(_LOOK)
        for rank in self._ranks:
            rank.kill(grace)
        self._look()
        for rank in self._ranks:
            rank.log.close()

    def _look(self) -> list[int | None]:
        """Pass on what is new, and give the ranks' statuses."""
        statuses = [rank.status() for rank in self._ranks]
        for rank in self._ranks:
            self._onlooker.show(rank.number, rank.new_lines())
        if time.monotonic() >= self._next_beat or None not in statuses:
            self._next_beat = time.monotonic() + _BETWEEN_BEATS
            for rank in self._ranks:
                if rank.silent_for() > self._frozen_after:
                    self.frozen = self.frozen or rank
            self._onlooker.beat([_state_of(rank) for rank in self._ranks])
        return statuses


def precedence(code: int) -> tuple[bool, int]:
    """Sorts endings by how little they can have followed others: killed first, then called wrongly, then failed.

    The failure of one is soon followed by the status 1 of all that were waiting for it.
    """
    return code > 0, -code


def _state_of(rank: Rank) -> RankState:
    if rank.seen is None:
        return RankState(rank.number)
    return RankState(rank.number, rank.seen.step, rank.seen.moves, rank.seen.kept)


def _started(share: Share, local: int, cores: Cores, pulses: Path) -> Rank:
    place = share.place
    number = place.node * share.processes + local
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores.count // share.processes)),
        "PYTHONUNBUFFERED": "1",
    }
    interface = interface_towards(place.address)
    if interface:
        defaults |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    own = {
        "RANK": str(number),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(place.nodes * share.processes),
        "LOCAL_WORLD_SIZE": str(share.processes),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        # DeepSpeed looks for ninja there, which lies beside this interpreter.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    environment = defaults | dict(os.environ) | dict(share.environment) | own
    own_cores = cores.share(local, share.processes)
    return Rank(number, share.program, environment, own_cores, share.logs, pulses / str(local))


def interface_towards(address: str) -> str | None:
    """The name of the network interface from which this machine reaches an address, None where it cannot be told."""
    try:
        own = address_towards(address)
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            return name
    return None


def address_towards(address: str) -> str:
    """The address of this machine under which it reaches another. Raises OSError where it does not. Sends nothing."""
    family, kind, protocol, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of an own address that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
