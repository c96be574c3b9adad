"""SegNet (Badrinarayanan et al., 2017): VGG-16's convolutions and their mirror; only the places of maxima pass over.

The layout is that of the authors' Caffe model, with batch norm after every convolution but the last, and He's
initial values throughout; the published one starts its encoder from ImageNet. 29.4424 million parameters with one
input channel.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from trainer.networks.blocks import Convolution, Network


class SegNet(Network):
    """Scans to one map of logits, [B, 1, H, W]."""

    multiple = 32
    encoder: ClassVar[tuple[tuple[int, ...], ...]] = (
        (64, 64),
        (128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (512, 512, 512),
    )
    decoder: ClassVar[tuple[tuple[int, ...], ...]] = (
        (512, 512, 512),
        (512, 512, 256),
        (256, 256, 128),
        (128, 64),
        (64,),
    )

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.down = _blocks(in_channels, self.encoder)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.up = _blocks(self.encoder[-1][-1], self.decoder)
        self.head = nn.Conv2d(self.decoder[-1][-1], 1, kernel_size=3, padding=1)
        self.apply(_start_as_he)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """One map of logits."""
        places = []
        features = scans
        for block in self.down:
            features, place = self.pool(block(features))
            places.append(place)
        for block in self.up:
            features = block(self.unpool(features, places.pop()))
        return [self.head(features)]


def _blocks(before: int, blocks: Sequence[Sequence[int]]) -> nn.ModuleList:
    """One sequence of convolutions for each of these rows of widths."""
    made = nn.ModuleList()
    for widths in blocks:
        made.append(nn.Sequential(*(Convolution(*pair) for pair in pairwise((before, *widths)))))
        before = widths[-1]
    return made


def _start_as_he(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
