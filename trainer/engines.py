"""Two DeepSpeed engines out of a configuration: one for the generator, one for all discriminators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import Config, Optimizer
from trainer.networks import Discriminators, build


@dataclass(frozen=True)
class Engines:
    """Both sides. A DeepSpeed engine wraps its module, its optimizer and what its processes share."""

    generator: Any
    discriminators: Any

    def set_rates(self, optimizer: Optimizer, step: int, steps: int) -> None:
        """Set both learning rates for a step (from 0) of a run of so many steps."""
        factor = rate_factor(optimizer, step, steps)
        for engine, rate in (
            (self.generator, optimizer.generator_rate),
            (self.discriminators, optimizer.discriminator_rate),
        ):
            for group in engine.optimizer.param_groups:
                group["lr"] = rate * factor


def start_engines(config: Config, world_size: int, device: torch.device) -> Engines:
    """Build both networks from the seed, equal on every rank, and give each an engine of its own."""
    torch.manual_seed(config.seed)
    generator = build(config.network.name, widths=config.network.widths)
    discriminators = Discriminators(config.discriminators.widths, config.discriminators.strides)
    training, optimizer = config.training, config.optimizer
    if training.precision == "bf16" or (training.precision == "auto" and computes_bf16(device)):
        for network in (generator, *discriminators.stages):
            _compute_in_bf16(network, device)
    return Engines(
        _engine(generator, config, world_size, device, training.generator_zero, optimizer.generator_rate),
        _engine(discriminators, config, world_size, device, training.discriminator_zero, optimizer.discriminator_rate),
    )


def rate_factor(optimizer: Optimizer, step: int, steps: int) -> float:
    """What the learning rates are multiplied by at a step (from 0): the warm-up's rise, then the schedule."""
    rise = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    if optimizer.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bf16, without which it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def _compute_in_bf16(network: nn.Module, device: torch.device) -> None:
    """Put autocast inside the network: an engine switches off one that it finds around its forward.

    Its own setting would also send gradients between processes in bf16.
    """
    network.forward = torch.autocast(device.type, dtype=torch.bfloat16)(network.forward)


def _engine(
    module: nn.Module, config: Config, world_size: int, device: torch.device, zero_stage: int, rate: float
) -> Any:
    import deepspeed

    training = config.training
    module.to(device)
    engine, *_ = deepspeed.initialize(
        model=module,
        # Adam as an object: a configuration's "Adam" is compiled at start, and may be AdamW under that name.
        optimizer=torch.optim.Adam(module.parameters(), lr=rate, fused=True),
        config=_settings(training.batch, training.accumulation, world_size, zero_stage),
        dist_init_required=False,
    )
    return engine


def _settings(batch: int, accumulation: int, world_size: int, zero_stage: int) -> dict[str, Any]:
    """DeepSpeed's own configuration; each engine needs its own object."""
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (world_size * accumulation),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # DeepSpeed's default is to clip at a norm of 1, which the paper does not
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": 10**9,
    }
