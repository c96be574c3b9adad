"""Run as a job of one: an iteration of each network under each objective; prints what they came to as JSON."""

from __future__ import annotations

import json

import torch
from torch import nn

from trainer.config import load_config
from trainer.engines import start_engines
from trainer.loop import iterate
from trainer.networks import NETWORKS
from trainer.processes import end_process, joined
from trainer.step import MicroBatch

SIDE = 64
OBJECTIVES = {
    "literal": [],
    "other readings": [
        "discriminators.input=image_x_mask",
        "objective.truth=full",
        "objective.adversarial=non_saturating",
        "objective.smoothing=0.1",
        "objective.noise=0.1",
        "objective.stages=3",
    ],
    "without adversary": ["objective.beta=[0, 0, 0, 0]", "objective.stages=2"],
}


def trained(name: str, changes: list[str]) -> dict[str, object]:
    config = load_config(
        "quick",
        [
            f"network.name={name}",
            f"data.size=[{SIDE}, {SIDE}]",
            "network.widths=[4, 4, 8, 8, 8]",
            "discriminators.widths=[4, 4, 4, 4]",
            "discriminators.strides=[2, 1, 1, 1, 1]",
            "training.batch=2",
            *changes,
        ],
    )
    engines = start_engines(config, 1, torch.device("cpu"))
    generator: nn.Module = engines.generator.module
    before = {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}
    image = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(2, 2, SIDE, SIDE) if config.objective.noise else None
    (losses,), refused = iterate(engines, [MicroBatch(image, (image > 0.5).float(), noise)], config, 0)
    told = {
        "stages": len(losses.dice),
        "judged": losses.discriminator is not None,
        "finite": bool(torch.stack(tuple(losses.rows().values())).isfinite().all()) and not bool(refused),
        "unmoved": [name for name, value in generator.named_parameters() if torch.equal(value, before[name])],
    }
    engines.destroy()
    return told


if __name__ == "__main__":
    with joined(2):
        print(
            json.dumps(
                {
                    f"{name}, {objective}": trained(name, changes)
                    for name in NETWORKS
                    for objective, changes in OBJECTIVES.items()
                }
            )
        )
    end_process(0)
