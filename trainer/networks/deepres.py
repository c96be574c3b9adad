"""DeepRes, the Deep Residual U-Net of Zhang et al. (2018): seven residual units, three halvings.

Zhang's paper has no code of its own. It gives the main path, and calls the other a skip or identity without saying
how that changes width and size. Here this is a 1x1 convolution with batch norm, as in the one public layout that
keeps to the paper's units (DuFanXin's, in Keras): the norm puts what is added in the range of the main path.
8,222,529 parameters with one input channel; without the norms on the shortcuts it would have 8.2197 million.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Network


class DeepRes(Network):
    """Scans to one map of logits, [B, 1, H, W]."""

    multiple = 8
    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList([ResidualUnit(in_channels, self.widths[0], first=True)])
        self.down.extend(ResidualUnit(before, width, stride=2) for before, width in pairwise(self.widths))
        self.up = nn.ModuleList(ResidualUnit(below + width, width) for width, below in pairwise(self.widths))
        self.rise = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(self.widths[0], 1, kernel_size=1)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """One map of logits."""
        skips = []
        features = scans
        for unit in self.down:
            features = unit(features)
            skips.append(features)
        skips.pop()
        for unit in reversed(self.up):
            features = unit(torch.cat((self.rise(features), skips.pop()), dim=1))
        return [self.head(features)]


class ResidualUnit(nn.Module):
    """Twice batch norm, ReLU, 3x3 convolution, added to a projection of what came in (He et al., 2016).

    The very first unit has no norm and ReLU in front: it sees the scan. The first convolution takes the stride.
    """

    def __init__(self, before: int, width: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        lead = () if first else (nn.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.main = nn.Sequential(
            *lead,
            nn.Conv2d(before, width, kernel_size=3, stride=stride, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, kernel_size=1, stride=stride), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, before, H, W] to [B, width, H / stride, W / stride]."""
        return self.main(features) + self.shortcut(features)
