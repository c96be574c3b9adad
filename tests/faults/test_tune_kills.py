"""A search of which everything is killed in the middle: a rank, a launch, a worker of Ray, and the search itself."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from data_pipeline import Dataset
from launch.claim import free_cores
from launch.cores import usable_cores
from tests.ranks import ForkServer
from tests.searches import Search, require_two_cores
from tuning.journal import StudyRecord
from tuning.searcher import propose
from tuning.settings import load_tuning

EPOCHS = 12
TRIALS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


class Killed(Search):
    """The search, its kills, and what was there before the last of them."""

    left: list[str]
    """Processes of the driver that were there 20 s after it was killed."""
    free: int
    """Cores that nobody had claimed then."""
    finished: dict[Path, int]
    """Files of trials that had ended, and when they were written."""


@pytest.fixture(scope="module")
def killed(packed: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """A search of four trials, carried out to its end."""
    require_two_cores()
    tune = {
        "trials": TRIALS,
        "searcher": "random",
        "scheduler": "none",
        "unseen": [],
        "keep": TRIALS,
        "space": {"objective.alpha.2": {"low": 0.01, "high": 1.0}},
    }
    search = Killed(
        tmp_path_factory.mktemp("killed"),
        packed(30).uri,
        tune,
        training={"epochs": EPOCHS},
        checkpoints={"every_steps": 1},
    )
    try:
        disturb(search)
        search.start()
        assert search.ended() == 0, search.said()
        yield search
    finally:
        search.close()


def disturb(search: Killed) -> None:
    """Kill all there is, one after the other, each in the middle of a training."""
    search.start()
    search.until(lambda: search.checkpoints(0) and (found := search.rank(0)) and not found.send_signal(signal.SIGKILL))
    search.until(lambda: search.checkpoints(1) and (found := search.launcher(1)) and not found.kill())
    search.until(lambda: search.checkpoints(2) and (found := search.launcher(2)) and not found.parent().kill())
    search.until(lambda: len(search.study().trials) > 2 and search.study().trials[2].attempts > 1)
    search.until(lambda: search.study().trials[0].how and search.study().trials[1].how)
    before = search.checkpoints(2)
    search.until(lambda: search.rank(2) and search.checkpoints(2) > before)
    family = search.process.children(recursive=True)
    search.send(signal.SIGKILL)
    search.ended()
    _, left = psutil.wait_procs(family, timeout=20)
    search.left = [" ".join(line) for each in left if (line := command(each))]
    search.free = free_cores()
    search.finished = {
        path: path.stat().st_mtime_ns
        for number in (0, 1)
        for path in search.training(number).rglob("*")
        if path.is_file()
    }


def command(process: psutil.Process) -> list[str]:
    """What it runs, nothing once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_nothing_is_left_of_the_search_that_was_killed(killed: Killed) -> None:
    assert killed.left == []
    assert killed.free == usable_cores().count


def test_the_trials_are_those_of_a_search_that_was_not(killed: Killed) -> None:
    tuning, undisturbed = load_tuning(str(killed.config)), StudyRecord()
    for number in range(TRIALS):
        values, origin = propose(tuning, undisturbed)
        undisturbed.add({"event": "trial", "number": number, "values": values, "origin": origin})
    trials = killed.study().trials
    assert {number: (trial.values, trial.origin) for number, trial in trials.items()} == {
        number: (trial.values, trial.origin) for number, trial in undisturbed.trials.items()
    }


def test_each_trial_is_done_once_and_to_its_end(killed: Killed) -> None:
    assert Counter(event["trial"] for event in killed.events("ended")) == dict.fromkeys(range(TRIALS), 1)
    assert {event["how"] for event in killed.events("ended")} == {"finished"}
    reported = Counter((event["trial"], event["epoch"]) for event in killed.events("report"))
    assert reported == {(trial, epoch): 1 for trial in range(TRIALS) for epoch in range(1, EPOCHS + 1)}
    trained = [event["trained"] for event in killed.events("report") if event["epoch"] == EPOCHS]
    assert trained == [EPOCHS] * TRIALS


def test_trials_that_had_ended_are_not_touched_again(killed: Killed) -> None:
    assert len(killed.finished) > 10
    assert {path: path.stat().st_mtime_ns for path in killed.finished} == killed.finished


def test_what_failed_is_told_with_its_reason_and_counted(killed: Killed) -> None:
    why = [trial.failures for trial in killed.study().trials.values()]
    assert [len(failures) for failures in why] == [1, 1, 1, 0]
    assert why[0][0].startswith("fold-1: rank 0 was killed by SIGKILL")
    assert why[1][0] == "fold-1: was killed by SIGKILL"
    assert why[2][0] == "its Ray worker died"
    attempts = [(event["trial"], event["attempt"]) for event in killed.events("began")]
    assert [attempt for trial, attempt in attempts if trial == 0] == [1, 2]
    assert [attempt for trial, attempt in attempts if trial == 1] == [1, 2]
    assert [attempt for trial, attempt in attempts if trial == 2] == [1, 2, 3]  # the last after the search was killed
    for number, words in ((0, "attempt 1 failed: fold-1: rank 0 was killed"), (2, "attempt 1 failed: its Ray worker")):
        assert f"trial {number} of {TRIALS}: {words}" in killed.said()


def test_weights_are_those_of_a_training_that_nobody_disturbed(
    killed: Killed, fork_server: ForkServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = Path(__file__).with_name("sonotrain.py")
    for number in (0, 1, 2):
        alone = tmp_path / str(number)
        arguments = ["train", str(killed.training(number) / "asked.yaml"), f"output={alone}"]
        job = fork_server.start(script, arguments, tmp_path_factory.mktemp("alone"))
        assert list(job.wait()) == [0], job.errors()
        (last,) = killed.checkpoints(number)
        weights = [
            load_file(folder / "checkpoints" / last / "generator.safetensors")
            for folder in (killed.training(number), alone)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, values in weights[0].items():
            assert values.tobytes() == weights[1][name].tobytes(), name
