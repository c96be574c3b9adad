"""The paper's UNet: five levels, and a head at each of the four decoder stages.

Ronneberger et al. (2015) in the layout of the authors' code: two 3x3 convolutions with batch norm to a level,
2x2 max pooling down, 2x2 transposed convolutions up. 31,042,369 parameters with one head and one input channel.

A registered model carries this file with it, so it rests on torch alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Scans [B, in_channels, H, W], H and W multiples of 16, to logits of the decoder stages, finest first.

    Stage n (from 1) has logits [B, 1, H / 2^(n-1), W / 2^(n-1)]. widths are the levels' channels, finest
    first; heads is how many stages, counted from the finest, have a head.
    """

    def __init__(self, in_channels: int = 1, widths: Sequence[int] = (64, 128, 256, 512, 1024), heads: int = 4) -> None:
        super().__init__()
        levels = list(widths)
        self.down = nn.ModuleList(
            TwoConvolutions(before, width) for before, width in zip([in_channels, *levels], levels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(below, width, kernel_size=2, stride=2) for width, below in pairwise(levels)
        )
        self.up = nn.ModuleList(TwoConvolutions(2 * width, width) for width in levels[:-1])
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=1) for width in levels[:heads])

    def forward(self, scans: Tensor) -> list[Tensor]:
        """Logits of each supervised stage, finest first."""
        skips = []
        features = scans
        for level, block in enumerate(self.down):
            features = block(features if level == 0 else self.pool(features))
            skips.append(features)
        skips.pop()
        logits: list[Tensor] = []
        for stage in reversed(range(len(self.up))):
            features = self.up[stage](torch.cat((skips[stage], self.rise[stage](features)), dim=1))
            if stage < len(self.heads):
                logits.insert(0, self.heads[stage](features))
        return logits


class TwoConvolutions(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU; the size stays."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(before, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
