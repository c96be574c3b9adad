"""What is wrong with a folder of scans, found before it is ingested: broken files, odd masks, doubles, leaks.

An audit judges nothing and changes nothing. Each of its sections lists the scans that a person should look at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_pipeline.checks import Finding, Section, double_sections, image_sections, mask_sections, split_section
from data_pipeline.duplicates import SIDE, Pair, Thumbnail, duplicate_groups, near_duplicates, with_identical
from data_pipeline.facts import ScanFacts, measure, printable
from data_pipeline.faults import Refused
from data_pipeline.scan import Findings, ScanFiles

Read = tuple[ScanFacts, Thumbnail] | tuple[str, str]
"""What is known of a scan, or its key and why it was refused."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is distributed: its quartiles."""

    smallest: float
    lower: float
    median: float
    upper: float
    largest: float


@dataclass(frozen=True, slots=True)
class Overview:
    """What a set is, as far as it can be read. height and width in pixels, lesion_area as a share of the image among
    the scans of a label that have a lesion; folds are the set's own.
    """

    scans: int
    patients: int
    labels: dict[str, int]
    folds: dict[int, int]
    with_lesion: int
    with_spacing: int
    height: Spread | None
    width: Spread | None
    lesion_area: dict[str, Spread]


@dataclass(frozen=True, slots=True)
class Audit:
    """scans holds the readable ones by key; pairs all near-duplicates as (key, key, correlation), identical ones
    included; groups those that pairs join, each in the order of keys.
    """

    overview: Overview
    scans: dict[str, ScanFacts]
    sections: tuple[Section, ...]
    pairs: tuple[tuple[str, str, float], ...]
    groups: tuple[tuple[str, ...], ...]


def audit(found: Findings, workers: int, watched: Callable[[Iterator[Read]], Iterable[Read]] = iter) -> Audit:
    """Read every scan once, on so many threads, and look for what is wrong with it and between scans.

    Pixels are dropped as soon as they are measured: about 10 KB a scan stay. watched is given each scan's outcome as
    it comes, in the order of found, and passes it on.
    """
    scans, thumbnails, broken = _read(found, workers, watched)
    pairs = with_identical(near_duplicates(thumbnails), [scan.digest for scan in scans])
    groups = _groups(len(scans), pairs)
    keys = [scan.key for scan in scans]
    return Audit(
        overview=_overview(scans),
        scans={scan.key: scan for scan in scans},
        sections=(
            Section("broken", "Broken pairs and files", "Left out at ingest, for this reason.", broken),
            *mask_sections(scans),
            *image_sections(scans),
            *double_sections(scans, pairs, groups),
            split_section(scans, groups),
        ),
        pairs=tuple((keys[first], keys[second], correlation) for first, second, correlation in pairs),
        groups=tuple(tuple(keys[place] for place in group) for group in groups),
    )


def _read(
    found: Findings, workers: int, watched: Callable[[Iterator[Read]], Iterable[Read]]
) -> tuple[list[ScanFacts], Thumbnail, tuple[Finding, ...]]:
    """The readable scans with their thumbnails [N, 2304], and what is refused by the layout or on reading."""
    scans: list[ScanFacts] = []
    refused = dict(found.refused)
    thumbnails = np.empty((len(found.scans), SIDE * SIDE), dtype=np.float32)
    pool = ThreadPoolExecutor(workers)
    try:
        for first, second in watched(pool.map(_outcome, found.scans)):
            if isinstance(first, ScanFacts):
                thumbnails[len(scans)] = second
                scans.append(first)
            else:
                refused[first] = str(second)
    finally:
        pool.shutdown(cancel_futures=True)
    broken = tuple(Finding((printable(name),), printable(reason)) for name, reason in sorted(refused.items()))
    return scans, thumbnails[: len(scans)], broken


def _outcome(files: ScanFiles) -> Read:
    try:
        return measure(files)
    except Refused as reason:
        return files.key, str(reason)


def _groups(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The places of the scans of each group that has more than one."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(duplicate_groups(count, pairs)):
        members[group].append(place)
    return [group for group in members.values() if len(group) > 1]


# -- the set as a whole ----------------------------------------------------------------------------------------------


def _overview(scans: Sequence[ScanFacts]) -> Overview:
    folds = Counter(scan.files.fold for scan in scans if scan.files.fold is not None)
    lesions: defaultdict[str, list[float]] = defaultdict(list)
    for scan in scans:
        if scan.lesion:
            lesions[scan.label].append(scan.lesion)
    return Overview(
        scans=len(scans),
        patients=len({scan.patient for scan in scans}),
        labels=dict(sorted(Counter(scan.label for scan in scans).items())),
        folds=dict(sorted(folds.items())),
        with_lesion=sum(scan.lesion > 0 for scan in scans),
        with_spacing=sum(scan.files.spacing is not None for scan in scans),
        height=_spread([scan.height for scan in scans]) if scans else None,
        width=_spread([scan.width for scan in scans]) if scans else None,
        lesion_area={label: _spread(areas) for label, areas in sorted(lesions.items())},
    )


def _spread(values: Sequence[float]) -> Spread:
    smallest, lower, median, upper, largest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Spread(smallest, lower, median, upper, largest)
