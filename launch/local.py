"""A Job on this machine: a process for each rank, watched together; when one fails, the others are ended."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from data_pipeline import Fault, WrongCall
from launch.cores import Cores, usable_cores
from launch.job import Job, bound
from launch.screen import GrowingLog, Screen

GRACE = 10.0
"""Seconds that a process has to end by itself before its whole group is killed."""

STOPPING = 600.0
"""Seconds that ranks have which were asked to stop: to finish a step, write its checkpoint and copy it away."""

STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that training answers with a checkpoint and STOPPED."""

STOPPED = os.EX_TEMPFAIL
"""The exit status of a rank that has stopped when it was asked to, and of a job of such ranks."""

LAST_LINES = 5
"""Lines of a failed rank's log that are shown again at the end."""

_LOOK = 0.05


def run_local(
    job: Job, logs: Path, terminal: TextIO | None = None, grace: float = GRACE, stopping: float = STOPPING
) -> int:
    """Run a job's processes until all are done, each with its output in `logs`/rank-K.log and on the terminal (stdout).

    Gives 0, 2 where a rank has said that it was called wrongly, or 75 where ranks have stopped to be started again.
    Raises Fault naming the rank that failed first and how, after the others have ended: on SIGTERM, or killed `grace`
    seconds later. SIGTERM and SIGUSR1 are handed on to every rank, and SIGINT and SIGHUP too; after the former ranks
    have `stopping` seconds to end, after the latter `grace`. Where they do not end with 75, that is a Fault too.
    Raises WrongCall for more processes than cores.
    """
    cores = usable_cores()
    if job.processes > cores.count:
        raise WrongCall(f"{job.processes} processes are more than the {cores.count} cores that may be used here")
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise WrongCall(f"{logs} cannot be made a folder for logs: {refused.strerror}") from refused
    screen = Screen(terminal or sys.stdout)
    ranks: list[_Rank] = []
    with _signals() as received:
        try:
            port = free_port()
            for rank in range(job.processes):
                ranks.append(_Rank(rank, job, port, cores, logs))
            _watch(ranks, screen, received)
            _let_stop(ranks, screen, received, stopping)
            failed = _first_failed(ranks)
        finally:
            _end(ranks, screen, received, grace)
    statuses = {rank.status() for rank in ranks}
    if STOPPED in statuses and statuses <= {0, STOPPED}:
        return STOPPED
    if received:
        raise Fault(f"stopped by {signal.Signals(received[0]).name}; the logs are in {logs}")
    if failed is None:
        return 0
    if failed.status() == WrongCall.exit_status:
        return WrongCall.exit_status
    screen.show_again(failed.log.last, f"The last lines of rank {failed.rank}:")
    others = "; the other processes were ended" if len(ranks) > 1 else ""
    raise Fault(f"rank {failed.rank} {failed.how_it_ended()}{others}; its log is {failed.log.path}")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch(ranks: Sequence[_Rank], screen: Screen, received: Sequence[int]) -> None:
    """Show what the ranks write until all are done, one has failed or stopped, or a signal comes."""
    while not received and not any(statuses := _show(ranks, screen)) and None in statuses:
        time.sleep(_LOOK)


def _let_stop(ranks: Sequence[_Rank], screen: Screen, received: Sequence[int], stopping: float) -> None:
    """Where ranks have been asked to stop, by a signal to them or to this process, wait until all have or one fails."""
    deadline = time.monotonic() + stopping
    passed_on = 0
    while time.monotonic() < deadline and _first_failed(ranks) is None and set(received) <= set(STOPS):
        for number in received[passed_on:]:
            for rank in ranks:
                rank.ask_to_end(number)
            passed_on += 1
        statuses = _show(ranks, screen)
        if None not in statuses or not (received or STOPPED in statuses):
            return
        time.sleep(_LOOK)


def _first_failed(ranks: Sequence[_Rank]) -> _Rank | None:
    """Of the ranks that have failed the one that the others followed: one that a signal killed has hardly followed."""
    failed = [rank for rank in ranks if rank.status() not in (None, 0, STOPPED)]
    return min(failed, key=lambda rank: rank.status() or math.inf, default=None)


def _show(ranks: Sequence[_Rank], screen: Screen) -> list[int | None]:
    """Pass each rank's new output on to the screen, and give the ranks' statuses."""
    return [rank.show(screen) for rank in ranks]


def _end(ranks: Sequence[_Rank], screen: Screen, received: Sequence[int], grace: float) -> None:
    """Ask every rank that still runs to end, kill what is left of its group, and show its last words."""
    hard = [number for number in received if number not in STOPS]
    for rank in ranks:
        rank.ask_to_end(hard[0] if hard else signal.SIGTERM)
    deadline = time.monotonic() + grace
    # Whoever sends a second signal will not wait.
    while None in _show(ranks, screen) and time.monotonic() < deadline and len(received) < 2:
        time.sleep(_LOOK)
    for rank in ranks:
        rank.kill(grace)
    _show(ranks, screen)
    for rank in ranks:
        rank.log.close()


class _Rank:
    """One process of a job, in a session and process group of its own."""

    def __init__(self, rank: int, job: Job, port: int, cores: Cores, logs: Path) -> None:
        self.rank = rank
        self.log = GrowingLog(rank, logs / f"rank-{rank}.log", LAST_LINES)
        # A rank writes straight to its log, which so is whole whatever becomes of the launcher.
        with self.log.path.open("ab") as sink:
            self._process = subprocess.Popen(
                bound(job.argv, cores.share(rank, job.processes)),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_environment(rank, job, port, cores.count),
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

    def show(self, screen: Screen) -> int | None:
        """Pass its new output on to the screen, and give its status."""
        status = self.status()
        screen.show(self.log, ended=status is not None)
        return status

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


def _environment(rank: int, job: Job, port: int, cores: int) -> dict[str, str]:
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // job.processes)),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONUNBUFFERED": "1",
    }
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.processes),
        "LOCAL_WORLD_SIZE": str(job.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # DeepSpeed looks for ninja there, which lies beside this interpreter.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    return defaults | dict(os.environ) | dict(job.environment) | place


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask this process to end, instead of ending; those it ignores stay ignored."""
    received: list[int] = []

    def collect(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    # Where a parent left this ignored, the system would forget how a process ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = (signal.SIGINT, signal.SIGHUP, *STOPS)
    before = {number: signal.getsignal(number) for number in asked if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, collect)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
