"""DICOM: images and cine loops, their masks as segmentations or by name, patients by digest only."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset

from data_pipeline.dicom import SEGMENTATIONS, frame_count, is_dicom, read_header, references, spacing
from data_pipeline.faults import WrongCall
from data_pipeline.layouts.folder_table import FolderTable, read_folder_table
from data_pipeline.layouts.listing import list_files
from data_pipeline.layouts.pairs import CLASSES
from data_pipeline.pixels import UnreadableImage
from data_pipeline.scan import Findings, ScanFiles, without_clashes

_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
_DIRECTORY = "1.2.840.10008.1.3.10"
_IMAGE_FOLDERS = ("images", "image")
_MASK_FOLDERS = ("masks", "mask")
_MARKED = re.compile(r"(.+?)_masks?(?:_\d+)?")
_NUMBERED = re.compile(r"(.+)_frame(\d+)")

Place = tuple[str, ...]
"""The folders of a file below its source, without those that only say image or mask, and its stem; in lower case."""

Refuse = Callable[[Path, str], None]
Source = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image file, and the masks of its frames, counted from 0."""

    path: Path
    place: Place
    instance: str
    patient: str
    group: str
    spacing: tuple[float, float] | None
    frames: int
    masks: dict[int, list[Path]] = field(default_factory=dict)

    def add(self, mask: Path, frames: range) -> None:
        """Let a file be a mask of these frames."""
        for frame in frames:
            self.masks.setdefault(frame, []).append(mask)


def find(source: Path) -> Findings:
    """Each frame that has a mask, of every DICOM image below the source, known by its content and not its name.

    Masks are DICOM segmentations, which tell the image and frame they belong to (all of their segments are lesion),
    and files named for an image NAME: NAME_mask or NAME_mask_1, .dcm or .png, beside it, or NAME in a folder masks/
    beside it or beside its folder images/. A DICOM mask of a cine loop has as many frames as that; a PNG names its
    frame, as NAME_frame003_mask.png does, counted from 1 as DICOM counts. All masks of a frame are united.
    A frame without a mask is not taken for a normal one, but left out, and its file refused with their number; where
    the label is normal, it has no lesion. Labels are those of a table as layout folder has it (scans.csv, columns file
    and label), else the innermost folder benign, malignant or normal, else "unknown".

    Keys, patients (PatientID and its issuer, else the study) and groups (the series) are digests, so no identifier is
    written in clear; who knows an identifier can still find its digest. Text burned into the image stays there, and
    refused files are named as they are. DICOMDIR is passed over; other DICOM files without an image are refused.
    Raises WrongCall where there is no DICOM image, and for a table that cannot be used.
    """
    files, refused = list_files(source)

    def refuse(path: Path, reason: str) -> None:
        refused[path.relative_to(source).as_posix()] = reason

    images: list[_Image] = []
    segmentations: dict[Path, list[Source]] = {}
    masks: dict[Path, int] = {}
    for path in files:
        try:
            if not is_dicom(path) and path.suffix.lower() not in _SUFFIXES:
                if path.suffix.lower() == ".png":
                    masks[path] = 1
                continue
            header = read_header(path)
            kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
            if kind in SEGMENTATIONS:
                segmentations[path] = references(header)
            elif kind == _DIRECTORY:
                continue
            elif not header.get("Rows") or not header.get("Columns"):
                refuse(path, "holds no image")
            elif _is_mask(path, source):
                masks[path] = frame_count(header)
            else:
                images.append(_image(path, header, source))
        except UnreadableImage as reason:
            refuse(path, str(reason))
    if not images:
        raise WrongCall(f"{source} holds no DICOM image that can be read: looked for files that begin as DICOM does")

    _add_segmentations(images, segmentations, refuse)
    _add_named(images, masks, source, refuse)
    table = read_folder_table(files, {image.path: _digest(image.instance) for image in images}, source)
    refused |= table.refused
    kept = without_clashes([scan for image in images for scan in _scans(image, table, refuse)])
    return Findings(kept.scans, refused | kept.refused)


def _image(path: Path, header: Dataset, source: Path) -> _Image:
    instance = str(header.get("SOPInstanceUID") or "")
    if not instance:
        raise UnreadableImage("has no SOPInstanceUID to name it by")
    study = str(header.get("StudyInstanceUID") or "")
    patient = str(header.get("PatientID") or "").strip()
    if patient:
        patient = f"patient-{_digest(patient, str(header.get('IssuerOfPatientID') or '').strip())}"
    else:
        patient = f"study-{_digest(study)}" if study else f"image-{_digest(instance)}"
    group = f"series-{_digest(str(header.get('SeriesInstanceUID') or instance))}"
    return _Image(path, _place(path, source), instance, patient, group, spacing(header), frame_count(header))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _scans(image: _Image, table: FolderTable, refuse: Refuse) -> Iterator[ScanFiles]:
    """The frames of an image that are annotated."""
    if image.path in table.unclear:
        refuse(image.path, table.unclear[image.path])
        return
    label = table.rows.get(image.path, {}).get("label", "").lower()
    if not label:
        label = next((folder for folder in reversed(image.place[:-1]) if folder in CLASSES), "unknown")
    frames = range(image.frames) if label == "normal" else sorted(image.masks)
    if not frames:
        refuse(image.path, "has no mask")
    elif len(frames) < image.frames:
        refuse(image.path, f"{image.frames - len(frames)} of its {image.frames} frames have no mask and are left out")
    for frame in frames:
        key = _digest(image.instance) + (f"-f{frame + 1:04d}" if image.frames > 1 else "")
        masks = tuple(image.masks.get(frame, ()))
        yield ScanFiles(key, image.path, masks, image.patient, image.group, label, image.spacing, frame=frame)


# -- masks -----------------------------------------------------------------------------------------------------------


def _add_segmentations(images: list[_Image], segmentations: Mapping[Path, list[Source]], refuse: Refuse) -> None:
    """Give each segmentation to the frames that it refers to."""
    by_instance: dict[str, _Image] = {}
    for image in images:
        by_instance.setdefault(image.instance, image)
    for path, sources in segmentations.items():
        known = [(by_instance[instance], frames) for instance, frames in sources if instance in by_instance]
        if not known:
            refuse(path, "segments no image that lies here")
            continue
        for image, frames in known:
            if not frames and image.frames > 1:
                refuse(path, f"does not say which of the {image.frames} frames of {image.path.name} it segments")
            elif any(not 0 <= frame < image.frames for frame in frames):
                refuse(path, f"segments a frame that {image.path.name} does not have, which holds {image.frames}")
            else:
                for frame in frames or (0,):
                    if path not in image.masks.get(frame, ()):
                        image.add(path, range(frame, frame + 1))


def _add_named(images: list[_Image], masks: Mapping[Path, int], source: Path, refuse: Refuse) -> None:
    """Give each mask file, of so many frames, to the image that it is named for."""
    by_place: defaultdict[Place, list[_Image]] = defaultdict(list)
    for image in images:
        by_place[image.place].append(image)
    named: list[tuple[Path, _Image, int | None]] = []
    for path in masks:
        if not _is_mask(path, source):
            refuse(path, "is neither DICOM nor named as a mask is")
            continue
        found = [(by_place[place], number) for place, number in _targets(path, source) if place in by_place]
        if not found:
            refuse(path, "has no image")
        elif len(found[0][0]) > 1:
            refuse(path, f"is named for {len(found[0][0])} images at once; give them names that differ")
        else:
            named.append((path, found[0][0][0], found[0][1]))

    from_zero = {image.path for _, image, number in named if number == 0}
    for path, image, number in named:
        if number is None and masks[path] == image.frames:
            image.add(path, range(image.frames))
        elif number is None and masks[path] == 1:
            refuse(path, f"is one mask for the {image.frames} frames of {image.path.name}; name its frame in its name")
        elif number is None:
            refuse(path, f"holds {masks[path]} frames, its image {image.path.name} {image.frames}")
        elif image.path in from_zero:
            refuse(path, f"is named for a frame, which count from 1, but a mask of {image.path.name} names frame 0")
        elif number > image.frames or masks[path] > 1:
            refuse(path, f"is no mask of one frame of {image.path.name}, which holds {image.frames}")
        else:
            image.add(path, range(number - 1, number))


def _is_mask(path: Path, source: Path) -> bool:
    """Whether a file's name, or the innermost folder that says image or mask, says that it is a mask."""
    if _MARKED.fullmatch(_stem(path)):
        return True
    roles = [name for name in _folders(path, source) if name in _IMAGE_FOLDERS + _MASK_FOLDERS]
    return bool(roles) and roles[-1] in _MASK_FOLDERS


def _targets(path: Path, source: Path) -> Iterator[tuple[Place, int | None]]:
    """The places of images that a mask may be named for, the likelier first; each with the frame that it names."""
    *home, stem = _place(path, source)
    marked = _MARKED.fullmatch(stem)
    name = marked[1] if marked else stem
    yield (*home, name), None
    if numbered := _NUMBERED.fullmatch(name):
        yield (*home, numbered[1]), int(numbered[2])


def _place(path: Path, source: Path) -> Place:
    home = (name for name in _folders(path, source) if name not in _IMAGE_FOLDERS + _MASK_FOLDERS)
    return (*home, _stem(path))


def _folders(path: Path, source: Path) -> list[str]:
    return [name.lower() for name in path.relative_to(source).parts[:-1]]


def _stem(path: Path) -> str:
    """The name without a suffix that says what kind of file it is; a UID keeps its last number."""
    return (path.stem if path.suffix.lower() in (*_SUFFIXES, ".png") else path.name).lower()
