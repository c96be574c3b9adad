"""Run by each rank of a job: fifty iterations on the same batches; rank 0 prints Eq. 1 and the mean of Eq. 2."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch.nn import functional

from trainer.config import load_config
from trainer.engines import start_engines
from trainer.loop import iterate
from trainer.objectives import overall_loss
from trainer.processes import end_process, joined
from trainer.step import MicroBatch

STEPS = 50
GLOBAL_BATCH = 4
SIDE = 112

if __name__ == "__main__":
    with joined(2) as world:
        config = load_config(
            "quick",
            [
                f"training.batch={GLOBAL_BATCH}",
                f"training.generator_zero={2 if world.size > 1 else 0}",
                "training.precision=fp32",
                "optimizer.generator_rate=5e-5",
                "optimizer.discriminator_rate=5e-5",
                "training.ema=0.9",
                "optimizer.clip=1",
                "objective.beta_warmup_steps=20",
                "network.norm=group",
                "network.widths=[4, 6, 8, 10, 12]",
                "discriminators.norm=group",
                "discriminators.widths=[4, 6, 8, 10]",
            ],
        )
        engines = start_engines(config, world.size, world.device)
        randomness = torch.Generator().manual_seed(2)
        curve = []
        for step in range(STEPS):
            coarse = torch.rand(GLOBAL_BATCH, 1, SIDE // 16, SIDE // 16, generator=randomness)
            image = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
            share = slice(world.rank * GLOBAL_BATCH // world.size, (world.rank + 1) * GLOBAL_BATCH // world.size)
            mine = MicroBatch(image[share], (image > 0.6).float()[share])
            (losses,), _ = iterate(engines, [mine], config, step)
            objective = overall_loss(losses.dice, losses.adversarial, config.objective.alpha, config.objective.beta)
            point = torch.stack([objective, losses.discriminator.mean()])
            dist.all_reduce(point)
            curve.append((point / world.size).tolist())
    if world.leads:
        print(json.dumps(curve))
    end_process(0)
