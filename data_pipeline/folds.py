"""Folds for cross-validation: no patient and no group in two of them, labels and lesion areas spread evenly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipeline.faults import WrongCall

USUAL_COUNT = 5

_WHOLE = 1 << 28
"""All scans' share of a trait; its square, times hundreds of traits, is within 64 bits."""

Components = NDArray[np.int32]


class Foldable(Protocol):
    """What of a scan decides its fold. ScanFiles have besides these a fold of their set's own, or None."""

    @property
    def key(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def label(self) -> str: ...


def assign_folds(
    scans: Sequence[Foldable], count: int | None, seed: int = 0, areas: Mapping[str, float] | None = None
) -> dict[str, int]:
    """The fold of each key, counted from 1; no fold is empty. A function of the scans, whatever their order, and seed.

    Scans that share a patient or a group, also through other scans, stay together. The folds of the scans' own set
    are kept where count is None or their number, but for one thing: where such scans are in several of them, all go
    to the fold that has most of them, the first of equals. A scan without an official fold joins those that it
    belongs to, else the smallest fold. Otherwise the scans are divided anew, into five by default, stratified by
    label and, where areas gives each key's lesion as a fraction of its image (0 for none), by area within a label.

    Raises WrongCall for fewer than two folds, fewer unrelated patients than folds, and official folds that are not
    numbered from 1 or of which one is left empty (unless count asks for others).
    """
    ordered = sorted(scans, key=lambda scan: scan.key)
    components = _components([scan.patient for scan in ordered], [scan.group for scan in ordered])
    if keeps_official(ordered, count):
        folds = _joined([_official(scan) for scan in ordered], components)
    else:
        folds = _divided(ordered, components, USUAL_COUNT if count is None else count, seed, areas)
    return {scan.key: fold for scan, fold in zip(ordered, folds, strict=True)}


def keeps_official(scans: Sequence[Foldable], count: int | None) -> bool:
    """Whether the folds of the scans' own set are kept when so many are asked for: it has some, and as many."""
    present = {_official(scan) for scan in scans} - {None}
    return len(present) > 1 and count in (None, len(present))


def joined_groups(scans: Sequence[Foldable], alike: Sequence[int]) -> list[str]:
    """The group of each scan when those with equal numbers, its near-duplicates, are in one group with it.

    Groups that so become one take the name of that one whose scan has the first key.
    """
    components = _components([scan.group for scan in scans], alike).tolist()
    names: dict[int, str] = {}
    for scan, component in sorted(zip(scans, components, strict=True), key=lambda pair: pair[0].key):
        names.setdefault(component, scan.group)
    return [names[component] for component in components]


def straddling(scans: Sequence[Foldable], folds: Mapping[str, int]) -> list[str]:
    """Each patient and group that is in two folds, in a line that names both and a scan of each."""
    first: dict[tuple[str, str], Foldable] = {}
    told: dict[tuple[str, str], str] = {}
    for scan in scans:
        for owner in (("patient", scan.patient), ("group", scan.group)):
            other = first.setdefault(owner, scan)
            if folds[other.key] != folds[scan.key]:
                places = f"{folds[other.key]} ({other.key}) and {folds[scan.key]} ({scan.key})"
                told.setdefault(owner, f"{' '.join(owner)} is in folds {places}")
    return list(told.values())


def _official(scan: Foldable) -> int | None:
    return getattr(scan, "fold", None)


def _components(*owners: Sequence[Hashable]) -> Components:
    """The component [N] of each scan in the graph that joins scans to their owner of each kind, [N] a kind."""
    count = len(owners[0])
    named = [(kind, owner) for kind, of_scans in enumerate(owners) for owner in of_scans]
    nodes = {owner: count + number for number, owner in enumerate(dict.fromkeys(named))}
    ends = np.array([nodes[owner] for owner in named], dtype=np.int32)
    starts = np.tile(np.arange(count, dtype=np.int32), len(owners))
    size = count + len(nodes)
    edges = coo_array((np.ones(len(ends), dtype=np.int8), (starts, ends)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][:count], dtype=np.int32)


def _joined(official: Sequence[int | None], components: Components) -> list[int]:
    """The official fold that has most of each component, and for one without any, large ones first, the smallest."""
    present = sorted({fold for fold in official if fold is not None})
    if present != list(range(1, len(present) + 1)):
        missing = min(set(range(1, max(present) + 1)) - set(present))
        raise WrongCall(f"official fold {missing} holds no scan; ask for a number of folds to divide anew")
    votes: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for fold, component in zip(official, components.tolist(), strict=True):
        if fold is not None:
            votes[component][fold] += 1
    home = {component: max(of, key=lambda fold: (of[fold], -fold)) for component, of in votes.items()}
    sizes = Counter(dict.fromkeys(present, 0))
    sizes.update(home[component] for component in components.tolist() if component in home)
    waiting = Counter(component for component in components.tolist() if component not in home)
    for component, scans in waiting.most_common():
        home[component] = min(sizes, key=lambda fold: (sizes[fold], fold))
        sizes[home[component]] += scans
    if 0 in sizes.values():
        empty = min(fold for fold in sizes if not sizes[fold])
        raise WrongCall(
            f"every scan of official fold {empty} belongs to a patient or a group with more scans in another; "
            f"ask for a number of folds to divide anew"
        )
    return [home[component] for component in components.tolist()]


def _divided(
    scans: Sequence[Foldable], components: Components, count: int, seed: int, areas: Mapping[str, float] | None
) -> list[int]:
    """Folds of whole components, so that each has its share of every trait.

    Large components first, each goes to the fold where it adds least to the sum over folds and traits of squared
    shares, which is smallest where all folds are alike. Shares are whole numbers: sums of them are the same on every
    machine. An empty fold is always best, for all scans share a trait.
    """
    owners = int(components.max(initial=-1)) + 1
    if count < 2:
        raise WrongCall(f"{count} is too small a number of folds; ask for at least 2")
    if owners < count:
        raise WrongCall(f"{owners} unrelated patients cannot fill {count} folds; ask for fewer folds or add scans")
    traits = _traits(scans, None if areas is None else [areas[scan.key] for scan in scans])
    shares = np.zeros((owners, traits.shape[1]), dtype=np.int64)
    np.add.at(shares, components, np.rint(traits / traits.sum(axis=0) * _WHOLE).astype(np.int64))
    size = np.square(shares / _WHOLE).sum(axis=1)
    # Another seed gives another order of components of about one size, and so other folds.
    order = np.argsort(-size * np.random.default_rng(seed).uniform(0.9, 1.1, owners), kind="stable")
    held = np.zeros((count, shares.shape[1]), dtype=np.int64)
    home = np.zeros(owners, dtype=np.int64)
    for component in order:
        home[component] = np.argmin(held @ shares[component])
        held[home[component]] += shares[component]
    return [int(fold) + 1 for fold in home[components]]


def _traits(scans: Sequence[Foldable], areas: Sequence[float] | None) -> NDArray[np.float64]:
    """What folds should have equal shares of, [N, traits]: scans, each label's scans, each label's lesion area."""
    label = np.array([scan.label for scan in scans])
    of_label = [label == name for name in np.unique(label)]
    area = [] if areas is None else [np.where(chosen, areas, 0.0) for chosen in of_label]
    return np.stack([np.ones(len(scans)), *of_label, *(held for held in area if held.any())], axis=1)
