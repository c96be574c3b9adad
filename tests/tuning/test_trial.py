"""A trial as Ray's worker carries it out: whose turn it is, what is told of it, and of what it fails."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.tune.trainable import trainable

from tests.tuning.trainings import done, epochs_of, order_of, start
from tuning import trial
from tuning.training import Order
from tuning.trial import Trial, TrialFailed, TrialOrder

Begin = Callable[..., Trial]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_PAUSE", 0.01)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Start a trial of these trainings as Ray's worker does, without Ray; it is stopped at the end."""
    monkeypatch.setattr(trainable, "DEFAULT_STORAGE_PATH", str(tmp_path / "ray"))  # else in the home directory
    begun: list[Trial] = []

    def make(trainings: Sequence[Order], legs: Sequence[tuple[int, int]], reported: int = 0) -> Trial:
        config = {"number": 0, "order": TrialOrder(trainings, legs, start, 1, 1, reported)}
        begun.append(Trial(config))
        return begun[-1]

    yield make
    for each in begun:
        each.stop()
    assert not [child for child in psutil.Process().children(recursive=True) if "stand_in.py" in str(child.cmdline())]


def told(trial: Trial) -> list[dict[str, Any]]:
    """A result for each epoch that is told, until the trial is done."""
    results: list[dict[str, Any]] = []
    while not results or not results[-1]["done"]:
        result = trial.step()
        if result["epoch"] > (results[-1]["epoch"] if results else 0):
            results.append(result)
    return results


def test_an_epoch_is_told_when_it_is_done_and_the_last_one_ends_the_trial(begin: Begin, tmp_path: Path) -> None:
    results = told(begin([order_of(tmp_path, "fold-1", [0.1, 0.3, 0.2])], [(3, 1)]))
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["dsc"] for result in results] == [0.1, 0.3, 0.2]
    assert [result["trainings"] for result in results] == [{"fold-1": 0.1}, {"fold-1": 0.3}, {"fold-1": 0.2}]
    assert [result["done"] for result in results] == [False, False, True]
    assert done(tmp_path, "fold-1") == ["start", "1", "2", "3"]


def test_a_step_returns_before_there_is_anything_new(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LOOK", 0.1)
    result = begin([order_of(tmp_path, "fold-1", [0.1], pace=30)], [(1, 1)]).step()
    assert (result["epoch"], result["done"], result["trained"]) == (0, False, 0)
    assert math.isnan(result["dsc"])


def test_trainings_take_turns_leg_by_leg_and_the_measure_is_the_mean_of_those_that_count(
    begin: Begin, tmp_path: Path
) -> None:
    orders = [
        order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], pace=0.25),
        order_of(tmp_path, "fold-2", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8], pace=0.25),
        order_of(tmp_path, "fold-3", [0.8, 0.9, 0.7, 0.5, 0.6, 0.4], pace=0.25),
    ]
    one = begin(orders, [(2, 1), (4, 2), (6, 3)])
    results = []
    heads: list[tuple[int, ...]] = []
    while not results or not results[-1]["done"]:
        result = one.step()
        if not results or result["epoch"] > results[-1]["epoch"]:
            results.append(result)
        far = tuple(len(epochs_of(done(tmp_path, order.name))) for order in orders)
        if not heads or heads[-1] != far:
            heads.append(far)
    counting = [1, 1, 2, 2, 3, 3]
    for epoch, (result, count) in enumerate(zip(results, counting, strict=True), start=1):
        own = {order.name: order.config["measures"][epoch - 1] for order in orders[:count]}
        assert result["epoch"] == epoch
        assert result["trainings"] == own
        assert result["dsc"] == pytest.approx(sum(own.values()) / count)
        assert result["trained"] >= epoch * count
    # No training is begun before those of its leg before it are through.
    assert all(first >= 4 for first, second, _ in heads if second)
    assert all((first, second) == (6, 6) for first, second, third in heads if third)
    assert results[-1]["trained"] == 18
    for order in orders:
        assert epochs_of(done(tmp_path, order.name)) == [1, 2, 3, 4, 5, 6]


def test_seconds_in_which_nothing_runs_are_not_those_of_training(begin: Begin, tmp_path: Path) -> None:
    results = told(begin([order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3], pace=0.3)], [(3, 1)]))
    busy = [result["busy"] for result in results]
    assert all(earlier < later for earlier, later in pairwise(busy))
    assert 0.6 < busy[-1] - busy[0] + 0.3 < 3
    again = begin([order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3])], [(3, 1)], reported=2)
    assert told(again)[-1]["busy"] == 0


def test_what_was_told_before_is_not_told_again(begin: Begin, tmp_path: Path) -> None:
    order = order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3], pace=0.2)
    first = begin([order], [(3, 1)])
    while first.step()["epoch"] < 2:
        pass
    first.stop()
    second = begin([order], [(3, 1)], reported=2)
    assert [result["epoch"] for result in told(second)] == [3]
    assert epochs_of(done(tmp_path, "fold-1")) == [1, 2, 3]


def test_a_training_that_somebody_stopped_goes_on(begin: Begin, tmp_path: Path) -> None:
    order = order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3, 0.4], dies={1: [2, 75]})
    assert [result["epoch"] for result in told(begin([order], [(4, 1)]))] == [1, 2, 3, 4]
    assert done(tmp_path, "fold-1") == ["start", "1", "2", "start", "3", "4"]


@pytest.mark.parametrize("how", [1, 2, -signal.SIGKILL])
def test_a_training_that_fails_fails_the_attempt_and_the_next_one_goes_on(
    begin: Begin, tmp_path: Path, how: int
) -> None:
    orders = [order_of(tmp_path, "fold-1", [0.1, 0.2]), order_of(tmp_path, "fold-2", [0.3, 0.4], dies={1: [1, how]})]
    with pytest.raises(TrialFailed, match=r"^fold-2: rank 0 had enough after epoch 1$"):
        told(begin(orders, [(2, 2)]))
    again = told(begin(orders, [(2, 2)]))
    assert [result["dsc"] for result in again] == [pytest.approx(0.2), pytest.approx(0.3)]
    assert done(tmp_path, "fold-1") == ["start", "1", "2"]


def test_a_training_that_has_its_result_is_done_however_its_processes_ended(begin: Begin, tmp_path: Path) -> None:
    orders = [
        order_of(tmp_path, "fold-1", [0.1, 0.2], after=-signal.SIGABRT),
        order_of(tmp_path, "fold-2", [0.3, 0.4]),
    ]
    assert told(begin(orders, [(2, 2)]))[-1]["dsc"] == pytest.approx(0.3)
    assert done(tmp_path, "fold-1") == ["start", "1", "2"]


def test_a_folder_that_cannot_be_written_to_fails_the_attempt_in_a_line(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "fold-1").write_text("a file")
    with pytest.raises(TrialFailed, match=rf"^fold-1: {tmp_path}/fold-1: File exists$"):
        told(begin([order_of(tmp_path, "fold-1", [0.1])], [(1, 1)]))


def test_a_training_is_not_begun_before_a_worker_before_has_stopped_it(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LOOK", 0.5)
    order = order_of(tmp_path, "fold-1", [0.1, 0.2], pace=30)
    first, second = begin([order], [(2, 1)]), begin([order], [(2, 1)])
    first.step()
    while not done(tmp_path, "fold-1"):
        first.step()
    assert second.step()["epoch"] == 0
    assert done(tmp_path, "fold-1") == ["start"]
    first.stop()
    while len(done(tmp_path, "fold-1")) == 1:
        second.step()
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
    with pytest.raises(TrialFailed, match=r"^fold-1: is still trained by a process before this one$"):
        begin([order], [(2, 1)]).step()
