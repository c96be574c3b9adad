"""What Slurm has: its partitions and their nodes; and whether a job has room in one of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from data_pipeline import WrongCall
from launch.job import Job, duration

PATIENCE = 20.0
"""Seconds in which Slurm has to answer."""

_GPUS = re.compile(r"(?:^|,)gpu(?::[^:(,]+)?:(\d+)")


class NoSlurm(WrongCall):
    """There is no Slurm here, or it does not answer."""


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """A node as Slurm knows it."""

    name: str
    cpus: int
    gpus: int


@dataclass(slots=True)
class Partition:
    """A partition. longest is its time limit, None for none; default is whether jobs that name none go there."""

    name: str
    default: bool
    longest: timedelta | None
    nodes: list[SlurmNode] = field(default_factory=list)

    def require_room(self, job: Job, own_gpus: bool) -> None:
        """Raise WrongCall for a job that can never run here. own_gpus: it asks for GPUs in its own words."""
        least = job.sizes[0]
        if len(self.nodes) < least:
            raise WrongCall(f"{least} nodes are more than the {len(self.nodes)} of the partition {self.name}")
        self._require_devices(job.processes, least, "CPUs", [node.cpus for node in self.nodes])
        if self.has_gpus and not own_gpus:
            self._require_devices(job.processes, least, "GPUs", [node.gpus for node in self.nodes])
        if job.time_limit and self.longest and job.time_limit > self.longest:
            raise WrongCall(
                f"--time-limit {job.time_limit} is longer than the partition {self.name} allows, which is "
                f"{self.longest}; a job that is stopped at its limit goes on by itself, so a shorter one does"
            )

    @property
    def has_gpus(self) -> bool:
        """Whether any of its nodes has one."""
        return any(node.gpus for node in self.nodes)

    def _require_devices(self, processes: int, nodes: int, kind: str, of_nodes: Sequence[int]) -> None:
        if sum(count >= processes for count in of_nodes) < nodes:
            enough = sorted(of_nodes)[-nodes]
            raise WrongCall(
                f"--procs {processes}: {processes} processes are more than the {enough} {kind} of a node in the "
                f"partition {self.name}" + (f", where {nodes} nodes are needed" if enough < max(of_nodes) else "")
            )


def partitions() -> dict[str, Partition]:
    """Slurm's partitions by name. Raises NoSlurm."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--all", "--Node", "--noheader", "--format=%P|%N|%c|%G|%l").splitlines():
        marked, node, cpus, resources, longest = line.strip().split("|")
        name = marked.rstrip("*")
        if name not in found:
            found[name] = Partition(name, marked.endswith("*"), None if longest == "infinite" else duration(longest))
        gpus = sum(map(int, _GPUS.findall(resources)))
        found[name].nodes.append(SlurmNode(node, int(cpus.rstrip("+")), gpus))
    return found


def chosen(names: Sequence[str], there: dict[str, Partition]) -> list[Partition]:
    """The partitions of these names, or the default one. Raises WrongCall for one that is missing."""
    if not names:
        names = [name for name, partition in there.items() if partition.default]
    known = ", ".join(there)
    if not names:
        raise WrongCall(f"Slurm has no default partition; name one with --partition, of {known}")
    for name in names:
        if name not in there:
            raise WrongCall(f"--partition {name}: Slurm has no such partition; it has {known}")
    return [there[name] for name in names]


def ask(program: str, *arguments: str) -> str:
    """What a program of Slurm writes. Raises NoSlurm where it is not there, and where Slurm does not answer."""
    if shutil.which(program) is None:
        raise NoSlurm(f"Slurm is not installed here: there is no {program}; launch from a login node of the cluster")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as silent:
        raise NoSlurm(f"Slurm does not answer: {program} said nothing for {PATIENCE:g} s") from silent
    if done.returncode:
        raise NoSlurm(f"Slurm does not answer: {last_words(done.stderr) or f'{program} ended with {done.returncode}'}")
    return done.stdout


def last_words(text: str) -> str:
    """The last line of what a program of Slurm complains of."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
