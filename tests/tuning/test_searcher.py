"""What is tried next follows from the journal alone, and gets better."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.journal import StudyRecord
from tuning.searcher import by_chance, propose
from tuning.settings import Tuning, load_tuning

Judge = Callable[[Mapping[str, Any]], float]

NARROW = (
    "tune.space.optimizer.clip={low: 0, high: 1}",
    "tune.space.objective.noise={low: 0, high: 1}",
    "tune.space.network.norm=[batch, instance, group]",
)


RANDOM = load_tuning("quick", ["tune.searcher=random", "tune.trials=12"])


def seeded(tuning: Tuning, seed: int) -> Tuning:
    return replace(tuning, config=tuning.config.replace(seed=seed))


def near(values: Mapping[str, Any]) -> float:
    """Best, 1, at clip 0.3, noise 0.6 and norm group."""
    miss = (values["optimizer.clip"] - 0.3) ** 2 + (values["objective.noise"] - 0.6) ** 2
    return 1 - miss - 0.2 * (values["network.norm"] != "group")


def add(study: StudyRecord, tuning: Tuning, judge: Judge | None = None, how: str = "finished") -> str:
    """Take the next trial into the record, at work or, judged, ended."""
    number = len(study.trials)
    values, origin = propose(tuning, study)
    study.add({"event": "trial", "number": number, "values": values, "origin": origin})
    study.add({"event": "began", "trial": number, "attempt": 1, "node": ""})
    if judge is not None:
        end(study, number, judge(values), how)
    return origin


def end(study: StudyRecord, number: int, dsc: float, how: str = "finished") -> None:
    told = {"epoch": 1, "dsc": dsc, "trainings": {"fold-1": dsc}, "trained": 1, "seconds": 1.0}
    study.add({"event": "report", "trial": number, **told})
    study.add({"event": "ended", "trial": number, "how": how, "why": ""})


def tried(study: StudyRecord) -> list[dict[str, Any]]:
    return [trial.values for trial in study.trials.values()]


def carried_out(tuning: Tuning, judge: Judge) -> StudyRecord:
    study = StudyRecord()
    for _ in range(tuning.tune.trials):
        add(study, tuning, judge)
    return study


def test_the_paper_s_values_are_tried_first() -> None:
    values, origin = propose(load_tuning("quick"), StudyRecord())
    assert origin == "paper"
    assert (values["objective.alpha.2"], values["objective.beta.4"]) == (0.1, 0.05)
    assert values["optimizer.generator_rate"] == 1e-3


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_a_random_search_tries_the_same_whatever_became_of_those_before(seed: int, fate: random.Random) -> None:
    tuning = seeded(RANDOM, seed)
    study = StudyRecord()
    for _ in range(12):
        add(study, tuning)
        for number, trial in study.trials.items():
            if trial.how is None and fate.random() < 0.5:
                end(study, number, fate.random(), fate.choice(["finished", "stopped", "failed"]))
    assert tried(study) == tried(carried_out(tuning, lambda values: 0.5))
    assert {trial.origin for trial in list(study.trials.values())[1:]} == {"random"}
    assert tried(study)[1:] != tried(carried_out(seeded(RANDOM, seed + 1), lambda values: 0.5))[1:]


@pytest.mark.parametrize("trials", [3, 16, 64])
def test_the_estimator_takes_over_when_enough_have_ended(trials: int) -> None:
    tuning = load_tuning("quick", [f"tune.trials={trials}", *NARROW])
    origins = [trial.origin for trial in carried_out(tuning, near).trials.values()]
    by_luck = {3: 1, 16: 6, 64: 10}[trials]
    assert by_chance(trials) == by_luck
    assert origins == ["paper", *["random"] * (by_luck - 1), *["tpe"] * (trials - by_luck)]


def test_a_proposal_is_the_same_each_time_and_another_for_another_seed() -> None:
    tuning = load_tuning("quick", ["tune.trials=12"])
    study = StudyRecord()
    for number in range(9):
        add(study, tuning, lambda values: values["objective.alpha.2"], ("finished", "stopped", "failed")[number % 3])
    add(study, tuning)
    assert propose(tuning, study)[1] == "tpe"
    assert propose(tuning, study) == propose(tuning, study)
    assert propose(load_tuning("quick", ["tune.trials=12", "seed=1"]), study) != propose(tuning, study)


def test_the_estimator_finds_better_values_than_chance() -> None:
    found = {}
    for searcher in ("tpe", "random"):
        changes = [f"tune.searcher={searcher}", "tune.trials=40", *NARROW]
        studies = [carried_out(load_tuning("quick", [f"seed={seed}", *changes]), near) for seed in range(3)]
        found[searcher] = fmean(near(values) for study in studies for values in tried(study)[20:])
    assert found["tpe"] > found["random"] + 0.1


def test_those_at_work_keep_the_estimator_away_from_where_they_are() -> None:
    crowded, free = [], []
    for seed in range(5):
        tuning = seeded(load_tuning("quick", ["tune.trials=30", "tune.space.optimizer.clip={low: 0, high: 1}"]), seed)
        for place, distances in ((0.3, crowded), (0.9, free)):
            study = carried_out(tuning, lambda values: 1 - abs(values["optimizer.clip"] - 0.3))
            for number in range(30, 40):
                told = {"values": {"optimizer.clip": place + number / 1e4}, "origin": "tpe"}
                study.add({"event": "trial", "number": number, **told})
            distances.append(abs(propose(tuning, study)[0]["optimizer.clip"] - 0.3))
    assert fmean(crowded) > fmean(free)


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_a_small_space_is_gone_through_before_anything_is_tried_again(searcher: str) -> None:
    small = ["tune.space.network.norm=[batch, group]", "tune.space.discriminators.norm=[batch, instance, group]"]
    study = carried_out(
        load_tuning("quick", [f"tune.searcher={searcher}", "tune.trials=7", *small]), lambda values: 0.5
    )
    assert len({tuple(values.values()) for values in tried(study)[:6]}) == 6
    assert len(study.trials) == 7


def test_a_measure_that_is_none_and_values_outside_the_space_teach_nothing() -> None:
    changes = ["tune.trials=8", "optimizer.clip=5", *NARROW, "tune.space.network.norm=[instance, group]"]
    tuning = load_tuning("quick", changes)
    study = StudyRecord()
    add(study, tuning, near)
    assert not tuning.space.holds(tried(study)[0])
    for _ in range(4):
        add(study, tuning, lambda values: float("nan"))
    values, origin = propose(tuning, study)
    assert origin == "tpe"
    assert tuning.space.holds(values)


def test_optuna_says_nothing_and_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    carried_out(load_tuning("quick", ["tune.trials=6"]), lambda values: 0.5)
    assert optuna.logging.get_verbosity() == logging.INFO
    assert capfd.readouterr() == ("", "")
