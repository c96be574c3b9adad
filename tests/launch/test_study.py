"""A study by the command: killed in the middle, gone on with in two processes, and its table."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from launch.cores import usable_cores
from tests.launch.command import Command

STUDY = """
table: With and without an adversary
base: quick
changes:
  output: study
  folds: [1, 2]
  data: {uri: phantoms, size: [48, 48]}
  network.widths: [4, 8, 8, 8]
  discriminators: {widths: [4, 4, 4, 4], strides: [1, 1, 1, 1, 1]}
  training: {epochs: 5, batch: 2, precision: fp32, channels_last: false, timeout_minutes: 1}
  validation.every_epochs: 5
  checkpoints.every_steps: 0
compare_to: with one
variants:
  with one: {}
  without: {objective.beta: [0, 0, 0, 0]}
"""

SONOTRAIN = [sys.executable, "-P", "-m", "launch.cli"]


@pytest.mark.slow
@pytest.mark.skipif(usable_cores().count < 2, reason="two processes need two cores")
@pytest.mark.usefixtures("dataset")
def test_a_study_that_was_killed_skips_what_is_finished_and_fills_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "study.yaml").write_text(STUDY)
    study, first = tmp_path / "study", tmp_path / "study/with-one/fold-1"

    with (tmp_path / "output").open("w") as output:
        begun = subprocess.Popen(
            [*SONOTRAIN, "crossval", "study.yaml"], cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 120
    while not list((study / "without/fold-1/checkpoints").glob("step-*")):
        assert begun.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    begun.kill()
    begun.wait()
    assert not (study / "without/fold-1/result.json").exists()
    early = json.loads((study / "table.json").read_text())
    assert [(row["variant"], row["folds"]) for row in early["rows"]] == [("with one", [1])]
    kept = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}

    call = [*SONOTRAIN, "launch", "local", "--procs", "2", "--", "crossval", "study.yaml", "--json", "told.json"]
    ended = subprocess.run(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    said = (study / "logs/rank-0.log").read_text()
    assert "variant 1 of 2, with one, holding out fold 1: finished before" in said
    assert "goes on after step" in said
    assert "Compared 2 variants; the table is study/table.md" in said
    assert "variant" not in (study / "logs/rank-1.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == kept

    told, table = (json.loads((tmp_path / file).read_text()) for file in ("told.json", "study/table.json"))
    assert {key: told[key] for key in table} == table
    assert [(row["variant"], row["folds"]) for row in table["rows"]] == [("with one", [1, 2]), ("without", [1, 2])]
    for row in table["rows"]:
        of_folds = [fold["validation"]["dsc"]["mean"] for fold in told["results"][row["variant"]].values()]
        assert row["measures"]["dsc"]["mean"] == pytest.approx(sum(of_folds) / 2)
        assert row["minutes"] > 0
    assert table["comparisons"]["without"]["cases"] == sum(row["cases"] for row in table["rows"]) / 2
    assert "| without | 1, 2 | " in (study / "table.md").read_text()
    assert len((study / "table.csv").read_text().splitlines()) == 3
    assert cv2.imread(str(study / "scores.png")).shape[2] == 3

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "sonotrain")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    names = {key: run.info.run_name for key, run in runs.items()}
    above = sorted((run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId", ""))) for run in runs.values())
    assert above == [
        ("fold-1", "with-one"),
        ("fold-1", "without"),
        ("fold-2", "with-one"),
        ("fold-2", "without"),
        ("study", None),
        ("with-one", "study"),
        ("without", "study"),
    ]
    assert not client.search_registered_models()


@pytest.mark.usefixtures("dataset")
def test_a_variant_that_diverges_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    diverges = "{optimizer.generator_rate: 1.0e+30, training.skips: 1}"
    (tmp_path / "study.yaml").write_text(STUDY.replace("{objective.beta: [0, 0, 0, 0]}", diverges))
    call = [*SONOTRAIN, "crossval", "study.yaml", "folds=[1]"]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "error: not in the table, since they diverged: without, fold 1; study has the others" in ended.stderr
    table = json.loads((tmp_path / "study/table.json").read_text())
    assert [row["variant"] for row in table["rows"]] == ["with one"]


@pytest.mark.usefixtures("dataset")
def test_a_variant_that_cannot_be_trained_is_found_before_any_is(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        STUDY.replace("objective.beta: [0, 0, 0, 0]", "training.batch: 5, training.accumulation: 2")
    )
    call = [*SONOTRAIN, "crossval", "study.yaml"]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 2
    assert "error: variant without: training.batch=5 cannot be shared" in ended.stderr
    assert not (tmp_path / "study").exists()


def test_a_study_is_no_configuration_to_train(sonotrain: Command) -> None:
    ended = sonotrain("train", "paper-ablation")
    assert ended.status == 2
    assert "paper-ablation is a study of several variants; carry it out with sonotrain crossval" in ended.error


def test_a_launched_study_is_checked_before_a_process_starts(sonotrain: Command) -> None:
    ended = sonotrain("launch", "local", "--procs", 1, "--", "crossval", "paper-ablation", "training.epoch=1")
    assert ended.status == 2
    assert "there is no key training.epoch" in ended.error
