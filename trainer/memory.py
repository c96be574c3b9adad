"""What memory a process of a training needs, reckoned from the configuration and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from data_pipeline.stream import BATCHES_KEPT
from trainer.activations import activations_of
from trainer.config import Config
from trainer.engines import SHARED_OUT, has_adversary
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages

VALUE = 4
"""Bytes of a weight, a gradient, a moment: float32, whatever the networks compute in."""

BUCKET = 500_000_000
"""Values that DeepSpeed takes memory for at once, to exchange gradients (reduce_bucket_size, unless it is told)."""

HEAP_HOLES = 1 / 3
"""What lies idle in malloc's heap between blocks of changing sizes, as a part of what is held in such blocks.

Measured, a third to two fifths; with a heap for nothing (MALLOC_MMAP_THRESHOLD_) it is none, and a step takes longer.
"""


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that a process needs at most for each purpose. Not all of it is needed at the same time."""

    weights: int
    """Both sides' weights and statistics of norms, and from ZeRO stage 1 on the copy of a part that Adam changes."""
    gradients: int
    """Of both sides, as far as a process keeps them."""
    moments: int
    """Adam's two of both sides, as far as a process keeps them."""
    average: int
    """The running average of the generator, and its whole copy where ZeRO stage 3 shares it out."""
    activations: int
    """What backward needs, and what it makes on its way; or a validation, where that needs more."""
    scans: int
    """The batch as the networks see it: varied scans, masks and noise."""
    exchange: int
    """Where gradients are gathered before they are exchanged, on a CPU, which has only the pages that are used."""
    exchange_on_gpu: int
    """The same on a GPU, which has all that is asked for."""
    holes: int
    """What malloc's heap has idle, on a CPU."""
    runtime: int
    """Python with all libraries: measured on the machine that reckons."""
    batches: int
    """Scans that are read ahead, on the host."""
    checkpoint: int
    """The copy that the first process alone writes checkpoints from, on the host."""

    @property
    def networks(self) -> int:
        """What lies where the networks are, of all parts but those that differ between CPU and GPU."""
        return self.weights + self.gradients + self.moments + self.average + self.activations + self.scans

    @property
    def on_cpu(self) -> int:
        """The host's memory where networks are trained on the CPU, of a process that is not the first."""
        return self.networks + self.exchange + self.holes + self.beside_gpu

    @property
    def on_gpu(self) -> int:
        """A GPU's memory, but for what its driver and its libraries take."""
        return self.networks + self.exchange_on_gpu

    @property
    def beside_gpu(self) -> int:
        """The host's memory where networks are trained on a GPU, of a process that is not the first."""
        return self.runtime + self.batches


def process_memory(config: Config, world_size: int, runtime: int) -> ProcessMemory:
    """What each of so many processes needs, whose runtime takes so many bytes (trainer.idle)."""
    sides = _sides(config)
    generator = sides[0]
    held = activations_of(config, world_size)
    pixels = math.prod(config.data.size)
    share = config.training.batch // world_size
    copies = config.network.in_channels if config.training.channels_last else 1
    # Backwards come one after the other, and stage 3 keeps its bucket in between.
    together: Callable[[Iterable[int]], int] = sum if generator.zero == SHARED_OUT else max
    kept = (config.training.ema > 0) + (generator.zero == SHARED_OUT)
    return ProcessMemory(
        weights=sum(side.weights(world_size) for side in sides),
        gradients=sum(side.gradients(world_size) for side in sides),
        moments=sum(side.moments(world_size) for side in sides),
        average=kept * generator.whole,
        activations=held.most,
        scans=VALUE * share * pixels * (copies + 1 + (2 if config.objective.noise else 0)),
        exchange=together(side.exchange(world_size) for side in sides),
        exchange_on_gpu=together(side.exchange_on_gpu(world_size) for side in sides),
        holes=int(HEAP_HOLES * held.small),
        runtime=runtime,
        batches=BATCHES_KEPT * 2 * share * pixels,
        checkpoint=sum(side.checkpoint for side in sides) + (config.training.ema > 0) * generator.whole,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """How many parameters and buffers (in bytes) a side has, and its ZeRO stage."""

    parameters: int
    buffers: int
    zero: int

    @property
    def whole(self) -> int:
        """Bytes of the network."""
        return VALUE * self.parameters + self.buffers

    @property
    def checkpoint(self) -> int:
        """Bytes of its files: the network, and the moments, but those of stage 3, which each process writes itself."""
        return self.whole + (0 if self.zero == SHARED_OUT else 2 * VALUE * self.parameters)

    def part(self, world_size: int) -> int:
        """Parameters of one process, where they are shared out."""
        return -(-self.parameters // world_size)

    def weights(self, world_size: int) -> int:
        """Bytes: the network; from stage 1 the part that Adam changes; at stage 3 a part to gather the network from."""
        copies = {0: 0, 1: 1, 2: 1, SHARED_OUT: 2}[self.zero]
        return self.whole + copies * VALUE * self.part(world_size)

    def gradients(self, world_size: int) -> int:
        """Bytes: those of the whole network, or from stage 2 on of a part."""
        return VALUE * (self.part(world_size) if self.zero > 1 else self.parameters)

    def moments(self, world_size: int) -> int:
        """Bytes: those of the whole network, or from stage 1 on of a part."""
        return 2 * VALUE * (self.part(world_size) if self.zero else self.parameters)

    def exchange(self, world_size: int) -> int:
        """Bytes of gradients that are there a second time while they are exchanged."""
        if self.zero == 0:
            return VALUE * self.parameters if world_size > 1 else 0
        # Each gradient moves into the bucket, from which stage 1 copies a process's part; it had them all anyhow.
        return VALUE * (self.part(world_size) if self.zero == 1 else self.parameters)

    def exchange_on_gpu(self, world_size: int) -> int:
        """The same with the whole bucket."""
        if self.zero == 0:
            return self.exchange(world_size)
        return VALUE * BUCKET + (self.exchange(world_size) if self.zero == 1 else 0)


def _sides(config: Config) -> list[_Side]:
    """The generator, and where there are any the discriminators."""
    training = config.training
    stages = supervised_stages(config.network, config.objective.stages)
    with torch.device("meta"):
        generator = build(config.network.name, **network_settings(config.network, config.objective.stages))
        sides = [_counted(generator, training.generator_zero)]
        if has_adversary(config.objective, stages):
            discriminators = discriminators_of(config.discriminators, stages)
            sides.append(_counted(discriminators, training.discriminator_zero))
    return sides


def _counted(module: nn.Module, zero: int) -> _Side:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return _Side(parameters, sum(buffer.nbytes for buffer in module.buffers()), zero)
