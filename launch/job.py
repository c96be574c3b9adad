"""What a launcher carries out: a program, once for each rank, and the environment that its processes share."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline import WrongCall

LAUNCHABLE = ("train", "crossval")
"""The verbs whose processes work together."""


@dataclass(frozen=True, slots=True)
class Job:
    """One program in several processes that find each other by RANK, WORLD_SIZE and MASTER_ADDR."""

    argv: tuple[str, ...]
    """The program and its arguments, the same in each process."""
    processes: int
    """Processes on one machine, at least 1."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set in each process over what it inherits."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise WrongCall(f"{self.processes} processes cannot run; --procs is at least 1")


def sonotrain(*arguments: str) -> tuple[str, ...]:
    """The program and its arguments that carry out a verb, in this interpreter."""
    # -P: a folder named launch in the working directory must not be taken for this one.
    return (sys.executable, "-P", "-m", "launch.cli", *arguments)


def bound(program: Sequence[str], cores: Sequence[int] = ()) -> tuple[str, ...]:
    """The same program so that it dies with the process that starts it, and has no cores but these, if any."""
    begin = Path(__file__).with_name("begin.py")
    return (sys.executable, "-I", "-S", str(begin), str(os.getpid()), ",".join(map(str, cores)), *program)


def verb_job(arguments: Sequence[str], processes: int) -> Job:
    """A training verb with its arguments as a job. Raises WrongCall for a verb that works alone."""
    verb = next(iter(arguments), "")
    if verb not in LAUNCHABLE:
        wrong = f"{verb} cannot be launched" if verb else "nothing to launch"
        raise WrongCall(f"{wrong}; write after -- one of {', '.join(LAUNCHABLE)} with its arguments")
    return Job(sonotrain(*arguments), processes)
