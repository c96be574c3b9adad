"""The iteration once more in plain PyTorch, for all ranks in one process: what the engines are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings
from trainer.step import MicroBatch

Pieces = Sequence[Sequence[MicroBatch]]
"""[rank][micro-batch]."""


class PlainTraining:
    """Both networks as a configuration's engines have them at the start, two Adams, and losses written out anew."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.generator = build(config.network.name, **network_settings(config.network, config.objective.stages))
        self.discriminators = discriminators_of(config.discriminators, config.objective.stages)
        self.objective = config.objective
        self.shown = config.discriminators.input
        self.clip = config.optimizer.clip
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
                piece = rank[place]
                maps = [torch.sigmoid(logits) for logits in self.generator(piece.image)]
                truths = [_shrunk(piece.mask, seen.shape[-1]) for seen in maps]
                forwards.append((piece, maps, truths))
                loss = torch.zeros(())
                for critic, seen, truth in zip(self.discriminators.stages, maps, truths, strict=True):
                    # Eq. 2 as the cross-entropy that it is, which loses no digits where a critic is sure.
                    loss = loss + _cross_entropy(critic(self._shown(truth, piece, 0)), 1.0 - self.objective.smoothing)
                    loss = loss + _cross_entropy(critic(self._shown(seen.detach(), piece, 1)), 0.0)
                (loss * share).backward()
            if place == accumulation - 1:
                self._step(self.discriminators, self.discriminator_adam)
            for piece, maps, truths in forwards:
                loss = torch.zeros(())
                for stage, (seen, truth) in enumerate(zip(maps, truths, strict=True)):
                    dices = [
                        (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1) for p, g in zip(seen, truth, strict=True)
                    ]
                    judged = self.discriminators.stages[stage](self._shown(seen, piece, 1))
                    minimax = self.objective.adversarial == "minimax"
                    fooled = -_cross_entropy(judged, 0.0) if minimax else _cross_entropy(judged, 1.0)
                    loss = loss + self.objective.alpha[stage] * (1 - torch.stack(dices).mean())
                    loss = loss + self.objective.beta[stage] * fooled
                learnt = list(self.generator.parameters())
                for parameter, gradient in zip(learnt, torch.autograd.grad(loss * share, learnt), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._step(self.generator, self.generator_adam)

    def _step(self, network: nn.Module, adam: torch.optim.Adam) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(network.parameters(), self.clip)
        adam.step()

    def _shown(self, seen: Tensor, piece: MicroBatch, which: int) -> Tensor:
        """What a discriminator sees of truths (0) or maps (1)."""
        side = seen.shape[-1]
        if self.shown == "image_x_mask":
            seen = seen * nn.functional.adaptive_avg_pool2d(piece.image, side)
        if piece.noise is not None:
            factor = piece.noise.shape[-1] // side
            seen = seen + piece.noise[:, which : which + 1, ::factor, ::factor]
        return seen


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
