"""What a search can be told, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline import WrongCall
from trainer.config import Config, load_config
from tuning.settings import Training, Tune, load_tuning, trainings, validated_every
from tuning.space import Choices, Range

FILE = """
data: {uri: phantoms}
training: {epochs: 9}
tune:
  trials: 4
  folds: [1, 2]
  space:
    objective.alpha.2: {low: 1e-3, high: 1e-0, log: true}
    optimizer:
      generator_rate: {low: 1e-4, high: 1e-2, log: true}
      clip: [0, 1e-1]
"""


@pytest.fixture
def written(tmp_path: Path) -> str:
    path = tmp_path / "search.yaml"
    path.write_text(FILE)
    return str(path)


def test_a_file_says_what_varies_and_changes_have_the_last_word(written: str) -> None:
    tuning = load_tuning(written)
    assert tuning.tune == Tune(trials=4, folds=(1, 2), space=tuning.tune.space)
    assert tuning.config == Config().replace(data__uri="phantoms", training__epochs=9)
    assert tuning.space.dimensions == {
        "objective.alpha.2": Range(0.001, 1.0, log=True),
        "optimizer.generator_rate": Range(1e-4, 1e-2, log=True),
        "optimizer.clip": Choices((0.0, 0.1)),
    }
    changed = load_tuning(
        written,
        [
            "training.epochs=5",
            "tune.trials=8",
            "tune.space.objective.alpha.2.high=1e-1",
            "tune.space.optimizer.generator_rate={low: 1e-5, high: 2e-2}",
            "tune.space.network.norm=[batch, group]",
        ],
    )
    assert (changed.config.training.epochs, changed.tune.trials) == (5, 8)
    assert changed.space.dimensions == {
        "objective.alpha.2": Range(0.001, 0.1, log=True),
        "optimizer.generator_rate": Range(1e-5, 2e-2),
        "optimizer.clip": Choices((0.0, 0.1)),
        "network.norm": Choices(("batch", "group")),
    }


def test_a_preset_without_tune_is_searched_in_the_usual_space() -> None:
    tuning = load_tuning("quick")
    assert tuning.tune == Tune()
    assert len(tuning.space.dimensions) == 12


def test_a_training_refuses_a_search_and_says_what_carries_it_out(written: str) -> None:
    for source, changes in ((written, ()), ("quick", ["tune.trials=3"])):
        with pytest.raises(WrongCall, match=rf"^{source}: has tune, .* sonotrain tune {source}$"):
            load_config(source, changes)


def test_trainings_are_all_folds_with_the_first_seed_then_with_the_next() -> None:
    config = load_config("quick", ["seed=3"])
    assert trainings(Tune(), config) == [Training("fold-1", 1, 3)]
    assert trainings(Tune(folds=(4, 2)), config) == [Training("fold-4", 4, 3), Training("fold-2", 2, 3)]
    assert trainings(Tune(folds=(1, 2), seeds=(7,)), config) == [Training("fold-1", 1, 7), Training("fold-2", 2, 7)]
    assert trainings(Tune(folds=(1, 2), seeds=(7, 0)), config) == [
        Training("fold-1-seed-7", 1, 7),
        Training("fold-2-seed-7", 2, 7),
        Training("fold-1-seed-0", 1, 0),
        Training("fold-2-seed-0", 2, 0),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tune=5"], "tune=5: has to be a map"),
        (["tune.space=[1, 2]"], "tune.space=[1, 2]: input should be a valid dictionary"),
        (["tune.trails=5"], "there is no key tune.trails; the nearest is tune.trials"),
        (["tune.trials=0"], "tune.trials=0: input should be greater than or equal to 1"),
        (["tune.scheduler=grid"], "tune.scheduler='grid'"),
        (["tune.reduction=1"], "tune.reduction=1"),
        (["tune.gpus=2"], "tune.gpus=2"),
        (["training.epoch=5"], "there is no key training.epoch; the nearest is training.epochs"),
        (["data.unseen=[5]"], "data.unseen=[5]: a search keeps folds unseen for its end"),
        (["training.patience=3"], "training.patience=3: a search ends trials by itself"),
        (["tune.folds=[1, 2, 1]"], "tune.folds=[1, 2, 1]: name each once"),
        (["tune.seeds=[0, 0]"], "tune.seeds=[0, 0]: name each once"),
        (["tune.unseen=[1]"], "tune.unseen=[1]: trials are judged by fold 1"),
        (["tune.folds=[2, 3]", "tune.unseen=[3, 4]"], "tune.unseen=[3, 4]: trials are judged by fold 3"),
        (["tune.first_rung=13"], "tune.first_rung=13: is beyond the last epoch; training.epochs=12"),
        (["tune.trainings_by_rung=[1, 1, 1, 1]"], "tune.trainings_by_rung=[1, 1, 1, 1]: the rungs before the last"),
        (["tune.folds=[1, 2]", "tune.trainings_by_rung=[2, 1]"], "a higher rung cannot have fewer"),
        (["tune.seeds=[1, 2]", "tune.trainings_by_rung=[1, 3]"], "a trial has 2, its folds times its seeds"),
        (["tune.scheduler=none", "tune.trainings_by_rung=[1]"], "only asha has rungs; tune.scheduler is none"),
        (["tune.scheduler=population", "tune.trainings_by_rung=[1]"], "only asha has rungs"),
        (["tune.scheduler=population", "tune.trials=1"], "tune.trials=1: a population has two or more"),
        (["tune.scheduler=population", "tune.storage=/mnt"], "weights are handed on in the output folder"),
        (["tune.scheduler=population", "tune.concurrent=2"], "a population takes turns on all the room"),
        (["tune.scheduler=population", "tune.exchange_epochs=12"], "nothing is exchanged before the last epoch"),
    ],
)
def test_what_contradicts_itself_is_refused_in_a_line_that_names_the_key(changes: list[str], words: str) -> None:
    with pytest.raises(WrongCall) as refused:
        load_tuning("quick", changes)
    assert str(refused.value).startswith("quick: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        ["tune.first_rung=12"],
        ["tune.folds=[1, 2]", "tune.trainings_by_rung=[1, 2]"],
        ["tune.seeds=[1, 2]", "tune.trainings_by_rung=[1]"],
        ["tune.scheduler=population", "tune.exchange_epochs=4"],
        ["tune.unseen=[]"],
        ["tune.folds=[1, 2]", "tune.unseen=[4, 5]"],
    ],
)
def test_what_only_seems_to_contradict_itself_is_taken(changes: list[str]) -> None:
    load_tuning("quick", changes)


def test_a_study_of_variants_is_no_search() -> None:
    with pytest.raises(WrongCall, match="sonotrain crossval"):
        load_tuning("paper-ablation")


def test_a_trial_is_validated_after_each_epoch_where_it_is_judged_on_the_way() -> None:
    for scheduler, every in (("asha", 1), ("population", 1), ("none", 5)):
        tuning = load_tuning("quick", [f"tune.scheduler={scheduler}", "validation.every_epochs=5"])
        assert validated_every(tuning.tune, tuning.config) == every
