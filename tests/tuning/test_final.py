from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipeline import Dataset, Fault, WrongCall
from trainer.comparison import compare
from trainer.feasible import check, learnt_folds
from trainer.metrics import ScanScore
from tuning.final import Side, compare_final, final_trainings, unseen_folds
from tuning.settings import Training, Tune, Tuning, load_tuning
from tuning.space import paper_values


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    return packed(12)


@pytest.fixture
def tuning(dataset: Dataset, tmp_path: Path) -> Tuning:
    return load_tuning("quick", [f"output={tmp_path}/study", f"data.uri={dataset.uri}", "validation.threshold=chosen"])


def scored(patients: Sequence[str], dsc: Sequence[float | None], fold: int = 3) -> list[ScanScore]:
    """A scan for each DSC, without a lesion where that is None."""
    return [
        ScanScore(f"{fold}/{number}", patient, "", value is not None, False, 0.0, *[value] * 5)
        for number, (patient, value) in enumerate(zip(patients, dsc, strict=True))
    ]


# Which folds


@pytest.mark.parametrize(
    ("asked", "unseen"), [({}, (3,)), ({"unseen": ()}, ()), ({"unseen": (2,)}, (2,)), ({"folds": (2,)}, (3,))]
)
def test_the_last_fold_is_unseen_unless_others_are_named(dataset: Dataset, asked: dict, unseen: tuple[int, ...]):
    assert unseen_folds(Tune(**asked), dataset) == unseen


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"unseen": (7,)}, r"tune.unseen=\[7\]: .* has the folds 1, 2, 3"),
        ({"unseen": (2, 1)}, r"tune.unseen=\[2, 1\]: trials are judged by fold 1; .* tune.unseen=\[\]"),
        ({"folds": (1, 2, 3)}, r"tune.unseen \(not set: fold 3\): trials are judged by fold 3"),
        ({"unseen": (2, 3)}, r"tune.unseen=\[2, 3\]: .* has 3 folds, .* none to learn from; set tune.unseen=\[\]"),
    ],
)
def test_folds_that_cannot_be_kept_unseen_are_refused_in_a_line(dataset: Dataset, asked: dict, says: str):
    with pytest.raises(WrongCall, match=says) as told:
        unseen_folds(Tune(**asked), dataset)
    assert "\n" not in str(told.value)


def test_two_folds_leave_none_to_learn_from(packed: Callable[..., Dataset]):
    with pytest.raises(WrongCall, match=r"has 2 folds, .* or ingest it with --folds 5"):
        unseen_folds(Tune(), packed(4))


# What is trained


def test_both_sides_are_trained_alike_on_all_folds_but_the_one_compared_on(tuning: Tuning, dataset: Dataset):
    values = {**paper_values(tuning.space, tuning.config), "objective.alpha.2": 0.4, "optimizer.generator_rate": 0.002}
    planned = final_trainings(tuning, values, (2, 3))
    output = Path(tuning.config.output)
    assert [(side, one.name, one.fold) for side, one, _ in planned] == [
        ("best", "fold-2", 2), ("paper", "fold-2", 2), ("best", "fold-3", 3), ("paper", "fold-3", 3),
    ]  # fmt: skip
    for side, one, config in planned:
        check(config, dataset, 1)
        assert config.output == str(output / "final" / side / one.name)
        assert learnt_folds(config, dataset) == sorted({1, 2, 3} - {one.fold})
        assert config.tracking.experiment == ""
        assert config.validation.threshold == "half"
    (_, _, best), (_, _, paper) = planned[:2]
    differ = {key for key, value in best.flat().items() if paper.flat()[key] != value}
    assert differ == {"output", "objective.alpha", "optimizer.generator_rate"}
    assert (best.objective.alpha, paper.objective.alpha) == ((1.0, 0.4, 0.1, 0.1), (1.0, 0.1, 0.1, 0.1))


def test_each_seed_is_a_training_of_its_own(dataset: Dataset):
    tuning = load_tuning("quick", [f"data.uri={dataset.uri}", "tune.seeds=[7,8]", "tune.storage=s3://b/x/"])
    planned = final_trainings(tuning, paper_values(tuning.space, tuning.config) | {"objective.beta.1": 0}, (3,))
    assert [(one.name, config.seed) for side, one, config in planned if side == "best"] == [
        ("fold-3-seed-7", 7), ("fold-3-seed-8", 8),
    ]  # fmt: skip
    assert planned[0][2].checkpoints.mirror == "s3://b/x/final/best/fold-3-seed-7"


def test_nothing_is_trained_where_the_paper_wins_or_no_fold_is_unseen(tuning: Tuning):
    paper = paper_values(tuning.space, tuning.config)
    assert final_trainings(tuning, paper, (3,)) == []
    assert final_trainings(tuning, {**paper, "objective.alpha.2": 0.4}, ()) == []


# What it came to


def test_scans_are_paired_and_averaged_over_seeds():
    held_out = [Training("fold-3-seed-0", 3, 0), Training("fold-3-seed-1", 3, 1)]
    patients = ["a", "a", "b", "c"]
    scores: dict[Side, dict[str, list[ScanScore]]] = {
        "best": {
            "fold-3-seed-0": scored(patients, [0.8, 0.6, 0.9, None]),
            "fold-3-seed-1": scored(patients, [0.6, 0.8, 0.7, None])[::-1],
        },
        "paper": {
            "fold-3-seed-0": scored(patients, [0.5, 0.5, 0.7, None]),
            "fold-3-seed-1": scored(patients, [0.7, 0.5, 0.5, None]),
        },
    }
    told = compare_final(scores, held_out, winner=12)
    # Over seeds the winner has .7, .7, .8 and the paper .6, .5, .6: gains of .1, .2 (patient a) and .2 (patient b).
    assert (told.best, told.paper, told.difference) == pytest.approx((2.2 / 3, 1.7 / 3, 0.5 / 3))
    # Two patients drawn with replacement: a twice .15, b twice .2, or both .5 / 3.
    assert (told.low, told.high) == pytest.approx((0.15, 0.2))
    # Both gains have the same sign in one of two flips of two patients.
    assert told.p == pytest.approx(0.5, abs=0.02)
    assert (told.folds, told.seeds, told.cases, told.patients, told.winner) == ((3,), (0, 1), 3, 2, 12)
    assert told.per_fold["fold-3-seed-0"] == pytest.approx((2.3 / 3, 1.7 / 3))
    assert told.per_fold["fold-3-seed-1"] == pytest.approx((2.1 / 3, 1.7 / 3))


def test_scans_of_all_unseen_folds_count_alike_as_compare_has_it():
    held_out = [Training("fold-2", 2, 0), Training("fold-3", 3, 0)]
    best = {"fold-2": scored("ab", [0.9, 0.5], 2), "fold-3": scored("cde", [0.1, 0.6, 0.7])}
    paper = {"fold-2": scored("ab", [0.7, 0.6], 2), "fold-3": scored("cde", [0.2, 0.4, 0.7])}
    told = compare_final({"best": best, "paper": paper}, held_out, winner=1)
    expected = compare(paper["fold-2"] + paper["fold-3"], best["fold-2"] + best["fold-3"]).measures["dsc"]
    assert (told.low, told.high, told.p) == (expected.low, expected.high, expected.p)
    assert told.difference == pytest.approx((0.2 - 0.1 - 0.1 + 0.2 + 0.0) / 5)
    assert told.per_fold["fold-2"] == pytest.approx((0.7, 0.65))


def test_a_single_patient_gives_a_difference_without_an_interval():
    both: dict[Side, dict[str, list[ScanScore]]] = {
        "best": {"fold-3": scored("aa", [0.5, 0.7])},
        "paper": {"fold-3": scored("aa", [0.4, 0.6])},
    }
    told = compare_final(both, [Training("fold-3", 3, 0)], winner=1)
    assert told.difference == pytest.approx(0.1)
    assert (told.low, told.high, told.patients) == (None, None, 1)


def test_scans_that_were_not_judged_alike_are_named():
    one, two = Training("fold-3-seed-0", 3, 0), Training("fold-3-seed-1", 3, 1)
    whole, short = scored("ab", [0.5, 0.7]), scored("a", [0.5])
    with pytest.raises(Fault, match="3/1 was judged on one side alone"):
        compare_final({"best": {one.name: whole}, "paper": {one.name: short}}, [one], winner=1)
    mixed = {one.name: whole, two.name: short}
    with pytest.raises(Fault, match="seeds have not judged the same scans of fold 3"):
        compare_final({"best": mixed, "paper": mixed}, [one, two], winner=1)
    normal = {one.name: scored("a", [None])}
    with pytest.raises(Fault, match="no scan of the unseen folds has a lesion"):
        compare_final({"best": normal, "paper": normal}, [one], winner=1)
