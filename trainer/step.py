"""One alternating iteration: the discriminators learn, then judge for the generator.

Written in the one way that is right with two DeepSpeed engines at every ZeRO stage and with accumulation: all
discriminators in one engine; one loss, one backward and one step for each engine; the generator's forward
through its engine and used twice; and in the generator's turn the discriminators frozen and called past their
engine, which would otherwise expect a backward of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Objective
from trainer.engines import Engines
from trainer.objectives import (
    adversarial_losses,
    dice_losses,
    discriminator_accuracies,
    discriminator_losses,
    judged_inputs,
    overall_loss,
    stage_maps,
    stage_truths,
)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What an engine sees at once: image [B, C, H, W] in [0, 1], mask [B, 1, H, W] in {0, 1}.

    noise, [B, 2, H, W] where it is asked for, is added to what the discriminators see of truths and of maps.
    """

    image: Tensor
    mask: Tensor
    noise: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepLosses:
    """What an iteration measured, for each supervised stage, left on the device so that nothing waits for it.

    dice, adversarial and discriminator are [stages]; accuracy, of truths and of maps, is [2, stages]. Without
    discriminators there is dice alone.
    """

    dice: Tensor
    adversarial: Tensor | None = None
    discriminator: Tensor | None = None
    accuracy: Tensor | None = None

    def rows(self) -> dict[str, Tensor]:
        """Each measure by its name in the curves, [stages]."""
        rows = {"dice_loss": self.dice}
        if self.adversarial is not None and self.discriminator is not None and self.accuracy is not None:
            rows |= {"adversarial_loss": self.adversarial, "discriminator_loss": self.discriminator}
            rows |= {"discriminator_accuracy": self.accuracy.mean(dim=0)}
            rows |= dict(zip(("right_on_truths", "right_on_maps"), self.accuracy, strict=True))
        return rows


def train_iteration(
    engines: Engines, pieces: Iterable[MicroBatch], objective: Objective, shown: str = "mask", beta_share: float = 1.0
) -> tuple[list[StepLosses], Tensor]:
    """One iteration over a process's micro-batches, as many as the engines accumulate.

    Gives their losses, and 1 where a loss or gradient was not finite: then that side's weights and moments, and all
    statistics of norms, are as before, on every process alike. shown and beta_share are train_step's.
    """
    before = [side.buffers.clone() for side in engines.sides]
    losses = [train_step(engines, piece, objective, shown, beta_share) for piece in pieces]
    refused = torch.stack([side.refused for side in engines.sides]).amax()
    for side, kept in zip(engines.sides, before, strict=True):
        side.buffers.copy_(torch.where(refused > 0, kept, side.buffers))
    return losses, refused


def train_step(
    engines: Engines, piece: MicroBatch, objective: Objective, shown: str = "mask", beta_share: float = 1.0
) -> StepLosses:
    """The iteration on one micro-batch.

    With accumulation, weights change at each engine's last micro-batch of an iteration; the generator is
    always judged by the discriminators as they are at that moment. shown is what they see of a scan (the
    configuration's discriminators.input), beta_share what counts of beta while it warms up.
    """
    logits = engines.generator(piece.image)
    maps = stage_maps(logits, (piece.image.shape[-2], piece.image.shape[-1]), objective.truth)
    truths = stage_truths(piece.mask, maps)
    if engines.discriminators is None:
        dice = dice_losses(maps, truths)
        _learn(engines.generator, overall_loss(dice, None, objective.alpha, objective.beta))
        return StepLosses(dice.detach())

    gray = piece.image[:, :1]
    on_truth, on_map = (None, None) if piece.noise is None else piece.noise.split(1, dim=1)
    shown_maps = judged_inputs(maps, gray, shown, on_map)
    on_truths, on_maps = engines.discriminators(
        judged_inputs(truths, gray, shown, on_truth), [seen.detach() for seen in shown_maps]
    )
    discriminator = discriminator_losses(on_truths, on_maps, objective.smoothing)
    _learn(engines.discriminators, discriminator.sum())

    with _frozen(engines.discriminators.module):
        judged = engines.discriminators.module.judge(shown_maps)
        adversarial = adversarial_losses(judged, objective.adversarial)
        dice = dice_losses(maps, truths)
        _learn(engines.generator, overall_loss(dice, adversarial * beta_share, objective.alpha, objective.beta))

    return StepLosses(
        dice.detach(),
        adversarial.detach(),
        discriminator.detach(),
        discriminator_accuracies(on_truths, on_maps).detach(),
    )


def _learn(engine: Any, loss: Tensor) -> None:
    """One backward and one step; a loss that is not finite makes every gradient so, for the guard to see."""
    engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
    engine.step()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A module through which gradients pass, and in which none stay."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
