"""What stays of trials on the disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.tuning.studies import study_of, tuning_of
from trainer.checkpoint_files import MANIFEST, begin, name_of, names, newest, publish
from trainer.serving.opening import DESCRIPTION, WEIGHTS
from tuning.disk import keep_weights, tidy

BESIDES = {"optimizer.safetensors": {"moment": torch.zeros(3000)}}


def checkpointed(folder: Path, *steps: int) -> Path:
    """Checkpoints after so many steps, each larger than what a closed disk takes."""
    for step in steps:
        target = folder / name_of(step)
        begin(target)
        publish(target, {WEIGHTS: {"weight": torch.full((3000,), float(step))}, **BESIDES}, {DESCRIPTION: {}})
    return folder


@contextmanager
def closed_disk() -> Iterator[None]:
    """No file can grow beyond 1000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_of_the_best_the_last_weights_stay_of_other_trials_nothing_and_those_under_way_keep_all(tmp_path: Path) -> None:
    curves = [
        {"dsc": [{"fold-1": 0.7}] * 3},
        {"dsc": [{"fold-1": 0.8}] * 3},
        {"dsc": [{"fold-1": 0.9}], "how": "stopped"},
        {"dsc": [{"fold-1": 0.9}], "how": ""},
    ]
    study = study_of(tuning_of(), curves)
    folders = [checkpointed(tmp_path / f"{number:04d}" / "fold-1" / "checkpoints", 1, 2) for number in range(4)]
    tidy(tmp_path, study, keep=1)
    assert [folder.exists() for folder in folders] == [False, True, False, True]
    assert names(folders[1]) == [name_of(2)]
    assert {path.name for path in (folders[1] / name_of(2)).iterdir()} == {WEIGHTS, DESCRIPTION, MANIFEST}
    assert newest(folders[1]) == folders[1] / name_of(2)
    assert names(folders[3]) == [name_of(1), name_of(2)]
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    tidy(tmp_path, study, keep=1)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_where_the_disk_is_full_the_last_checkpoint_stays_whole(tmp_path: Path) -> None:
    folder = checkpointed(tmp_path / "checkpoints", 1, 2)
    with closed_disk():
        with pytest.raises(OSError, match="too large"):
            (tmp_path / "probe").write_bytes(bytes(2000))
        keep_weights(folder)
    assert [path.name for path in folder.iterdir()] == [name_of(2)]
    assert newest(folder) == folder / name_of(2)
    assert (folder / name_of(2) / "optimizer.safetensors").exists()
    keep_weights(folder)
    assert not (folder / name_of(2) / "optimizer.safetensors").exists()


def test_a_training_without_a_checkpoint_has_nothing_to_keep(tmp_path: Path) -> None:
    keep_weights(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
