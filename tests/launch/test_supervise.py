"""When a job is started again, and when not."""

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from data_pipeline import Fault
from launch.supervise import Outcome, supervise

DONE = Outcome(0)
FAILED = Outcome(1, "rank 3 on here was killed", moved=True)
FURTHER = Outcome(1, "rank 3 on here was killed", moved=True, progressed=True)
AT_ONCE = Outcome(1, "rank 3 found no scans")


@pytest.fixture
def attempts() -> Callable[..., tuple[list[int], Callable[[int], Outcome]]]:
    """Attempts that end in turn as told, and what each was told."""

    def make(*outcomes: Outcome) -> tuple[list[int], Callable[[int], Outcome]]:
        told: list[int] = []
        left: Iterator[Outcome] = iter(outcomes)

        def attempt(before: int) -> Outcome:
            told.append(before)
            return next(left)

        return told, attempt

    return make


Attempts = Callable[..., tuple[list[int], Callable[[int], Outcome]]]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_an_attempt_that_did_not_fail_is_the_last(attempts: Attempts, status: int) -> None:
    told, attempt = attempts(Outcome(status))
    assert supervise(attempt, 5, (), first_pause=0) == status
    assert told == [0]


def test_a_failure_is_followed_by_another_attempt_until_it_is_done(attempts: Attempts) -> None:
    told, attempt = attempts(FURTHER, FAILED, FURTHER, DONE)
    assert supervise(attempt, 5, (), first_pause=0) == 0
    assert told == [0, 1, 2, 3]


def test_as_many_restarts_are_made_as_are_allowed(attempts: Attempts) -> None:
    told, attempt = attempts(FURTHER, FURTHER, FURTHER)
    with pytest.raises(Fault, match="rank 3 on here was killed; started again 2 times before"):
        supervise(attempt, 2, (), first_pause=0)
    assert len(told) == 3


def test_a_job_that_writes_no_checkpoint_is_given_up_whatever_is_allowed(attempts: Attempts) -> None:
    told, attempt = attempts(FURTHER, FAILED, FAILED, FAILED, DONE)
    with pytest.raises(Fault, match="3 attempts in a row"):
        supervise(attempt, 1000, (), first_pause=0)
    assert len(told) == 4


def test_what_fails_before_its_first_step_is_not_started_again(attempts: Attempts) -> None:
    told, attempt = attempts(AT_ONCE, DONE)
    with pytest.raises(Fault, match="no scans; not started again, since it failed before its first step"):
        supervise(attempt, 5, (), first_pause=0)
    assert told == [0]


def test_pauses_grow_and_begin_anew_after_progress(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.supervise.time.sleep", lambda _: None)
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("launch.supervise.time.monotonic", lambda: next(clock))
    _, attempt = attempts(FURTHER, FAILED, FURTHER, FAILED, DONE)
    assert supervise(attempt, 9, (), first_pause=5) == 0
    said = [
        line.split(" in ")[1].split(" s,")[0] for line in capsys.readouterr().out.splitlines() if "again in" in line
    ]
    assert said == ["5", "10", "5", "10"]


def test_a_signal_ends_the_pause(attempts: Attempts) -> None:
    _, attempt = attempts(FURTHER, DONE)
    received: list[int] = []
    threading.Timer(0.3, lambda: received.append(signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Fault, match="stopped by a signal before it was started again"):
        supervise(attempt, 5, received, first_pause=60)
    assert time.monotonic() - began < 10
