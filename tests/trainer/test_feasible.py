from collections.abc import Callable

import pytest
import torch

from data_pipeline import Dataset, WrongCall
from trainer.config import load_config
from trainer.crossval import held_out_folds
from trainer.feasible import check, dataset_of, learnt_folds
from trainer.networks import Discriminators


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    return packed(12)


@pytest.mark.parametrize(
    ("changes", "world", "says"),
    [
        (["data.fold=9"], 1, r"data.fold=9: .* has the folds 1, 2, 3"),
        (["data.unseen=[2, 7]"], 1, r"data.unseen=\[2, 7\]: .* has the folds 1, 2, 3"),
        (["data.fold=2", "data.unseen=[2]"], 1, r"data.unseen=\[2\] has fold 2, which is held out"),
        (
            ["data.fold=2", "data.unseen=[1, 3]"],
            1,
            r"data.unseen=\[1, 3\]: with data.fold=2 .* no fold left to train",
        ),
        (["training.batch=8"], 3, r"training.batch=8 .* 3 processes .* nearest that can is 9"),
        (["training.batch=6", "training.accumulation=4"], 1, r"training.batch=6 .* in 4 pieces"),
        (["data.size=[120, 128]"], 1, r"data.size=120x128: unet .* multiples of 16; the nearest to 120 is 128"),
        (["data.size=[96, 128]"], 1, r"data.size=96x128 is too small for the discriminators.* smallest side is 112"),
        (["data.size=[224, 224]", "discriminators.strides=[2, 2, 2, 2, 2]"], 1, r"smallest side is 240"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_key(dataset: Dataset, changes: list[str], world: int, says: str):
    with pytest.raises(WrongCall, match=says):
        check(load_config("quick", changes), dataset, world)


def test_all_folds_are_learnt_from_but_the_one_held_out_and_those_unseen(dataset: Dataset):
    config = load_config("quick", ["data.fold=2", "data.unseen=[3]"])
    check(config, dataset, 1)
    assert learnt_folds(config, dataset) == [1]
    assert learnt_folds(config.replace(data__unseen=()), dataset) == [1, 3]


def test_crossval_holds_out_the_folds_named_or_all_but_those_unseen(dataset: Dataset):
    def held_out(*changes: str) -> tuple[int, ...]:
        return held_out_folds(load_config("quick", changes), dataset)

    assert held_out() == (1, 2, 3)
    assert held_out("data.unseen=[2]") == (1, 3)
    assert held_out("folds=[3]", "data.unseen=[2]") == (3,)
    with pytest.raises(WrongCall, match=r"data.unseen=\[1, 2, 3\]: .* no other fold to hold out"):
        held_out("data.unseen=[1, 2, 3]")


def test_the_papers_own_configuration_is_feasible(dataset: Dataset):
    for world in (1, 2, 4):
        check(load_config("paper"), dataset, world)


def test_the_smallest_size_that_passes_really_is_judged():
    strides = (2, 2, 2, 2, 2)
    critics = Discriminators((2, 2, 2, 2), strides)
    maps = [torch.rand(1, 1, 240 >> stage, 240 >> stage) for stage in range(4)]
    assert all(min(judged.shape) >= 1 for judged in critics.judge(maps))


def test_full_resolution_lets_smaller_scans_be_judged(dataset: Dataset):
    check(load_config("quick", ["data.size=[32, 32]", "objective.truth=full"]), dataset, 1)


def test_a_configuration_without_data_says_what_to_add():
    with pytest.raises(WrongCall, match=r"data.uri is not set: add data.uri=PATH"):
        dataset_of(load_config("quick"))
