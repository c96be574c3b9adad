"""UNet 3+ (Huang et al., 2020): each decoder stage sees all scales, the finer ones pooled, the coarser enlarged.

The layout is that of the authors' code, ZJUGiveLab/UNet-Version, with its initial values and without its optional
classifier. 26.9706 million parameters with one head and one input channel. There deep supervision enlarges all
maps and has a fifth one at the encoder's bottom; the paper's objective has four stages, each at its own
resolution, and no such fifth.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Convolution, Network, TwoConvolutions, descend

LOOK = 64
"""Channels that a decoder stage takes from each scale."""
FUSED = 5 * LOOK
"""Channels of a decoder stage."""


class UNet3Plus(Network):
    """Scans to logits of the decoder stages, finest first: stage n (from 1) has [B, 1, H / 2^(n-1), W / 2^(n-1)].

    heads is how many stages, counted from the finest, have a head. Raises ValueError for a number out of 1 to 4.
    """

    stages = 4
    multiple = 16
    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024)

    def __init__(self, in_channels: int = 1, heads: int = 1) -> None:
        super().__init__()
        self.require_heads(heads, self.stages)
        self.down = nn.ModuleList(TwoConvolutions(*pair) for pair in pairwise((in_channels, *self.widths)))
        self.up = nn.ModuleList(FullScaleStage(stage, self.widths) for stage in range(self.stages))
        self.heads = nn.ModuleList(nn.Conv2d(FUSED, 1, kernel_size=3, padding=1) for _ in range(heads))
        self.apply(_start_as_huang)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """Logits of each supervised stage, finest first."""
        maps = descend(self.down, scans)
        # From the bottom up, each encoder map gives way to the decoder's, once nothing needs it any more.
        for stage in reversed(range(self.stages)):
            maps[stage] = self.up[stage](maps)
        return [head(features) for head, features in zip(self.heads, maps, strict=False)]


class FullScaleStage(nn.Module):
    """One decoder stage, counted from 0 at the finest: LOOK channels of each of five maps, fused into one."""

    def __init__(self, stage: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        *finer, bottom = widths
        coming = (*finer[: stage + 1], *(FUSED for _ in finer[stage + 1 :]), bottom)
        self.looks = nn.ModuleList(
            nn.Sequential(_scaled(level, stage), Convolution(width, LOOK)) for level, width in enumerate(coming)
        )
        self.fuse = Convolution(FUSED, FUSED)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """From five maps, finest first: the encoder's down to this stage, the decoder's below it."""
        return self.fuse(torch.cat([look(features) for look, features in zip(self.looks, maps, strict=True)], dim=1))


def _scaled(level: int, stage: int) -> nn.Module:
    """What brings a map of one level to a stage's size."""
    if level < stage:
        return nn.MaxPool2d(2 ** (stage - level), ceil_mode=True)
    if level > stage:
        return nn.Upsample(scale_factor=2 ** (level - stage), mode="bilinear")
    return nn.Identity()


def _start_as_huang(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, mean=1.0, std=0.02)
