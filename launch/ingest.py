"""A folder of raw scans to a dataset: every scan is decoded once before the first byte is written."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import (
    Fault,
    Findings,
    Index,
    Refused,
    Scan,
    ScanFiles,
    WrongCall,
    open_store,
    read_scan,
    require_free,
    write_dataset,
)
from data_pipeline.duplicates import (
    Thumbnail,
    duplicate_groups,
    near_duplicates,
    pixel_digest,
    thumbnail,
    with_identical,
)
from data_pipeline.folds import assign_folds, joined_groups, keeps_official
from data_pipeline.layouts import find_scans
from data_pipeline.objectstore import FolderStore
from data_pipeline.ordered import in_order
from data_pipeline.splits import read_splits, require_apart, require_known, require_whole
from launch.cores import usable_cores
from launch.terminal import with_progress

NAMED = 3
"""Scans or groups that a line names; the rest is counted."""

KEPT_BYTES = 1 << 29
"""Of scans that are kept from their first reading to be written; a set that needs more is decoded twice in part."""

BYTES_A_PIXEL = {"png": 0.45, "npy": 1.0}
"""At the least, of B-mode images: what the room on a disk is judged by before anything is written."""

BYTES_A_SCAN = 3000
"""Of its mask, its description, and the tar around them."""


@dataclass(frozen=True, slots=True)
class Ingestion:
    """What to ingest, where to, and how. folds None keeps those of the scans' own set, if it has some; splits is a
    file that says them.
    """

    layout: str
    source: Path
    destination: str
    name: str
    folds: int | None
    splits: Path | None
    codec: str
    shard_mb: int
    strict: bool


@dataclass(frozen=True, slots=True)
class Ingested:
    """What was written, and what was found out on the way.

    areas is each key's lesion as a fraction of its image, duplicates the keys of each group of near-duplicates, and
    overruled has the official fold of each key that is in another one, because of its patient or near-duplicates.
    """

    index: Index
    areas: dict[str, float]
    duplicates: list[list[str]]
    overruled: dict[str, int]


def ingest(wanted: Ingestion, tell: Callable[[str], None]) -> Ingested:
    """Write the dataset, leaving out scans that cannot be used.

    Near-duplicates get one group, whatever their layout says, and no patient or group is in two folds: official folds
    give way (see assign_folds), a file of splits is refused. Scans lie in the order of their folds and keys.

    Raises WrongCall where the source has no scans, the destination is taken or too small, or the splits do not fit;
    and Fault for the first scan that cannot be used where `strict` says so. In all these cases nothing is written.
    """
    splits = None if wanted.splits is None else read_splits(wanted.splits)
    found = find_scans(wanted.layout, wanted.source)
    if wanted.splits is not None and splits is not None:
        require_known(wanted.splits, splits, [files.key for files in found.scans])
        require_apart(wanted.splits, splits, found.scans)
    require_free(open_store(wanted.destination))
    tell(f"{len(found.scans)} scans found in {wanted.source}; each is read once before anything is written")
    readings, refused, kept = _read(found, wanted.strict)
    if not readings:
        raise WrongCall(f"{wanted.source}: none of {len(found.scans)} scans can be read; nothing is written")

    scans, duplicates = _grouped(readings)
    _tell_of_doubles(readings, duplicates, tell)
    areas = {reading.files.key: reading.area for reading in readings}
    overruled: dict[str, int] = {}
    if wanted.splits is not None and splits is not None:
        require_whole(wanted.splits, splits, scans)
        require_apart(wanted.splits, splits, scans)
        folds = {files.key: splits[files.key] for files in scans}
    else:
        folds = assign_folds(scans, wanted.folds, areas=areas)
        if keeps_official(scans, wanted.folds):
            overruled = {files.key: files.fold for files in scans if files.fold not in (None, folds[files.key])}
            _tell_of_overruled(overruled, folds, tell)

    _require_room(wanted, readings)
    index = _write(wanted, sorted(scans, key=lambda files: (folds[files.key], files.key)), folds, refused, kept)
    return Ingested(index, areas, duplicates, overruled)


def facts_of_folds(ingested: Ingested) -> list[dict[str, Any]]:
    """Of each fold its number, scans, patients, labels (each to its count) and lesion_area, the mean of its scans
    that have a lesion, as a fraction of the image.
    """
    samples = ingested.index.samples
    labels = sorted({sample.label for sample in samples})
    facts = []
    for fold in sorted({sample.fold for sample in samples}):
        held = [sample for sample in samples if sample.fold == fold]
        counts = Counter(sample.label for sample in held)
        lesions = [area for sample in held if (area := ingested.areas[sample.key])]
        facts.append(
            {
                "fold": fold,
                "scans": len(held),
                "patients": len({sample.patient for sample in held}),
                "labels": {label: counts[label] for label in labels},
                "lesion_area": sum(lesions) / max(1, len(lesions)),
            }
        )
    return facts


# -- the first reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What is kept of a scan that can be read. area is the lesion's fraction of the image; digests are equal where
    pixels are.
    """

    files: ScanFiles
    pixels: int
    area: float
    digest: bytes
    thumbnail: Thumbnail


def _read(found: Findings, strict: bool) -> tuple[list[_Reading], dict[str, str], dict[str, Scan]]:
    """The scans whose files can be decoded, the reason of each one whose cannot, and as many scans as may be kept."""
    refused: dict[str, str] = {}

    def refuse(name: str, reason: str) -> None:
        if strict:
            raise Fault(f"{name}: {reason}; nothing is written (without --strict it is left out and named)")
        refused[name] = reason

    for name, reason in found.refused.items():
        refuse(name, reason)
    readings: list[_Reading] = []
    kept: dict[str, Scan] = {}
    room = KEPT_BYTES
    outcomes = in_order(_outcome, found.scans, usable_cores().count)
    for files, outcome in zip(found.scans, with_progress(outcomes, "scans read", len(found.scans)), strict=True):
        if isinstance(outcome, Refused):
            refuse(files.key, str(outcome))
            continue
        reading, scan = outcome
        readings.append(reading)
        room -= scan.image.nbytes + scan.mask.nbytes
        if room >= 0:
            kept[files.key] = scan
    return readings, refused, kept


def _outcome(files: ScanFiles) -> tuple[_Reading, Scan] | Refused:
    try:
        scan = read_scan(files)
    except Refused as reason:
        return reason
    digest = pixel_digest(scan.image)
    return _Reading(files, scan.image.size, float(scan.mask.mean()), digest, thumbnail(scan.image)), scan


# -- near-duplicates -------------------------------------------------------------------------------------------------


def _grouped(readings: Sequence[_Reading]) -> tuple[list[ScanFiles], list[list[str]]]:
    """The scans, near-duplicates in one group, and the keys of each group of near-duplicates."""
    thumbnails = np.stack([reading.thumbnail for reading in readings])
    pairs = with_identical(near_duplicates(thumbnails), [reading.digest for reading in readings])
    alike = duplicate_groups(len(readings), pairs)
    found = [reading.files for reading in readings]
    scans = [replace(files, group=group) for files, group in zip(found, joined_groups(found, alike), strict=True)]
    return scans, _repeated((number, files.key) for number, files in zip(alike, found, strict=True))


def _tell_of_doubles(
    readings: Sequence[_Reading], duplicates: Sequence[Sequence[str]], tell: Callable[[str], None]
) -> None:
    if duplicates:
        count = sum(len(group) for group in duplicates)
        groups = _listed(["=".join(group) for group in duplicates])
        tell(f"near-duplicates: {count} scans in {len(duplicates)} groups, each kept in one fold: {groups}")
    labels = {reading.files.key: reading.files.label for reading in readings}
    identical = _repeated((reading.digest, reading.files.key) for reading in readings)
    if conflicts := [keys for keys in identical if len({labels[key] for key in keys}) > 1]:
        named = _listed(["=".join(f"{key} ({labels[key]})" for key in keys) for keys in conflicts])
        tell(f"identical pixels under several labels, all kept (`sonotrain data audit` tells more): {named}")


def _tell_of_overruled(overruled: dict[str, int], folds: dict[str, int], tell: Callable[[str], None]) -> None:
    if overruled:
        moved = _listed([f"{key} (from {fold} to {folds[key]})" for key, fold in overruled.items()])
        tell(
            "official folds overruled where a patient or near-duplicates are in several: all are in the fold that had "
            f"most of them, {len(overruled)} moved: {moved}"
        )


def _repeated(named: Iterable[tuple[object, str]]) -> list[list[str]]:
    """The names that come with one and the same thing, where these are several."""
    names: defaultdict[object, list[str]] = defaultdict(list)
    for thing, name in named:
        names[thing].append(name)
    return [of_thing for of_thing in names.values() if len(of_thing) > 1]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


# -- writing ---------------------------------------------------------------------------------------------------------


def _require_room(wanted: Ingestion, readings: Sequence[_Reading]) -> None:
    """Raise WrongCall where the dataset cannot fit on the disk that its folder is on."""
    store = open_store(wanted.destination)
    if isinstance(store, FolderStore):
        pixels = sum(reading.pixels for reading in readings)
        needed = int(BYTES_A_PIXEL[wanted.codec] * pixels) + BYTES_A_SCAN * len(readings)
        free = shutil.disk_usage(store.uri).free
        if free < needed:
            raise WrongCall(
                f"{store.uri} has {free / 1e6:,.1f} MB free and the dataset needs {needed / 1e6:,.1f} MB at least; "
                "make room or name another place"
            )


def _write(
    wanted: Ingestion,
    scans: Sequence[ScanFiles],
    folds: dict[str, int],
    refused: dict[str, str],
    kept: dict[str, Scan],
) -> Index:
    """Write, after decoding again what was not kept, on all cores and a few scans ahead; kept ends empty."""

    def decoded(files: ScanFiles) -> Scan:
        scan = kept.pop(files.key, None)
        return read_scan(files) if scan is None else replace(scan, group=files.group)

    ahead = with_progress(in_order(decoded, scans, usable_cores().count), "scans written", len(scans))
    try:
        return write_dataset(wanted.destination, wanted.name, ahead, folds, refused, wanted.codec, wanted.shard_mb)
    except OSError as failed:
        if failed.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        scratch = tempfile.gettempdir()
        raise Fault(f"{scratch}: {failed.strerror}; make room or set TMPDIR. Nothing is published") from failed
