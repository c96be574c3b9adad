"""What an audit looks for: in each scan by itself, and between scans."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.duplicates import THRESHOLD, Pair
from data_pipeline.facts import ScanFacts, printable

NORMAL = "normal"
UNKNOWN = "unknown"
"""Labels that do not claim a lesion; every other one does."""

FULL = 0.9
"""A mask that covers more than this share of its image, or as much of the image's border, is full or inverted."""

SMALLEST_SIDE = 64
"""Pixels. A smaller image is tiny."""

WIDEST = 3.0
"""An image whose longer side is more than this many times its shorter one is extreme."""

SIZE_FACTOR = 2.5
"""A side is no outlier within this factor of the median, however alike the others are."""

LOWEST_CONTRAST = 5.0
"""Gray levels of standard deviation. An image below is nearly constant: black, white, or without a signal."""

MOST_COLOURED = 0.0002
"""Share of strongly coloured pixels above which an image is listed: calipers have that much."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at: the scans it is about, by key, or a file by name; and what is the matter, in words."""

    keys: tuple[str, ...]
    says: str


@dataclass(frozen=True, slots=True)
class Section:
    """All findings of one kind. name is for machines, title and meaning are for people."""

    name: str
    title: str
    meaning: str
    findings: tuple[Finding, ...]

    @property
    def keys(self) -> set[str]:
        """All scans or files named in it."""
        return {key for finding in self.findings for key in finding.keys}


# -- one scan --------------------------------------------------------------------------------------------------------


def _listed(scans: Iterable[ScanFacts], says: Callable[[ScanFacts], str | None]) -> tuple[Finding, ...]:
    """A finding for each scan of which there is something to say."""
    return tuple(Finding((scan.key,), said) for scan in scans if (said := says(scan)))


def mask_sections(scans: Sequence[ScanFacts]) -> Iterator[Section]:
    def empty(scan: ScanFacts) -> str | None:
        wrong = scan.files.masks and not scan.lesion and scan.label != NORMAL
        return f"its mask is empty, its label is {scan.label}" if wrong else None

    def missing(scan: ScanFacts) -> str | None:
        wrong = not scan.files.masks and scan.label not in (NORMAL, UNKNOWN)
        return f"has no mask, its label is {scan.label}" if wrong else None

    def unexpected(scan: ScanFacts) -> str | None:
        return f"its mask covers {scan.lesion:.1%}" if scan.lesion and scan.label == NORMAL else None

    def full(scan: ScanFacts) -> str | None:
        wrong = max(scan.lesion, scan.border) > FULL
        return f"its mask covers {scan.lesion:.1%}, and {scan.border:.0%} of the border" if wrong else None

    def speckled(scan: ScanFacts) -> str | None:
        return f"tiny pieces of its mask: {scan.specks} of {scan.pieces}" if scan.specks else None

    yield Section(
        "empty_masks",
        "Empty masks",
        "No lesion is drawn, and the label is not normal. Trained on, the scan teaches that there is none.",
        _listed(scans, empty),
    )
    yield Section(
        "missing_masks",
        "Lesions by label without a mask",
        "The label tells of a lesion, and there is no mask file.",
        _listed(scans, missing),
    )
    yield Section(
        "normal_with_lesion",
        "Normal by label, with a lesion",
        "The label or the mask is wrong.",
        _listed(scans, unexpected),
    )
    yield Section(
        "full_masks",
        "Full or inverted masks",
        f"The mask covers more than {FULL:.0%} of the image or of its border.",
        _listed(scans, full),
    )
    yield Section(
        "specks",
        "Masks with stray specks",
        "Pieces of a few pixels, or below a hundredth of the largest one: slips of a brush. "
        "They count as lesions in every distance between surfaces.",
        _listed(scans, speckled),
    )


def image_sections(scans: Sequence[ScanFacts]) -> Iterator[Section]:
    usual = _usual([scan.height for scan in scans]), _usual([scan.width for scan in scans])

    def odd(scan: ScanFacts) -> str | None:
        sides = scan.height, scan.width
        reasons = []
        if min(sides) < SMALLEST_SIDE:
            reasons.append("tiny")
        if max(sides) > WIDEST * min(sides):
            reasons.append(f"{max(sides) / min(sides):.1f} times as {'wide' if sides[1] > sides[0] else 'high'}")
        for name, side, (lowest, highest) in zip(("height", "width"), sides, usual, strict=True):
            if not lowest <= side <= highest:
                reasons.append(f"its {name} is far from the set's, {lowest:.0f} to {highest:.0f}")
        return f"{scan.height}x{scan.width}: {', '.join(reasons)}" if reasons else None

    def coloured(scan: ScanFacts) -> str | None:
        return f"{scan.coloured:.2%} of its pixels are coloured" if scan.coloured > MOST_COLOURED else None

    def flat(scan: ScanFacts) -> str | None:
        return f"contrast {scan.contrast:.1f} gray levels" if scan.contrast < LOWEST_CONTRAST else None

    yield Section(
        "odd_sizes",
        "Odd sizes",
        f"A side below {SMALLEST_SIDE} pixels, one side more than {WIDEST:g} times the other, or far from the others.",
        _listed(scans, odd),
    )
    yield Section(
        "coloured",
        "Images with colour",
        "Colour Doppler, elastography, or coloured marks, which become gray like tissue.",
        _listed(scans, coloured),
    )
    yield Section(
        "flat",
        "Nearly constant images",
        f"Black, white or without a signal: below {LOWEST_CONTRAST:g} gray levels of standard deviation.",
        _listed(scans, flat),
    )


def _usual(sides: Sequence[int]) -> tuple[float, float]:
    """The range beyond which a side is an outlier: three quartile ranges of its logarithm away from the quartiles."""
    if not sides:
        return 0.0, np.inf
    lower, median, upper = np.quantile(np.log(sides), (0.25, 0.5, 0.75))
    reach = 3 * (upper - lower)
    lowest = min(lower - reach, median - np.log(SIZE_FACTOR))
    highest = max(upper + reach, median + np.log(SIZE_FACTOR))
    return float(np.exp(lowest)), float(np.exp(highest))


# -- scans beside each other -----------------------------------------------------------------------------------------


def double_sections(
    scans: Sequence[ScanFacts], pairs: Sequence[Pair], groups: Sequence[list[int]]
) -> Iterator[Section]:
    of_digest: defaultdict[bytes, list[ScanFacts]] = defaultdict(list)
    for scan in scans:
        of_digest[scan.digest].append(scan)
    identical = [same for same in of_digest.values() if len(same) > 1]
    owner = {place: number for number, group in enumerate(groups) for place in group}
    alike: defaultdict[int, list[Pair]] = defaultdict(list)
    for first, second, correlation in pairs:
        if scans[first].digest != scans[second].digest:
            alike[owner[first]].append((first, second, correlation))
    grouped = [[scans[place] for place in group] for group in groups]

    yield Section(
        "identical",
        "Pixel-identical scans",
        "The same image under several keys.",
        _across_patients_first(
            (same, f"{len(same)} equal images{', masks differ' if _masks_differ(same) else ''}{_whose(same)}")
            for same in identical
        ),
    )
    yield Section(
        "near_duplicates",
        "Near-duplicate scans",
        f"Gray thumbnails that correlate above {THRESHOLD:g}, directly or through others. "
        "Between training and validation they are a leak.",
        _across_patients_first(
            (grouped[number], _correlations(between, scans) + _whose(grouped[number]))
            for number, between in alike.items()
        ),
    )
    yield Section(
        "conflicting_labels",
        "Duplicates with conflicting labels",
        "One image, or nearly one, and several labels.",
        tuple(_finding(group, _counts("label", _labels(group))) for group in grouped if len(_labels(group)) > 1),
    )
    yield Section(
        "shared_patients",
        "Duplicates of several patients",
        "Patients that share an image are one patient, or one of them has another's image. "
        "They have to be in one fold.",
        tuple(_finding(group, _counts("patient", _patients(group))) for group in grouped if len(_patients(group)) > 1),
    )


def split_section(scans: Sequence[ScanFacts], groups: Sequence[list[int]]) -> Section:
    """Owners whose scans the set's own folds tear apart."""
    owned: defaultdict[tuple[str, str], list[ScanFacts]] = defaultdict(list)
    for scan in scans:
        owned["patient", scan.patient].append(scan)
        if scan.files.group != scan.files.patient:
            owned["group", printable(scan.files.group)].append(scan)
    for group in groups:
        owned["duplicates of", scans[group[0]].key] = [scans[place] for place in group]
    findings = []
    for (kind, name), members in owned.items():
        folds = sorted({scan.files.fold for scan in members if scan.files.fold is not None})
        if len(folds) > 1:
            findings.append(_finding(members, f"{kind} {name}: folds {', '.join(map(str, folds))}"))
    return Section(
        "split_by_folds",
        "Torn apart by the set's own folds",
        "A patient, a group or duplicates in several official folds: a leak. Ingest divides anew with --folds.",
        tuple(findings),
    )


def _finding(scans: Iterable[ScanFacts], says: str) -> Finding:
    return Finding(tuple(scan.key for scan in scans), says)


def _across_patients_first(findings: Iterable[tuple[list[ScanFacts], str]]) -> tuple[Finding, ...]:
    ordered = sorted(findings, key=lambda finding: (len(_patients(finding[0])) == 1, finding[0][0].key))
    return tuple(_finding(scans, says) for scans, says in ordered)


def _correlations(pairs: Sequence[Pair], scans: Sequence[ScanFacts]) -> str:
    """Each pair's where they are few, else from which to which."""
    if len(pairs) == 1:
        return f"correlation {pairs[0][2]:.3f}"
    if len(pairs) <= 3:
        each = ", ".join(f"{scans[i].key} and {scans[j].key} {correlation:.3f}" for i, j, correlation in pairs)
        return f"correlations: {each}"
    found = [correlation for *_, correlation in pairs]
    return f"correlations {min(found):.3f} to {max(found):.3f} in {len(pairs)} pairs"


def _whose(scans: Sequence[ScanFacts]) -> str:
    patients = len(_patients(scans))
    return f", of {patients} patients" if patients > 1 else ", of one patient"


def _masks_differ(scans: Iterable[ScanFacts]) -> bool:
    return len({scan.mask_digest for scan in scans}) > 1


def _labels(scans: Iterable[ScanFacts]) -> Counter[str]:
    return Counter(scan.label for scan in scans if scan.label != UNKNOWN)


def _patients(scans: Iterable[ScanFacts]) -> Counter[str]:
    return Counter(scan.patient for scan in scans)


def _counts(kind: str, counts: Counter[str]) -> str:
    return f"{kind}s " + ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
