"""DICOM files (NEMA PS3) as gray frames and masks, one frame in memory at a time, and how large their pixels are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from data_pipeline.pixels import LARGEST_SIDE, UnreadableImage

# A warning would quote the value that breaks a rule of DICOM, and the value may be a person's.
config.settings.reading_validation_mode = config.IGNORE

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM segmentations: one frame a segment, or label maps."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")

# Nothing else is read, so no name and no date of birth is ever in memory.
_READ = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SequenceOfUltrasoundRegions", "PixelSpacing",
    "SegmentationType", "MaximumFractionalValue", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

Stored = NDArray[Any]


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a missing, damaged or odd file raises into UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except FileNotFoundError as missing:
        raise UnreadableImage("is missing") from missing
    except InvalidDicomError as unknown:
        raise UnreadableImage("is no DICOM file") from unknown
    except Exception as broken:  # pydicom raises whatever the first broken part of a file happens to
        reason = " ".join(str(broken).split()) or type(broken).__name__
        raise UnreadableImage(f"cannot be read: {reason}") from broken


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10, 7.1): 128 bytes of anything, then DICM."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@_reasons()
def read_header(path: Path) -> Dataset:
    """What a file says of itself and its pixels, without them. Raises UnreadableImage, as all that follows."""
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        # A few bytes can inflate to any number of them, before anything is known of the image.
        raise UnreadableImage(_no_decoder(DeflatedExplicitVRLittleEndian))
    header = dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))
    if frame_count(header) > path.stat().st_size:
        raise UnreadableImage(f"says that it holds {frame_count(header)} frames, which is more than its bytes")
    return header


def frame_count(header: Dataset) -> int:
    """How many frames a file holds; one where it does not say."""
    try:
        return max(1, int(header.get("NumberOfFrames") or 1))
    except (TypeError, ValueError) as broken:
        raise UnreadableImage("says in a way that cannot be read how many frames it holds") from broken


@_reasons()
def read_dicom_gray(path: Path, frame: int | None = None) -> NDArray[np.uint8]:
    """A frame, counted from 0 (the first if None), as gray [H, W], as a viewer first shows it.

    Gray values are rescaled and go through the file's first window, if it has one; else the range of the stored bits
    becomes 0 to 255. So 8 bit gray without a window stays as it is. MONOCHROME1 is inverted, palettes are looked up,
    and colour becomes gray by its luma, as in `pixels.read_gray`. VOI lookup tables and overlays are not applied.
    """
    header = read_header(path)
    stored = _stored_frame(path, header, frame or 0)
    if stored.ndim == 3:
        return np.array(Image.fromarray(_eight_bits(stored, header)).convert("L"), dtype=np.uint8)
    return _shown(stored, header)


@_reasons()
def read_dicom_colours(path: Path, frame: int | None = None) -> NDArray[np.uint8] | None:
    """A frame, counted from 0 (the first if None), in red, green and blue [H, W, 3]; None, undecoded, if it is gray."""
    header = read_header(path)
    if header.get("PhotometricInterpretation") in _GRAY:
        return None
    return _eight_bits(_stored_frame(path, header, frame or 0), header)


@_reasons()
def read_dicom_mask(path: Path, image: Path, frame: int | None = None) -> NDArray[np.bool_]:
    """The mask of a frame of a DICOM image, counted from 0 (the first if None), as bool [H, W].

    A segmentation gives the union of all its segments on that frame; fractions count from half of their maximum.
    Any other file gives its frame of the same number, or its only one, as `scan.read_mask` reads a mask: inside
    wherever a channel is above half of the range (255, or that of the stored bits where a value is greater), or above
    zero where none is above half.
    """
    header = read_header(path)
    if header.get("SOPClassUID") in SEGMENTATIONS:
        return _segmented(path, header, read_header(image), frame or 0)
    stored = _stored_frame(path, header, (frame or 0) if frame_count(header) > 1 else 0)
    channels = stored if stored.ndim == 2 else stored.max(axis=2)
    peak = int(channels.max(initial=0))
    half = 127 if peak <= 255 else (1 << int(header.BitsStored) - 1) - 1
    inside = channels > (half if peak > half else 0)
    return ~inside if header.PhotometricInterpretation == "MONOCHROME1" else inside


@_reasons()
def references(header: Dataset) -> list[tuple[str, tuple[int, ...]]]:
    """The image that each frame of a segmentation belongs to: SOPInstanceUID and frames counted from 0, none for all.

    From the derivation image of the frame's functional groups, its own or shared (PS3.3, C.7.6.16.2.6).
    """
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    found: list[tuple[str, tuple[int, ...]]] = []
    for groups in header.get("PerFrameFunctionalGroupsSequence") or []:
        derivations = groups.get("DerivationImageSequence") or shared.get("DerivationImageSequence")
        if not derivations or not derivations[0].get("SourceImageSequence"):
            raise UnreadableImage("does not say for each of its frames which image it segments")
        source = derivations[0].SourceImageSequence[0]
        frames = np.atleast_1d(source.get("ReferencedFrameNumber") or [])
        found.append((str(source.ReferencedSOPInstanceUID), tuple(int(frame) - 1 for frame in frames)))
    if len(found) != frame_count(header):
        raise UnreadableImage(f"says of {len(found)} of its {frame_count(header)} frames which image they segment")
    return found


def spacing(header: Dataset) -> tuple[float, float] | None:
    """mm per pixel (row, column), or None where the file does not tell or tells what cannot be.

    From the largest 2D region of the ultrasound image (PS3.3, C.8.5.5), where that is in centimetres; else from
    PixelSpacing. It holds inside that region; what lies around it, text and scales, stays in the image.
    """
    try:
        regions = [r for r in header.get("SequenceOfUltrasoundRegions") or [] if r.get("RegionSpatialFormat") == 1]
        if regions:
            largest = max(regions, key=_area)
            if largest.get("PhysicalUnitsXDirection") == largest.get("PhysicalUnitsYDirection") == 3:  # centimetres
                found = _lengths(largest.get("PhysicalDeltaY"), largest.get("PhysicalDeltaX"), 10.0)
                if found:
                    return found
        row, column = header.get("PixelSpacing") or (None, None)
        return _lengths(row, column, 1.0)
    except Exception:  # values that are no numbers raise whatever their conversion happens to
        return None


def _area(region: Dataset) -> int:
    height = int(region.RegionLocationMaxY1) - int(region.RegionLocationMinY0)
    width = int(region.RegionLocationMaxX1) - int(region.RegionLocationMinX0)
    return max(0, height) * max(0, width)


def _lengths(row: object, column: object, millimetres: float) -> tuple[float, float] | None:
    if row is None or column is None:
        return None
    lengths = float(str(row)) * millimetres, float(str(column)) * millimetres
    return lengths if all(math.isfinite(length) and length > 0 for length in lengths) else None


# -- pixels ----------------------------------------------------------------------------------------------------------


def _stored_frame(path: Path, header: Dataset, frame: int) -> Stored:
    """The frame's values: [H, W], or [H, W, 3] in red, green and blue."""
    _require_decodable(header)
    frames = frame_count(header)
    if frame >= frames:
        raise UnreadableImage(f"has no frame {frame + 1}, it holds {frames}")
    if header.BitsAllocated == 1 and header.Rows * header.Columns % 8:
        # pydicom 3.0.2 loses the last bits of a single frame that begins within a byte.
        whole = pixel_array(path)
        return np.asarray(whole if frames == 1 else whole[frame])
    stored = pixel_array(path, index=frame)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)[..., :3]
    return stored


def _require_decodable(header: Dataset) -> None:
    """Raise UnreadableImage for what has no decoder, is too large, or holds values that are no gray or colour."""
    if not header.get("Rows") or not header.get("Columns"):
        raise UnreadableImage("holds no image")
    if max(header.Rows, header.Columns) > LARGEST_SIDE:
        raise UnreadableImage(f"is {header.Rows}x{header.Columns}, more than {LARGEST_SIDE} pixels a side")
    if header.BitsAllocated not in (1, 8, 16):
        raise UnreadableImage(f"holds {header.BitsAllocated} bit pixels; 1, 8 and 16 bit can be read")
    if header.PhotometricInterpretation not in _GRAY + _COLOURS:
        raise UnreadableImage(
            f"holds {header.PhotometricInterpretation} pixels; gray, RGB, YBR_FULL and palettes can be read"
        )
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise UnreadableImage("does not name its transfer syntax")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:  # how pydicom says that it knows no such syntax
        available = False
    if not available:
        raise UnreadableImage(_no_decoder(syntax))


def _no_decoder(syntax: UID) -> str:
    return f"lies in transfer syntax {syntax.name} ({syntax}), which cannot be decoded here; convert it to another"


def _eight_bits(colours: Stored, header: Dataset) -> NDArray[np.uint8]:
    """Colours by the upper eight of their bits."""
    palette = header.PhotometricInterpretation == "PALETTE COLOR"
    bits = 8 * colours.dtype.itemsize if palette else int(header.BitsStored)
    return (colours >> max(0, bits - 8)).astype(np.uint8)


def _shown(stored: Stored, header: Dataset) -> NDArray[np.uint8]:
    """Stored gray values [H, W] as uint8, by rescale and window (PS3.3, C.11.1 and C.11.2)."""
    values = apply_modality_lut(stored, header).astype(np.float64)
    if _has_window(header):
        darkest, brightest = apply_windowing(np.array([-np.inf, np.inf]), header)
        values = apply_windowing(values, header)
    else:
        bits = int(header.BitsStored)
        lowest = -(1 << bits - 1) if header.get("PixelRepresentation") else 0
        darkest, brightest = sorted(apply_modality_lut(np.array([lowest, lowest + (1 << bits) - 1]), header))
    if darkest == brightest:
        raise UnreadableImage("rescales all of its values to one")
    gray: NDArray[np.uint8] = np.rint(np.clip((values - darkest) / (brightest - darkest), 0, 1) * 255).astype(np.uint8)
    return ~gray if header.PhotometricInterpretation == "MONOCHROME1" else gray


def _has_window(header: Dataset) -> bool:
    """Whether the first window has a centre and a width that can be used."""
    try:
        first = [np.atleast_1d(header[name].value)[0] for name in ("WindowCenter", "WindowWidth")]
        centre, width = (float(value) for value in first)
    except (KeyError, IndexError, TypeError, ValueError):
        return False
    return math.isfinite(centre) and math.isfinite(width) and width >= 1


def _segmented(path: Path, header: Dataset, image: Dataset, frame: int) -> NDArray[np.bool_]:
    """The union of what a segmentation's frames hold for this frame of an image."""
    owned = str(image.SOPInstanceUID)
    single = frame_count(image) == 1
    inside = np.zeros((int(header.Rows), int(header.Columns)), dtype=np.bool_)
    half = 0
    if header.get("SegmentationType") == "FRACTIONAL":
        half = int(header.get("MaximumFractionalValue") or 255) // 2
    for number, (instance, referenced) in enumerate(references(header)):
        if instance == owned and (frame in referenced or (single and not referenced)):
            inside |= _stored_frame(path, header, number) > half
    return inside
