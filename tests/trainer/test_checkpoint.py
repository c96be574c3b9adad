import json
from pathlib import Path

import pytest

from trainer.checkpoint import damage, newest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three published checkpoints of one small file each."""
    from trainer.checkpoint import _publish

    for step in (1, 2, 3):
        _publish(tmp_path / f"step-{step:08d}", {}, {"state.json": {"step": step}})
    return tmp_path


def test_the_newest_is_found(folder: Path):
    assert newest(folder) == folder / "step-00000003"


def test_a_run_without_checkpoints_has_none(tmp_path: Path):
    assert newest(tmp_path / "missing") is None
    assert newest(tmp_path) is None


@pytest.mark.parametrize("harm", ["changed", "cut", "removed", "no manifest", "broken manifest"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(folder: Path, harm: str):
    state, manifest = (folder / "step-00000003" / name for name in ("state.json", "manifest.json"))
    if harm == "changed":
        state.write_text(state.read_text().replace("3", "4"))
    elif harm == "cut":
        state.write_text(state.read_text()[:-1])
    elif harm == "removed":
        state.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:-5])
    told: list[str] = []
    assert newest(folder, told.append) == folder / "step-00000002"
    assert "step-00000003 is damaged" in told[0]


def test_one_that_was_being_written_does_not_exist(folder: Path):
    (folder / ".step-00000004.partial").mkdir()
    (folder / ".step-00000004.partial" / "state.json").write_text("{}")
    assert newest(folder) == folder / "step-00000003"


def test_a_manifest_cannot_lead_out_of_its_folder(folder: Path):
    manifest = folder / "step-00000003" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["sha256"] = {"../step-00000002/state.json": "0" * 64}
    manifest.write_text(json.dumps(told))
    assert damage(folder / "step-00000003")
