"""`sonotrain tune`, called wrongly: one line, before anything is written or started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from launch import claim
from launch.cores import usable_cores
from tests.launch.command import Command

SEARCH = """
data: {uri: phantoms, size: [64, 64]}
network: {widths: [4, 4, 8, 8, 8]}
discriminators: {widths: [4, 4, 4, 4], strides: [1, 1, 1, 1, 1]}
training: {epochs: 3, batch: 4}
output: study
tune:
  trials: 3
  space:
    objective.alpha.2: {low: 0.01, high: 1.0, log: true}
"""


@pytest.fixture
def asked(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A search of three trials on twelve phantoms in three folds, for which no Ray may be started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(claim, "free_cores", lambda: usable_cores().count)  # whatever else this machine is at
    Path("search.yaml").write_text(SEARCH)
    return "search.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.epoch=5", "there is no key training.epoch; the nearest is training.epochs"),
        ("tune.trails=5", "there is no key tune.trails; the nearest is tune.trials"),
        ("tune.space.objective.alfa={low: 0.1, high: 1}", "objective.alfa"),
        ("tune.space.objective.alpha.9={low: 0.1, high: 1}", "objective.alpha.9"),
        ("tune.space.training.epochs=[3, 5]", "training.epochs"),
        ("tune.space.objective.alpha.2={low: 1.0, high: 0.01}", "tune.space.objective.alpha.2"),
        ("tune.space.objective.alpha.2={low: 0.5, high: 0.5}", "tune.space.objective.alpha.2"),
        ("tune.space.objective.alpha.2={}", "tune.space.objective.alpha.2"),
        ("tune.space.discriminators.norm=[]", "tune.space.discriminators.norm"),
        ("tune.space.discriminators.norm=[batch, bach]", "discriminators.norm"),
        (f"tune.processes={usable_cores().count + 1}", "and the largest machine, "),
        ("tune.cpus=1000", "takes 1000 cores, and the largest machine, "),
        ("tune.nodes=2", "tune.nodes=2, tune.processes=1, tune.cpus=1: "),
        ("tune.folds=[1, 4]", "data.fold=4"),
        ("tune.folds=[1, 3]", "tune.unseen (not set: fold 3)"),
        ("tune.unseen=[1]", "tune.unseen=[1]: trials are judged by fold 1"),
        ("tune.unseen=[5]", "tune.unseen=[5]"),
        ("tune.unseen=[2, 3]", "tune.unseen=[2, 3]"),
        ("data.uri=''", "data.uri is not set"),
        ("data.uri=elsewhere", "elsewhere"),
        ("data.size=[30, 30]", "data.size=30x30"),
        ("tune.first_rung=9", "tune.first_rung=9: is beyond the last epoch"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_nothing_is_written(
    asked: str, sonotrain: Command, change: str, words: str
) -> None:
    there = sorted(Path().rglob("*"))
    outcome = sonotrain("tune", asked, change)
    assert outcome.status == 2, outcome.errors
    assert words in outcome.error
    assert sorted(Path().rglob("*")) == there


def test_a_file_that_is_none_is_said(asked: str, sonotrain: Command) -> None:
    for source, words in (
        ("nothing.yaml", "nothing.yaml"),
        ("paper-comparison", "sonotrain crossval paper-comparison"),
    ):
        outcome = sonotrain("tune", source)
        assert outcome.status == 2
        assert words in outcome.error


def test_another_study_s_folder_and_a_training_s_stay_as_they_are(asked: str, sonotrain: Command) -> None:
    from trainer.feasible import dataset_of
    from tuning.search import settled
    from tuning.settings import load_tuning
    from tuning.study_folder import begin

    tuning = settled(load_tuning(asked))
    Path("study").mkdir()
    begin(Path("study"), tuning, dataset_of(tuning.config).index.digest)
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"digest": ""}))
    kept = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    for changes, words in (
        (["training.epochs=4"], "study holds a study with training.epochs=3, and this one has 4; name another output"),
        (["tune.searcher=random"], "study holds a study with tune.searcher=tpe, and this one has random; "),
        (["tune.space.objective.alpha.2.high=0.5"], "study holds a study with tune.space="),
        (["output=run"], "run holds a training and no study; name another output"),
    ):
        outcome = sonotrain("tune", asked, *changes)
        assert outcome.status == 2, outcome.errors
        assert words in outcome.error
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == kept


def test_where_other_launches_have_all_cores_it_is_said(
    asked: str, sonotrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "free_cores", lambda: 0)
    outcome = sonotrain("tune", asked)
    assert outcome.status == 2
    assert outcome.error == (
        "error: no core of this machine is free: other launches have claimed all; wait for them, or stop them"
    )
