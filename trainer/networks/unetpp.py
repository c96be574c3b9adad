"""UNet++ (Zhou et al., 2018): a triangle of nodes between encoder and decoder, each joined to all before it.

    X00 -> X01 -> X02 -> X03 -> X04      X(i,0) is made from X(i-1,0), halved;
    X10 -> X11 -> X12 -> X13             X(i,j) from X(i,0) .. X(i,j-1) and X(i+1,j-1), doubled
    X20 -> X21 -> X22
    X30 -> X31
    X40

The layout is that of the authors' code (MrGiovanni/UNetPlusPlus, Keras): transposed convolutions, dropout of one
half after every convolution, no norm, He's normal initial values for convolutions and Glorot's for transposed
ones. 9,041,601 parameters with one head and one input channel. Its L2 penalty of 1e-4 is left to the optimizer.

A registered model carries this file with it, so it rests on torch and `blocks` alone.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.networks.blocks import Network


class UNetPlusPlus(Network):
    """Scans to logits of the top row's nodes, all of them [B, 1, H, W]: X04, then X03, X02 and X01.

    X04 comes first because it sees the whole network. heads is how many have a head. Raises ValueError for a
    number of heads out of 1 to 4.
    """

    stages = 4
    multiple = 16
    widths: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 512)

    def __init__(self, in_channels: int = 1, heads: int = 1) -> None:
        super().__init__()
        self.require_heads(heads, self.stages)
        levels = len(self.widths)
        self.pool = nn.MaxPool2d(2)
        self.nodes = nn.ModuleDict()
        self.rises = nn.ModuleDict()
        for j in range(levels):
            for i in range(levels - j):
                width = self.widths[i]
                if j:
                    before = (j + 1) * width
                    self.rises[f"{i}{j}"] = nn.ConvTranspose2d(self.widths[i + 1], width, kernel_size=2, stride=2)
                else:
                    before = self.widths[i - 1] if i else in_channels
                self.nodes[f"{i}{j}"] = DroppingConvolutions(before, width)
        self.heads = nn.ModuleList(nn.Conv2d(self.widths[0], 1, kernel_size=1) for _ in range(heads))
        self.apply(_start_as_zhou)

    def forward(self, scans: Tensor) -> list[Tensor]:
        """Logits of the top row, X04 first."""
        rows: list[list[Tensor]] = []
        for i in range(len(self.widths)):
            rows.append([self.nodes[f"{i}0"](self.pool(rows[i - 1][0]) if i else scans)])
        for j in range(1, len(self.widths)):
            for i in range(len(self.widths) - j):
                risen = self.rises[f"{i}{j}"](rows[i + 1][j - 1])
                rows[i].append(self.nodes[f"{i}{j}"](torch.cat((risen, *rows[i]), dim=1)))
        return [head(node) for head, node in zip(self.heads, reversed(rows[0]), strict=False)]


class DroppingConvolutions(nn.Sequential):
    """Twice: 3x3 convolution, ReLU, dropout of one half; the size stays."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(before, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )


def _start_as_zhou(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    elif isinstance(layer, nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
