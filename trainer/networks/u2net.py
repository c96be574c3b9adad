"""U2-Net (Qin et al., 2020): a U-Net whose every block is a small U-Net with a residual connection.

The layout is that of the authors' code, xuebinqin/U-2-Net. 44.0087 million parameters with one input channel.
There all six side maps are enlarged and supervised beside the fused one; here the side maps of the decoder's
stages 2 to 4 are given at their own resolution, as the paper's objective asks for, and all six make up the fused.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.networks.blocks import Convolution, Network, descend


class U2Net(Network):
    """Scans to logits: the fused map [B, 1, H, W], then side maps 2, 3, 4, [B, 1, H / 2^(n-1), W / 2^(n-1)].

    heads is how many of these are given; the parameters are the same for any number. Raises ValueError for one
    out of 1 to 4.
    """

    stages = 4
    multiple = 32

    def __init__(self, in_channels: int = 1, heads: int = 1) -> None:
        super().__init__()
        self.require_heads(heads, self.stages)
        self.heads = heads
        self.down = nn.ModuleList(
            (
                shrinking_block(7, in_channels, 32, 64),
                shrinking_block(6, 64, 32, 128),
                shrinking_block(5, 128, 64, 256),
                shrinking_block(4, 256, 128, 512),
                dilated_block(512, 256, 512),
                dilated_block(512, 256, 512),
            )
        )
        self.up = nn.ModuleList(
            (
                shrinking_block(7, 128, 16, 64),
                shrinking_block(6, 256, 32, 64),
                shrinking_block(5, 512, 64, 128),
                shrinking_block(4, 1024, 128, 256),
                dilated_block(1024, 256, 512),
            )
        )
        self.sides = nn.ModuleList(
            nn.Conv2d(width, 1, kernel_size=3, padding=1) for width in (64, 64, 128, 256, 512, 512)
        )
        self.fuse = nn.Conv2d(len(self.sides), 1, kernel_size=1)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """The fused map, then the side maps."""
        maps = descend(self.down, scans)
        for stage in reversed(range(len(self.up))):
            maps[stage] = self.up[stage](torch.cat((_resized(maps[stage + 1], maps[stage]), maps[stage]), dim=1))
        sides = [side(features) for side, features in zip(self.sides, maps, strict=True)]
        fused = self.fuse(torch.cat([_resized(side, sides[0]) for side in sides], dim=1))
        return [fused, *sides[1 : self.heads]]


class ResidualUBlock(nn.Module):
    """The paper's RSU: a small U-Net on the features that its first convolution gives, added to these.

    dilations are those of its levels on the way down, and without the last, of the way up. shrinking halves the
    features before each level but the first and the last.
    """

    def __init__(self, before: int, middle: int, after: int, dilations: Sequence[int], shrinking: bool) -> None:
        super().__init__()
        self.shrinking = shrinking
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.enter = Convolution(before, after)
        self.down = nn.ModuleList(
            Convolution(middle if level else after, middle, dilation=dilation)
            for level, dilation in enumerate(dilations)
        )
        self.up = nn.ModuleList(
            Convolution(2 * middle, middle if level else after, dilation=dilation)
            for level, dilation in enumerate(dilations[:-1])
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, before, H, W] to [B, after, H, W]."""
        features = entered = self.enter(features)
        skips = []
        for level, convolution in enumerate(self.down):
            if self.shrinking and 0 < level < len(self.down) - 1:
                features = self.pool(features)
            features = convolution(features)
            skips.append(features)
        skips.pop()
        for convolution in reversed(self.up):
            skip = skips.pop()
            features = convolution(torch.cat((_resized(features, skip), skip), dim=1))
        return features + entered


def shrinking_block(height: int, before: int, middle: int, after: int) -> ResidualUBlock:
    """RSU-4 to RSU-7: so many levels, each at half the size of the one above, the last one dilated instead."""
    return ResidualUBlock(before, middle, after, dilations=(1,) * (height - 1) + (2,), shrinking=True)


def dilated_block(before: int, middle: int, after: int) -> ResidualUBlock:
    """RSU-4F: four levels at one size, each dilated twice as far as the one above."""
    return ResidualUBlock(before, middle, after, dilations=(1, 2, 4, 8), shrinking=False)


def _resized(features: Tensor, like: Tensor) -> Tensor:
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
