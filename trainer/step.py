"""One alternating iteration: the discriminators learn, then judge for the generator.

Written in the one way that is right with two DeepSpeed engines at every ZeRO stage and with accumulation: all
discriminators in one engine; one loss, one backward and one step for each engine; the generator's forward
through its engine and used twice; and in the generator's turn the discriminators frozen and called past their
engine, which would otherwise expect a backward of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import Objective
from trainer.engines import Engines
from trainer.objectives import (
    adversarial_losses,
    dice_losses,
    discriminator_accuracies,
    discriminator_losses,
    overall_loss,
    stage_maps,
    stage_truths,
)


@dataclass(frozen=True, slots=True, eq=False)
class StepLosses:
    """What one iteration measured, for each stage, [stages], left on the device so that nothing waits for it."""

    dice: Tensor
    adversarial: Tensor
    discriminator: Tensor
    accuracy: Tensor

    def stacked(self) -> Tensor:
        """[4, stages] in the order of the fields."""
        return torch.stack((self.dice, self.adversarial, self.discriminator, self.accuracy))


def train_step(engines: Engines, image: Tensor, mask: Tensor, objective: Objective) -> StepLosses:
    """One iteration on a micro-batch: image [B, 1, H, W] in [0, 1], mask [B, 1, H, W] in {0, 1}.

    With accumulation, weights change at each engine's last micro-batch of an iteration; the generator is
    always judged by the discriminators as they are at that moment.
    """
    logits = engines.generator(image)
    maps = stage_maps(logits, (image.shape[-2], image.shape[-1]), objective.truth)
    truths = stage_truths(mask, maps)

    on_truths, on_maps = engines.discriminators(truths, [seen.detach() for seen in maps])
    discriminator = discriminator_losses(on_truths, on_maps)
    engines.discriminators.backward(discriminator.sum())
    engines.discriminators.step()

    with _frozen(engines.discriminators.module):
        adversarial = adversarial_losses(engines.discriminators.module.judge(maps))
        dice = dice_losses(maps, truths)
        engines.generator.backward(overall_loss(dice, adversarial, objective.alpha, objective.beta))
        engines.generator.step()

    return StepLosses(
        dice.detach(),
        adversarial.detach(),
        discriminator.detach(),
        discriminator_accuracies(on_truths, on_maps).detach(),
    )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A module through which gradients pass, and in which none stay."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
