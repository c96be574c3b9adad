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


def judged_inputs(seen: Sequence[Tensor], image: Tensor, shown: str, noise: Tensor | None = None) -> list[Tensor]:
    """What the discriminators judge of maps or truths [B, 1, H, W] of each stage.

    shown "mask" gives them as they are, as Eq. 1 and 2 have it; "image_x_mask" times the image [B, 1, H, W] at their
    resolution, as SegAN has it (Xue et al., 2018). noise [B, 1, H, W], where there is any, is added to all.
    """
    inputs = []
    for stage in seen:
        factor = image.shape[-1] // stage.shape[-1]
        if shown == "image_x_mask":
            stage = stage * (image if factor == 1 else F.avg_pool2d(image, factor))
        inputs.append(stage if noise is None else stage + noise[..., ::factor, ::factor])
    return inputs


def adversarial_losses(judged: Sequence[Tensor], form: str = "minimax") -> Tensor:
    """The second term of Eq. 1 for each stage, [stages], the mean over the logit map.

    form "minimax" is Eq. 1's log(1 - CN(P)); "non_saturating" is -log CN(P) (Goodfellow et al., 2014, section 3).
    """
    if form == "non_saturating":
        return torch.stack([-F.logsigmoid(logits.float()).mean() for logits in judged])
    return torch.stack([F.logsigmoid(-logits.float()).mean() for logits in judged])


def overall_loss(dice: Tensor, adversarial: Tensor | None, alpha: Sequence[float], beta: Sequence[float]) -> Tensor:
    """Eq. 1: the sum over stages of alpha_n times the Dice loss and beta_n times the adversarial loss.

    alpha and beta may be of more stages than are supervised; the finest count.
    """
    stages = len(dice)
    loss = (dice.new_tensor(alpha[:stages]) * dice).sum()
    return loss if adversarial is None else loss + (dice.new_tensor(beta[:stages]) * adversarial).sum()


def discriminator_losses(on_truths: Sequence[Tensor], on_maps: Sequence[Tensor], smoothing: float = 0.0) -> Tensor:
    """Eq. 2 for each stage, [stages]: -E log CN(G) - E log(1 - CN(P)).

    With smoothing s, a truth's target is 1 - s: -(1 - s) E log CN(G) - s E log(1 - CN(G)), and a map's stays 0
    (one-sided: Salimans et al., 2016).
    """
    losses = []
    for real, predicted in zip(on_truths, on_maps, strict=True):
        real = real.float()
        loss = -F.logsigmoid(real).mean() - F.logsigmoid(-predicted.float()).mean()
        losses.append(loss + smoothing * real.mean() if smoothing else loss)
    return torch.stack(losses)


def discriminator_accuracies(on_truths: Sequence[Tensor], on_maps: Sequence[Tensor]) -> Tensor:
    """How much of what each discriminator says is right, in [0, 1]: of truths and of maps, [2, stages]."""
    return torch.stack(
        [
            torch.stack([(real > 0).float().mean() for real in on_truths]),
            torch.stack([(predicted <= 0).float().mean() for predicted in on_maps]),
        ]
    )
