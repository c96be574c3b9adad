from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.faults import WrongCall
from data_pipeline.folds import assign_folds, joined_groups, keeps_official, straddling


@dataclass(frozen=True)
class Owned:
    """What folds depend on, without the scan."""

    key: str
    patient: str
    group: str
    label: str
    fold: int | None = None


def cohort(patients: int, fold_of: Sequence[int | None] = (None,)) -> list[Owned]:
    """Patients with two scans each, every third one malignant; official folds in turn."""
    return [
        Owned(f"{patient:03d}{side}", f"p{patient}", f"p{patient}", label, fold_of[patient % len(fold_of)])
        for patient in range(patients)
        for label in ["malignant" if patient % 3 == 0 else "benign"]
        for side in "lr"
    ]


@st.composite
def scan_lists(draw: st.DrawFn) -> list[Owned]:
    """Scans whose patients and groups overlap in any way."""
    owners = st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from(["benign", "malignant", "normal"]))
    drawn = draw(st.lists(owners, min_size=1, max_size=60))
    return [Owned(f"k{n}", f"p{patient}", f"g{group}", label) for n, (patient, group, label) in enumerate(drawn)]


def areas_of(scans: Sequence[Owned]) -> dict[str, float]:
    """A lesion's area for each key, in no order; none for normals."""
    random = np.random.default_rng(len(scans))
    drawn = random.lognormal(-3, 0.8, len(scans)).clip(0.001, 0.9)
    return {scan.key: 0.0 if scan.label == "normal" else float(area) for scan, area in zip(scans, drawn, strict=True)}


def related(scans: Sequence[Owned]) -> list[set[str]]:
    """Keys joined by shared patients and groups, merged pair by pair."""
    sets: list[tuple[set[str], set[str]]] = []
    for scan in scans:
        keys, owners = {scan.key}, {f"patient {scan.patient}", f"group {scan.group}"}
        for other in [other for other in sets if other[1] & owners]:
            sets.remove(other)
            keys |= other[0]
            owners |= other[1]
        sets.append((keys, owners))
    return [keys for keys, _ in sets]


@given(scan_lists(), st.integers(2, 7), st.integers(0, 3), st.booleans())
def test_folds_are_full_and_keep_related_scans_together(
    scans: list[Owned], count: int, seed: int, measured: bool
) -> None:
    families = related(scans)
    areas = areas_of(scans) if measured else None
    if len(families) < count:
        with pytest.raises(WrongCall, match=f"{len(families)} unrelated patients cannot fill {count} folds"):
            assign_folds(scans, count, seed, areas)
        return
    folds = assign_folds(scans, count, seed, areas)
    assert straddling(scans, folds) == []
    assert folds.keys() == {scan.key for scan in scans}
    assert set(folds.values()) == set(range(1, count + 1))
    assert all(len({folds[key] for key in family}) == 1 for family in families)


@given(scan_lists(), st.randoms())
def test_folds_do_not_depend_on_the_order_of_scans(scans: list[Owned], random: object) -> None:
    if len(related(scans)) < 3:
        return
    shuffled = list(scans)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    areas = areas_of(scans)
    assert assign_folds(shuffled, 3, areas=areas) == assign_folds(scans, 3, areas=areas)


@given(scan_lists(), st.lists(st.sampled_from([None, 1, 2, 3]), min_size=60, max_size=60))
def test_official_folds_give_way_only_where_related_scans_are_in_several(
    scans: list[Owned], official: list[int | None]
) -> None:
    scans = [replace(scan, fold=fold) for scan, fold in zip(scans, official, strict=False)]
    if not keeps_official(scans, 3):
        return
    try:
        folds = assign_folds(scans, None)
    except WrongCall:  # an official fold that is left empty, which has a test of its own
        return
    of_key = {scan.key: scan.fold for scan in scans}
    for family in related(scans):
        votes = Counter(of_key[key] for key in family if of_key[key])
        homes = {folds[key] for key in family}
        assert len(homes) == 1
        assert not votes or votes[homes.pop()] == max(votes.values())


@given(st.integers(0, 5), st.integers(2, 6), st.integers(60, 120))
def test_labels_and_areas_are_spread_evenly_over_patients_of_any_size(seed: int, count: int, patients: int) -> None:
    random = np.random.default_rng(patients)
    scans = [
        Owned(f"{patient:03d}-{n}", f"p{patient}", f"p{patient}", label)
        for patient in range(patients)
        for label in [["benign", "benign", "malignant", "normal"][patient % 4]]
        for n in range(random.integers(1, 4))
    ]
    areas = areas_of(scans)
    folds = assign_folds(scans, count, seed, areas)
    for label, total in Counter(scan.label for scan in scans).items():
        held = Counter(folds[scan.key] for scan in scans if scan.label == label)
        assert all(abs(held[fold] - total / count) <= 3 for fold in range(1, count + 1))
    of_patient: Counter[str] = Counter()
    of_fold: Counter[int] = Counter()
    for scan in scans:
        of_patient[scan.patient] += areas[scan.key]  # type: ignore[assignment]
        of_fold[folds[scan.key]] += areas[scan.key]  # type: ignore[assignment]
    share = sum(areas.values()) / count
    assert all(abs(of_fold[fold] - share) < max(of_patient.values()) for fold in range(1, count + 1))


def test_areas_are_spread_more_evenly_than_labels_alone_spread_them() -> None:
    scans = cohort(200)
    areas = areas_of(scans)

    def unevenness(folds: dict[str, int]) -> float:
        return float(np.std([np.mean([areas[key] for key in folds if folds[key] == fold]) for fold in range(1, 6)]))

    blind = np.mean([unevenness(assign_folds(scans, 5, seed)) for seed in range(10)])
    seeing = np.mean([unevenness(assign_folds(scans, 5, seed, areas)) for seed in range(10)])
    assert seeing < blind / 3


def test_labels_are_spread_evenly() -> None:
    scans = cohort(90)
    folds = assign_folds(scans, 5)
    counts = Counter((folds[scan.key], scan.label) for scan in scans)
    for fold in range(1, 6):
        assert counts[fold, "malignant"] == 12
        assert counts[fold, "benign"] == 24


def test_another_seed_divides_otherwise_and_the_same_alike() -> None:
    scans = cohort(30)
    assert assign_folds(scans, 5, seed=1) == assign_folds(scans, 5, seed=1)
    assert assign_folds(scans, 5, seed=1) != assign_folds(scans, 5, seed=2)


def test_five_folds_are_the_default() -> None:
    assert set(assign_folds(cohort(12), None).values()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("count", [None, 3])
def test_official_folds_are_kept(count: int | None) -> None:
    scans = cohort(12, [2, 3, 1])
    assert assign_folds(scans, count) == {scan.key: scan.fold for scan in scans}


def test_another_number_of_folds_divides_anew() -> None:
    assert set(assign_folds(cohort(12, [2, 3, 1]), 4).values()) == {1, 2, 3, 4}


def test_a_scan_without_official_fold_joins_its_patient() -> None:
    scans = cohort(12, [2, 3, 1])
    scans[7] = replace(scans[7], fold=None)
    scans.append(Owned("new", "someone", scans[3].group, "benign"))
    folds = assign_folds(scans, None)
    assert folds[scans[7].key] == scans[6].fold
    assert folds["new"] == scans[3].fold


def test_a_patient_without_official_fold_joins_the_smallest_whole() -> None:
    scans = [*cohort(7, [1, 2, 3]), *(Owned(f"new{n}", "new", "new", "benign") for n in range(3))]
    scans.append(Owned("newer", "newer", "newer", "benign"))
    folds = assign_folds(scans, None)  # 6, 4 and 4 scans before
    assert {folds[f"new{n}"] for n in range(3)} == {2}
    assert folds["newer"] == 3


def test_a_patient_in_two_official_folds_goes_to_the_one_with_most_of_its_scans() -> None:
    scans = [*cohort(6, [1, 2, 3]), Owned("third", "p1", "p1", "benign", 3)]
    folds = assign_folds(scans, None)
    assert {folds[key] for key in ("001l", "001r", "third")} == {2}
    assert [scan.key for scan in scans if scan.fold != folds[scan.key]] == ["third"]


def test_a_group_in_two_official_folds_takes_its_patients_along() -> None:
    twin = [Owned("twin", "other", "p0", "benign", 2), Owned("twin-r", "other", "other", "benign", 2)]
    folds = assign_folds([*cohort(6, [1, 2, 3]), *twin], None)  # two scans in each fold: the first of equals
    assert {folds[key] for key in ("000l", "000r", "twin", "twin-r")} == {1}


def test_an_official_fold_that_loses_all_its_scans_is_named() -> None:
    scans = [*cohort(2, [1, 2]), Owned("twin", "p0", "twin", "benign", 3)]
    with pytest.raises(WrongCall, match=r"every scan of official fold 3 belongs to .* more scans in another"):
        assign_folds(scans, None)


def test_an_official_fold_that_is_empty_is_named_unless_other_folds_are_asked_for() -> None:
    scans = cohort(6, [1, 2, 4])
    with pytest.raises(WrongCall, match="official fold 3 holds no scan"):
        assign_folds(scans, None)
    assert set(assign_folds(scans, 5).values()) == {1, 2, 3, 4, 5}


def test_labels_too_rare_to_stratify_by_still_give_full_folds() -> None:
    scans = [Owned(f"k{n}", f"p{n}", f"p{n}", "benign" if n < 3 else "malignant") for n in range(5)]
    assert sorted(assign_folds(scans, 5).values()) == [1, 2, 3, 4, 5]


def test_one_patient_with_most_scans_leaves_no_fold_empty() -> None:
    scans = [
        Owned(f"k{n:03d}", "large" if n < 60 else f"p{n}", "large" if n < 60 else f"p{n}", "benign") for n in range(64)
    ]
    assert set(assign_folds(scans, 5).values()) == {1, 2, 3, 4, 5}


def test_as_many_patients_as_folds_have_one_each() -> None:
    """scikit-learn's StratifiedGroupKFold gives two of these seven patients one fold, and another fold none."""
    patients = [0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 6]
    labels = [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    scans = [
        Owned(f"k{n:02d}", f"p{patient}", f"p{patient}", ["benign", "malignant"][label])
        for n, (patient, label) in enumerate(zip(patients, labels, strict=True))
    ]
    folds = assign_folds(scans, 7, seed=177)
    assert set(folds.values()) == {1, 2, 3, 4, 5, 6, 7}
    assert len({(scan.patient, folds[scan.key]) for scan in scans}) == 7


@pytest.mark.parametrize("count", [-1, 0, 1])
def test_fewer_than_two_folds_are_refused(count: int) -> None:
    with pytest.raises(WrongCall, match="at least 2"):
        assign_folds(cohort(6), count)


def test_no_scans_cannot_fill_folds() -> None:
    with pytest.raises(WrongCall, match="0 unrelated patients"):
        assign_folds([], None)


def test_near_duplicates_join_their_groups_under_the_name_of_the_first_key() -> None:
    scans = [Owned(key, key, group, "benign") for key, group in [("b", "g1"), ("a", "g2"), ("c", "g2"), ("d", "g3")]]
    assert joined_groups(scans, [0, 1, 0, 2]) == ["g2", "g2", "g2", "g3"]
    assert joined_groups(scans, [0, 1, 2, 3]) == ["g1", "g2", "g2", "g3"]
    assert joined_groups([], []) == []


def test_a_patient_or_group_in_two_folds_is_told_once_with_both() -> None:
    scans = cohort(2)
    folds = {"000l": 1, "000r": 2, "001l": 2, "001r": 2}
    assert straddling(scans, folds) == [
        "patient p0 is in folds 1 (000l) and 2 (000r)",
        "group p0 is in folds 1 (000l) and 2 (000r)",
    ]
