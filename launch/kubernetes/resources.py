"""What each pod asks of its machine, in cores, memory, disk and GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from data_pipeline import WrongCall
from launch.job import Job
from launch.kubernetes.keeping import is_on_s3
from launch.kubernetes.options import Options
from launch.kubernetes.quantities import GIB, bytes_of, cores_of, written
from trainer import Config

MEMORY_OF_A_PROCESS = 8 * GIB
"""Bytes of each process, if not told."""

EXCHANGE = GIB
"""Bytes of shared memory, beside resident scans, through which the processes of a machine exchange gradients."""

OWN_DISK = 10 * GIB
"""Bytes of a machine's disk for checkpoints, logs and temporary files, beside cached shards."""


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
    resident = math.ceil(config.data.resident_gb * GIB)
    shared = bytes_of("--shm", options.shm) if options.shm else resident + EXCHANGE
    if shared < resident:
        raise WrongCall(
            f"--shm {options.shm} is less than data.resident_gb={config.data.resident_gb:g}, which stays there; "
            f"ask for {written(resident + EXCHANGE)}, or make data.resident_gb smaller"
        )
    memory = bytes_of("--memory", options.memory) if options.memory else processes * MEMORY_OF_A_PROCESS
    cached = math.ceil(config.data.cache_gb * GIB) if any(is_on_s3(uri) for uri in config.data.uris) else 0
    return Resources(cpu, memory + shared, shared, cached + OWN_DISK, options.gpus)
