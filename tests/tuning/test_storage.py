"""A study's second place."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline import Dataset
from trainer.checkpoint_files import begin, publish
from trainer.mirror import Mirror
from tuning.journal import Journal, read_journal
from tuning.orders import Desk
from tuning.settings import load_tuning
from tuning.storage import Storage, fetch
from tuning.study_folder import begin as begin_study


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    return packed(12)


@pytest.fixture
def desk(dataset: Dataset, tmp_path: Path) -> Desk:
    place = tmp_path / "second"
    changes = [f"output={tmp_path / 'study'}", f"tune.storage={place}", f"checkpoints.mirror={place}", "tune.keep=1"]
    tuning = load_tuning("quick", [*changes, f"data.uri={dataset.uri}", "tune.unseen=[]"])
    return Desk(tuning, dataset, ())


def copied(desk: Desk, number: int) -> Path:
    """A trial's checkpoint in the second place, as its training's mirror leaves it."""
    order = desk.orders(number, desk.tuning.space.of(desk.tuning.config))[0]
    checkpoints = order.folder.checkpoints
    begin(checkpoints / "step-00000004")
    publish(checkpoints / "step-00000004", {}, {"state.json": {}})
    mirror = Mirror(order.config["checkpoints"]["mirror"], checkpoints, 1)
    mirror.fetch(99, lambda _: 0)
    mirror.follow("step-00000004", 4)
    mirror.close(10)
    return Path(order.config["checkpoints"]["mirror"]) / "step-00000004"


def test_another_machine_goes_on_with_what_the_journal_told(desk: Desk, tmp_path: Path) -> None:
    begin_study(desk.output, desk.tuning, "digest")
    with Journal(desk.output) as journal, Storage(desk, journal.study) as storage:
        journal.write("trial", number=0, values=desk.tuning.space.of(desk.tuning.config), origin="paper")
        storage.began(journal.study.trials[0])
    elsewhere = tmp_path / "elsewhere"
    fetch(desk.tuning.tune.storage, elsewhere)
    assert read_journal(elsewhere).trials == read_journal(desk.output).trials
    assert (elsewhere / "study.yaml").read_text() == (desk.output / "study.yaml").read_text()


def test_a_machine_that_has_the_study_keeps_its_own(desk: Desk, tmp_path: Path) -> None:
    test_another_machine_goes_on_with_what_the_journal_told(desk, tmp_path)
    with Journal(desk.output) as journal:
        journal.write("began", trial=0, attempt=1, node="here")
    fetch(desk.tuning.tune.storage, desk.output)
    assert read_journal(desk.output).trials[0].attempts == 1


def test_of_trials_that_have_ended_the_best_ones_checkpoints_stay(desk: Desk) -> None:
    begin_study(desk.output, desk.tuning, "digest")
    kept = [copied(desk, number) for number in range(3)]
    assert all(path.exists() for path in kept)
    with Journal(desk.output) as journal, Storage(desk, journal.study) as storage:
        for number, dsc in enumerate((0.5, 0.7, 0.6)):
            journal.write("trial", number=number, values=desk.tuning.space.of(desk.tuning.config), origin="random")
            journal.write("began", trial=number, attempt=1, node="here")
            told = {"dsc": dsc, "trainings": {"fold-1": dsc}, "trained": 12, "seconds": 1.0}
            journal.write("report", trial=number, epoch=12, **told)
            if number < 2:
                journal.write("ended", trial=number, how="finished", why="")
        storage.ended(journal.study.trials[1])
        deadline = time.monotonic() + 10
        while any(kept[0].parent.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert copied(desk, 0) == kept[0], "as a trial does that was put out, and still stops"
    assert [path.exists() for path in kept] == [False, True, True], "the best, and one that still runs"


def test_a_place_that_is_away_costs_a_warning(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    Path(desk.tuning.tune.storage).write_text("a file in its way")
    begin_study(desk.output, desk.tuning, "digest")
    with Journal(desk.output) as journal, Storage(desk, journal.study):
        pass
    assert "the study's journal is not copied" in caplog.text


def test_without_a_second_place_nothing_is_copied(desk: Desk, tmp_path: Path) -> None:
    bare = replace(desk, tuning=replace(desk.tuning, tune=desk.tuning.tune.model_copy(update={"storage": ""})))
    with Journal(bare.output) as journal, Storage(bare, journal.study):
        pass
    assert not (tmp_path / "second").exists()
