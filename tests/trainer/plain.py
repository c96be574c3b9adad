"""The iteration once more in plain PyTorch, for all ranks in one process: what the engines are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks import Discriminators, build

Pieces = Sequence[Sequence[tuple[Tensor, Tensor]]]
"""[rank][micro-batch] of image and mask, [B, 1, H, W]."""


class PlainTraining:
    """Both networks as a configuration's engines have them at the start, two Adams, and losses written out anew."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.generator = build(config.network.name, widths=config.network.widths)
        self.discriminators = Discriminators(config.discriminators.widths, config.discriminators.strides)
        self.objective = config.objective
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), config.optimizer.generator_rate)
        self.discriminator_adam = torch.optim.Adam(
            self.discriminators.parameters(), config.optimizer.discriminator_rate
        )

    def iterate(self, pieces: Pieces) -> None:
        """One iteration over every rank's micro-batches; gradients are means over ranks and micro-batches."""
        self.generator_adam.zero_grad()
        self.discriminator_adam.zero_grad()
        accumulation = len(pieces[0])
        share = 1 / (accumulation * len(pieces))
        for place in range(accumulation):
            forwards = []
            for rank in pieces:
                image, mask = rank[place]
                maps = [torch.sigmoid(logits) for logits in self.generator(image)]
                truths = [_shrunk(mask, seen.shape[-1]) for seen in maps]
                forwards.append((maps, truths))
                loss = torch.zeros(())
                for critic, seen, truth in zip(self.discriminators.stages, maps, truths, strict=True):
                    # Eq. 2 as the cross-entropy that it is, which loses no digits where a critic is sure.
                    loss = loss + _cross_entropy(critic(truth), 1.0) + _cross_entropy(critic(seen.detach()), 0.0)
                (loss * share).backward()
            if place == accumulation - 1:
                self.discriminator_adam.step()
            for maps, truths in forwards:
                loss = torch.zeros(())
                for stage, (seen, truth) in enumerate(zip(maps, truths, strict=True)):
                    dices = [
                        (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1) for p, g in zip(seen, truth, strict=True)
                    ]
                    judged = self.discriminators.stages[stage](seen)
                    loss = loss + self.objective.alpha[stage] * (1 - torch.stack(dices).mean())
                    loss = loss + self.objective.beta[stage] * -_cross_entropy(judged, 0.0)
                learnt = list(self.generator.parameters())
                for parameter, gradient in zip(learnt, torch.autograd.grad(loss * share, learnt), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.generator_adam.step()


def _cross_entropy(logits: Tensor, real: float) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def matters(network: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, without the biases of convolutions before a batch norm.

    Their gradient is zero but for rounding, which Adam enlarges to whole steps; the norm takes them out again.
    """
    layers = dict(network.named_modules())
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if not (name.endswith(".bias") and _next_is_norm(layers, name.removesuffix(".bias")))
    }


def _next_is_norm(layers: dict[str, nn.Module], name: str) -> bool:
    head, _, last = name.rpartition(".")
    return last.isdigit() and isinstance(layers.get(f"{head}.{int(last) + 1}"), nn.BatchNorm2d)


def _shrunk(mask: Tensor, side: int) -> Tensor:
    """Pixel by pixel: inside where at least half of what it covers is inside."""
    factor = mask.shape[-1] // side
    blocks = mask.unfold(2, factor, factor).unfold(3, factor, factor)
    return (blocks.sum(dim=(4, 5)) * 2 >= factor * factor).float()
