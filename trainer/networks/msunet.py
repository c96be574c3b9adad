"""MSU-Net (Su et al., 2021): a U-Net in which every block looks with 3x3 and with 7x7 kernels at once.

The layout is that of the authors' code, CN-zdy/MSU_Net. 47,084,545 parameters with one input channel.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Network, TwoConvolutions, descend


class MSUNet(Network):
    """Scans to one map of logits, [B, 1, H, W]."""

    multiple = 16
    widths: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 512)

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList(MultiScaleBlock(*pair) for pair in pairwise((in_channels, *self.widths)))
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(below, width, kernel_size=2, stride=2) for width, below in pairwise(self.widths)
        )
        self.up = nn.ModuleList(MultiScaleBlock(2 * width, width) for width in self.widths[:-1])
        self.head = nn.Conv2d(self.widths[0], 1, kernel_size=1)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """One map of logits."""
        *skips, features = descend(self.down, scans)
        for block, rise in zip(reversed(self.up), reversed(self.rise), strict=True):
            features = block(torch.cat((skips.pop(), rise(features)), dim=1))
        return [self.head(features)]


class MultiScaleBlock(nn.Module):
    """Two 3x3 convolutions beside two 7x7 ones, and a 1x1 convolution of both; no norm and no ReLU after it."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.fine = TwoConvolutions(before, width, kernel=3)
        self.coarse = TwoConvolutions(before, width, kernel=7)
        self.fuse = nn.Conv2d(2 * width, width, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, before, H, W] to [B, width, H, W]."""
        return self.fuse(torch.cat((self.fine(features), self.coarse(features)), dim=1))
