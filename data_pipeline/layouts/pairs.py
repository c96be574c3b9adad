"""Images and their masks, paired by the names of files and folders."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.scan import Findings, ScanFiles, without_clashes

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
CLASSES = ("benign", "malignant", "normal")

_IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_MASK_FOLDERS = {"masks", "mask", "labels", "label", "annotations", "annotation", "gt"}
_MARKED = re.compile(r"(.+?)[ _.-]+(masks?|seg|gt|label|lesion|tumou?r)(?:[ _.-]*(\d+))?", re.IGNORECASE)

Place = tuple[str, ...]
"""The folders of a file below its source, without those that only say image or mask; then its stem, where it has one.

Written as names are compared: in one case, and with an umlaut as one letter, whichever way the file system has it.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its masks, in the order of their numbers; there may be none.

    home: the folders below the source, as they are written, without images/ or masks/.
    """

    home: tuple[str, ...]
    image: Path
    masks: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _MaskFile:
    """A mask by what tells it from the others of its image. number is "" for the only or first one."""

    path: Path
    mark: str
    number: str


def pair_files(files: Iterable[Path], source: Path) -> tuple[list[Pair], dict[str, str]]:
    """The images among these files with their masks; and each that can belong to no pair, with the reason.

    Two ways of naming are known, and may be mixed: masks/NAME.png beside images/NAME.png (or beside NAME.png), and
    NAME_mask.png beside NAME.png. images/ and masks/ may lie at any depth, also above folders of their own, and have
    any of the usual names. A mask may be numbered (NAME_mask_1.png); all numbers of an image belong to it.
    Where names leave open which mask or image is meant, the image is refused.
    """
    images, masks, refused = _sorted_out([path for path in files if path.suffix.lower() in SUFFIXES], source)
    pairs = []
    for place, found in images.items():
        against = _ambiguity(found, masks[place], source)
        if against:
            refused |= {below(source, image): against for image in found}
            refused |= {below(source, mask.path): f"cannot be used: {found[0].name} {against}" for mask in masks[place]}
        else:
            numbered = sorted(masks[place], key=lambda mask: (len(mask.number), mask.number))
            pairs.append(Pair(_home(found[0], source), found[0], tuple(mask.path for mask in numbered)))
    return pairs, refused


def findings_of(scans: Iterable[ScanFiles], refused: dict[str, str], source: Path) -> Findings:
    """These scans, without those that have no mask although they are not normal, or the key of another."""
    usable = []
    for scan in scans:
        if scan.masks or scan.label == "normal":
            usable.append(scan)
        else:
            refused[below(source, scan.image)] = "has no mask"
    kept = without_clashes(usable)
    return Findings(kept.scans, refused | kept.refused)


def below(source: Path, path: Path) -> str:
    """A file as refusals name it: by its path below the source."""
    return path.relative_to(source).as_posix()


def class_folders(home: tuple[str, ...]) -> set[str]:
    """The classes that folders are named for."""
    return {same(folder) for folder in home} & set(CLASSES)


def place_of(path: Path, source: Path) -> Place:
    """Where an image or mask belongs: its home and stem, as names are compared."""
    return tuple(same(part) for part in (*_home(path, source), path.stem))


def same(name: str) -> str:
    """A name as names are compared."""
    return unicodedata.normalize("NFC", name).casefold()


def _sorted_out(
    files: list[Path], source: Path
) -> tuple[dict[Place, list[Path]], dict[Place, list[_MaskFile]], dict[str, str]]:
    """Images and masks by the place of the image, and the masks whose image is missing."""
    in_mask_folder = {path: place_of(path, source) for path in files if _is_in_mask_folder(path, source)}
    beside = {path: place_of(path, source) for path in files if path not in in_mask_folder}
    marked = {path: match for path in files if (match := _MARKED.fullmatch(path.stem))}
    base = {path: (*place_of(path, source)[:-1], same(match[1])) for path, match in marked.items()}

    # A name like "left tumor" may be a mask of "left", or an image: it is one if nothing is called "left", and
    # something is named for it as a mask is.
    wanted = set(in_mask_folder.values()) | set(base.values())
    places = set(beside.values())
    images: dict[Place, list[Path]] = defaultdict(list)
    for path, place in beside.items():
        if path not in marked or (base[path] not in places and place in wanted):
            images[place].append(path)

    masks: dict[Place, list[_MaskFile]] = defaultdict(list)
    refused = {}
    for path in files:
        if path in in_mask_folder and in_mask_folder[path] in images:
            masks[in_mask_folder[path]].append(_MaskFile(path, "", ""))
        elif path in marked and base[path] in images:
            masks[base[path]].append(_MaskFile(path, marked[path][2].lower(), marked[path][3] or ""))
        elif path in in_mask_folder or beside[path] not in images:
            refused[below(source, path)] = (
                f"has no image: {marked[path][1] if path in marked else path.stem} is missing"
            )
    return images, masks, refused


def _ambiguity(images: list[Path], masks: list[_MaskFile], source: Path) -> str | None:
    """Why it is open which mask belongs to which image, or None."""
    if len(images) > 1:
        return f"is one of {len(images)} images of one name: {_listed(images, source)}"
    if len({(mask.path.parent, mask.mark) for mask in masks}) > 1:
        return f"has masks of several kinds, and it is open which is meant: {_listed([m.path for m in masks], source)}"
    if len({mask.number for mask in masks}) < len(masks):
        return f"has several masks of one name: {_listed([mask.path for mask in masks], source)}"
    return None


def _listed(paths: list[Path], source: Path) -> str:
    return ", ".join(below(source, path) for path in paths)


def _home(path: Path, source: Path) -> tuple[str, ...]:
    folders = path.relative_to(source).parts[:-1]
    return tuple(folder for folder in folders if same(folder) not in _IMAGE_FOLDERS | _MASK_FOLDERS)


def _is_in_mask_folder(path: Path, source: Path) -> bool:
    """Whether the innermost folder that says image or mask says mask."""
    for folder in reversed(path.relative_to(source).parts[:-1]):
        if same(folder) in _IMAGE_FOLDERS | _MASK_FOLDERS:
            return same(folder) in _MASK_FOLDERS
    return False
