"""Small DICOM files as scanners, exporters and annotation tools write them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.pixels.utils import as_pixel_options, pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SegmentationStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

CENTIMETRES = 3


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    photometric: str = "MONOCHROME2",
    syntax: str = ExplicitVRLittleEndian,
    patient: str = "P-4711",
    series: str | None = None,
    **attributes: Any,
) -> Dataset:
    """An ultrasound image of pixels [H, W] or, in colour, [H, W, 3], or of several frames of these, as a file.

    Attributes replace what follows from the pixels.
    """
    samples = 3 if photometric.startswith(("RGB", "YBR")) else 1
    several = pixels.ndim == (4 if samples == 3 else 3)
    frames = pixels if several else pixels[None]
    ds = _dataset(UltrasoundMultiFrameImageStorage if several else UltrasoundImageStorage, syntax)
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = patient, "Meier^Erika", "19610214"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), series or generate_uid()
    if several:
        ds.NumberOfFrames = len(frames)
    ds.Rows, ds.Columns = frames.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, photometric
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.PixelData = _pixel_data(ds, frames, syntax)
    ds["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian and pixels.dtype.itemsize == 2 else "OB"
    ds["PixelData"].is_undefined_length = syntax in (RLELossless, JPEGBaseline8Bit, JPEG2000Lossless)
    return save_dicom(ds, path)


def write_segmentation(
    path: Path, masks: Sequence[np.ndarray], sources: Sequence[tuple[Dataset, int | None]], fraction: int | None = None
) -> Dataset:
    """A DICOM segmentation with a frame for each mask [H, W]: of which image, and which of its frames from 1, if any.

    fraction: the stored value inside of a mask in a fractional segmentation, whose maximum is 255.
    """
    ds = _dataset(SegmentationStorage, ExplicitVRLittleEndian)
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P-4711", generate_uid(), generate_uid()
    ds.NumberOfFrames = len(masks)
    ds.Rows, ds.Columns = masks[0].shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    stored = np.stack(masks).astype(np.uint8)
    if fraction is None:
        ds.SegmentationType = "BINARY"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
        ds.PixelData = pack_bits(stored)
    else:
        ds.SegmentationType, ds.MaximumFractionalValue = "FRACTIONAL", 255
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = _even(stored * np.uint8(fraction))
    ds["PixelData"].VR = "OB"
    ds.PerFrameFunctionalGroupsSequence = Items([_groups(image, frame) for image, frame in sources])
    return save_dicom(ds, path)


def region(
    box: tuple[int, int, int, int], delta: tuple[float, float], units: int = CENTIMETRES, form: int = 1
) -> Dataset:
    """A region of an ultrasound image: (top, left, bottom, right) in pixels, units per pixel (row, column)."""
    item = Dataset()
    item.RegionSpatialFormat = form
    item.RegionLocationMinY0, item.RegionLocationMinX0, item.RegionLocationMaxY1, item.RegionLocationMaxX1 = box
    item.PhysicalUnitsYDirection = item.PhysicalUnitsXDirection = units
    item.PhysicalDeltaY, item.PhysicalDeltaX = delta
    return item


def save_dicom(ds: Dataset, path: Path) -> Dataset:
    """Write it, as it stands, and give it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return ds


def _groups(image: Dataset, frame: int | None) -> Dataset:
    source, derivation, groups = Dataset(), Dataset(), Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if frame is not None:
        source.ReferencedFrameNumber = frame
    derivation.SourceImageSequence = Items([source])
    groups.DerivationImageSequence = Items([derivation])
    return groups


def _dataset(kind: str, syntax: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = kind, generate_uid()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = kind, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


def _pixel_data(ds: Dataset, frames: np.ndarray, syntax: str) -> bytes:
    if syntax == RLELossless:
        options = as_pixel_options(ds) | {"number_of_frames": 1}
        return encapsulate([RLELosslessEncoder.encode(frame, **options) for frame in frames])
    if syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        return encapsulate([_compressed(frame, syntax) for frame in frames])
    return _even(frames)


def _even(stored: np.ndarray) -> bytes:
    """Pixel data are as long as an even number."""
    data = stored.tobytes()
    return data + b"\0" * (len(data) % 2)


def _compressed(frame: np.ndarray, syntax: str) -> bytes:
    file = io.BytesIO()
    if syntax == JPEGBaseline8Bit:
        Image.fromarray(frame).save(file, "JPEG", quality=95)
    else:
        Image.fromarray(frame).save(file, "JPEG2000", irreversible=False, no_jp2=True)
    return file.getvalue()
