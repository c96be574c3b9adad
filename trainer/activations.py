"""What training holds beside weights and gradients, followed block by block on networks of shapes without values."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.config import Config
from trainer.engines import Engines, Side, compute_in, computes_bf16, has_adversary
from trainer.guard import Guard
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages
from trainer.step import MicroBatch, train_iteration

SMALL = 32 << 20
"""Bytes up to which glibc's malloc may keep a block in its heap (DEFAULT_MMAP_THRESHOLD_MAX); a larger one is mapped by
itself, and given back as soon as it is free."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes at their most; small are those in blocks that malloc may keep in its heap, when these are most."""

    most: int
    small: int


def activations_of(config: Config, world_size: int) -> Held:
    """What an iteration holds for its backwards and as its results, or a validation where that is more.

    The iteration itself runs on a process's micro-batches, in the precision that this machine would train in. Weights,
    their gradients and the scans are not counted. Left out are what torch.compile would save, what a synchronised norm
    exchanges, and a megabyte or two in which a CPU's convolutions rearrange their values.
    """
    stages = supervised_stages(config.network, config.objective.stages)
    with FakeTensorMode(allow_non_fake_inputs=True):
        generator = build(config.network.name, **network_settings(config.network, config.objective.stages))
        sides: list[nn.Module] = [generator]
        networks: list[nn.Module] = [generator]
        if has_adversary(config.objective, stages):
            discriminators = discriminators_of(config.discriminators, stages)
            sides.append(discriminators)
            networks += discriminators.stages
        for network in networks:
            compute_in(_precision(config), network, _CPU)
        training = _of_iteration(config, world_size, sides)
        validation = _of_validation(config, generator)
    return Held(max(training.most, validation.most), max(training.small, validation.small))


def _precision(config: Config) -> str:
    """The precision of a training on this machine: what "auto" means depends on its hardware."""
    here = torch.device("cuda") if torch.cuda.is_available() else _CPU
    wanted = config.training.precision
    return wanted if wanted != "auto" else "bf16" if computes_bf16(here) else "fp32"


def _of_iteration(config: Config, world_size: int, sides: Sequence[nn.Module]) -> Held:
    training = config.training
    scans = training.batch // (world_size * training.accumulation)
    image = torch.zeros(scans, config.network.in_channels, *config.data.size)
    if training.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    noise = torch.zeros(scans, 2, *config.data.size) if config.objective.noise else None
    piece = MicroBatch(image, torch.zeros(scans, 1, *config.data.size), noise)
    blocks = _Blocks()
    played = []
    for side in sides:
        for parameter in side.parameters():
            parameter.register_post_accumulate_grad_hook(blocks.leave_out_gradient)
        guard = Guard(torch.optim.Adam(side.parameters()), clip=0, shared=False)
        played.append(Side(_Engine(side), guard, torch.zeros(()), rate=0))
    with blocks:
        train_iteration(
            Engines(played, None, None), [piece] * training.accumulation, config.objective, config.discriminators.input
        )
    return blocks.held()


@torch.no_grad()
def _of_validation(config: Config, generator: nn.Module) -> Held:
    scans = torch.zeros(config.validation.batch, config.network.in_channels, *config.data.size)
    blocks = _Blocks()
    with blocks:
        generator.eval()(scans)
    return blocks.held()


class _Engine:
    """A network as an iteration drives it. It learns nothing; what DeepSpeed holds is reckoned from its settings."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def zero_optimization_stage(self) -> int:
        return 0

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.module.zero_grad(set_to_none=True)


class _Blocks(TorchDispatchMode):
    """The memory of all tensors that come up while it is entered, each block until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self._all, self._small = _Sum(), _Sum()
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def held(self) -> Held:
        """What there was at its most."""
        return Held(self._all.most, self._small.most)

    def leave_out_gradient(self, parameter: Tensor) -> None:
        """Count a parameter's gradient, which is complete, no longer."""
        assert parameter.grad is not None
        self._release(parameter.grad.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operation happen, and count the blocks that its results are the first to use."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, block: torch.UntypedStorage) -> None:
        number, size = block._cdata, block.nbytes()
        if number in self._known:
            return
        self._known[number] = size, weakref.ref(block, lambda _: self._forget(number))
        self._all.add(size)
        self._small.add(size if size <= SMALL else 0)

    def _release(self, number: int) -> None:
        """Take a block off the sums. It stays known, so that it is not counted anew while it is there."""
        size, block = self._known[number]
        self._known[number] = 0, block
        self._all.add(-size)
        self._small.add(-size if size <= SMALL else 0)

    def _forget(self, number: int) -> None:
        self._release(number)
        del self._known[number]


class _Sum:
    """Bytes now, and at their most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
