"""The paper's UNet: five levels, and a head at each of the four decoder stages.

Ronneberger et al. (2015) in the layout of the paper's released code: two 3x3 convolutions with batch norm to a
level, 2x2 max pooling down, 2x2 transposed convolutions up. 31,042,369 parameters with one head and one input
channel.

A registered model carries this file with it, so it rests on torch, `blocks` and `synchronised` alone.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Network, Norm, TwoConvolutions, descend
from trainer.networks.synchronised import SynchronisedBatchNorm


def grouped_norm(width: int) -> nn.GroupNorm:
    """Group norm (Wu and He, 2018) in groups of 16 channels, or of 8, 4, 2 or 1 where 16 does not divide them."""
    return nn.GroupNorm(width // math.gcd(width, 16), width)


NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "sync_batch": SynchronisedBatchNorm,
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "group": grouped_norm,
}


class UNet(Network):
    """Scans to logits of the decoder stages, finest first: stage n (from 1) has [B, 1, H / 2^(n-1), W / 2^(n-1)].

    widths are the levels' channels, finest first, two levels or more; heads is how many stages, counted from the
    finest, have a head. Raises ValueError for settings that no UNet has.
    """

    stages = 4

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        heads: int = 4,
        norm: Literal["batch", "sync_batch", "instance", "group"] = "batch",
    ) -> None:
        super().__init__()
        levels = list(widths)
        if len(levels) < 2:
            raise ValueError(f"widths {levels}: expected two levels or more")
        self.require_heads(heads, min(self.stages, len(levels) - 1))
        if norm not in NORMS:
            raise ValueError(f"norm {norm}: expected one of {', '.join(NORMS)}")
        self.multiple = 2 ** (len(levels) - 1)
        # Instance norm takes away any constant that a convolution adds to a channel.
        block = partial(TwoConvolutions, norm=NORMS[norm], bias=norm != "instance")
        self.down = nn.ModuleList(block(before, width) for before, width in pairwise([in_channels, *levels]))
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(below, width, kernel_size=2, stride=2) for width, below in pairwise(levels)
        )
        self.up = nn.ModuleList(block(2 * width, width) for width in levels[:-1])
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=1) for width in levels[:heads])

    def forward(self, scans: Tensor) -> list[Tensor]:
        """Logits of each supervised stage, finest first."""
        *skips, features = descend(self.down, scans)
        logits: list[Tensor] = []
        for stage in reversed(range(len(self.up))):
            features = self.up[stage](torch.cat((skips[stage], self.rise[stage](features)), dim=1))
            if stage < len(self.heads):
                logits.insert(0, self.heads[stage](features))
        return logits
