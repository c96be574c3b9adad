from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.faults import WrongCall
from data_pipeline.folds import assign_folds


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


@given(scan_lists(), st.integers(2, 7), st.integers(0, 3))
def test_folds_are_full_and_keep_related_scans_together(scans: list[Owned], count: int, seed: int) -> None:
    families = related(scans)
    if len(families) < count:
        with pytest.raises(WrongCall, match=f"{len(families)} unrelated patients cannot fill {count} folds"):
            assign_folds(scans, count, seed)
        return
    folds = assign_folds(scans, count, seed)
    assert folds.keys() == {scan.key for scan in scans}
    assert set(folds.values()) == set(range(1, count + 1))
    assert all(len({folds[key] for key in family}) == 1 for family in families)


@given(scan_lists(), st.randoms())
def test_folds_do_not_depend_on_the_order_of_scans(scans: list[Owned], random: object) -> None:
    if len(related(scans)) < 3:
        return
    shuffled = list(scans)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_folds(shuffled, 3) == assign_folds(scans, 3)


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


def test_a_patient_in_two_official_folds_is_named_with_both() -> None:
    scans = cohort(6, [1, 2, 3])
    scans[3] = replace(scans[3], fold=3)
    with pytest.raises(WrongCall, match="patient p1 is in folds 2 and 3"):
        assign_folds(scans, None)


def test_a_group_in_two_official_folds_is_named_with_both() -> None:
    scans = [*cohort(6, [1, 2, 3]), Owned("twin", "other", "p0", "benign", 2)]
    with pytest.raises(WrongCall, match="group p0 is in folds 1 and 2"):
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


def test_a_fold_that_stratifying_leaves_empty_is_filled() -> None:
    """scikit-learn alone gives two of these seven patients one fold, and another fold none."""
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
