"""Blur, shadow and speckle as a scanner makes them, of pictures [B, 1, H, W] in [0, 1].

A scanner shows the logarithm of the echo, so what multiplies an echo adds to the picture: attenuation and speckle
are terms here, as fractions of the full range, which stands for some 60 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.chance import Chance


def blurred(picture: Tensor, chance: Chance, largest: float) -> Tensor:
    """Gaussian blur with a standard deviation from 0 to the largest, in pixels."""
    reach = math.ceil(3 * largest)
    weights = _gaussian(largest * chance.draws(1, "blur")[:, 0], reach)
    wider = F.pad(picture, (reach, reach, reach, reach), mode="replicate")
    return _smooth(_smooth(wider, weights, dim=2), weights, dim=3)


def shadowed(picture: Tensor, chance: Chance, probability: float) -> Tensor:
    """A shadow, with this probability, as what reflects or absorbs the beam casts on all that lies below it.

    It begins in the upper half and has its whole depth, .1 to .4 of the full range (6 to 24 dB), .4 of the height
    below; it is .16 to .5 of the image wide, with soft edges.
    """
    height, width = picture.shape[-2:]
    drawn, centre, breadth, top, strength = chance.draws(5, "shadow")[..., None, None, None].unbind(dim=1)
    aside = (_middles(width, picture) - centre).abs() / (0.08 + 0.17 * breadth)
    below = (_middles(height, picture)[:, None] - 0.5 * top) / 0.4
    depth = (0.1 + 0.3 * strength) * (drawn < probability)
    return (picture - depth * _ramp(1.5 * (1 - aside)) * _ramp(below)).clamp_(min=0)


def speckled(picture: Tensor, chance: Chance, largest: float) -> Tensor:
    """More speckle, of a standard deviation from 0 to the largest, as a fraction of the full range.

    The envelope of an echo from many scatterers is Rayleigh distributed (Burckhardt, IEEE Trans. Sonics Ultrason. 25,
    1978), so its power is exponentially, and the mean power of two looks, as scanners compound them, after a gamma
    distribution, whose logarithm has the mean and deviation below: 3.5 dB, or .06 of the full range, where speckle is
    fully developed. Its grain is about two pixels deep and four wide, as a transducer's point spread is.
    """
    height, width = picture.shape[-2:]
    scatterers = chance.fields((2 * (height + 2), width + 6), "scatterers").view(-1, 4, height + 2, width + 6)
    echo = _summed(_summed(scatterers, dim=2, steps=(1, 1)), dim=3, steps=(1, 2, 1, 2))
    # Of the filters 1 2 1 and 1 2 3 4 3 2 1 the squares sum to 6 and 44; a scatterer's mean square is a third.
    power = echo.square_().sum(dim=1, keepdim=True).div_(4 * 6 * 44 / 3)
    mean, deviation = 1 - np.euler_gamma - math.log(2), math.sqrt(math.pi**2 / 6 - 1)
    level = power.clamp_(min=0.05).log_()  # 13 dB below the mean, noise fills what interference leaves empty
    grain = level.sub_(mean).mul_((largest / deviation * chance.draws(1, "speckle"))[..., None, None])
    # Below the weakest echo that the scanner shows there is none to be louder: black stays black.
    return grain.mul_((10 * picture).clamp_(max=1)).add_(picture).clamp_(0, 1)


def _summed(field: Tensor, dim: int, steps: Sequence[int]) -> Tensor:
    """Each pixel plus the one a step further, for one step after the other; the dimension loses their sum."""
    for step in steps:
        kept = field.shape[dim] - step
        field = field.narrow(dim, 0, kept) + field.narrow(dim, step, kept)
    return field


def _smooth(wider: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Along one dimension, which loses the filter's reach at both ends; weights [B, reach + 1], middle first.

    Written out, because a convolution's bits depend on the batch.
    """
    middle, *others = weights[..., None, None, None].unbind(dim=1)
    reach, size = len(others), wider.shape[dim] - 2 * len(others)
    total = wider.narrow(dim, reach, size) * middle
    for away, weight in enumerate(others, start=1):
        total += (wider.narrow(dim, reach - away, size) + wider.narrow(dim, reach + away, size)).mul_(weight)
    return total


def _gaussian(sigma: Tensor, reach: int) -> Tensor:
    """Weights [B, reach + 1] of a pixel and of those 1 to reach away on either side, for sigma [B] in pixels."""
    away = torch.arange(reach + 1, dtype=sigma.dtype, device=sigma.device)
    weights = torch.exp(-0.5 * (away / sigma.clamp(min=1e-3)[:, None]).square_())
    return weights / (2 * weights.sum(dim=1, keepdim=True) - 1)


def _middles(count: int, like: Tensor) -> Tensor:
    """Where the middles of so many pixels lie in [0, 1]."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


def _ramp(distance: Tensor) -> Tensor:
    """From 0 to 1, smoothly, where distance goes from 0 to 1."""
    distance = distance.clamp(0, 1)
    return distance * distance * (3 - 2 * distance)
