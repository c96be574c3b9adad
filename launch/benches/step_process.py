"""Long-lived processes of one job that carry out what they are asked, so that their start takes no measured time."""

from __future__ import annotations

import multiprocessing.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Self

import torch

from launch.benches.children import answer, end, failed
from launch.node import free_port

if TYPE_CHECKING:
    from trainer.processes import World

ENGINES, PLAIN = "engines", "plain"

MINUTES = 10.0
"""For which one process of a job waits for the others."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a function that a process is asked for is carried out. kept is the process's own between two of them."""

    world: World
    kept: dict[str, Any]


class StepProcesses:
    """A job's processes, which start at once and are waited for where the context begins, until it ends.

    kind is ENGINES, whose processes join as those of a training do, or PLAIN, one process that knows nothing of
    DeepSpeed. With cores, each process is pinned to one of them and computes in one thread.
    """

    def __init__(self, kind: str, count: int = 1, cores: Sequence[int] = ()) -> None:
        self._who = f"{count} {kind} process{'es' if count > 1 else ''}"
        self._count = count
        spawn = multiprocessing.get_context("spawn")
        port = free_port()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(count):
            here, there = spawn.Pipe()
            core = cores[rank] if cores else None
            process = spawn.Process(target=_main, args=(there, kind, rank, count, port, core), name=f"bench-{kind}")
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What function(place, *arguments) gives in each process, in the order of ranks. Raises Fault."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return [answer(pipe, self._who) for pipe in self._pipes]

    def __enter__(self) -> Self:
        """Wait until all are there."""
        try:
            for pipe in self._pipes:
                answer(pipe, self._who)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """See them end."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            end(process)


def _main(parent: Connection, kind: str, rank: int, count: int, port: int, core: int | None) -> None:
    """One process: get ready, then do as told until nobody is there to tell."""
    if core is not None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from trainer.processes import end_process

    try:
        with _world(kind) as world:
            place = Place(world, {})
            parent.send(("ready", None))
            while (asked := _next(parent)) is not None:
                function, arguments = asked
                parent.send(("done", function(place, *arguments)))
    except Exception as failure:
        failed(parent, failure)
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # gives back what libraries took, once
    end_process(0)


def _world(kind: str) -> AbstractContextManager[World]:
    from trainer.processes import World, joined

    if kind == ENGINES:
        return joined(MINUTES)
    return nullcontext(World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def _next(parent: Connection) -> Any | None:
    """What is asked next; None at the end."""
    try:
        return parent.recv()
    except EOFError:
        return None
