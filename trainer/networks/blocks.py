"""What the networks have in common: what each promises, and the convolutions that most are made of.

A registered model carries this file with it, before its network's own, so it rests on torch alone.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]
"""Makes the norm for so many channels."""


class Network(nn.Module):
    """A generator: scans [B, in_channels, H, W] to a list of logit maps [B, 1, h, w], the one to predict with first.

    stages is how many maps it can give at most. A network with more than one takes `heads`, how many it gives,
    and then has no parameter that none of them depends on. H and W must be multiples of `multiple`, and larger
    than that in training where one scan would leave a batch norm with a single value at the bottom.
    """

    stages: ClassVar[int] = 1
    multiple: int

    @staticmethod
    def require_heads(heads: int, most: int) -> None:
        """Raise ValueError for a number of heads that this network cannot have."""
        if not 1 <= heads <= most:
            raise ValueError(f"heads {heads}: expected 1 to {most}")


def descend(levels: Iterable[nn.Module], scans: Tensor) -> list[Tensor]:
    """The features of each level, finest first: a level sees those of the one above at half their size."""
    features: list[Tensor] = []
    for level in levels:
        features.append(level(F.max_pool2d(features[-1], 2) if features else scans))
    return features


class Convolution(nn.Sequential):
    """Convolution, norm, ReLU; the size stays."""

    def __init__(
        self,
        before: int,
        width: int,
        kernel: int = 3,
        dilation: int = 1,
        norm: Norm = nn.BatchNorm2d,
        bias: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(before, width, kernel, padding=padding, dilation=dilation, bias=bias),
            norm(width),
            nn.ReLU(inplace=True),
        )


class TwoConvolutions(nn.Sequential):
    """Twice: convolution, norm, ReLU; the size stays."""

    def __init__(
        self, before: int, width: int, kernel: int = 3, norm: Norm = nn.BatchNorm2d, bias: bool = True
    ) -> None:
        super().__init__(
            *Convolution(before, width, kernel, norm=norm, bias=bias),
            *Convolution(width, width, kernel, norm=norm, bias=bias),
        )
