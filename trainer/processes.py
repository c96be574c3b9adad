"""The processes of one job: how they find each other, what they tell each other, and how they part."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from data_pipeline import Fault, WrongCall
from trainer.pulse import Pulse, pulse_of
from trainer.tracking import import_mlflow
from trainer.waiting import Waiting, apart_in_one_line

T = TypeVar("T")

TIMEOUT_MINUTES = 10.0
"""How long others are waited for, if not told."""


@dataclass(frozen=True)
class World:
    """Where a process stands among those of its job. device is where its networks live.

    pulse is told of all that is done, for who watches the process; waits is how long it waits for the others.
    """

    rank: int
    size: int
    device: torch.device
    pulse: Pulse = field(default_factory=Pulse)
    waits: Waiting = field(default_factory=lambda: Waiting(TIMEOUT_MINUTES))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files, prints and tracks."""
        return self.rank == 0

    def tell(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        box: list[T | None] = [value if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, values: list[T]) -> list[T]:
        """Every rank's values in the order of ranks, on every rank."""
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]


@contextmanager
def joined(timeout_minutes: float) -> Iterator[World]:
    """Join the processes that the launcher's environment (RANK, WORLD_SIZE, ...) speaks of, or be one alone.

    A process that waits longer than the time-out for another, or loses it, raises Apart; its pulse beats until the end.
    All leave together: a process that is torn down while others still talk to it can abort at exit.
    """
    with pulse_of() as pulse:
        rank, size, device = _join(timeout_minutes)
        with apart_in_one_line(rank, pulse):
            yield World(rank, size, device, pulse, Waiting(timeout_minutes))
            dist.barrier()
        dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End this process now, with its output written and its interpreter left as it is.

    Threads of gloo and MLflow may still run. One that is caught while an interpreter is taken apart aborts the
    process, and a job whose work is done looks like one that failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join(timeout_minutes: float) -> tuple[int, int, torch.device]:
    """Meet the others; gives this process's rank, how many there are, and its device."""
    accelerated = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if accelerated else "cpu")
    import_mlflow()  # DeepSpeed imports it too, and would find its telemetry switched on
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed's shared-memory collectives for CPUs would be compiled at start, and need ninja on the PATH.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name, value in _alone().items():
        os.environ.setdefault(name, value)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if accelerated else torch.device("cpu")
    if accelerated:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise WrongCall(f"{socket.gethostname()} has {gpus} GPUs: start no more processes than that on it")
        torch.cuda.set_device(device)
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if accelerated else "gloo",
            timeout=timedelta(minutes=timeout_minutes),
            verbose=False,
        )
    except (RuntimeError, ValueError) as apart:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Fault(f"rank {os.environ['RANK']} did not find the others at {address}: {_first_line(apart)}") from apart
    return dist.get_rank(), dist.get_world_size(), device


def _alone() -> dict[str, str]:
    """The environment of a job of one process."""
    if "WORLD_SIZE" in os.environ:
        return {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
