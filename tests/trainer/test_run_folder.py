from pathlib import Path

import pytest
import yaml

from data_pipeline import WrongCall
from trainer.config import load_config
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(load_config("quick"), "digest-1")
    return folder


def test_the_same_configuration_goes_on(folder: RunFolder):
    assert folder.begin(load_config("quick"), "digest-1") is None


def test_a_run_from_before_folds_could_be_unseen_goes_on_only_with_none_unseen(folder: RunFolder):
    tree = yaml.safe_load(folder.config.read_text())
    del tree["data"]["unseen"]
    folder.config.write_text(yaml.safe_dump(tree))
    assert folder.begin(load_config("quick"), "digest-1") is None
    with pytest.raises(WrongCall, match=r"data.unseen=\[\], and this one has \[3\]"):
        folder.begin(load_config("quick", ["data.unseen=[3]"]), "digest-1")


def test_its_configuration_file_is_one_that_can_be_trained_again(folder: RunFolder):
    assert load_config(str(folder.config)) == load_config("quick")


def test_another_configuration_is_refused_by_the_key_that_differs(folder: RunFolder):
    with pytest.raises(WrongCall, match=r"holds a run with training.epochs=12, and this one has 13"):
        folder.begin(load_config("quick", ["training.epochs=13"]), "digest-1")


def test_another_dataset_is_refused(folder: RunFolder):
    with pytest.raises(WrongCall, match=r"the dataset's digest=digest-1, and this one has digest-2"):
        folder.begin(load_config("quick"), "digest-2")


@pytest.mark.parametrize(
    "change",
    ["data.uri=s3://elsewhere/set", "data.readers=1", "training.generator_zero=2", "training.stall_minutes=9"],
)
def test_what_decides_nothing_that_is_learnt_may_change(folder: RunFolder, change: str):
    assert folder.begin(load_config("quick", [change]), "digest-1") is None


def test_a_run_begun_before_there_was_a_key_goes_on(folder: RunFolder):
    lines = folder.config.read_text().splitlines(keepends=True)
    folder.config.write_text("".join(line for line in lines if "stall_minutes" not in line and "ema:" not in line))
    assert folder.begin(load_config("quick", ["training.stall_minutes=9"]), "digest-1") is None


def test_the_id_in_mlflow_is_kept(folder: RunFolder):
    assert folder.tracked_as() is None
    folder.note_tracked_as("abc")
    assert folder.tracked_as() == "abc"
    folder.begin(load_config("quick"), "digest-1")
    assert folder.tracked_as() == "abc"


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"file/run"):
        RunFolder(tmp_path / "file" / "run").begin(load_config("quick"), "digest-1")
