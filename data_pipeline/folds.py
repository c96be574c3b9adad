"""Folds for cross-validation: no patient and no group in two of them, labels spread evenly."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from data_pipeline.faults import WrongCall

USUAL_COUNT = 5


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


def assign_folds(scans: Sequence[Foldable], count: int | None, seed: int = 0) -> dict[str, int]:
    """The fold of each key, counted from 1; no fold is empty. A function of the scans, whatever their order, and seed.

    The folds of the scans' own set are kept where count is None or their number; a scan without one joins its
    patient's, else the smallest. Otherwise the scans are divided anew, into five by default, stratified by label.
    Scans that share a patient or a group, also through other scans, stay together.

    Raises WrongCall for fewer than two folds, fewer patients than folds, official folds that are not numbered from 1
    (unless count asks for others), and a patient or group in two official folds.
    """
    ordered = sorted(scans, key=lambda scan: scan.key)
    official: list[int | None] = [getattr(scan, "fold", None) for scan in ordered]
    present = sorted({fold for fold in official if fold is not None})
    components = _components(ordered)
    if len(present) > 1 and count in (None, len(present)):
        if present != list(range(1, len(present) + 1)):
            missing = min(set(range(1, max(present) + 1)) - set(present))
            raise WrongCall(f"official fold {missing} holds no scan; ask for a number of folds to divide anew")
        folds = _joined(official, components, len(present))
    else:
        folds = _divided(ordered, components, USUAL_COUNT if count is None else count, seed)
    _check(ordered, folds)
    return {scan.key: fold for scan, fold in zip(ordered, folds, strict=True)}


def _components(scans: Sequence[Foldable]) -> NDArray[np.int32]:
    """The component [N] of each scan in the graph that joins scans to their patient and their group."""
    owners = [("patient", scan.patient) for scan in scans] + [("group", scan.group) for scan in scans]
    nodes = {owner: len(scans) + number for number, owner in enumerate(dict.fromkeys(owners))}
    ends = np.array([nodes[owner] for owner in owners], dtype=np.int32)
    starts = np.tile(np.arange(len(scans), dtype=np.int32), 2)
    size = len(scans) + len(nodes)
    edges = coo_array((np.ones(len(ends), dtype=np.int8), (starts, ends)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][: len(scans)], dtype=np.int32)


def _joined(official: Sequence[int | None], components: NDArray[np.int32], count: int) -> list[int]:
    """The official folds, and for scans without one that of their component or, large ones first, the smallest."""
    of_component: dict[int, int] = {}
    waiting: Counter[int] = Counter()
    sizes = Counter(dict.fromkeys(range(1, count + 1), 0))
    for fold, component in zip(official, components.tolist(), strict=True):
        if fold is not None:
            of_component.setdefault(component, fold)
    for fold, component in zip(official, components.tolist(), strict=True):
        if fold is None and component not in of_component:
            waiting[component] += 1
        else:
            sizes[fold or of_component[component]] += 1
    for component, scans in waiting.most_common():
        of_component[component] = min(sizes, key=lambda fold: (sizes[fold], fold))
        sizes[of_component[component]] += scans
    return [
        of_component[component] if fold is None else fold
        for fold, component in zip(official, components.tolist(), strict=True)
    ]


def _divided(scans: Sequence[Foldable], components: NDArray[np.int32], count: int, seed: int) -> list[int]:
    """Stratified folds of whole components."""
    owners = len(np.unique(components))
    if count < 2:
        raise WrongCall(f"{count} is too small a number of folds; ask for at least 2")
    if owners < count:
        raise WrongCall(f"{owners} unrelated patients cannot fill {count} folds; ask for fewer folds or add scans")
    labels = [scan.label for scan in scans]
    if max(Counter(labels).values()) < count:  # too few of each label to stratify by it
        labels = [""] * len(scans)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = np.zeros(len(scans), dtype=np.int64)
    with warnings.catch_warnings():
        # A rare label that some folds must lack is no fault.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(scans)), labels, components), start=1):
            folds[held_out] = fold
    _fill_empty(folds, components, count)
    return [int(fold) for fold in folds]


def _fill_empty(folds: NDArray[np.int64], components: NDArray[np.int32], count: int) -> None:
    """Give each empty fold the smallest component of the fold that has most of them; stratifying leaves such folds."""
    for empty in set(range(1, count + 1)) - set(folds.tolist()):
        of_fold: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for fold, component in zip(folds.tolist(), components.tolist(), strict=True):
            of_fold[fold][component] += 1
        donor = max(of_fold, key=lambda fold: (len(of_fold[fold]), -fold))
        smallest = min(of_fold[donor], key=lambda component: (of_fold[donor][component], component))
        folds[components == smallest] = empty


def _check(scans: Sequence[Foldable], folds: Sequence[int]) -> None:
    """Raise WrongCall where a patient or a group is in two folds, as an official table can have it."""
    first: dict[tuple[str, str], int] = {}
    for scan, fold in zip(scans, folds, strict=True):
        for kind, name in (("patient", scan.patient), ("group", scan.group)):
            other = first.setdefault((kind, name), fold)
            if other != fold:
                raise WrongCall(
                    f"{kind} {name} is in folds {other} and {fold}; correct the table of folds or remove it"
                )
