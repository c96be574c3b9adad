"""The iteration of trainer/step.py as a plain loop in PyTorch has it, without engines: what these are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.engines import allow_tf32, computes_bf16, has_adversary, rate_scale
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages
from trainer.objectives import (
    adversarial_losses,
    dice_losses,
    discriminator_losses,
    judged_inputs,
    overall_loss,
    stage_maps,
    stage_truths,
)
from trainer.step import MicroBatch


class PlainLoop:
    """The same networks, losses and steps as a configuration's engines have, but for clipping and the running average.

    fused: whether each Adam is one kernel. twice: compute the generator anew for its own turn, and for that of the
    discriminators without a gradient, as many loops do.
    """

    def __init__(self, config: Config, device: torch.device, fused: bool = True, twice: bool = False) -> None:
        self._config = config
        self._device = device
        self._twice = twice
        precision, optimizer = config.training.precision, config.optimizer
        self._bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
        torch.manual_seed(config.seed)
        stages = supervised_stages(config.network, config.objective.stages)
        self.generator: nn.Module = build(
            config.network.name, **network_settings(config.network, config.objective.stages)
        ).to(device)
        self.discriminators = discriminators_of(config.discriminators, stages).to(device)
        if config.training.compile:
            for network in (self.generator, *self.discriminators.stages):
                network.compile()
        scale = rate_scale(optimizer, config.training.batch)
        self._generator_adam = torch.optim.Adam(
            self.generator.parameters(), lr=optimizer.generator_rate * scale, fused=fused
        )
        self._discriminators_adam = torch.optim.Adam(
            self.discriminators.parameters(), lr=optimizer.discriminator_rate * scale, fused=fused
        )
        self._adversary = has_adversary(config.objective, stages)

    def iterate(self, pieces: Sequence[MicroBatch]) -> None:
        """One iteration over the micro-batches that are accumulated."""
        allow_tf32(self._config.training.precision != "fp32")
        share = 1 / len(pieces)
        for piece in pieces:
            last = piece is pieces[-1]
            if self._adversary and self._twice:
                with torch.no_grad():
                    seen = self._maps(piece)
                self._discriminators_turn(seen, piece, share, last)
                maps = self._maps(piece)
            else:
                maps = self._maps(piece)
                if self._adversary:
                    self._discriminators_turn(maps, piece, share, last)
            self._generators_turn(maps, piece, share, last)

    def _maps(self, piece: MicroBatch) -> list[Tensor]:
        with self._arithmetic():
            logits = self.generator(piece.image)
        return stage_maps(logits, self._config.data.size, self._config.objective.truth)

    def _discriminators_turn(self, maps: Sequence[Tensor], piece: MicroBatch, share: float, last: bool) -> None:
        truths = self._shown(stage_truths(piece.mask, maps), piece, 0)
        with self._arithmetic():
            on_truths, on_maps = self.discriminators(truths, self._shown([seen.detach() for seen in maps], piece, 1))
        loss = discriminator_losses(on_truths, on_maps, self._config.objective.smoothing).sum()
        (loss * share).backward()
        if last:
            self._discriminators_adam.step()
            self._discriminators_adam.zero_grad()

    def _generators_turn(self, maps: Sequence[Tensor], piece: MicroBatch, share: float, last: bool) -> None:
        objective, adversarial = self._config.objective, None
        if self._adversary:
            self.discriminators.requires_grad_(False)
            with self._arithmetic():
                judged = self.discriminators.judge(self._shown(maps, piece, 1))
            adversarial = adversarial_losses(judged, objective.adversarial)
        dice = dice_losses(maps, stage_truths(piece.mask, maps))
        (overall_loss(dice, adversarial, objective.alpha, objective.beta) * share).backward()
        self.discriminators.requires_grad_(True)
        if last:
            self._generator_adam.step()
            self._generator_adam.zero_grad()

    def _shown(self, seen: Sequence[Tensor], piece: MicroBatch, channel: int) -> list[Tensor]:
        """What the discriminators see of truths (channel 0 of the noise) or maps (channel 1)."""
        noise = None if piece.noise is None else piece.noise[:, channel : channel + 1]
        return judged_inputs(seen, piece.image[:, :1], self._config.discriminators.input, noise)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)
