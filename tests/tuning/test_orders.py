"""What a trial's trainings are told, and how many of them are taken up to which epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_pipeline import Dataset, Scan, WrongCall
from trainer.config import load_config
from trainer.feasible import dataset_of
from tuning.final import unseen_folds
from tuning.orders import Desk
from tuning.settings import load_tuning

DeskOf = Callable[..., Desk]

SPACE = "tune.space={objective.alpha.2: {low: 0.1, high: 1.0}, training.batch: [4, 6]}"
VALUES = {"objective.alpha.2": 0.25, "training.batch": 6}


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans of 15 patients in three folds, so 10 in each."""
    return packed(30)


@pytest.fixture
def desk(dataset: Dataset, tmp_path: Path) -> DeskOf:
    """The desk of a search of nine epochs over the second stage's weight and the batch."""

    def make(*changes: str) -> Desk:
        own = [f"data.uri={dataset.uri}", f"output={tmp_path}/study", "training.epochs=9", "training.batch=4", SPACE]
        tuning = load_tuning("quick", [*own, *changes])
        return Desk(tuning, dataset, unseen_folds(tuning.tune, dataset))

    return make


def test_a_trial_has_a_training_for_each_fold_and_seed_in_a_folder_of_its_own(desk: DeskOf, tmp_path: Path) -> None:
    orders = desk("tune.folds=[2, 1]", "tune.seeds=[7, 8]").orders(3, VALUES)
    told = [(order.name, order.config["data"]["fold"], order.config["seed"]) for order in orders]
    assert told == [("fold-2-seed-7", 2, 7), ("fold-1-seed-7", 1, 7), ("fold-2-seed-8", 2, 8), ("fold-1-seed-8", 1, 8)]
    for order in orders:
        assert order.folder.path == Path(order.config["output"]) == tmp_path / "study/trials/0003" / order.name
        assert order.epochs == 9
        assert order.config["data"]["unseen"] == [3]
        assert order.config["objective"]["alpha"][1] == 0.25
        assert order.config["tracking"]["experiment"] == ""
        assert order.config["checkpoints"]["mirror"] == ""


def test_a_training_is_a_configuration_that_the_command_takes(desk: DeskOf, tmp_path: Path) -> None:
    (order,) = desk().orders(0, VALUES)
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(dict(order.config), sort_keys=False))
    config = load_config(str(tmp_path / "asked.yaml"))
    assert (config.training.batch, config.objective.alpha[1], config.data.fold) == (6, 0.25, 1)


@pytest.mark.parametrize(
    ("changes", "values", "steps"),
    [
        ((), VALUES, 2),  # of 30 scans 10 are held out and 10 unseen: 10 in batches of 6
        ((), {**VALUES, "training.batch": 4}, 3),
        (("tune.unseen=[]",), VALUES, 4),
    ],
)
def test_the_steps_of_an_epoch_are_those_of_the_scans_that_are_learnt_from(
    desk: DeskOf, changes: tuple[str, ...], values: dict[str, float], steps: int
) -> None:
    (order,) = desk(*changes).orders(0, values)
    assert order.steps_per_epoch == steps


def test_a_trial_that_takes_scans_more_often_has_more_steps(
    packed: Callable[..., Dataset], scans: Callable[..., list[Scan]], dataset: Dataset, tmp_path: Path
) -> None:
    uris = [dataset.uri, packed(scans(30, seed=1)).uri]
    space = "tune.space={data.weights: [[1, 1], [1, 3]]}"
    own = [f"data.uri={uris}", "data.weights=[1, 1]", f"output={tmp_path}/study", "training.batch=4", "tune.unseen=[]"]
    tuning = load_tuning("quick", [*own, space])
    desk = Desk(tuning, dataset_of(tuning.config), ())
    steps = [desk.orders(0, {"data.weights": weights})[0].steps_per_epoch for weights in ((1, 1), (1, 3))]
    assert steps == [10, 20]  # 20 scans of each are learnt from


@pytest.mark.parametrize(
    ("changes", "legs"),
    [
        ((), [(1, 1), (3, 1), (9, 1)]),
        (("tune.folds=[1, 2]", "tune.seeds=[0, 1]"), [(1, 4), (3, 4), (9, 4)]),
        (("tune.folds=[1, 2]", "tune.trainings_by_rung=[1]"), [(1, 1), (3, 2), (9, 2)]),
        (("tune.folds=[1, 2]", "tune.seeds=[0, 1]", "tune.trainings_by_rung=[1, 2]"), [(1, 1), (3, 2), (9, 4)]),
        (("tune.folds=[1, 2]", "tune.first_rung=4", "tune.trainings_by_rung=[1]"), [(4, 1), (9, 2)]),
        (("tune.folds=[1, 2]", "tune.scheduler=none"), [(9, 2)]),
    ],
)
def test_all_trainings_that_count_at_a_rung_come_to_it_before_any_goes_further(
    desk: DeskOf, changes: tuple[str, ...], legs: list[tuple[int, int]]
) -> None:
    assert desk(*changes).legs() == legs


def test_what_a_trial_must_not_lose_is_mirrored_under_its_own_name(dataset: Dataset, tmp_path: Path) -> None:
    own = [f"data.uri={dataset.uri}", f"output={tmp_path}/study", "checkpoints.mirror=s3://bucket/study/", SPACE]
    (order,) = Desk(load_tuning("quick", own), dataset, (3,)).orders(12, VALUES)
    assert order.config["checkpoints"]["mirror"] == "s3://bucket/study/trials/0012/fold-1"


def test_values_with_which_no_training_can_be_are_refused(desk: DeskOf) -> None:
    one = desk("tune.processes=4", "training.batch=8")
    one.check({**VALUES, "training.batch": 4})
    with pytest.raises(WrongCall, match=r"training\.batch=6 cannot be shared by 4 processes"):
        one.check(VALUES)
    with pytest.raises(WrongCall, match=r"data\.fold=5: .* has the folds 1, 2, 3"):
        desk("tune.folds=[1, 5]").check(VALUES)
