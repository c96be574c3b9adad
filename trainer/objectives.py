"""The paper's two objectives, Eq. 1 and Eq. 2, on the maps of all supervised stages.

Eq. 1 writes the discriminator's output for a predicted map as the probability that it is predicted, and the
text of Eq. 2 as the probability that it is real. The losses below take the second, which is the only one
under which both equations oppose each other as in Goodfellow et al. (2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0
"""Pixels added to Dice's numerator and denominator, so that it is defined for a normal scan, and then pushes
the map towards nothing. Eq. 1 has none."""


def stage_maps(logits: Sequence[Tensor], size: tuple[int, int], truth: str) -> list[Tensor]:
    """Probability maps of each stage, float32, from logits [B, 1, H / 2^(n-1), W / 2^(n-1)].

    truth "stage" leaves them at their own resolution, "full" enlarges them to size, bilinear.
    """
    maps = []
    for stage in logits:
        values = stage.float()
        if truth == "full" and values.shape[-2:] != size:
            values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
        maps.append(torch.sigmoid(values))
    return maps


def stage_truths(mask: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """The mask [B, 1, H, W] in {0, 1} at each map's resolution: inside where at least half of a pixel is inside."""
    truths = []
    for seen in maps:
        factor = mask.shape[-1] // seen.shape[-1]
        truths.append(mask if factor == 1 else (F.avg_pool2d(mask, factor) >= 0.5).float())
    return truths


def dice_losses(maps: Sequence[Tensor], truths: Sequence[Tensor]) -> Tensor:
    """The first term of Eq. 1 for each stage, [stages]: 1 - 2 |P and G| / (|P| + |G|), the mean over scans."""
    losses = []
    for seen, truth in zip(maps, truths, strict=True):
        both = (seen * truth).sum(dim=(1, 2, 3))
        either = seen.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
        losses.append((1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean())
    return torch.stack(losses)


def adversarial_losses(judged: Sequence[Tensor]) -> Tensor:
    """The second term of Eq. 1 for each stage, [stages]: the mean of log(1 - CN(P)) over the logit map."""
    return torch.stack([F.logsigmoid(-logits.float()).mean() for logits in judged])


def overall_loss(dice: Tensor, adversarial: Tensor, alpha: Sequence[float], beta: Sequence[float]) -> Tensor:
    """Eq. 1: the sum over stages of alpha_n times the Dice loss and beta_n times the adversarial loss."""
    return (dice.new_tensor(alpha) * dice).sum() + (dice.new_tensor(beta) * adversarial).sum()


def discriminator_losses(on_truths: Sequence[Tensor], on_maps: Sequence[Tensor]) -> Tensor:
    """Eq. 2 for each stage, [stages]: -E log CN(G) - E log(1 - CN(P))."""
    return torch.stack(
        [
            -F.logsigmoid(real.float()).mean() - F.logsigmoid(-predicted.float()).mean()
            for real, predicted in zip(on_truths, on_maps, strict=True)
        ]
    )


def discriminator_accuracies(on_truths: Sequence[Tensor], on_maps: Sequence[Tensor]) -> Tensor:
    """How much of what each discriminator says is right, [stages], in [0, 1]; one half is a guess."""
    return torch.stack(
        [
            ((real > 0).float().mean() + (predicted <= 0).float().mean()) / 2
            for real, predicted in zip(on_truths, on_maps, strict=True)
        ]
    )
