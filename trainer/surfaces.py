"""How far two outlines lie apart: four measures of the distances from each to the other.

An outline is a mask's pixels that touch its outside by an edge, the scan's border counted as outside. From every
pixel of one outline the distance to the nearest pixel of the other is taken, in both directions, once; the
measures are statistics of these two lists. They are what MONAI 1.6 computes without subvoxels, plus the root mean
square that it does not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Unit = Literal["mm", "px"]

SURFACE_TOLERANCE: dict[Unit, float] = {"mm": 1.0, "px": 5.0}
"""How far an outline may lie off and still count as right in the surface Dice, by unit.

1 mm: breast lesions are reported in whole millimetres, and nobody's hand outlines a blurred margin closer.
5 pixels: where the spacing is unknown a scan may have been reduced, so that less must do; at the 0.08 mm a pixel
that is usual in breast ultrasound it is 0.4 mm. Numbers of different units are therefore not comparable.
"""


@dataclass(frozen=True, slots=True)
class SurfaceScore:
    """Two outlines compared. All but surface_dice, a fraction of 1, are distances in the unit of the spacing.

    rms_surface_distance: root of the mean squared distance over both lists together (Heimann et al. 2009).
    assd: average symmetric surface distance, the mean over both lists together (same source).
    hd95: the larger of the two lists' 95th percentiles (Hausdorff distance without its outliers).
    surface_dice: the fraction of both outlines' pixels that lie within the tolerance of the other outline
    (Nikolov et al. 2021, with an outline's length counted in pixels).
    """

    rms_surface_distance: float
    assd: float
    hd95: float
    surface_dice: float


def compare_outlines(
    marked: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float] | None = None
) -> dict[Unit, SurfaceScore]:
    """The outlines of two masks [H, W], compared in pixels, and in mm where the spacing (row, column) is known.

    When one of the masks is empty, the distances are the scan's diagonal, corner to corner, and surface_dice is 0:
    pixels' centres lie less far apart, so that no outline at all scores as badly.
    """
    if not (marked.any() and truth.any()):
        missed: dict[Unit, SurfaceScore] = {"px": _worst(truth.shape, (1.0, 1.0))}
        return missed if spacing is None else missed | {"mm": _worst(truth.shape, spacing)}
    one, other = _outline(marked), _outline(truth)
    there, back = _apart(one, other)
    scores: dict[Unit, SurfaceScore] = {"px": _score(there, back, SURFACE_TOLERANCE["px"])}
    if spacing is not None:
        row, column = spacing
        if row == column:  # one search serves both units
            there, back = there * row, back * row
        else:
            there, back = _apart(one * spacing, other * spacing)
        scores["mm"] = _score(there, back, SURFACE_TOLERANCE["mm"])
    return scores


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Row and column [pixels, 2] of a mask's outline."""
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return np.argwhere(mask & ~inside).astype(np.float64)


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each point of one to the nearest of the other, and the other way round."""
    there, back = (np.asarray(KDTree(to).query(of)[0]) for of, to in ((one, other), (other, one)))
    return there, back


def _score(there: NDArray[np.float64], back: NDArray[np.float64], tolerance: float) -> SurfaceScore:
    both = np.concatenate([there, back])
    return SurfaceScore(
        rms_surface_distance=math.sqrt(np.mean(np.square(both))),
        assd=float(np.mean(both)),
        hd95=max(float(np.percentile(each, 95)) for each in (there, back)),
        surface_dice=float(np.mean(both <= tolerance)),
    )


def _worst(shape: tuple[int, ...], side: tuple[float, float]) -> SurfaceScore:
    diagonal = math.hypot(shape[0] * side[0], shape[1] * side[1])
    return SurfaceScore(diagonal, diagonal, diagonal, 0.0)
