"""Augmentation of a whole batch where it lies: image and mask together, as a function of (seed, epoch, key).

A scan is varied in the same way whichever rank, batch or place it comes to, so a run is the same at any
world size and needs no random state saved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DRAWS = 7
"""Random numbers that one scan takes."""


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
    brightness: float,
    contrast: float,
) -> tuple[Tensor, Tensor]:
    """uint8 image and mask [B, 1, H, W] to float image in [0, 1] and mask in {0, 1}, varied.

    flip is a probability; rotation (degrees), scale, shift (fractions of the size), brightness and contrast
    (fractions of the range) are the largest changes either way. Outside the scan is black and no lesion.
    """
    picture, truth = as_floats(image, mask)
    if not any((flip, rotation, scale, shift, brightness, contrast)):
        return picture, truth
    draws = _draws(keys, seed, epoch).to(image.device)
    either_way = 2 * draws - 1
    if any((flip, rotation, scale, shift)):
        height, width = image.shape[-2:]
        grid = F.affine_grid(
            _affine(draws[:, 0] < flip, either_way[:, 1:5], rotation, scale, shift, height / width),
            list(picture.shape),
            align_corners=False,
        )
        picture = F.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        truth = F.grid_sample(truth, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    gain = (1 + contrast * either_way[:, 5]).view(-1, 1, 1, 1)
    offset = (brightness * either_way[:, 6]).view(-1, 1, 1, 1)
    mean = picture.mean(dim=(1, 2, 3), keepdim=True)
    return ((picture - mean) * gain + mean + offset).clamp_(0, 1), truth


def as_floats(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 image [0, 255] and mask {0, 1} as float in [0, 1]."""
    return image.float() / 255, mask.float()


def _draws(keys: Sequence[str], seed: int, epoch: int) -> Tensor:
    """Uniform numbers in [0, 1), [B, DRAWS], from a hash of what they depend on."""
    words = b"".join(hashlib.blake2b(f"{seed} {epoch} {key}".encode(), digest_size=8 * DRAWS).digest() for key in keys)
    whole = np.frombuffer(words, dtype="<u8").reshape(len(keys), DRAWS) >> np.uint64(40)
    return torch.from_numpy(whole.astype(np.float32) / np.float32(1 << 24))


def _affine(flipped: Tensor, either_way: Tensor, rotation: float, scale: float, shift: float, aspect: float) -> Tensor:
    """Where each output pixel looks in the scan, [B, 2, 3] in grid_sample's coordinates of [-1, 1] a side.

    Rotation is one of pixels, not of these coordinates, so the aspect (height / width) takes part in it.
    """
    angle = either_way[:, 0] * math.radians(rotation)
    zoom = 1 / (1 + either_way[:, 1] * scale)
    mirror = 1 - 2 * flipped.float()
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    across = torch.stack((cosine * mirror, -sine * aspect * mirror, either_way[:, 2] * 2 * shift), dim=1)
    down = torch.stack((sine / aspect, cosine, either_way[:, 3] * 2 * shift), dim=1)
    return torch.stack((across, down), dim=1)
