"""A network, or a baseline to hold it against, judged on scans at their own resolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline import Scan, WrongCall
from trainer.metrics import ScanScore, score_scan


class Predictor(Protocol):
    """What can be judged."""

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """The probability of lesion for each pixel, in 0..1: float32 [H, W] for each image uint8 [H, W]."""

    def marked(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where there is lesion by such a map: bool [H, W]."""


def evaluate(predictor: Predictor, scans: Iterable[Scan], batch: int = 8, surface: bool = True) -> list[ScanScore]:
    """The score of each scan, in order; surface=False leaves the surface measures out.

    At most `batch` scans are held at a time.
    """
    remaining = iter(scans)
    scores: list[ScanScore] = []
    while judged := _judge(predictor, list(islice(remaining, batch)), surface):
        scores += judged
    return scores


def _judge(predictor: Predictor, scans: Sequence[Scan], surface: bool) -> list[ScanScore]:
    maps = predictor.probabilities([scan.image for scan in scans])
    return [
        score_scan(scan, probability, predictor.marked(probability), surface)
        for scan, probability in zip(scans, maps, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class CentredEllipse:
    """A baseline without a network: the same ellipse in the middle of every scan, lesion inside, nothing outside.

    height and width are its axes as fractions of the scan's.
    """

    height: float
    width: float

    @classmethod
    def fitted_to(cls, truths: Iterable[NDArray[np.bool_]]) -> CentredEllipse:
        """The ellipse with the mean area and the mean shape of the lesions in masks [H, W]; masks without one pass.

        The area is the mean fraction of a scan that is lesion. The shape is height to width of the lesions' box,
        each a fraction of the scan's side; its mean is geometric, so that tall and wide lesions weigh alike.
        Raises WrongCall when no mask has a lesion.
        """
        areas: list[float] = []
        shapes: list[float] = []
        for truth in truths:
            rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
            if len(rows):
                height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
                areas.append(float(truth.mean()))
                shapes.append(math.log((height / truth.shape[0]) / (width / truth.shape[1])))
        if not areas:
            raise WrongCall("no scan to fit the centred ellipse to has a lesion; give it scans of lesions")
        # An ellipse with axes h and w has the area pi / 4 * h * w.
        product = float(np.mean(areas)) * 4 / math.pi
        shape = math.exp(float(np.mean(shapes)))
        return cls(height=math.sqrt(product * shape), width=math.sqrt(product / shape))

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """1 inside the ellipse and 0 outside: float32 [H, W] for each image uint8 [H, W]."""
        maps = []
        for image in images:
            down, across = (_from_centre(side) for side in image.shape)
            inside = (down[:, None] / self.height) ** 2 + (across[None, :] / self.width) ** 2 <= 0.25
            maps.append(inside.astype(np.float32))
        return maps

    def marked(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The inside: bool [H, W] for such a map [H, W]."""
        return probability >= 0.5


def _from_centre(side: int) -> NDArray[np.float64]:
    """Where the centres of a side's pixels lie, from -0.5 at one end to 0.5 at the other."""
    return (np.arange(side) + 0.5) / side - 0.5
