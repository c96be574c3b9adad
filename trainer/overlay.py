"""Outlines drawn on scans, to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from data_pipeline import Dataset, Scan, stream_scans
from data_pipeline.pixels import resize_gray
from trainer.atomic import replacing
from trainer.evaluate import Predictor
from trainer.metrics import dice

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PREDICTION = (255, 200, 40)
"""Red, green, blue. Amber and cyan stay apart for every kind of colour vision, and from gray."""
TRUTH = (60, 220, 255)
_HALO = (16, 16, 16)
_TINT = 0.08
_MOST = 6


def overlay(image: NDArray[np.uint8], mask: Mask, truth: Mask | None = None) -> Picture:
    """A scan uint8 [H, W] with the outline of a mask bool [H, W] in amber, and of a truth in cyan: uint8 [H, W, 3].

    Lines have a dark halo, so that they read on bright tissue and on shadow, and are wider on larger scans; the
    inside of the mask is tinted lightly. The scan stays as it is everywhere else.
    """
    picture = np.repeat(image[..., None], 3, axis=2)
    tinted = picture[mask] * (1 - _TINT) + np.array(PREDICTION) * _TINT
    picture[mask] = np.rint(tinted).astype(np.uint8)
    width = max(1, round(math.sqrt(image.size) / 250))
    lines = [(mask, PREDICTION)] if truth is None else [(truth, TRUTH), (mask, PREDICTION)]
    for outlined, _ in lines:
        _draw(picture, outlined, _HALO, 3 * width)
    for outlined, colour in lines:
        _draw(picture, outlined, colour, width)
    return picture


def _draw(picture: Picture, mask: Mask, colour: tuple[int, int, int], width: int) -> None:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, width, cv2.LINE_AA)


def sheet_of(predictor: Predictor, dataset: Dataset, positions: Sequence[int], path: Path) -> None:
    """Outline the first six scans with a lesion among these positions: the first, not the best.

    Nothing is drawn where none has one.
    """
    lesions = [place for place in positions if dataset.index.samples[place].label != "normal"]
    scans = list(stream_scans(dataset, lesions[:_MOST]))
    if scans:
        masks = [predictor.marked(probability) for probability in predictor.probabilities([s.image for s in scans])]
        contact_sheet(list(zip(scans, masks, strict=True)), path)


def contact_sheet(pairs: Sequence[tuple[Scan, Mask]], path: Path) -> None:
    """One figure of up to six scans, each with its truth, its prediction and their DSC, as a PNG.

    Each scan comes with the mask bool [H, W] that was predicted. Raises ValueError for no pair and for more than six.
    """
    if not 1 <= len(pairs) <= _MOST:
        raise ValueError(f"{len(pairs)} scans on a contact sheet: it takes one to six")
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    tallest = max(scan.image.shape[0] / scan.image.shape[1] for scan, _ in pairs)
    # Inches: cells as wide as 2.8 and as tall as the tallest scan needs, a title each, and a legend below.
    size = (2.8 * columns, (2.8 * min(tallest, 1.3) + 0.35) * rows + 0.35)
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    for place, (scan, mask) in enumerate(pairs, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(_enlarged_overlay(scan, mask))
        axes.set_axis_off()
        axes.set_anchor("N")
        dsc = dice(mask, scan.mask)
        axes.set_title(f"{scan.key}   {'no lesion' if dsc is None else f'DSC {dsc:.3f}'}", fontsize=9)
    handles = [
        Line2D([], [], color=(red / 255, green / 255, blue / 255), linewidth=2.5, label=label)
        for (red, green, blue), label in ((TRUTH, "truth"), (PREDICTION, "prediction"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _enlarged_overlay(scan: Scan, mask: Mask) -> Picture:
    """The overlay drawn at about 600 pixels, where a line of a pixel or two is fine."""
    factor = max(1.0, 600 / max(scan.image.shape))
    size = (round(scan.image.shape[0] * factor), round(scan.image.shape[1] * factor))
    masks = [resize_gray(pixels.astype(np.uint8) * 255, size) > 127 for pixels in (mask, scan.mask)]
    return overlay(resize_gray(scan.image, size), *masks)
