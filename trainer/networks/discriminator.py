"""The discriminators: one small convolutional network for each supervised decoder stage.

The paper gives five convolutions with kernels 7, 5, 4, 4, 4 and no shared weights. Widths, strides, norm and
initial values, which it does not give, are those of SegAN's critic (Xue et al., 2018), whose kernels they are; but
for the last convolution, which here gives one logit: with SegAN's values it would begin with logits of tens, at
which log(1 - D) has no gradient left, so it begins with PyTorch's own.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from trainer.networks.unet import NORMS

KERNELS = (7, 5, 4, 4, 4)
PADDINGS = (3, 2, 1, 1, 1)


class Discriminators(nn.Module):
    """One discriminator per stage in one module, so that one DeepSpeed engine drives them all."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], stages: int = 4, norm: str = "batch") -> None:
        super().__init__()
        self.stages = nn.ModuleList(Discriminator(widths, strides, norm) for _ in range(stages))

    def forward(self, truths: Sequence[Tensor], maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits for true masks and for predicted maps, stage by stage: high means taken for a true mask."""
        return self.judge(truths), self.judge(maps)

    def judge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Logit maps [B, 1, h, w] for each stage's masks or probability maps [B, 1, H, W] in [0, 1]."""
        return [stage(seen) for stage, seen in zip(self.stages, maps, strict=True)]


class Discriminator(nn.Sequential):
    """Five convolutions from a mask [B, 1, H, W] to a map of logits, each with a receptive field of its own."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], norm: str = "batch") -> None:
        layers: list[nn.Module] = []
        channels = (1, *widths, 1)
        last = len(KERNELS) - 1
        for number, (kernel, stride, padding) in enumerate(zip(KERNELS, strides, PADDINGS, strict=True)):
            before, after = channels[number], channels[number + 1]
            convolution = nn.Conv2d(before, after, kernel, stride, padding, bias=number == last)
            if number < last:
                nn.init.normal_(convolution.weight, std=(2.0 / (kernel * kernel * after)) ** 0.5)
            layers.append(convolution)
            if 0 < number < last:
                layers.append(NORMS[norm](after))
            if number < last:
                layers.append(nn.LeakyReLU(0.2, inplace=True))
        super().__init__(*layers)


def logit_map_side(side: int, strides: Sequence[int]) -> int:
    """Pixels along one side of the logit map for a mask of that side; below 1 means too small to be judged."""
    for kernel, stride, padding in zip(KERNELS, strides, PADDINGS, strict=True):
        if side + 2 * padding < kernel:
            return 0
        side = (side + 2 * padding - kernel) // stride + 1
    return side
