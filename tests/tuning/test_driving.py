"""What is written down of what Ray tells, and what Ray is given to try."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tuning.studies import tuning_of
from tuning.driving import Notes, Proposals, WhenAsked, why
from tuning.journal import Journal, TrialRecord, read_journal

# What Ray 2.60 writes down of failures, as it came out, but for long stretches of its own code.
RAISED = """\
Failure # 1 (occurred at 2026-11-28_13-54-52)
\x1b[36mray::ResourceTrainable.train()\x1b[39m (pid=16389, ip=127.0.0.1, actor_id=366369190093faf0068e312a01000000, \
repr=<ray.tune.trainable.util.Trial object at 0x7f972b2ea090>)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "ray/tune/trainable/trainable.py", line 329, in train
    raise skipped from exception_cause(skipped)
  File "ray/tune/trainable/trainable.py", line 326, in train
    result = self.step()
             ^^^^^^^^^^^
  File "tuning/trial.py", line 117, in _keep_going
    raise TrialFailed(f"{self._name}: {why}")
tuning.trial.TrialFailed: fold-1: rank 0 was killed by SIGKILL after step 5; its log is logs/rank-0.log

"""

WORKER = """\
Failure # 2 (occurred at 2026-11-28_13-56-11)
The actor died unexpectedly before finishing this task.
\tclass_name: with_resources.<locals>.ResourceTrainable
\tactor_id: 40bd8d16666005b5bbffcfd201000000
\tpid: 19842
\tnamespace: cfc37404-d22a-40b9-a929-6d907539fe45
\tip: 127.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly \
due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM killer (verifiable by checking \
for OOM in dmesg of the OOMing node), consider enabling resource isolation via --enable-resource-isolation to prevent \
node deaths by resource contention and significant loss of progress by uninformed kernel OOM killing.

"""

MACHINE = """\
Failure # 1 (occurred at 2026-11-28_14-43-10)
The actor died unexpectedly before finishing this task.
\tclass_name: with_resources.<locals>.ResourceTrainable
\tactor_id: 5303b0fd182b4f56d0756bb401000000
\tpid: 7715
\tnamespace: b0e7cbaf-e2a1-4505-bcdc-9f6850fb5902
\tip: 127.0.0.1
The actor died because its node has died. Node Id: bf0617da5b924ade824f1f75f2a794a5d8f3a70f5a475468b521c88e
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
"""

OTHER = """\
Failure # 1 (occurred at 2026-11-28_13-58-32)
\x1b[36mray::ResourceTrainable.train()\x1b[39m (pid=23707, ip=127.0.0.1, actor_id=711cd3a2ae4390a5ec37e12301000000, \
repr=<ray.tune.trainable.util.Trial object at 0x7f9e6b9d1a10>)
  File "ray/tune/trainable/trainable.py", line 326, in train
    result = self.step()
             ^^^^^^^^^^^
FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'

"""

KILLED = "fold-1: rank 0 was killed by SIGKILL after step 5; its log is logs/rank-0.log"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty one."""
    with Journal(tmp_path) as journal:
        yield journal


class Seen:
    """An onlooker that remembers, and what the journal had by then."""

    def __init__(self, journal: Journal) -> None:
        self.all: list[str] = []
        self._journal = journal

    def _note(self, what: str, trial: TrialRecord) -> None:
        assert read_journal(self._journal.path.parent).trials[trial.number] == trial
        self.all.append(f"{what} {trial.number}")

    def began(self, trial: TrialRecord) -> None:
        self._note("began", trial)

    def reported(self, trial: TrialRecord) -> None:
        self._note("reported", trial)

    def failed(self, trial: TrialRecord) -> None:
        self._note("failed", trial)

    def exchanged(self, trial: TrialRecord) -> None:
        self._note("exchanged", trial)

    def ended(self, trial: TrialRecord) -> None:
        self._note("ended", trial)


def ray_trial(number: int, error_file: Path | None = None, retries: int = 2) -> Any:
    """What Ray shows of a trial."""
    return SimpleNamespace(config={"number": number}, error_file=error_file, max_failures=retries)


def result(epoch: int, dsc: float = 0.5, busy: float = 10.0) -> dict[str, Any]:
    told = {"fold-1": dsc} if epoch else {}
    return {"epoch": epoch, "dsc": dsc, "trainings": told, "trained": epoch, "busy": busy, "hostname": "here"}


def known(journal: Journal, count: int) -> None:
    for number in range(count):
        journal.write("trial", number=number, values={"optimizer.clip": 1.0}, origin="random")


@pytest.fixture
def received() -> list[int]:
    """Signals that have come."""
    return []


@pytest.fixture
def notes(journal: Journal, received: list[int]) -> Notes:
    """Of two trials of three epochs."""
    known(journal, 2)
    return Notes(journal, 3, received, [])


def test_an_epoch_is_written_down_once_and_a_sign_of_life_not_at_all(notes: Notes, journal: Journal) -> None:
    for epoch, busy in ((0, 1.0), (0, 3.0), (1, 5.0), (1, 7.0), (2, 9.04), (2, 11.0)):
        notes.on_trial_result(trial=ray_trial(0), result=result(epoch, 0.1 * epoch if epoch else math.nan, busy))
    trial = read_journal(journal.path.parent).trials[0]
    assert [(report.epoch, report.dsc, report.seconds) for report in trial.reports] == [(1, 0.1, 5.0), (2, 0.2, 9.0)]
    assert (trial.attempts, trial.node, trial.state) == (1, "here", "running")


def test_who_looks_on_is_told_when_the_journal_has_it(journal: Journal, tmp_path: Path) -> None:
    known(journal, 1)
    seen = Seen(journal)
    notes = Notes(journal, 2, [], [seen])
    notes.on_trial_result(trial=ray_trial(0), result=result(0, math.nan))
    notes.on_trial_recover(trial=ray_trial(0))
    for epoch in (1, 1, 2):
        notes.on_trial_result(trial=ray_trial(0), result=result(epoch))
    notes.on_trial_complete(trial=ray_trial(0))
    assert seen.all == ["began 0", "failed 0", "began 0", "reported 0", "reported 0", "ended 0"]


def test_seconds_of_training_are_those_of_all_attempts_up_to_their_last_reports(notes: Notes, journal: Journal) -> None:
    notes.on_trial_result(trial=ray_trial(0), result=result(1, busy=20.0))
    notes.on_trial_recover(trial=ray_trial(0))
    notes.on_trial_result(trial=ray_trial(0), result=result(1, busy=3.0))  # told again by the next attempt
    notes.on_trial_result(trial=ray_trial(0), result=result(2, busy=12.0))
    again = Notes(journal, 3, [], [])
    again.on_trial_result(trial=ray_trial(0), result=result(3, busy=5.0))
    trial = journal.study.trials[0]
    assert [report.seconds for report in trial.reports] == [20.0, 32.0, 37.0]
    assert trial.attempts == 3


def test_a_trial_ends_finished_or_stopped_by_how_far_it_came(notes: Notes, journal: Journal) -> None:
    for number, epochs in ((0, 3), (1, 1)):
        for epoch in range(1, epochs + 1):
            notes.on_trial_result(trial=ray_trial(number), result=result(epoch))
        notes.on_trial_complete(trial=ray_trial(number))
    trials = journal.study.trials
    assert [(trial.how, trial.why) for trial in trials.values()] == [
        ("finished", ""),
        ("stopped", "not among the best after epoch 1"),
    ]


def test_after_a_signal_a_trial_is_left_unfinished(notes: Notes, journal: Journal, received: list[int]) -> None:
    asked = WhenAsked(received)
    assert not asked.stop_all()
    notes.on_trial_result(trial=ray_trial(0), result=result(1))
    received.append(15)
    assert asked.stop_all()
    assert not asked("trial", result(1))
    notes.on_trial_complete(trial=ray_trial(0))
    assert journal.study.trials[0].how is None


def test_the_last_failure_is_the_end(notes: Notes, journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text(RAISED)
    notes.on_trial_recover(trial=ray_trial(0))
    notes.on_trial_error(trial=ray_trial(0, tmp_path / "error.txt"))
    trial = journal.study.trials[0]
    assert (trial.how, trial.why, trial.attempts) == ("failed", KILLED, 2)
    assert trial.failures == ["failed without a word", trial.why]


@pytest.mark.parametrize(("failed", "left"), [(0, 2), (1, 1), (2, 0), (5, 0)])
def test_attempts_of_earlier_processes_are_among_those_that_a_trial_has(
    journal: Journal, failed: int, left: int
) -> None:
    known(journal, 1)
    for attempt in range(failed):
        journal.write("began", trial=0, attempt=attempt + 1, node="here")
        journal.write("failed", trial=0, why="out of memory")
    notes = Notes(journal, 3, [], [])
    trial = ray_trial(0, retries=2)
    notes.on_trial_start(trial=trial)
    notes.on_trial_start(trial=trial)  # an attempt of this process, which Ray counts
    assert trial.max_failures == left


def test_trials_that_have_not_ended_come_first_and_new_ones_follow_until_all_are_there(journal: Journal) -> None:
    tuning = tuning_of("tune.trials=5", "tune.searcher=random")
    asked: list[int] = []

    def order(trial: TrialRecord) -> Any:
        asked.append(trial.number)
        return f"order {trial.number}"

    before = Proposals(journal, tuning, order)
    assert [before.suggest(str(number))["number"] for number in range(3)] == [0, 1, 2]
    journal.write("ended", trial=1, how="stopped", why="")
    first = {number: trial.values for number, trial in journal.study.trials.items()}
    assert [trial.origin for trial in journal.study.trials.values()] == ["paper", "random", "random"]

    after = Proposals(journal, tuning, order)
    given = [after.suggest(str(number)) for number in range(4)]
    assert given == [{"number": number, "order": f"order {number}"} for number in (0, 2, 3, 4)]
    assert after.suggest("more") == "FINISHED"
    assert asked == [0, 1, 2, 0, 2, 3, 4]
    told = read_journal(journal.path.parent).trials
    assert list(told) == [0, 1, 2, 3, 4]
    assert {number: told[number].values for number in first} == first


def test_a_search_that_was_killed_proposes_what_it_would_have_proposed(tmp_path: Path) -> None:
    tuning = tuning_of("tune.trials=4", "tune.searcher=random")

    def values(*stops: int) -> list[dict[str, Any]]:
        folder = tmp_path / str(stops)
        for stop in (*stops, 4):
            with Journal(folder) as journal:
                proposals = Proposals(journal, tuning, lambda trial: trial)  # type: ignore[arg-type,return-value]
                while len(journal.study.trials) < stop:
                    proposals.suggest("")
        return [trial.values for trial in read_journal(folder).trials.values()]

    assert values() == values(1) == values(2, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RAISED, KILLED),
        (WORKER, "its Ray worker died"),
        (MACHINE, "its machine was lost"),
        (OTHER, "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"),
        (RAISED + WORKER, "its Ray worker died"),
        (WORKER + RAISED, KILLED),
        ("", "failed without a word"),
    ],
)
def test_of_what_ray_writes_down_the_last_failure_s_reason_is_told_in_a_line(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "error.txt").write_text(text)
    assert why(ray_trial(0, tmp_path / "error.txt")) == told


def test_a_failure_of_which_nothing_was_written_down_is_one_all_the_same(tmp_path: Path) -> None:
    assert why(ray_trial(0, None)) == why(ray_trial(0, tmp_path / "none")) == "failed without a word"
