"""What an audit has to know of one scan, measured while its pixels are in memory and kept when they are not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.dicom import is_dicom, read_dicom_colours
from data_pipeline.duplicates import Thumbnail, pixel_digest, thumbnail
from data_pipeline.faults import Refused
from data_pipeline.pixels import UnreadableImage, as_gray, opened_image
from data_pipeline.scan import Mask, Scan, ScanFiles, read_scan, with_masks

Colours = NDArray[np.uint8]
"""Red, green and blue, [H, W, 3]."""

STRONG_COLOUR = 64
"""Levels between a pixel's largest and smallest channel. The tints of displays stay below, colour maps do not."""

SPECK_PIXELS = 10
"""A piece of a mask with fewer pixels is a speck, whatever lies beside it."""

SPECK_SHARE = 0.01
"""A piece of a mask smaller than this share of the largest one is a speck."""


@dataclass(frozen=True, slots=True)
class ScanFacts:
    """One readable scan without its pixels.

    digest and mask_digest are equal where pixels and size are. contrast is the standard deviation in gray levels,
    coloured the share of strongly coloured pixels, lesion the share inside the mask, border the share of the outermost
    pixels inside it. pieces counts the mask's connected parts, and specks those too small to be a lesion.
    """

    files: ScanFiles
    patient: str
    label: str
    height: int
    width: int
    digest: bytes
    mask_digest: bytes
    contrast: float
    coloured: float
    lesion: float
    border: float
    pieces: int
    specks: int

    @property
    def key(self) -> str:
        """Unique in the dataset."""
        return self.files.key


def measure(files: ScanFiles) -> tuple[ScanFacts, Thumbnail]:
    """Read a scan and keep what is measured of it, and its thumbnail. Raises Refused as read_scan does."""
    scan, colours = read_with_colours(files)
    pieces, specks = _pieces(scan.mask)
    facts = ScanFacts(
        files=files,
        patient=printable(files.patient),
        label=printable(files.label),
        height=scan.image.shape[0],
        width=scan.image.shape[1],
        digest=pixel_digest(scan.image),
        mask_digest=pixel_digest(scan.mask),
        contrast=float(cv2.meanStdDev(scan.image)[1].item()),
        coloured=0.0 if colours is None else _coloured(colours),
        lesion=float(scan.mask.mean()),
        border=_border(scan.mask),
        pieces=pieces,
        specks=specks,
    )
    return facts, thumbnail(scan.image)


def read_with_colours(files: ScanFiles) -> tuple[Scan, Colours | None]:
    """A scan, and its image in red, green and blue where the file has colour. Raises Refused as read_scan does."""
    try:
        if is_dicom(files.image):
            return read_scan(files), read_dicom_colours(files.image, files.frame)
        with opened_image(files.image) as picture:
            image = as_gray(picture)
            gray = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")
            colours = None if gray else np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except UnreadableImage as reason:
        raise Refused(f"{files.image.name} {reason}") from reason
    return with_masks(files, image), colours


def printable(text: str) -> str:
    """A name from a file system or a table, with what no terminal, page or JSON file should be given written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _pieces(mask: Mask) -> tuple[int, int]:
    """Connected parts of a mask, corners connecting, and how many of them are specks."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    smallest = max(SPECK_PIXELS, SPECK_SHARE * sizes.max(initial=0))
    return count - 1, int((sizes < smallest).sum())


def _border(mask: Mask) -> float:
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


def _coloured(colours: Colours) -> float:
    """Share of strongly coloured pixels."""
    # Plane by plane: numpy takes ten times as long over a last axis of three.
    red, green, blue = (colours[:, :, channel] for channel in range(3))
    strongest = np.maximum(np.maximum(red, green), blue)
    weakest = np.minimum(np.minimum(red, green), blue)
    return float((strongest - weakest > STRONG_COLOUR).mean())
