"""Run by each rank of a job: engines and plain PyTorch side by side; rank 0 prints the differences as JSON."""

from __future__ import annotations

import json
from itertools import product

import torch
from plain import PlainTraining, matters

from trainer.checkpoint import whole
from trainer.config import Config, load_config
from trainer.engines import Engines, start_engines
from trainer.processes import World, end_process, joined
from trainer.step import MicroBatch, train_iteration

ITERATIONS = 3
MICRO_BATCH = 2
SIDE = 112
OTHER_READINGS = (
    "discriminators.input=image_x_mask",
    "discriminators.norm=group",
    "network.norm=group",
    "objective.adversarial=non_saturating",
    "objective.smoothing=0.1",
    "objective.noise=0.1",
    "objective.stages=3",
    "optimizer.clip=0.5",
)


def main() -> None:
    with joined(2) as world:
        differences = {}
        for zero, accumulation in product((0, 1, 2, 3), (1, 2)):
            differences[f"{zero} {accumulation}"] = compare(config(world, zero, accumulation), world)
            if zero != 1:
                readings = config(world, zero, accumulation, *OTHER_READINGS)
                differences[f"{zero} {accumulation} readings"] = compare(readings, world)
    if world.leads:
        print(json.dumps(differences))


def config(world: World, zero: int, accumulation: int, *changes: str) -> Config:
    return load_config(
        "quick",
        [
            f"training.batch={MICRO_BATCH * world.size * accumulation}",
            f"training.accumulation={accumulation}",
            f"training.generator_zero={zero}",
            f"training.discriminator_zero={min(zero, 2)}",
            "training.precision=fp32",
            "training.channels_last=false",
            "network.widths=[4, 6, 8, 10, 12]",
            "discriminators.widths=[4, 6, 8, 10]",
            *changes,
        ],
    )


def compare(wanted: Config, world: World) -> dict[str, float | bool]:
    """For each side the largest difference of a weight after an iteration, and the relative one of its moments.

    Each iteration begins with the same weights on both, since a difference in rounding can flip a ReLU and
    then grow; the moments of all iterations go on.

    The moments tell gradients of another scale apart, which Adam's first steps do not. held: whether a
    discriminator had a gradient left after a generator's step.
    """
    engines = start_engines(wanted, world.size, world.device)
    plain = PlainTraining(wanted)
    randomness = torch.Generator().manual_seed(1)
    held = False
    worst: dict[str, float] = {}
    for _ in range(ITERATIONS):
        noisy = wanted.objective.noise
        pieces = [
            [micro_batch(randomness, noisy) for _ in range(wanted.training.accumulation)] for _ in range(world.size)
        ]
        train_iteration(engines, pieces[world.rank], wanted.objective, wanted.discriminators.input)
        plain.iterate(pieces)
        held |= any(
            parameter.grad is not None and bool(parameter.grad.any())
            for parameter in engines.discriminators.module.parameters()
        )
        for side, difference in _differences(engines, plain).items():
            worst[side] = max(worst.get(side, 0.0), difference)
        _follow(plain, engines)
    return {"held": held, **worst}


def _differences(engines: Engines, plain: PlainTraining) -> dict[str, float]:
    differences = {}
    for side, adam in (("generator", plain.generator_adam), ("discriminators", plain.discriminator_adam)):
        engine, network = getattr(engines, side), getattr(plain, side)
        values, moments = (
            {name: whole(engine, parameter, moment) for name, parameter in engine.module.named_parameters()}
            for moment in (None, "exp_avg")
        )
        theirs = {name: parameter.detach() for name, parameter in matters(network).items()}
        differences[side] = max(float((values[name] - value).abs().max()) for name, value in theirs.items())
        ours = torch.cat([moments[name].ravel() for name in theirs])
        expected = torch.cat([adam.state[parameter]["exp_avg"].ravel() for parameter in matters(network).values()])
        differences[f"{side} moments"] = float((ours - expected).norm() / expected.norm())
    return differences


def _follow(plain: PlainTraining, engines: Engines) -> None:
    """Take the engines' weights over."""
    with torch.no_grad():
        for side in ("generator", "discriminators"):
            engine, network = getattr(engines, side), getattr(plain, side)
            for ours, theirs in zip(engine.module.parameters(), network.parameters(), strict=True):
                theirs.copy_(whole(engine, ours, None))


def micro_batch(randomness: torch.Generator, noisy: float) -> MicroBatch:
    image = torch.rand(MICRO_BATCH, 1, SIDE, SIDE, generator=randomness)
    coarse = torch.rand(MICRO_BATCH, 1, SIDE // 16, SIDE // 16, generator=randomness)
    mask = (torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear") > 0.6).float()
    noise = noisy * torch.randn(MICRO_BATCH, 2, SIDE, SIDE, generator=randomness) if noisy else None
    return MicroBatch(image, mask, noise)


if __name__ == "__main__":
    main()
    end_process(0)
