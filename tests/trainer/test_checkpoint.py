import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer.checkpoint_files import begin, clear_away, damage, discard, names, newest, prune, publish


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three published checkpoints of two small files each."""
    for step in (1, 2, 3):
        published(tmp_path, step)
    return tmp_path


def published(folder: Path, step: int) -> Path:
    target = folder / f"step-{step:08d}"
    (begin(target) / "deep").mkdir()
    (target.with_name(f".{target.name}.partial") / "deep" / "file").write_text("12345")
    publish(target, {"values.safetensors": {"x": torch.arange(step)}}, {"state.json": {"step": step}})
    return target


def test_the_newest_is_found(folder: Path):
    assert newest(folder) == folder / "step-00000003"


def test_a_run_without_checkpoints_has_none(tmp_path: Path):
    assert newest(tmp_path / "missing") is None
    assert newest(tmp_path) is None


def test_what_is_published_is_covered_by_its_manifest(folder: Path):
    manifest = json.loads((folder / "step-00000003" / "manifest.json").read_text())
    assert sorted(manifest["sha256"]) == ["deep/file", "state.json", "values.safetensors"]
    assert load_file(folder / "step-00000003" / "values.safetensors")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("harm", ["changed", "cut", "removed", "deep", "no manifest", "broken manifest"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(folder: Path, harm: str):
    state, manifest = (folder / "step-00000003" / name for name in ("state.json", "manifest.json"))
    if harm == "changed":
        state.write_text(state.read_text().replace("3", "4"))
    elif harm == "cut":
        state.write_text(state.read_text()[:-1])
    elif harm == "removed":
        state.unlink()
    elif harm == "deep":
        (state.parent / "deep" / "file").write_text("12346")
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:-5])
    told: list[str] = []
    assert newest(folder, told.append) == folder / "step-00000002"
    assert "step-00000003 is damaged" in told[0]


def test_one_that_was_being_written_or_removed_does_not_exist_and_is_cleared_away(folder: Path):
    (begin(folder / "step-00000004") / "state.json").write_text("{}")
    (folder / "step-00000001").rename(folder / ".step-00000001.doomed")
    assert newest(folder) == folder / "step-00000003"
    assert names(folder) == ["step-00000002", "step-00000003"]
    clear_away(folder)
    assert sorted(path.name for path in folder.iterdir()) == names(folder)


def test_one_of_the_same_step_is_replaced(folder: Path):
    published(folder, 3)
    assert not damage(folder / "step-00000003")
    assert names(folder) == ["step-00000001", "step-00000002", "step-00000003"]
    discard(folder / "step-00000003")
    discard(folder / "step-00000009")
    assert names(folder) == ["step-00000001", "step-00000002"]


@given(st.sets(st.integers(0, 99_999_999), min_size=1), st.integers(1, 5), st.integers(0, 99_999_999))
def test_the_newest_and_the_best_are_kept(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int, best: int
):
    folder = tmp_path_factory.mktemp("kept")
    for step in steps:
        (folder / f"step-{step:08d}").mkdir()
    prune(folder, keep, best)
    assert [int(name[5:]) for name in names(folder)] == sorted({*sorted(steps)[-keep:], *({best} & steps)})


def test_a_manifest_cannot_lead_out_of_its_folder(folder: Path):
    manifest = folder / "step-00000003" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["sha256"] = {"../step-00000002/state.json": told["sha256"]["state.json"]}
    manifest.write_text(json.dumps(told))
    assert damage(folder / "step-00000003") == "../step-00000002/state.json is missing"
