import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.trainer.conftest import Ranks
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


@pytest.fixture(scope="module")
def told(run_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What tests/trainer/checkpointing.py found, by one rank and by two."""
    found: dict[str, dict[str, Any]] = {}
    for world in (1, 2):
        folder = tmp_path_factory.mktemp("checkpoints")
        found |= json.loads(run_ranks("checkpointing.py", str(folder), world=world)[0].splitlines()[-1])
    return found


def test_a_running_average_is_the_network_to_use_and_training_goes_on_from_the_live_one(told: dict[str, Any]):
    assert told["an_average"] == {"is what is used": True, "differs from the live": True, "goes on alike": True}


def test_without_an_adversary_there_are_no_files_of_one(told: dict[str, Any]):
    assert told["no_adversary"]["goes on alike"]
    assert told["no_adversary"]["files"] == [
        "generator.moments.safetensors",
        "generator.safetensors",
        "manifest.json",
        "network.json",
        "state.json",
    ]


def test_adams_own_count_leaves_out_the_steps_that_were_skipped(told: dict[str, Any]):
    assert told["skipped_steps"] == {
        "Adam": {"generator": 2, "discriminators": 2},
        "step": 4,
        "goes on alike": True,
    }


def test_what_training_changes_while_a_checkpoint_is_written_is_not_in_it(told: dict[str, Any]):
    assert told["what_changes_while_it_is_written"]["any kept"]


def test_a_generator_shared_out_by_stage_3_goes_on_to_the_bit_and_can_be_used(told: dict[str, Any]):
    shared_out = told["shared_out"]
    assert shared_out["can be used"]
    assert shared_out["goes on alike"]
    assert shared_out["Adam"] == [4]
    assert shared_out["scripts"] == []


def test_going_away_from_stage_3_is_refused_in_one_line(told: dict[str, Any]):
    assert told["shared_out"]["to stage 2"] == (
        "WrongCall: step-00000002 was saved with training.generator_zero=3 by 2 processes, and this run has 2 and 2: "
        "to and from stage 3 a run cannot be moved; go on as it was, or name another output"
    )


def test_a_file_of_stage_3_that_would_execute_something_is_refused(told: dict[str, Any]):
    assert told["shared_out"]["a pickle"]["said"].startswith("Fault: ")
    assert "generator.zero3 holds something else than tensors" in told["shared_out"]["a pickle"]["said"]
    assert told["shared_out"]["a pickle"]["executed"] is False
