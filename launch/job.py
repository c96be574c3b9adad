"""What a launcher carries out: a training verb, on how many nodes, in how many processes, under which conditions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from data_pipeline import WrongCall

LAUNCHABLE = ("train", "crossval", "tune")
"""The verbs that a launcher starts. Processes of the first two work together; tune is one, and starts its trials' own.
"""

STOPPED = os.EX_TEMPFAIL
"""The exit status of a process, and of a job, that has stopped when it was asked to: started again, it goes on."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Job:
    """A training verb with its arguments, and how it is to be run, whatever runs it."""

    verb: tuple[str, ...]
    """train, crossval or tune, and its arguments."""
    nodes: int = 1
    """Machines, at least 1; the most, where `elastic` allows fewer."""
    processes: int = 1
    """Processes on each machine, at least 1; of tune those of all trials that a machine has room for."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set in each process over what it has there by itself. May hold credentials."""
    workdir: Path = field(default_factory=Path.cwd)
    """The working directory on each machine."""
    restarts: int = 0
    """How often it is started again after a failure, at least 0."""
    time_limit: timedelta | None = None
    """After so long it is asked to stop with a checkpoint."""
    elastic: range | None = None
    """With how many nodes it may do, where not all are left; None for all or none."""

    def __post_init__(self) -> None:
        verb = next(iter(self.verb), "")
        if verb not in LAUNCHABLE:
            wrong = f"{verb} cannot be launched" if verb else "nothing to launch"
            raise WrongCall(f"{wrong}; write after -- one of {', '.join(LAUNCHABLE)} with its arguments")
        for option, value, least in (
            ("--nodes", self.nodes, 1),
            ("--procs", self.processes, 1),
            ("--restarts", self.restarts, 0),
        ):
            if value < least:
                raise WrongCall(f"{option} {value} cannot be; it is at least {least}")

    @property
    def sizes(self) -> range:
        """How many nodes it can run on, the most last."""
        return self.elastic or range(self.nodes, self.nodes + 1)


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of a cluster: its name, the address at which others reach it, processes that it has room for."""

    name: str
    address: str
    slots: int


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of a job find each other: an address of the first node, and a port that is free there."""

    address: str
    port: int


def sonotrain(*arguments: str) -> tuple[str, ...]:
    """The program and its arguments that carry out a verb, in this interpreter."""
    # -P: a folder named launch in the working directory must not be taken for this one.
    return (sys.executable, "-P", "-m", "launch.cli", *arguments)


def bound(program: Sequence[str], cores: Sequence[int] = ()) -> tuple[str, ...]:
    """The same program so that it dies with the process that starts it, and has no cores but these, if any."""
    begin = Path(__file__).with_name("begin.py")
    return (sys.executable, "-I", "-S", str(begin), str(os.getpid()), ",".join(map(str, cores)), *program)


def dying(arguments: Sequence[str]) -> tuple[str, ...]:
    """The program that carries out a verb with its arguments, and dies with the process that starts it."""
    return bound(sonotrain(*arguments))


def variables(given: Sequence[str]) -> dict[str, str]:
    """What --env NAME (as it is here) and --env NAME=VALUE set. Raises WrongCall, without ever showing a value."""
    read = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not _NAME.fullmatch(name):
            raise WrongCall(f"--env {name} is no name of a variable; write --env NAME or --env NAME=VALUE")
        if not equals and name not in os.environ:
            raise WrongCall(f"--env {name} is not set here; set it, or write --env {name}=VALUE")
        read[name] = value if equals else os.environ[name]
    return read


def duration(text: str | None) -> timedelta | None:
    """The time of --time-limit H:MM:SS, D-HH:MM:SS or minutes, as Slurm writes it. Raises WrongCall for no time."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)|(\d+)", text)
    if found:
        days, hours, minutes, seconds, only = (int(part or 0) for part in found.groups())
        read = timedelta(days=days, hours=hours, minutes=minutes + only, seconds=seconds)
        if read:
            return read
    raise WrongCall(f"--time-limit {text} is no time; write it as H:MM:SS, such as 1:30:00")


def node_range(text: str | None) -> range | None:
    """The numbers of nodes of --elastic MIN:MAX. Raises WrongCall for anything else."""
    if text is None:
        return None
    least, colon, most = text.partition(":")
    if not (colon and least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise WrongCall(f"--elastic {text} is no range of nodes; write it as MIN:MAX, such as 1:4")
    return range(int(least), int(most) + 1)
