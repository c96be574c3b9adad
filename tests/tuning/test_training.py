"""One training of a trial: what it has told so far, how it is stopped, and of what it ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tuning.stand_in import write_result
from tests.tuning.trainings import done, epochs_of, order_of, start
from tests.waiting import wait_until
from tuning.training import STOPPED, Order, Running, measured


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Of four epochs, of which nothing is told yet."""
    (tmp_path / "fold-1").mkdir()
    return order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3, 0.4])


def write(order: Order, *points: object, rest: str = "") -> None:
    order.folder.curves.write_text("".join(json.dumps(point) + "\n" for point in points) + rest)


def test_nothing_is_measured_before_a_training_tells_of_itself(order: Order) -> None:
    assert measured(order) == {}
    write(order)
    assert measured(order) == {}


def test_what_was_measured_after_whole_epochs_counts(order: Order) -> None:
    write(
        order,
        {"step": 3, "generator/loss": 0.5},
        {"step": 5, "generator/loss": 0.5},
        {"step": 5, "validation/dsc": 0.25},
        {"step": 7, "validation/dsc": 0.75},  # within an epoch
        {"step": 10, "validation/dsc": 0.5},
    )
    assert measured(order) == {1: 0.25, 2: 0.5}


def test_a_line_that_is_being_written_is_no_line_yet(order: Order) -> None:
    write(order, {"step": 5, "validation/dsc": 0.25}, rest='{"step": 10, "validation/d')
    assert measured(order) == {1: 0.25}


def test_the_last_epoch_counts_as_the_result_says_once_there_is_one(order: Order) -> None:
    points = [{"step": 5 * epoch, "validation/dsc": epoch / 10} for epoch in (1, 2, 3, 4)]
    write(order, *points)
    assert measured(order) == {1: 0.1, 2: 0.2, 3: 0.3}
    write_result(Path(order.config["output"]), [0.1, 0.2, 0.3, 0.45])
    assert measured(order) == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.45}


def test_a_training_without_a_lesion_in_its_fold_measures_nothing(order: Order) -> None:
    write_result(Path(order.config["output"]), [0.0])
    result = json.loads(order.folder.result.read_text())
    order.folder.result.write_text(json.dumps(result | {"validation": {"dsc": {"mean": None}}}))
    assert measured(order) == {4: 0.0}


def test_a_training_runs_to_its_end_in_a_session_of_its_own_with_cores_of_its_own(tmp_path: Path) -> None:
    asked: list[str] = []

    def noting(arguments: object) -> tuple[str, ...]:
        asked.extend(arguments)  # type: ignore[call-overload]
        return tuple(start(asked))

    order = order_of(tmp_path, "fold-1", [0.1, 0.2], pace=0.2)
    running = Running(noting, order, 3, 2)
    try:
        assert running.status() is None
        child = psutil.Process(running._process.pid)
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        wait_until(lambda: running.status() is not None)
    finally:
        running.stop()
    assert running.status() == 0
    assert measured(order) == {1: 0.1, 2: 0.2}
    before, after = " ".join(asked).split(" -- ")
    assert before == "launch local --procs 3 --cores 2 --restarts 0"
    assert after == f"train {tmp_path}/fold-1/asked.yaml"


def test_a_training_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    order = order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3, 0.4, 0.5], pace=0.15)
    running = Running(start, order, 1, 1)
    wait_until(lambda: 2 in measured(order))
    running.stop()
    assert running.status() == STOPPED
    assert 5 not in measured(order)
    again = Running(start, order, 1, 1)
    wait_until(lambda: again.status() is not None)
    assert done(tmp_path, "fold-1").count("start") == 2
    assert epochs_of(done(tmp_path, "fold-1")) == [1, 2, 3, 4, 5]
    assert again.status() == 0


def test_one_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    order = order_of(tmp_path, "fold-1", [0.1, 0.2], pace=60)
    running = Running(start, order, 1, 1)
    wait_until(lambda: (tmp_path / "fold-1/done").exists())
    os.kill(running._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    running.stop(grace=0.3)
    assert running.status() == -signal.SIGKILL
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("how", [1, -signal.SIGKILL])
def test_of_several_errors_the_first_is_the_cause_and_those_of_earlier_attempts_are_none(
    tmp_path: Path, how: int
) -> None:
    order = order_of(tmp_path, "fold-1", [0.1, 0.2, 0.3], dies={1: [1, 1], 2: [2, how]})
    for attempt in (1, 2):
        running = Running(start, order, 1, 1)
        wait_until(lambda running=running: running.status() is not None)
        assert running.why() == f"rank 0 had enough after epoch {attempt}"
    assert running.status() == how


def test_one_that_ends_without_an_error_has_its_last_line_or_its_status_told(tmp_path: Path) -> None:
    order = order_of(tmp_path, "fold-1", [0.1])
    for script, why in (
        ("import sys; print('Killed'); sys.exit(1)", "Killed"),
        ("import sys; sys.exit(3)", "ended with status 3, without a word"),
        ("import os; print('epoch 1', flush=True); os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ):
        running = Running(lambda _, script=script: (sys.executable, "-c", script), order, 1, 1)
        wait_until(lambda running=running: running.status() is not None)
        assert running.why() == why


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "fold-1").write_text("a file")
    with pytest.raises(OSError, match="fold-1"):
        Running(start, order_of(tmp_path, "fold-1", [0.1]), 1, 1)


LAUNCHED = """\
epoch 1: loss 0.5
[rank 1] error: rank 1 lost the connection to another rank after step 5; see its log
The last lines of rank 0:
epoch 1: loss 0.5
error: rank 0 was killed by SIGKILL after step 5; the other processes were ended; its log is {log}
"""


def test_of_a_rank_that_was_killed_the_launcher_knows_better_than_the_others(tmp_path: Path) -> None:
    script = f"import sys; sys.stderr.write({LAUNCHED.format(log='logs/rank-0.log')!r}); sys.exit(1)"
    running = Running(lambda _: (sys.executable, "-c", script), order_of(tmp_path, "fold-1", [0.1]), 2, 1)
    wait_until(lambda: running.status() is not None)
    assert running.why() == (
        "rank 0 was killed by SIGKILL after step 5; the other processes were ended; its log is logs/rank-0.log"
    )
