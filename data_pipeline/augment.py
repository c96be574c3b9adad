"""Augmentation of a whole batch where it lies: image and mask together, as a function of (seed, epoch, key).

A scan is varied in the same way whichever rank, batch or place it comes to, so a run is the same at any
world size and needs no random state saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.chance import Chance
from data_pipeline.echoes import blurred, shadowed, speckled

_CELLS = 4
"""Spaces between control points of the elastic deformation, along each side."""


def augment(
    image: Tensor,
    mask: Tensor,
    keys: Sequence[str],
    seed: int,
    epoch: int,
    *,
    flip: float,
    rotation: float,
    scale: float,
    shift: float,
    elastic: float,
    blur: float,
    shadow: float,
    speckle: float,
    gamma: float,
    brightness: float,
    contrast: float,
) -> tuple[Tensor, Tensor]:
    """uint8 image and mask [B, 1, H, W] to float image in [0, 1] and mask in {0, 1}, varied.

    flip and shadow are probabilities. The others are the largest changes: rotation in degrees, scale, shift, elastic
    (at most 0.1) and contrast as fractions, blur's standard deviation in pixels, speckle's and brightness as fractions
    of the full range, gamma as an exponent between 1 / (1 + gamma) and 1 + gamma. Image and mask are moved at once,
    then the image alone is changed, in the arguments' order. Outside the scan is black and no lesion.
    """
    picture, truth = as_floats(image, mask)
    chance = Chance(keys, seed, epoch, image.device)
    draws = chance.draws(7)
    either_way = 2 * draws - 1
    if any((flip, rotation, scale, shift, elastic)):
        height, width = image.shape[-2:]
        affine = _affine(draws[:, 0] < flip, either_way[:, 1:5], rotation, scale, shift, height / width)
        displacement = _elastic((height, width), chance, elastic) if elastic else None
        grid = _grid((height, width), affine, displacement)
        picture = F.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        truth = F.grid_sample(truth, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    if blur:
        picture = blurred(picture, chance, blur)
    if shadow:
        picture = shadowed(picture, chance, shadow)
    if speckle:
        picture = speckled(picture, chance, speckle)
    if gamma:
        exponent = (math.log1p(gamma) * (2 * chance.draws(1, "gamma") - 1)).exp_()[..., None, None]
        picture = (picture.log() * exponent).exp_()  # in these terms, for the bits of a power depend on the batch
    if brightness or contrast:
        picture = _toned(picture, 1 + contrast * either_way[:, 5], brightness * either_way[:, 6])
    return picture.clamp_(0, 1), truth


def as_floats(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 image [0, 255] and mask {0, 1} as float in [0, 1]."""
    return image.float() / 255, mask.float()


def _grid(size: tuple[int, int], affine: Tensor, displacement: Tensor | None) -> Tensor:
    """Where each output pixel looks in the scan, [B, H, W, 2] in grid_sample's coordinates of [-1, 1] a side.

    Without displacement it is torch's affine_grid, in a fraction of its time.
    """
    y, x = (torch.linspace(-1, 1, count, device=affine.device) * (count - 1) / count for count in size)
    y = y[:, None]
    if displacement is not None:
        x, y = x + displacement[:, :1], y + displacement[:, 1:]
    along_x, along_y, offset = affine[..., None, None].unbind(dim=2)
    return (along_x * x + along_y * y + offset).permute(0, 2, 3, 1)


def _affine(flipped: Tensor, either_way: Tensor, rotation: float, scale: float, shift: float, aspect: float) -> Tensor:
    """The part of it that is affine, [B, 2, 3].

    Rotation is one of pixels, not of these coordinates, so the aspect (height / width) takes part in it.
    """
    angle = either_way[:, 0] * math.radians(rotation)
    zoom = 1 / (1 + either_way[:, 1] * scale)
    mirror = 1 - 2 * flipped.float()
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    across = torch.stack((cosine * mirror, -sine * aspect * mirror, either_way[:, 2] * 2 * shift), dim=1)
    down = torch.stack((sine / aspect, cosine, either_way[:, 3] * 2 * shift), dim=1)
    return torch.stack((across, down), dim=1)


def _elastic(size: tuple[int, int], chance: Chance, largest: float) -> Tensor:
    """Displacement [B, 2, H, W] of each pixel, x before y, in the same coordinates: a cubic B-spline.

    Its control points move by at most a part of the largest, drawn for each scan. The map never folds, since that
    is less than .48 of their distance (Choi and Lee, Graphical Models 62, 2000).
    """
    points = _CELLS + 3
    reach = 2 * largest * chance.draws(1, "elastic")[..., None, None]
    moves = reach * chance.fields((points, points), "elastic lattice")
    down, across = (_spline(count, moves) for count in size)
    return _between(_between(moves.transpose(2, 3), down).transpose(2, 3), across)


def _between(points: Tensor, weights: Tensor) -> Tensor:
    """Control points [..., points] to pixels [..., count]; a matrix product's bits may depend on the batch."""
    total = points[..., 0, None] * weights[0]
    for number in range(1, len(weights)):
        total += points[..., number, None] * weights[number]
    return total


def _spline(count: int, like: Tensor) -> Tensor:
    """Weights [points, count] of the control points at the middles of so many pixels; they add up to 1."""
    places = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (_CELLS / count)
    points = torch.arange(-1, _CELLS + 2, dtype=like.dtype, device=like.device)[:, None]
    away = (places - points).abs()
    return ((2 - away).clamp(min=0) ** 3 - 4 * (1 - away).clamp(min=0) ** 3) / 6


def _toned(picture: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Contrast about each picture's mean, and brightness; gain and offset [B]."""
    # A scan alone would be summed by several threads at once, in another order than among others.
    mean = picture.expand(max(len(picture), 2), -1, -1, -1).mean(dim=(1, 2, 3), keepdim=True)[: len(picture)]
    return ((picture - mean) * gain.view(-1, 1, 1, 1)).add_(mean).add_(offset.view(-1, 1, 1, 1))
