"""One reading in a process of its own, so that imports, caches and page faults are its own too."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import cv2
import torch

from data_pipeline import Fault, open_dataset
from launch.benches.children import answer, end, failed
from launch.benches.limits import LIMITS
from launch.benches.loaders import LOADERS, Decoder, Epochs, Reading

LATER_SECONDS = 1.0
"""Later epochs are read until there is one and so much time has passed."""

SAMPLING_SECONDS = 0.01
"""Between two looks at a process's memory."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds to open the set, and images a second in the first epoch and in all later ones together."""

    opening: float
    first: float
    later: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checksum of each scan's pixels in the first epoch and in the second, and the peak of memory in bytes.

    Memory is anonymous and shared, of the process and its workers, above what it was after the imports.
    """

    first: Mapping[str, int]
    second: Mapping[str, int]
    peak: int


def timed(reading: Reading, ours: Path) -> Timing:
    """Read for time. ours is the dataset of ours whose index the decoder checks with. Raises Fault."""
    timing: Timing = _carried_out("time", reading, ours)[0]
    return timing


def inspected(reading: Reading, ours: Path) -> Inspection:
    """Read two epochs, not for time, but for what comes and what memory it takes. Raises Fault."""
    (first, second), peak = _carried_out("inspect", reading, ours)
    return Inspection(first, second, peak)


def checksum(image: torch.Tensor, mask: torch.Tensor) -> int:
    """Of one scan's pixels."""
    return zlib.crc32(mask.numpy().tobytes(), zlib.crc32(image.numpy().tobytes()))


# -- here ------------------------------------------------------------------------------------------------------------


def _carried_out(task: Literal["time", "inspect"], reading: Reading, ours: Path) -> tuple[Any, int]:
    """What the task came to in a new process, and the peak of its memory."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    who = f"{reading.loader} ({reading.codec}, {reading.workers} workers, {reading.uri})"
    with _scratch(reading) as ready:
        process = spawn.Process(target=_main, args=(there, task, ready, ours), name=f"bench-{reading.loader}")
        process.start()
        there.close()
        try:
            answer(here, who)
            # Looking at memory takes time of the cores, so it is not done while time is taken.
            with _peak_memory(process.pid) if task == "inspect" else nullcontext([0]) as peak:
                here.send("go")
                result = answer(here, who)
        finally:
            end(process)
    return result, peak[0]


@contextmanager
def _scratch(reading: Reading) -> Iterator[Reading]:
    """The same reading with an empty folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=reading.scratch, prefix="reading-"))
    try:
        yield replace(reading, scratch=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _peak_memory(pid: int | None) -> Iterator[list[int]]:
    """Fills in the highest memory of a process and its children during the block, above what it was before."""
    assert pid is not None, "the process has been started"
    before = _memory(pid)
    peak = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], _memory(pid) - before)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        over.set()
        watching.join()


def _memory(pid: int) -> int:
    """Bytes of anonymous and shared memory of a process and its children; what they share is counted once.

    Pages of files are left out: they are the page cache's, which gives them up when memory is wanted.
    """
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) << 10
        children = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return total
    return total + sum(_memory(int(child)) for listed in children for child in listed)


# -- there -----------------------------------------------------------------------------------------------------------


def _main(parent: Connection, task: str, reading: Reading, ours: Path) -> None:
    """The process: get ready, wait for the word, read, tell."""
    try:
        # Workers begin as torch has them begin on Linux, and not as this process did.
        multiprocessing.set_start_method("fork", force=True)
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        loader = {**LOADERS, **LIMITS}[reading.loader]
        loader.ready()
        samples = {sample.key: sample for sample in open_dataset(str(ours)).index.samples}
        decode = Decoder(samples, reading.codec, reading.size)
        parent.send(("ready", None))
        if parent.recv() == "go":
            begun = time.perf_counter()
            with loader.open(reading, decode) as epochs:
                opening = time.perf_counter() - begun
                result = _time(epochs, opening, samples) if task == "time" else [_inspect(epochs, n) for n in (0, 1)]
            parent.send(("done", result))
    except Exception as failure:
        failed(parent, failure)


def _time(epochs: Epochs, opening: float, expected: Mapping[str, object]) -> Timing:
    first = _seconds(epochs, 0, expected)
    later: list[float] = []
    while not later or sum(later) < LATER_SECONDS:
        later.append(_seconds(epochs, 1 + len(later), expected))
    return Timing(opening, len(expected) / first, len(expected) * len(later) / sum(later))


def _seconds(epochs: Epochs, number: int, expected: Mapping[str, object]) -> float:
    """How long an epoch takes. Raises Fault where a scan did not come in it, or came twice."""
    seen: list[str] = []
    begun = time.perf_counter()
    for keys, _, _ in epochs(number):
        seen.extend(keys)
    seconds = time.perf_counter() - begun
    if len(seen) != len(expected) or set(seen) != set(expected):
        raise Fault(f"epoch {number} had {len(seen)} scans, {len(set(seen))} of them different, of {len(expected)}")
    return seconds


def _inspect(epochs: Epochs, number: int) -> dict[str, int]:
    """A checksum of each scan of an epoch. Raises Fault where a scan came twice."""
    sums: dict[str, int] = {}
    for keys, images, masks in epochs(number):
        for key, image, mask in zip(keys, images, masks, strict=True):
            if key in sums:
                raise Fault(f"{key} came twice in epoch {number}")
            sums[key] = checksum(image, mask)
    return sums
