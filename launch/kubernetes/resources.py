"""What each pod asks of its machine, in cores, memory, disk and GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from data_pipeline import WrongCall
from launch.job import Job
from launch.kubernetes.keeping import is_on_s3
from launch.kubernetes.options import Options
from launch.kubernetes.quantities import GIB, MIB, bytes_of, cores_of, written
from trainer import Config
from tuning.settings import Tune

MEMORY_OF_A_PROCESS = 8 * GIB
"""Bytes of each process, if not told."""

EXCHANGE = GIB
"""Bytes of shared memory, beside resident scans, through which the processes of a machine exchange gradients."""

OWN_DISK = 10 * GIB
"""Bytes of a machine's disk for checkpoints, logs and temporary files, beside cached shards."""

CORES_OF_RAY = 1
"""Cores of each machine of a sweep that no trial gets: Ray's own and, on the first machine, the search's."""

MEMORY_OF_RAY = 2 * GIB
"""Bytes of each machine for these."""

OBJECTS_OF_RAY = 256 * MIB
"""Bytes of shared memory in which Ray may keep objects, of which a sweep has few and small ones."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a pod asks for. memory holds shared_memory, which a memory limit counts."""

    cpu: str
    memory: int
    shared_memory: int
    disk: int
    gpus: int

    def requirements(self) -> dict[str, Any]:
        """As a container writes it. As much is asked for as may be used, so that a pod is the last to be evicted.

        Only disk has no limit, which a pod would be ended for passing: what the cache takes is limited by itself.
        """
        limits = {"cpu": self.cpu, "memory": written(self.memory)}
        if self.gpus:
            limits["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": limits | {"ephemeral-storage": written(self.disk)}, "limits": limits}


def resources_of(job: Job, options: Options, config: Config) -> Resources:
    """What a pod of a job asks for. Raises WrongCall for more processes than cores or GPUs, and too little memory."""
    processes = job.processes
    cpu = options.cpu or str(processes * (1 + config.data.readers))
    if processes > cores_of("--cpu", cpu):
        raise WrongCall(f"--procs {processes} is more than the --cpu {cpu} of a pod; each process needs a core")
    if options.gpus and processes > options.gpus:
        raise WrongCall(f"--procs {processes} is more than the --gpus {options.gpus} of a pod; each process needs one")
    shared = _shared_memory(options, config, EXCHANGE)
    memory = bytes_of("--memory", options.memory) if options.memory else processes * MEMORY_OF_A_PROCESS
    return Resources(cpu, memory + shared, shared, _disk(config), options.gpus)


def resources_of_sweep(job: Job, options: Options, config: Config, tune: Tune) -> Resources:
    """What a pod of a sweep asks for: the processes of all trials that it has room for at the same time, and Ray.

    Raises WrongCall as `resources_of` does, and for pods that have no room for a trial, which would wait for ever.
    """
    for option, given, key, needed in (
        ("--nodes", job.nodes, "tune.nodes", tune.nodes),
        ("--procs", job.processes, "tune.processes", tune.processes),
    ):
        if given < needed:
            raise WrongCall(
                f"{option} {given} is less than {key}={needed}, so that no trial fits; write {option} {needed}"
            )
    cores = job.processes * tune.cpus + CORES_OF_RAY
    cpu = options.cpu or str(cores)
    if cores > cores_of("--cpu", cpu):
        raise WrongCall(
            f"--cpu {cpu} is less than --procs {job.processes} x tune.cpus={tune.cpus} and a core for Ray; "
            f"write --cpu {cores}"
        )
    each = tune.gpus if tune.gpus is not None else int(options.gpus > 0)
    if job.processes * each > options.gpus:
        raise WrongCall(
            f"--gpus {options.gpus} is less than --procs {job.processes} with a GPU each; "
            f"write --gpus {job.processes * each}" + (", or tune.gpus=0" if tune.gpus else "")
        )
    shared = _shared_memory(options, config, EXCHANGE + OBJECTS_OF_RAY)
    of_processes = job.processes * MEMORY_OF_A_PROCESS + MEMORY_OF_RAY
    memory = bytes_of("--memory", options.memory) if options.memory else of_processes
    return Resources(cpu, memory + shared, shared, _disk(config), options.gpus)


def _shared_memory(options: Options, config: Config, beside: int) -> int:
    """Bytes for resident scans and what lies beside them. Raises WrongCall where these do not fit."""
    resident = math.ceil(config.data.resident_gb * GIB)
    shared = bytes_of("--shm", options.shm) if options.shm else resident + beside
    if shared < resident:
        raise WrongCall(
            f"--shm {options.shm} is less than data.resident_gb={config.data.resident_gb:g}, which stays there; "
            f"ask for {written(resident + beside)}, or make data.resident_gb smaller"
        )
    return shared


def _disk(config: Config) -> int:
    cached = math.ceil(config.data.cache_gb * GIB) if any(is_on_s3(uri) for uri in config.data.uris) else 0
    return cached + OWN_DISK
