"""What a process of `sonotrain bench step` is asked to do; each function's first argument is where it is done."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from data_pipeline import plan_epoch, stream_batches
from launch.benches.step_plain import PlainLoop
from launch.benches.step_process import Place
from trainer.checkpoint import Checkpoints, Progress
from trainer.checkpoint_files import name_of, names
from trainer.config import Config
from trainer.engines import Engines, start_engines
from trainer.feasible import dataset_of, learnt_folds
from trainer.loop import iterate, memory_for, micro_batches, seed_of_step
from trainer.prefetch import on_device
from trainer.processes import World
from trainer.step import MicroBatch

OURS, OURS_ON_DATA = "engines", "engines, on data"
PLAIN_LOOP, TWICE, UNFUSED = "plain", "plain, generator twice", "plain, Adam not fused"

BATCHES = 4
"""Different batches that a loop on resident ones goes round."""

LINES = 25
"""Operators in a profile."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds that iterations took on the clock and of processor time, and that of them data were waited for."""

    wall: float
    processor: float
    waiting: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint: seconds on the step's path, and all that it cost, with what slower steps took while it was written.

    steps were taken meanwhile; usual is the seconds of one at other times.
    """

    on_path: float
    cost: float
    steps: int
    usual: float


class Loop(Protocol):
    """What iterates. waited is the seconds it has waited for data so far."""

    waited: float

    def step(self) -> None:
        """One iteration."""

    def close(self) -> None:
        """Let go of everything."""


def built(place: Place, name: str, kind: str, config: Config) -> int | None:
    """Make a loop that is kept under a name, and warm it up. Gives a GPU's peak of memory for it alone, in bytes."""
    device = place.world.device
    before = _allocated(device)
    if kind == OURS:
        place.kept[name] = EngineLoop(config, place.world)
    elif kind == OURS_ON_DATA:
        place.kept[name] = DataLoop(config, place.world)
    else:
        place.kept[name] = ResidentLoop(kind, config, place.world)
    for _ in range(2):
        place.kept[name].step()
    _synchronise(device)
    return None if before is None else torch.cuda.max_memory_allocated(device) - before


def timed(place: Place, name: str, steps: int) -> Timed:
    """The time of so many iterations, after one that fetches back what others have driven out of caches."""
    loop: Loop = place.kept[name]
    loop.step()
    _synchronise(place.world.device)
    begun, used, waited = time.perf_counter(), _processor_seconds(), loop.waited
    for _ in range(steps):
        loop.step()
    _synchronise(place.world.device)
    result = Timed(time.perf_counter() - begun, _processor_seconds() - used, loop.waited - waited)
    if place.world.device.type == "cuda":
        torch.cuda.empty_cache()  # loops that wait leave their memory to the one that is timed
    return result


def dropped(place: Place) -> None:
    """Let go of every loop."""
    for loop in place.kept.values():
        loop.close()
    place.kept.clear()
    gc.collect()


def difference(place: Place, config: Config, steps: int) -> float:
    """The largest difference of any weight of the two loops after so many iterations on the same scans."""
    ours, plain = EngineLoop(config, place.world), ResidentLoop(PLAIN_LOOP, config, place.world)
    for step in range(steps):
        ours.step()
        torch.manual_seed(seed_of_step(config.seed, step))  # as ours is, for networks with dropout
        plain.step()
    sides = [(ours.engines.generator, plain.loop.generator)]
    if ours.engines.discriminators is not None:
        sides.append((ours.engines.discriminators, plain.loop.discriminators))
    largest = max(_largest_difference(engine.module, network) for engine, network in sides)
    ours.close()
    return largest


def saved(place: Place, name: str, config: Config, folder: Path, number: int, steps: int) -> Saved:
    """Save a loop's engines as training does, and iterate until the checkpoint is there.

    So many iterations before it and after it tell what one takes at other times. The first checkpoint of a process,
    which fetches the memory that later ones use again, costs more.
    """
    loop: EngineLoop = place.kept[name]
    checkpoints = loop.checkpoints_below(folder)
    before = timed(place, name, steps).wall
    begun = time.perf_counter()
    checkpoints.save(loop.engines, Progress(step=number), config, "")
    on_path = time.perf_counter() - begun
    meanwhile = 0
    while not names(folder) or names(folder)[-1] != name_of(number):
        loop.step()
        _synchronise(place.world.device)
        meanwhile += 1
    whole = time.perf_counter() - begun
    usual = (before + timed(place, name, steps).wall) / (2 * steps)
    return Saved(on_path, whole - meanwhile * usual, meanwhile, usual)


def profiled(place: Place, name: str, steps: int) -> str:
    """The operators that so many iterations spend most time in, as a table."""
    on_gpu = place.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        for _ in range(steps):
            place.kept[name].step()
        _synchronise(place.world.device)
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=LINES)


def device_name(place: Place) -> str:
    """The GPU's name, or cpu."""
    device = place.world.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def threads(place: Place) -> int:
    """How many the process computes in."""
    del place
    return torch.get_num_threads()


# -- loops -----------------------------------------------------------------------------------------------------------


class EngineLoop:
    """Ours, on batches that are there."""

    waited = 0.0

    def __init__(self, config: Config, world: World) -> None:
        self.engines: Engines = start_engines(config, world.size, world.device)
        self._config = config
        self._world = world
        self._batches = cycle(resident_batches(config, world))
        self._steps = count()
        self._open = ExitStack()
        self._checkpoints: Checkpoints | None = None

    def step(self) -> None:
        """As the training loop has it."""
        iterate(self.engines, next(self._batches), self._config, next(self._steps))

    def checkpoints_below(self, folder: Path) -> Checkpoints:
        """Always the same, as in a training."""
        if self._checkpoints is None:
            made = Checkpoints(folder, self._config.checkpoints, self._world, lambda _: None)
            self._checkpoints = self._open.enter_context(made)
        return self._checkpoints

    def close(self) -> None:
        """Wait for the last checkpoint, and let go of the engines."""
        self._open.close()
        self.engines.destroy()


class DataLoop:
    """Ours, on a dataset: read, decoded and varied as in training, an epoch after the other."""

    def __init__(self, config: Config, world: World) -> None:
        self.engines: Engines = start_engines(config, world.size, world.device)
        self.waited = 0.0
        self._config = config
        self._world = world
        self._open = ExitStack()
        self._batches = self._endless()
        self._steps = count()

    def step(self) -> None:
        """As the training loop has it."""
        iterate(self.engines, next(self._batches), self._config, next(self._steps))

    def close(self) -> None:
        """Let go of engines, readers and memory."""
        self._batches.close()
        self._open.close()
        self.engines.destroy()

    def _endless(self) -> Generator[list[MicroBatch]]:
        data, world = self._config.data, self._world
        dataset = dataset_of(self._config)
        resident = self._open.enter_context(memory_for(self._config, dataset))
        learnt_from = learnt_folds(self._config, dataset)
        for epoch in count():
            plan = plan_epoch(dataset.index, learnt_from, self._config.seed, epoch, self._config.training.batch)
            places = plan.for_rank(world.size, world.rank)
            batches = on_device(stream_batches(dataset, places, data.size, data.readers, resident), world.device)
            while True:
                begun = time.perf_counter()
                copied = next(batches, None)
                self.waited += time.perf_counter() - begun
                if copied is None:
                    break
                yield micro_batches(*copied, self._config, epoch)


class ResidentLoop:
    """A plain loop, on the same batches."""

    waited = 0.0

    def __init__(self, kind: str, config: Config, world: World) -> None:
        self.loop = PlainLoop(config, world.device, fused=kind != UNFUSED, twice=kind == TWICE)
        self._batches = cycle(resident_batches(config, world))

    def step(self) -> None:
        """One iteration."""
        self.loop.iterate(next(self._batches))

    def close(self) -> None:
        """It holds on to nothing."""


def resident_batches(config: Config, world: World) -> list[list[MicroBatch]]:
    """Batches of noise with round masks on the device, of each the micro-batches of this process."""
    training = config.training
    count = training.batch // (world.size * training.accumulation)
    randomness = torch.Generator().manual_seed(world.rank)
    shape = (count, config.network.in_channels, *config.data.size)

    def piece() -> MicroBatch:
        image = torch.rand(shape, generator=randomness).to(world.device)
        coarse = torch.rand((count, 1, 8, 8), generator=randomness).to(world.device)
        mask = (F.interpolate(coarse, size=config.data.size, mode="bilinear") > 0.6).float()
        if training.channels_last:
            image = image.to(memory_format=torch.channels_last)
        return MicroBatch(image, mask, _noise(config, mask, randomness))

    return [[piece() for _ in range(training.accumulation)] for _ in range(BATCHES)]


def _noise(config: Config, mask: Tensor, randomness: torch.Generator) -> Tensor | None:
    if not config.objective.noise:
        return None
    shape = (mask.shape[0], 2, *mask.shape[2:])
    return config.objective.noise * torch.randn(shape, generator=randomness).to(mask.device)


# -- what is measured ------------------------------------------------------------------------------------------------


def _largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((one.detach() - other.detach()).abs().max()) for one, other in pairs)


def _allocated(device: torch.device) -> int | None:
    """Bytes that are in use on a GPU, whose peak begins anew."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system
