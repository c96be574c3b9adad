"""A search by the command on phantoms: carried out, stopped, gone on with, with a trial that cannot be trained."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from data_pipeline import Dataset
from tests.searches import Search, require_two_cores
from tuning.journal import StudyRecord
from tuning.searcher import propose
from tuning.settings import load_tuning

EPOCHS = 12
SEED = 4
TRIALS = 4
ABSURD = 1e30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


class Stopped(Search):
    """The search, and what was seen of it when it was stopped."""

    bound: list[list[int]]
    """Of the trials that ran together, the cores on which each one's rank may run."""
    status: int
    """Its exit status then."""
    checkpoints_then: dict[int, list[str]]
    """Of the trials that it stopped."""
    ended_then: int
    """How many had ended before."""


@pytest.fixture(scope="module")
def search(packed: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    """One of four trials, of which some have a rate that is beyond all, stopped in the middle and gone on with."""
    require_two_cores()
    tune = {
        "trials": TRIALS,
        "searcher": "random",
        "reduction": 2,
        "first_rung": EPOCHS // 2,
        "retries": 1,
        "keep": 1,
        "unseen": [],
        "space": {"objective.alpha.2": {"low": 0.01, "high": 1.0}, "optimizer.generator_rate": [5e-3, ABSURD]},
    }
    search = Stopped(
        tmp_path_factory.mktemp("stopped"),
        packed(30).uri,
        tune,
        seed=SEED,
        training={"epochs": EPOCHS},
        checkpoints={"every_steps": 0},
    )
    try:
        stop(search)
        search.start()
        assert search.ended() == 0, search.said()
        yield search
    finally:
        search.close()


def stop(search: Stopped) -> None:
    """Have it stop while the first two trials are in an epoch."""
    search.start()
    search.until(lambda: all(search.checkpoints(number) for number in (0, 1)))
    ranks = [search.rank(number) for number in (0, 1)]
    assert None not in ranks, search.said()
    search.bound = [rank.cpu_affinity() for rank in ranks if rank is not None]
    search.send(signal.SIGTERM)
    search.status = search.ended()
    search.checkpoints_then = {number: search.checkpoints(number) for number in (0, 1)}
    search.ended_then = len(search.events("ended"))


def test_the_search_that_was_asked_to_stop_did_so_with_a_checkpoint_of_each_trial(search: Stopped) -> None:
    assert search.status == 75
    assert f"SIGTERM: stopped; what is done is in {search.output}; the same call goes on\n" in search.said()
    assert search.ended_then == 0
    for number, checkpoints in search.checkpoints_then.items():
        stopped = re.search(r"SIGTERM: stopped after step (\d+);", (search.training(number) / "trial.log").read_text())
        assert stopped
        assert checkpoints[-1] == f"step-{int(stopped[1]):08d}"


def test_trials_that_run_together_have_cores_of_their_own(search: Stopped) -> None:
    one, other = search.bound
    assert len(one) == len(other) == 1
    assert one != other


def test_the_same_call_goes_on_to_the_trials_that_an_undisturbed_search_has(search: Stopped) -> None:
    tuning, undisturbed = load_tuning(str(search.config)), StudyRecord()
    for number in range(TRIALS):
        values, origin = propose(tuning, undisturbed)
        undisturbed.add({"event": "trial", "number": number, "values": values, "origin": origin})
    trials = search.study().trials
    assert {number: trial.values for number, trial in trials.items()} == {
        number: trial.values for number, trial in undisturbed.trials.items()
    }
    assert [trial.origin for trial in trials.values()] == ["paper", "random", "random", "random"]
    assert Counter(event["trial"] for event in search.events("ended")) == dict.fromkeys(range(TRIALS), 1)
    assert max(Counter((event["trial"], event["epoch"]) for event in search.events("report")).values()) == 1
    for number in (0, 1):
        assert [event["attempt"] for event in search.events("began") if event["trial"] == number] == [1, 2]
        assert "goes on after step" in (search.training(number) / "trial.log").read_text()


def test_a_trial_is_finished_or_was_put_out_at_the_rung(search: Stopped) -> None:
    for number, trial in search.study().trials.items():
        epochs = [report.epoch for report in trial.reports]
        assert epochs == list(range(1, len(epochs) + 1))
        if trial.how == "finished":
            assert epochs[-1] == EPOCHS
            result = json.loads((search.training(number) / "result.json").read_text())
            assert trial.dsc == result["validation"]["dsc"]["mean"]
        elif trial.how == "stopped":
            assert epochs[-1] == EPOCHS // 2
            assert not (search.training(number) / "result.json").exists()
    assert "finished" in {trial.how for trial in search.study().trials.values()}


def test_a_trial_that_diverges_fails_after_its_attempts_and_the_search_goes_on(search: Stopped) -> None:
    trials = search.study().trials
    absurd = [trial for trial in trials.values() if trial.values["optimizer.generator_rate"] == ABSURD]
    assert [trial.number for trial in absurd] == [2]
    assert absurd[0].how == "failed"
    assert absurd[0].attempts == len(absurd[0].failures) == 2
    for why in absurd[0].failures:
        assert re.match(r"fold-1: scan-\d+: the network's map holds values that are no numbers; ", why)
    assert absurd[0].why == absurd[0].failures[-1]
    assert [trial.how in ("finished", "stopped") for trial in trials.values()] == [True, True, False, True]


def test_only_the_best_keeps_its_weights(search: Stopped) -> None:
    best = search.study().best()[0].number
    assert [bool(search.checkpoints(number)) for number in range(TRIALS)] == [
        number == best for number in range(TRIALS)
    ]
