"""One scan: an image, its mask, whose it is; and the rules that turn files into one."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.dicom import is_dicom, read_dicom_gray, read_dicom_mask
from data_pipeline.faults import Refused
from data_pipeline.pixels import UnreadableImage, opened_image, read_gray

Gray = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One image and the union of its lesions.

    image is uint8 [H, W]; mask is bool [H, W], True inside any lesion (a normal scan has none).
    key is unique in its dataset. Scans of one group show the same lesion or are near-duplicates.
    spacing is mm per pixel (row, column), or None where the file does not tell.
    """

    key: str
    image: Gray
    mask: Mask
    patient: str
    group: str
    label: str
    spacing: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class ScanFiles:
    """The files of one scan, found and not yet read. fold is the set's own, counted from 1, or None.

    frame counts from 0 in a file of several. fit_masks lets a mask have another size than its image, to which it is
    brought by nearest neighbour: for sets that are known to write aligned masks at a size of their own.
    """

    key: str
    image: Path
    masks: tuple[Path, ...]
    patient: str
    group: str
    label: str
    spacing: tuple[float, float] | None = None
    fold: int | None = None
    frame: int | None = None
    fit_masks: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What a layout found in a folder: usable scans, and the reason for each file or key refused."""

    scans: list[ScanFiles]
    refused: dict[str, str] = field(default_factory=dict)


def read_scan(files: ScanFiles) -> Scan:
    """Decode a scan's files and unite its masks. Raises Refused with the reason, naming the file."""
    try:
        image = read_dicom_gray(files.image, files.frame) if is_dicom(files.image) else read_gray(files.image)
    except UnreadableImage as reason:
        raise Refused(f"{files.image.name} {reason}") from reason
    return with_masks(files, image)


def with_masks(files: ScanFiles, image: Gray) -> Scan:
    """The scan of an image that is decoded already. Raises Refused as read_scan does."""
    mask = np.zeros(image.shape, dtype=np.bool_)
    for path in files.masks:
        try:
            lesion = read_dicom_mask(path, files.image, files.frame) if is_dicom(path) else read_mask(path)
        except UnreadableImage as reason:
            raise Refused(f"{path.name} {reason}") from reason
        if lesion.shape != image.shape and files.fit_masks:
            lesion = _fitted(lesion, image.shape)
        if lesion.shape != image.shape:
            raise Refused(f"mask {path.name} is {size_text(lesion)}, its image {size_text(image)}")
        mask |= lesion
    return Scan(files.key, image, mask, files.patient, files.group, files.label, files.spacing)


def read_mask(path: Path) -> Mask:
    """A mask file as bool [H, W]: inside wherever any colour channel is above half of the range.

    The maximum over red, green and blue, and not their luma, which loses a red outline; alpha says nothing. A palette
    is read by its colours. Where nothing is above half, everything above zero is inside. Raises UnreadableImage.
    """
    with opened_image(path) as picture:
        if picture.mode in ("1", "L"):
            channels = np.asarray(picture.convert("L"), dtype=np.uint8)
        else:
            # Plane by plane: numpy takes ten times as long over a last axis of three.
            channels = np.maximum.reduce([np.asarray(plane) for plane in picture.convert("RGB").split()])
    # Annotation tools write 0 and 1, numbers of classes, or dim colours, which a threshold at half would lose.
    return channels > (127 if channels.max(initial=0) > 127 else 0)


def _fitted(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at (height, width), each pixel that of the place nearest to its centre."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.bool_)


def safe_key(stem: str) -> str:
    """A file's stem as a key: letters, digits, dash and underscore, so that no tar or store misreads it.

    Letters outside of ASCII lose their accents or are left out; a digest then tells the stem from those alike, in one
    way for both spellings that file systems have for an umlaut.
    """
    letters = unicodedata.normalize("NFKD", stem)
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", bare).strip("-")
    if key and stem.isascii():
        return key
    # A name that is no UTF-8 has surrogates for its bytes.
    whole = unicodedata.normalize("NFC", stem).encode("utf-8", errors="surrogateescape")
    return f"{key}-{hashlib.sha256(whole).hexdigest()[:8]}".lstrip("-")


def without_clashes(scans: Sequence[ScanFiles]) -> Findings:
    """Keep the first scan of each key and refuse the others by name."""
    first: dict[str, ScanFiles] = {}
    refused = {}
    for scan in scans:
        if scan.key in first:
            taken = first[scan.key].image
            refused[f"{scan.image.parent.name}/{scan.image.name}"] = (
                f"has the key {scan.key}, which {taken.parent.name}/{taken.name} has already"
            )
        else:
            first[scan.key] = scan
    return Findings(list(first.values()), refused)


def size_text(pixels: Gray | Mask) -> str:
    """Height x width, as messages give it."""
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
