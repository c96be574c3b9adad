import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline import Fault, WrongCall
from trainer.checkpoint_files import begin, damage, names, prune, publish
from trainer.mirror import Mirror


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def published(folder: Path, *steps: int, best_step: int = 0) -> None:
    for step in steps:
        target = folder / f"step-{step:08d}"
        (begin(target) / "deep").mkdir()
        (target.with_name(f".{target.name}.partial") / "deep" / "file").write_text(str(step))
        publish(target, {"values.safetensors": {"x": torch.arange(step)}}, {"state.json": {"best_step": best_step}})


def best_of(checkpoint: Path) -> int:
    told: int = json.loads((checkpoint / "state.json").read_text())["best_step"]
    return told


def mirrored(here: Path, there: Path, *steps: int, best_step: int = 0, keep: int = 2) -> Mirror:
    """Checkpoints published here and copied there, one after the other."""
    mirror = Mirror(str(there), here, keep)
    for step in steps:
        published(here, step, best_step=best_step)
        prune(here, keep, best_step)
        mirror.follow(f"step-{step:08d}", best_step)
        mirror.close(30)
    return mirror


def test_a_mirror_holds_what_the_folder_holds(here: Path, there: Path):
    mirrored(here, there, 1, 2, 3, 4, best_step=1)
    assert names(there) == names(here) == ["step-00000001", "step-00000003", "step-00000004"]
    assert json.loads((there / "checkpoints.json").read_text())["checkpoints"] == names(here)
    assert [damage(there / name) for name in names(there)] == ["", "", ""]


def test_an_empty_folder_gets_the_newest_and_the_best(here: Path, there: Path, tmp_path: Path):
    mirrored(here, there, 1, 2, 3, 4, best_step=1)
    assert Mirror(str(there), tmp_path / "new", 2).fetch(-1, best_of) == "step-00000004"
    assert names(tmp_path / "new") == ["step-00000001", "step-00000004"]
    assert [damage(tmp_path / "new" / name) for name in names(tmp_path / "new")] == ["", ""]
    assert (tmp_path / "new" / "step-00000004" / "deep" / "file").read_text() == "4"


def test_only_a_newer_one_is_fetched(here: Path, there: Path):
    mirror = mirrored(here, there, 1, 2)
    assert mirror.fetch(2, best_of) is None
    shutil.rmtree(here / "step-00000002")
    assert mirror.fetch(1, best_of) == "step-00000002"


def test_a_damaged_one_is_named_and_the_one_before_it_fetched(
    here: Path, there: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    mirrored(here, there, 1, 2)
    file = there / "step-00000002" / "values.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, logger="sonotrain"):
        assert Mirror(str(there), tmp_path / "new", 2).fetch(-1, best_of) == "step-00000001"
    assert "step-00000002 cannot be used (values.safetensors is not what was written)" in caplog.text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["step-00000001"]


def test_a_manifest_cannot_lead_out_of_the_folder(here: Path, there: Path, tmp_path: Path):
    mirrored(here, there, 1)
    manifest = there / "step-00000001" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["sha256"]["../../escaped"] = "0" * 64
    manifest.write_text(json.dumps(told))
    with pytest.raises(WrongCall, match="is no object's name"):
        Mirror(str(there), tmp_path / "new", 2).fetch(-1, best_of)
    assert list((tmp_path / "new").iterdir()) == []


def test_another_runs_checkpoint_stays_where_it_is(here: Path, there: Path, tmp_path: Path):
    def another(checkpoint: Path) -> int:
        raise WrongCall("it is another run's")

    mirrored(here, there, 1)
    with pytest.raises(WrongCall, match="another run's"):
        Mirror(str(there), tmp_path / "new", 2).fetch(-1, another)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_mirror_that_cannot_be_read_ends_a_run_only_where_it_would_begin_again(
    here: Path, there: Path, caplog: pytest.LogCaptureFixture
):
    mirror = mirrored(here, there, 1)
    (there / "checkpoints.json").write_text("{")
    with pytest.raises(Fault, match=r"checkpoints.json is damaged .*; there is no checkpoint in .* either"):
        mirror.fetch(-1, best_of)
    with caplog.at_level(logging.WARNING, logger="sonotrain"):
        assert mirror.fetch(0, best_of) is None
    assert "going on from what is in" in caplog.text


def test_one_written_again_is_copied_again(here: Path, there: Path):
    mirror = mirrored(here, there, 1)
    shutil.rmtree(here / "step-00000001")
    published(here, 1, best_step=1)
    mirror.follow("step-00000001", 1)
    mirror.close(30)
    assert best_of(there / "step-00000001") == 1
    assert damage(there / "step-00000001") == ""


def test_what_was_superseded_before_it_was_copied_is_left_out(here: Path, there: Path):
    mirror = mirrored(here, there, 1)
    published(here, 2, 3)
    mirror.follow("step-00000002", 0)
    shutil.rmtree(here / "step-00000002")
    mirror.follow("step-00000003", 0)
    mirror.close(30)
    assert "step-00000003" in names(there)
    assert [damage(there / name) for name in names(there)] == [""] * len(names(there))


def test_nothing_stays_of_a_mirror_that_is_cleared(here: Path, there: Path) -> None:
    mirror = mirrored(here, there, 1, 2, 3)
    assert (there / "checkpoints.json").exists()
    for _ in range(2):
        mirror.clear()
        assert list(there.iterdir()) == []
    assert Mirror(str(there), here, 2).fetch(3, best_of) is None
    assert names(here) == ["step-00000002", "step-00000003"]
