"""Whose a study's folder is, and which changes it bears."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_pipeline import Fault, WrongCall
from trainer.run_folder import MAY_CHANGE as OF_A_TRAINING
from tuning.settings import Tune, Tuning, load_tuning
from tuning.study_folder import MAY_CHANGE, begin, require_same

SPACE = "tune.space={objective.alpha.2: {low: 0.1, high: 1.0, log: true}, network.norm: [batch, group]}"


def tuning_of(*changes: str) -> Tuning:
    return load_tuning("quick", ["data.uri=/sets/one", "tune.folds=[1, 2]", SPACE, *changes])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a study that has begun."""
    begin(tmp_path, tuning_of(), "digest")
    return tmp_path


def test_a_folder_that_is_empty_or_not_there_is_anyone_s(tmp_path: Path) -> None:
    require_same(tmp_path, tuning_of(), "digest")
    require_same(tmp_path / "none", tuning_of(), "digest")
    assert list(tmp_path.iterdir()) == []


def test_the_same_search_goes_on_and_its_file_asks_for_it(begun: Path) -> None:
    require_same(begun, tuning_of(), "digest")
    again = load_tuning(str(begun / "study.yaml"))
    assert (again.config, again.tune.model_dump(), again.space) == (
        tuning_of().config,
        again.tune.model_dump(),
        tuning_of().space,
    )
    require_same(begun, again, "digest")


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "training.epochs=5",
        "training.batch=32",
        "optimizer.generator_rate=3e-3",
        "objective.alpha=[1, 1, 1, 1]",
        "network.widths=[4, 8, 8, 16, 16]",
        "data.size=[64, 64]",
        "augmentation.flip=0.25",
        "tune.searcher=random",
        "tune.scheduler=none",
        "tune.first_rung=2",
        "tune.reduction=2",
        "tune.folds=[1, 3]",
        "tune.folds=[2, 1]",
        "tune.seeds=[0, 1]",
        "tune.trainings_by_rung=[1]",
        "tune.unseen=[4]",
        "tune.unseen=[]",
        "tune.processes=2",
        "tune.nodes=2",
        "tune.space={objective.alpha.2: {low: 0.1, high: 0.9, log: true}, network.norm: [batch, group]}",
        "tune.space={objective.alpha.2: {low: 0.1, high: 1.0}, network.norm: [batch, group]}",
        "tune.space={objective.alpha.2: {low: 0.1, high: 1.0, log: true}}",
        "tune.space.network.norm=[group, batch]",
    ],
)
def test_another_search_is_refused_in_one_line_that_names_the_key(begun: Path, change: str) -> None:
    before = {path: path.read_bytes() for path in begun.iterdir()}
    key = "tune.space" if "space" in change else change.partition("=")[0]
    with pytest.raises(WrongCall) as refused:
        require_same(begun, tuning_of(change), "digest")
    said = str(refused.value)
    assert said.startswith(f"{begun} holds a study with {key}")
    assert said.endswith("; name another output, or the same configuration to go on")
    assert "\n" not in said
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        "output=elsewhere",
        "data.uri=/sets/moved",
        "data.readers=3",
        "data.resident_gb=0",
        "checkpoints.every_steps=7",
        "validation.batch=3",
        "tracking.experiment=another",
        "tune.trials=64",
        "tune.cpus=2",
        "tune.gpus=0",
        "tune.concurrent=1",
        "tune.retries=0",
        "tune.keep=9",
    ],
)
def test_what_decides_nothing_that_is_learnt_may_change_and_is_written_down(begun: Path, change: str) -> None:
    key, _, value = change.partition("=")
    assert key in MAY_CHANGE
    changed = tuning_of(change)
    require_same(begun, changed, "digest")
    begin(begun, changed, "digest")
    told = yaml.safe_load((begun / "study.yaml").read_text())
    for part in key.split("."):
        told = told[part]
    assert told == yaml.safe_load(value)


def test_each_key_that_may_change_is_one() -> None:
    known = set(load_tuning("quick").config.flat()) | {f"tune.{key}" for key in Tune.model_fields}
    assert set(MAY_CHANGE) <= known
    assert set(OF_A_TRAINING) - set(MAY_CHANGE) == {"folds"}


def test_another_dataset_is_refused(begun: Path) -> None:
    with pytest.raises(WrongCall, match="holds a study with the dataset's digest=digest, and this one has other; "):
        require_same(begun, tuning_of(), "other")


def test_a_plain_training_s_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(WrongCall, match=f"^{tmp_path} holds a training and no study; name another output$"):
        require_same(tmp_path, tuning_of(), "digest")


@pytest.mark.parametrize(
    ("file", "text"), [("study.yaml", "{"), ("study.yaml", "[]"), ("study.json", "{}"), ("study.json", "")]
)
def test_a_damaged_study_is_a_fault_in_one_line(begun: Path, file: str, text: str) -> None:
    (begun / file).write_text(text)
    with pytest.raises(Fault, match="is damaged") as damaged:
        require_same(begun, tuning_of(), "digest")
    assert "\n" not in " ".join(str(damaged.value).split())
    assert str(damaged.value).startswith(f"{begun}")
