"""Two DeepSpeed engines out of a configuration: one for the generator, one for all discriminators."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.buffers import joined_buffers
from trainer.config import Config, Objective, Optimizer
from trainer.guard import Guard
from trainer.networks import Discriminators, build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages

SHARED_OUT = 3
"""The ZeRO stage at which no process holds the whole network."""


@dataclass(frozen=True, eq=False)
class Side:
    """One engine, which wraps its module, its optimizer and what its processes share, and what watches over it.

    rate is its learning rate before warm-up and schedule; buffers are its module's floating-point buffers.
    """

    engine: Any
    guard: Guard
    buffers: Tensor
    rate: float

    @property
    def refused(self) -> Tensor:
        """1 where the last step was not taken because a gradient was not finite, else 0."""
        if self.engine.zero_optimization_stage() == SHARED_OUT:  # looks by itself, and then does not ask the optimizer
            return self.buffers.new_tensor(float(self.engine.optimizer.overflow))
        return self.guard.refused


@dataclass(frozen=True, eq=False)
class Engines:
    """Both sides of the game: generator, then discriminators, the latter only where a stage has an adversary.

    average is the running average of the generator where one is kept; whole is a plain copy of a generator that
    ZeRO shares out, filled when it is asked for.
    """

    sides: Sequence[Side]
    average: nn.Module | None
    whole: nn.Module | None

    @property
    def generator(self) -> Any:
        """The generator's engine."""
        return self.sides[0].engine

    @property
    def discriminators(self) -> Any | None:
        """The discriminators' engine."""
        return self.sides[1].engine if len(self.sides) > 1 else None

    def set_rates(self, factor: float) -> None:
        """Set each side's learning rate to so many times its own."""
        for side in self.sides:
            for group in side.engine.optimizer.param_groups:
                group["lr"] = side.rate * factor

    def follow(self, decay: float, step: int) -> None:
        """Move the running average on after a step (from 0); it is shorter at first, when it has little to average."""
        if self.average is None:
            return
        share = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(_floats(self.average), _floats(self.generator.module), share)

    def network_to_use(self) -> nn.Module:
        """The network that is judged and kept: the running average where there is one. Every rank calls it."""
        if self.average is not None:
            return self.average
        if self.whole is None:
            network: nn.Module = self.generator.module
            return network
        _gather(self.generator.module, self.whole)
        return self.whole

    def destroy(self) -> None:
        """Let go of what the engines hold on to."""
        for side in self.sides:
            side.engine.destroy()


def start_engines(config: Config, world_size: int, device: torch.device) -> Engines:
    """Build both networks from the seed, equal on every rank, and give each an engine of its own."""
    training, optimizer = config.training, config.optimizer
    allow_tf32(training.precision != "fp32")
    torch.manual_seed(config.seed % 2**63)
    generator = build(config.network.name, **network_settings(config.network, config.objective.stages)).to(device)
    stages = supervised_stages(config.network, config.objective.stages)
    average = None
    if training.ema:
        average = copy.deepcopy(generator).requires_grad_(False)
        compute_in(training.precision, average, device)
    whole = copy.deepcopy(generator).requires_grad_(False) if training.generator_zero == SHARED_OUT else None
    networks: list[tuple[nn.Module, int, float]] = [(generator, training.generator_zero, optimizer.generator_rate)]
    if has_adversary(config.objective, stages):
        discriminators = discriminators_of(config.discriminators, stages).to(device)
        networks.append((discriminators, training.discriminator_zero, optimizer.discriminator_rate))
    scale = rate_scale(optimizer, training.batch)
    sides = [_side(network, zero, rate * scale, config, world_size, device) for network, zero, rate in networks]
    return Engines(sides, average, whole)


def has_adversary(objective: Objective, stages: int) -> bool:
    """Whether any of so many supervised stages is judged by a discriminator."""
    return any(objective.beta[:stages])


def rate_scale(optimizer: Optimizer, batch: int) -> float:
    """What the rates are multiplied by for a global batch: ratio (Goyal et al., 2017) or root (Krizhevsky, 2014)."""
    ratio = batch / optimizer.rates_for_batch
    return {"none": 1.0, "linear": ratio, "square_root": math.sqrt(ratio)}[optimizer.rate_scaling]


def rate_factor(optimizer: Optimizer, step: int, steps: int) -> float:
    """What the learning rates are multiplied by at a step (from 0) of so many: warm-up, then the schedule."""
    rise = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    left = 1 - step / steps
    if optimizer.schedule == "cosine":
        return rise * 0.5 * (1 - math.cos(math.pi * left))
    return rise * left**optimizer.power if optimizer.schedule == "polynomial" else rise


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bf16, without which it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of fp32 products to 10 bits, or not; PyTorch's default lets convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _side(
    module: nn.Module, zero_stage: int, rate: float, config: Config, world_size: int, device: torch.device
) -> Side:
    import deepspeed

    training = config.training
    for network in module.stages if isinstance(module, Discriminators) else [module]:
        compute_in(training.precision, network, device)
        if training.compile:
            network.compile()
    buffers = joined_buffers(module)
    # Adam as an object: a configuration's "Adam" is compiled at start, and may be AdamW under that name.
    adam = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    guard = Guard(adam, config.optimizer.clip, shared=zero_stage > 0 and world_size > 1)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adam,
        config=_settings(training.batch, training.accumulation, world_size, zero_stage),
        dist_init_required=False,
    )
    if world_size == 1 and zero_stage == 0:
        engine.enable_backward_allreduce = False  # it would copy all gradients to and fro for nobody
    return Side(engine, guard, buffers, rate)


def compute_in(precision: str, network: nn.Module, device: torch.device) -> None:
    """Put autocast inside the network where it is wanted: an engine switches off one that it finds around its forward.

    Its own setting would also send gradients between processes in bf16.
    """
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        network.forward = torch.autocast(device.type, dtype=torch.bfloat16)(network.forward)


def _settings(batch: int, accumulation: int, world_size: int, zero_stage: int) -> dict[str, Any]:
    """DeepSpeed's own configuration; each engine needs its own object."""
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage in (1, 2):
        zero["compute_grad_norm"] = False  # the guard has one, without waiting for it
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (world_size * accumulation),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # DeepSpeed's default is to clip at a norm of 1; the guard clips where it is asked to
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }


def _floats(module: nn.Module) -> list[Tensor]:
    """Its parameters and its statistics of norms."""
    values = [*module.parameters(), *module.buffers()]
    return [value.detach() for value in values if value.is_floating_point()]


def _gather(shared_out: nn.Module, whole: nn.Module) -> None:
    """Fill a plain network with what the processes hold parts of."""
    from deepspeed.runtime.zero import GatheredParameters

    with torch.no_grad():
        for part, parameter in zip(shared_out.parameters(), whole.parameters(), strict=True):
            with GatheredParameters([part]):
                parameter.copy_(part)
        for buffer, copied in zip(shared_out.buffers(), whole.buffers(), strict=True):
            copied.copy_(buffer)
