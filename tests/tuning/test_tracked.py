import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import Dataset
from trainer import tracking
from trainer.stopping import Stopped
from trainer.tracking import import_mlflow
from tuning.final import FinalComparison
from tuning.journal import StudyRecord
from tuning.settings import Tuning, load_tuning
from tuning.tracked import TrackedStudy

StudyOf = Callable[..., StudyRecord]


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    return packed(12)


@pytest.fixture
def tuning(tracker: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuning:
    """Of a study that is tracked in an experiment of its own, whose end waits for all to be written."""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 60)
    (tmp_path / "study").mkdir()
    changes = [f"output={tmp_path}/study", f"data.uri={dataset.uri}", f"tracking.experiment={tmp_path.name}"]
    return load_tuning("quick", changes)


def client() -> Any:
    return import_mlflow().MlflowClient()


def runs(tuning: Tuning) -> tuple[list[Any], dict[str, Any]]:
    """The study's runs in its experiment, and those of its trials by name."""
    experiment = client().get_experiment_by_name(tuning.config.tracking.experiment)
    every = client().search_runs([experiment.experiment_id])
    children = [run for run in every if "mlflow.parentRunId" in run.data.tags]
    assert len({run.info.run_name for run in children}) == len(children)
    return [run for run in every if run not in children], {run.info.run_name: run for run in children}


def history(run: Any, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client().get_metric_history(run.info.run_id, key))


def report(study: StudyRecord, trial: int, epoch: int, dsc: float) -> None:
    told = {"trainings": {"fold-1": dsc}, "trained": epoch, "seconds": 10.0 * epoch}
    study.add({"event": "report", "trial": trial, "epoch": epoch, "dsc": dsc, **told})


@pytest.fixture
def tell(study_of: StudyOf) -> StudyRecord:
    """Three trials: finished after two epochs, stopped after one, and one that has begun."""
    return study_of([[0.5, 0.6], [0.4], []], hows=["finished", "stopped", None])


def test_a_study_is_a_run_and_each_trial_one_below_it(
    tuning: Tuning, dataset: Dataset, tell: StudyRecord, tmp_path: Path
) -> None:
    (tmp_path / "best.yaml").write_text("seed: 0")
    with TrackedStudy(tuning, dataset, tell) as tracked:
        report(tell, 2, 1, 0.3)
        tracked.reported(tell.trials[2])
        tell.add({"event": "failed", "trial": 2, "why": "out of memory"})
        tracked.failed(tell.trials[2])
        tell.add({"event": "ended", "trial": 2, "how": "failed", "why": "out of memory"})
        tracked.ended(tell.trials[2])
        final = FinalComparison((3,), (0,), 0.62, 0.6, 0.02, -0.01, 0.05, None, 4, 2, 1, {})
        tracked.concluded(0, final, [tmp_path / "best.yaml", tmp_path / "none.png"])
    (parent,), children = runs(tuning)
    assert (parent.info.run_name, parent.info.status) == ("study", "FINISHED")
    assert parent.data.params["tune.trials"] == "32"
    assert parent.data.params["tune.space.discriminators.norm"] == "Choices(values=('batch', 'instance', 'group'))"
    assert parent.data.tags.items() >= {"kind": "search", "best_trial": "0", "dataset.name": "noise"}.items()
    assert parent.data.metrics == {
        "best/dsc": 0.6, "best/epoch": 2, "paper/dsc": 0.6, "paper/epoch": 2,
        "unseen/best": 0.62, "unseen/paper": 0.6, "unseen/difference": 0.02, "unseen/low": -0.01, "unseen/high": 0.05,
    }  # fmt: skip
    assert [file.path for file in client().list_artifacts(parent.info.run_id)] == ["best.yaml"]
    assert {name: run.info.status for name, run in children.items()} == {
        "trial-0000": "FINISHED", "trial-0001": "FINISHED", "trial-0002": "FAILED",
    }  # fmt: skip
    first, second, third = (children[name] for name in sorted(children))
    assert {run.data.tags["mlflow.parentRunId"] for run in (first, second, third)} == {parent.info.run_id}
    assert second.data.params == {"objective.alpha.2": "0.1"}
    assert history(first, "dsc") == history(first, "dsc/fold-1") == [(1, 0.5), (2, 0.6)]
    assert history(third, "dsc") == [(1, 0.3)]
    assert first.data.tags.items() >= {"origin": "paper", "state": "finished", "node": "here", "trial": "0"}.items()
    assert second.data.tags["state"] == "stopped"
    assert third.data.tags.items() >= {"failures": "out of memory", "why": "out of memory"}.items()


def test_a_study_that_goes_on_has_nothing_twice_and_what_was_missed(
    tuning: Tuning, dataset: Dataset, tell: StudyRecord
) -> None:
    with pytest.raises(Stopped), TrackedStudy(tuning, dataset, tell):
        raise Stopped("SIGTERM")
    (before,), children = runs(tuning)
    assert (before.info.status, children["trial-0002"].info.status) == ("KILLED", "KILLED")
    report(tell, 2, 1, 0.3)  # which the tracker was not told
    with TrackedStudy(tuning, dataset, tell) as tracked:
        report(tell, 2, 2, 0.7)
        tracked.reported(tell.trials[2])
        tell.add({"event": "ended", "trial": 2, "how": "finished", "why": ""})
        tracked.ended(tell.trials[2])
        tracked.concluded(2, None, [])
    with TrackedStudy(tuning, dataset, tell) as tracked:
        tracked.concluded(2, None, [])
    (after,), again = runs(tuning)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert {name: run.info.run_id for name, run in again.items()} == {
        name: run.info.run_id for name, run in children.items()
    }
    assert again["trial-0000"].info.end_time == children["trial-0000"].info.end_time
    assert history(again["trial-0000"], "dsc") == [(1, 0.5), (2, 0.6)]
    assert history(again["trial-0002"], "dsc") == [(1, 0.3), (2, 0.7)]
    assert again["trial-0002"].info.status == "FINISHED"
    assert history(after, "best/dsc") == [(3, 0.7)]


def test_a_trial_of_a_population_has_its_values_by_epoch(tuning: Tuning, dataset: Dataset, study_of: StudyOf) -> None:
    study = study_of([[0.5], [0.4]], hows=[None, None])
    with TrackedStudy(tuning, dataset, study) as tracked:
        values = {"objective.alpha.2": 0.04, "discriminators.norm": "group"}
        study.add({"event": "exchanged", "trial": 1, "donor": 0, "epoch": 1, "values": values})
        tracked.exchanged(study.trials[1])
    _, children = runs(tuning)
    assert history(children["trial-0001"], "objective.alpha.2") == [(1, 0.04)]
    assert children["trial-0001"].data.params == {"objective.alpha.2": "0.1"}
    assert children["trial-0001"].data.tags["went_on_from"] == "trial 0 after epoch 1"


def test_a_tracker_that_is_away_holds_up_nothing_and_has_all_when_it_is_back(
    tuning: Tuning, dataset: Dataset, study_of: StudyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of([[number / 16] for number in range(12)])
    with socket.socket() as held, monkeypatch.context() as away:
        held.bind(("127.0.0.1", 0))
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{held.getsockname()[1]}")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        threads = threading.active_count()
        tracked = TrackedStudy(tuning, dataset, study)
        began = time.monotonic()
        for trial in study.trials.values():
            tracked.ended(trial)
        assert time.monotonic() - began < 5
        assert threading.active_count() <= threads + 1
        assert not (Path(tuning.config.output) / "tracking.json").exists()
    tracked.__exit__(None, None, None)
    (parent,), children = runs(tuning)
    assert len(children) == 12
    assert history(children["trial-0008"], "dsc") == [(1, 0.5)]
    assert json.loads((Path(tuning.config.output) / "tracking.json").read_text()) == {"run_id": parent.info.run_id}


def test_without_an_experiment_nothing_is_tracked(tuning: Tuning, dataset: Dataset, tell: StudyRecord) -> None:
    untracked = load_tuning("quick", [f"output={tuning.config.output}", 'tracking.experiment=""'])
    with TrackedStudy(untracked, dataset, tell) as tracked:
        tracked.ended(tell.trials[0])
        tracked.concluded(0, None, [])
    assert list(Path(tuning.config.output).iterdir()) == []
