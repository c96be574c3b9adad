"""AttU-Net (Oktay et al., 2018): a U-Net whose decoder says where each skip is worth looking at.

Oktay's own network is three-dimensional. This is the two-dimensional one that comparisons on images use
(LeeJunHyun/Image_Segmentation): a gate on all four skips, at their own resolution. 34.8774 million parameters
with one input channel.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Convolution, Network, TwoConvolutions, descend


class AttUNet(Network):
    """Scans to one map of logits, [B, 1, H, W]."""

    multiple = 16
    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024)

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList(TwoConvolutions(*pair) for pair in pairwise((in_channels, *self.widths)))
        self.rise = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), Convolution(below, width))
            for width, below in pairwise(self.widths)
        )
        self.gates = nn.ModuleList(AttentionGate(width) for width in self.widths[:-1])
        self.up = nn.ModuleList(TwoConvolutions(2 * width, width) for width in self.widths[:-1])
        self.head = nn.Conv2d(self.widths[0], 1, kernel_size=1)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """One map of logits."""
        *skips, features = descend(self.down, scans)
        for level in reversed(range(len(skips))):
            risen = self.rise[level](features)
            features = self.up[level](torch.cat((self.gates[level](skips[level], risen), risen), dim=1))
        return [self.head(features)]


class AttentionGate(nn.Module):
    """A skip times a weight in 0..1 for each pixel, found from the skip and the decoder's features together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.of_skip = nn.Sequential(nn.Conv2d(width, half, kernel_size=1), nn.BatchNorm2d(half))
        self.of_decoder = nn.Sequential(nn.Conv2d(width, half, kernel_size=1), nn.BatchNorm2d(half))
        self.weight = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv2d(half, 1, kernel_size=1), nn.BatchNorm2d(1), nn.Sigmoid()
        )

    def forward(self, skip: Tensor, decoder: Tensor) -> Tensor:
        """Both [B, width, H, W], to the same shape."""
        return skip * self.weight(self.of_skip(skip) + self.of_decoder(decoder))
