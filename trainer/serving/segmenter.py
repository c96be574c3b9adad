"""Trained networks that outline lesions in scans of any size.

A registered model carries this file with it, so it rests on torch, numpy and `data_pipeline.pixels` alone, and
says what is wrong with a plain ValueError of one line.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.pixels import resize_gray
from trainer.serving.components import keep_largest


class Member(NamedTuple):
    """A network that takes float32 [B, in_channels, h, w] in 0..1 and gives a list of logits, finest first.

    size is (h, w) in pixels, to which scans are resized. Where in_channels is above 1, each has the gray scan.
    """

    network: nn.Module
    size: tuple[int, int]
    in_channels: int = 1


class Segmenter:
    """One network, or several whose probabilities are averaged, and how a mask comes of them.

    threshold is the probability from which a pixel is lesion, 0..1. With flips a probability is the mean of those of
    the scan and of its mirror image; left and right alone are exchanged, because up and down are not alike in an
    ultrasound scan: echoes fade and shadows fall with depth. With largest_component only the largest connected part
    of a mask stays.
    """

    def __init__(
        self,
        network: nn.Module,
        size: tuple[int, int],
        threshold: float = 0.5,
        flips: bool = False,
        largest_component: bool = False,
        in_channels: int = 1,
    ) -> None:
        """Keep the network as it is, on its own device and in its own mode; the last three are Member's.

        Raises ValueError for a size or threshold out of its range.
        """
        if len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
            raise ValueError(f"size {list(size)}: expected height and width in pixels")
        self.members: tuple[Member, ...] = (Member(network, size, in_channels),)
        self._set(threshold, flips, largest_component)

    @classmethod
    def ensemble(
        cls, segmenters: "Sequence[Segmenter]", threshold: float, flips: bool = False, largest_component: bool = False
    ) -> "Segmenter":
        """One of several, whose own thresholds, flips and largest components do not count. Raises ValueError."""
        if not segmenters:
            raise ValueError("an ensemble without a member")
        joined = copy(segmenters[0])
        joined.members = tuple(member for segmenter in segmenters for member in segmenter.members)
        joined._set(threshold, flips, largest_component)
        return joined

    def using(
        self, threshold: float | None = None, flips: bool | None = None, largest_component: bool | None = None
    ) -> "Segmenter":
        """The same networks used in another way; what is None stays as it is. Raises ValueError."""
        other = copy(self)
        other._set(
            self.threshold if threshold is None else threshold,
            self.flips if flips is None else flips,
            self.largest_component if largest_component is None else largest_component,
        )
        return other

    def _set(self, threshold: float, flips: bool, largest_component: bool) -> None:
        if isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a probability, 0 to 1")
        for name, value in (("flips", flips), ("largest_component", largest_component)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} {value}: expected true or false")
        self.threshold = float(threshold)
        self.flips = flips
        self.largest_component = largest_component

    def to(self, device: str) -> None:
        """Move all networks to a device."""
        for member in self.members:
            member.network.to(device)

    def masks(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        """True where there is lesion: bool [H, W] for each image uint8 [H, W]."""
        return [self.marked(probability) for probability in self.probabilities(images)]

    def marked(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The mask bool [H, W] of a probability map [H, W]: where the threshold is reached, or its largest part."""
        mask = probability >= self.threshold
        return keep_largest(mask, probability) if self.largest_component else mask

    @torch.no_grad()
    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """The probability of lesion for each pixel: float32 [H, W] in 0..1 for each image uint8 [H, W].

        Images may differ in size; a network sees all of them at once, so the caller bounds their number. Networks and
        mirror images come one after the other and need no more memory than one. The networks' modes are as before
        afterwards. Raises ValueError for an array that is no gray image.
        """
        for place, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
                raise ValueError(f"image {place} is {image.dtype} {list(image.shape)}: expected uint8 [height, width]")
        if not images:
            return []
        means = [np.zeros(image.shape, np.float32) for image in images]
        for member in self.members:
            for logits in _logits(member, images, self.flips):
                for mean, finest in zip(means, logits, strict=True):
                    mean += _at_size(finest, mean.shape)
        for mean in means:
            mean /= len(self.members) * (2 if self.flips else 1)
        return means


def _logits(member: Member, images: Sequence[NDArray[np.uint8]], flips: bool) -> Iterator[Tensor]:
    """A network's finest logits [B, 1, h, w] of the images, and with flips those of their mirror images, put back."""
    batch = torch.from_numpy(np.stack([resize_gray(image, member.size) for image in images]))
    pixels = batch.to(next(member.network.parameters()).device).unsqueeze(1).float() / 255
    pixels = pixels.expand(-1, member.in_channels, -1, -1)
    was_training = member.network.training
    member.network.eval()
    try:
        yield member.network(pixels)[0].float()
        if flips:
            yield member.network(pixels.flip(-1))[0].float().flip(-1)
    finally:
        member.network.train(was_training)


def _at_size(logits: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits [1, h, w] as probabilities float32 [H, W]."""
    enlarged = F.interpolate(logits.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
    probability: NDArray[np.float32] = torch.sigmoid(enlarged)[0, 0].cpu().numpy()
    return probability
