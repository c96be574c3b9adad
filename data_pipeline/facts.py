"""What an audit has to know of one scan, measured while its pixels are in memory and kept when they are not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.dicom import is_dicom, read_dicom_colours
from data_pipeline.duplicates import Thumbnail, thumbnail
from data_pipeline.faults import Refused
from data_pipeline.pixels import UnreadableImage, opened_image
from data_pipeline.scan import Gray, Mask, ScanFiles, read_scan

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
    scan = read_scan(files)
    pieces, specks = _pieces(scan.mask)
    facts = ScanFacts(
        files=files,
        patient=printable(files.patient),
        label=printable(files.label),
        height=scan.image.shape[0],
        width=scan.image.shape[1],
        digest=_digest(scan.image),
        mask_digest=_digest(scan.mask),
        contrast=float(cv2.meanStdDev(scan.image)[1].item()),
        coloured=_coloured(files),
        lesion=float(scan.mask.mean()),
        border=_border(scan.mask),
        pieces=pieces,
        specks=specks,
    )
    return facts, thumbnail(scan.image)


def read_colours(files: ScanFiles) -> NDArray[np.uint8] | None:
    """A scan's image in red, green and blue [H, W, 3], or None where its file has no colour. Raises UnreadableImage."""
    if is_dicom(files.image):
        return read_dicom_colours(files.image, files.frame)
    with opened_image(files.image) as picture:
        gray = picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I")
        return None if gray else np.asarray(picture.convert("RGB"), dtype=np.uint8)


def printable(text: str) -> str:
    """A name from a file system or a table, with what no terminal, page or JSON file should be given written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _digest(pixels: Gray | Mask) -> bytes:
    size = np.array(pixels.shape, dtype=np.int64).tobytes()
    return hashlib.blake2b(size + pixels.tobytes(), digest_size=16).digest()


def _pieces(mask: Mask) -> tuple[int, int]:
    """Connected parts of a mask, corners connecting, and how many of them are specks."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    smallest = max(SPECK_PIXELS, SPECK_SHARE * sizes.max(initial=0))
    return count - 1, int((sizes < smallest).sum())


def _border(mask: Mask) -> float:
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


def _coloured(files: ScanFiles) -> float:
    """Share of strongly coloured pixels in the image's file, which read_scan has turned to gray."""
    try:
        colours = read_colours(files)
    except UnreadableImage as reason:
        raise Refused(f"{files.image.name} {reason}") from reason
    if colours is None:
        return 0.0
    # Plane by plane: numpy takes ten times as long over the short last axis.
    red, green, blue = (colours[:, :, channel] for channel in range(3))
    strongest = np.maximum(np.maximum(red, green), blue)
    weakest = np.minimum(np.minimum(red, green), blue)
    return float((strongest - weakest > STRONG_COLOUR).mean())
