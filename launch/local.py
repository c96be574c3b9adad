"""A Job on this machine: one node, whose ranks' lines appear here, started again after failures."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from data_pipeline import Fault, WrongCall
from launch.claim import cores_apart
from launch.cores import Cores, cores_for
from launch.job import STOPPED, Job, sonotrain
from launch.node import FROZEN, GRACE, STOPPING, Place, Share, free_port, run_share
from launch.preview import Preview
from launch.screen import Screen
from launch.signals import collected
from launch.supervise import FIRST_PAUSE, Outcome, supervise

_LOOPBACK = "127.0.0.1"


def run(job: Job, logs: Path, own_cores: int = 0) -> int:
    """Carry the job out here, its ranks' output in `logs`/rank-K.log and on the terminal; gives 0, 2 or 75.

    Each process has `own_cores` cores that no other launch which asks for some has; 0 for a share of all. Raises what
    `run_local` and `cores_apart` do, and WrongCall for what one machine cannot.
    """
    check(job)
    with cores_apart(job.processes, own_cores) as cores:
        return run_local(
            sonotrain(*job.verb),
            job.processes,
            logs,
            job.environment,
            restarts=job.restarts,
            time_limit=job.time_limit,
            cores=cores,
        )


def plan(job: Job) -> Preview:
    """What `run` would start: a process for each rank. Raises WrongCall as it does."""
    check(job)
    return Preview(commands=[sonotrain(*job.verb)] * job.processes)


def run_local(
    program: Sequence[str],
    processes: int,
    logs: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
    terminal: TextIO | None = None,
    *,
    restarts: int = 0,
    time_limit: timedelta | None = None,
    cores: Cores | None = None,
    grace: float = GRACE,
    stopping: float = STOPPING,
    frozen: float = FROZEN,
    first_pause: float = FIRST_PAUSE,
) -> int:
    """Run a program in so many processes until all are done, each with its output in `logs`/rank-K.log and here.

    Gives 0, 2 where a rank has said that it was called wrongly, or 75 where ranks have stopped to be started again.
    Raises Fault naming the rank that failed first and how, after the others have ended and no restart is left. SIGTERM
    and SIGUSR1 are handed on to every rank, and SIGINT and SIGHUP too; after the former ranks have `stopping` seconds
    to end, after the latter `grace`. Where they do not end with 75, that is a Fault too. Raises WrongCall for more
    processes than cores.
    """
    screen = Screen(terminal or sys.stdout)
    with collected(time_limit) as received:

        def attempt(_before: int) -> Outcome:
            screen.states.clear()
            place = Place(0, 1, _LOOPBACK, free_port())
            share = Share(program, processes, place, environment, logs, cores=cores)
            ending = run_share(share, screen, received, grace, stopping, frozen)
            if received and ending.status != STOPPED:
                raise Fault(f"stopped by {signal.Signals(received[0]).name}; the logs are in {logs}")
            if ending.status != 1:
                return Outcome(ending.status)
            screen.show_again(ending.last, f"The last lines of rank {ending.rank}:")
            others = "; the other processes were ended" if processes > 1 else ""
            return Outcome(
                status=1,
                why=f"rank {ending.rank} {ending.how}{screen.step_of(ending.rank)}{others}; its log is {ending.log}",
                moved=any(state.moves for state in screen.states.values()),
                progressed=any(state.kept for state in screen.states.values()),
            )

        return supervise(attempt, restarts, received, first_pause)


def check(job: Job) -> None:
    """Raise WrongCall for what one machine cannot."""
    if job.nodes > 1 or job.elastic:
        raise WrongCall("this machine is one node: leave out --nodes and --elastic, or launch by ssh or slurm")
    cores_for(job.processes)
