"""Phantoms at scale: drawn by a process for each core, and written as they come, in their shards' order."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue

import cv2

from data_pipeline import Fault, Index, Scan, open_store, require_free, write_dataset
from data_pipeline.folds import assign_folds
from data_pipeline.ordered import in_order
from data_pipeline.phantom import phantom, phantom_owner
from launch.cores import usable_cores
from launch.terminal import with_progress

WORTH_A_PROCESS = 40_000_000
"""Pixels. A process takes about as long to start as to draw so many."""

ENDING_SECONDS = 10.0
"""A process that draws has so long to end when it is told to."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 25  # the most that malloc takes for them


@dataclass(frozen=True, slots=True)
class Phantoms:
    """How many phantoms of which size (height, width) to write, where to, and how."""

    destination: str
    count: int
    size: tuple[int, int]
    seed: int
    folds: int
    codec: str
    shard_mb: int


def write_phantoms(wanted: Phantoms) -> Index:
    """Draw and write a dataset of phantoms; a few for each core are held at a time.

    Their folds follow from their patients and labels, so nothing is drawn to know them. An interruption publishes
    nothing. Raises WrongCall where the destination is taken, Fault where a process that draws ends before its work.
    """
    require_free(open_store(wanted.destination))
    owners = [phantom_owner(number, wanted.seed) for number in range(wanted.count)]
    folds = assign_folds(owners, wanted.folds)
    numbers = sorted(range(wanted.count), key=lambda number: (folds[owners[number].key], owners[number].key))
    drawn = with_progress(_drawn(numbers, wanted.size, wanted.seed), "phantoms written", wanted.count)
    return write_dataset(wanted.destination, "phantoms", drawn, folds, {}, wanted.codec, wanted.shard_mb)


def _drawn(numbers: Sequence[int], size: tuple[int, int], seed: int) -> Iterator[Scan]:
    """These phantoms in their order, by as many processes as are worth it; few are drawn here."""
    processes = min(usable_cores().count, len(numbers) * size[0] * size[1] // WORTH_A_PROCESS)
    if processes < 2:
        yield from map(partial(phantom, size=size, seed=seed), numbers)
        return
    with _drawers(processes, size, seed) as draw:
        yield from in_order(draw, numbers, processes)


@contextmanager
def _drawers(count: int, size: tuple[int, int], seed: int) -> Iterator[Callable[[int], Scan]]:
    """Processes that draw, as a function that several threads may call.

    Each has a pipe of its own, at whose end it ends too, whichever way this process does, and at which this one sees
    that it has ended, also in the middle of a scan. A pool of the standard library would then wait for ever.
    """
    context = multiprocessing.get_context("spawn")
    idle: SimpleQueue[Connection] = SimpleQueue()
    started = []

    def draw(number: int) -> Scan:
        connection = idle.get()
        try:
            connection.send(number)
            scan: Scan = connection.recv()
        except (EOFError, OSError) as ended:
            raise Fault("a process that draws phantoms has ended before its work; nothing is published") from ended
        finally:
            idle.put(connection)
        return scan

    try:
        # They inherit what is blocked, so that an interruption from the keyboard reaches this process only. The
        # tracker that multiprocessing starts beside the first of them would unblock it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(target=_draw, args=(there, size, seed), daemon=True)
                process.start()
                there.close()
                started.append((process, here))
                idle.put(here)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield draw
    finally:
        for _, here in started:
            here.close()
        for process, _ in started:
            process.join(ENDING_SECONDS)
            process.kill()


def _draw(asked: Connection, size: tuple[int, int], seed: int) -> None:
    """Draw what is asked for until nobody asks any more: one process, one thread."""
    cv2.setNumThreads(1)
    # Left alone, malloc gives each array back and takes it anew, and half of the time goes into empty pages.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _KEPT)
    try:
        while True:
            asked.send(phantom(asked.recv(), size, seed))
    except (EOFError, OSError):
        pass
