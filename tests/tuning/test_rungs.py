"""That rungs remember, and judge as Ray's own do where nothing went wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from tests.tuning.conftest import StudyOf
from tuning.journal import StudyRecord
from tuning.rungs import Rungs, milestones
from tuning.settings import Tune


def ray_trial(number: int, attempt: int = 0) -> Any:
    """What a scheduler sees of a trial, which Ray names anew each time."""
    return SimpleNamespace(trial_id=f"{number:05d}_{attempt}", config={"number": number})


def ray_rungs(tune: Tune, epochs: int) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        "epoch", "dsc", "max", max_t=epochs, grace_period=tune.first_rung, reduction_factor=tune.reduction
    )


@pytest.mark.parametrize("epochs", [1, 2, 9, 12, 27, 81, 100, 243, 1000])
@pytest.mark.parametrize("reduction", [2, 3, 4, 10])
def test_milestones_are_ray_s_and_the_last_epoch(epochs: int, reduction: int) -> None:
    for first in {1, 2, 3, 5} & set(range(1, epochs + 1)):
        tune = Tune(first_rung=first, reduction=reduction)
        (bracket,) = ray_rungs(tune, epochs)._brackets
        assert milestones(tune, epochs) == sorted({*(rung for rung, _ in bracket._rungs), epochs})


def test_milestones_by_hand() -> None:
    assert milestones(Tune(first_rung=1), 12) == [1, 3, 9, 12]
    assert milestones(Tune(first_rung=2, reduction=2), 16) == [2, 4, 8, 16]
    assert milestones(Tune(first_rung=5), 5) == [5]


@pytest.mark.parametrize(
    ("epochs", "reduction", "rungs"),
    [(1, 3, [1]), (3, 3, [1, 3]), (9, 3, [1, 3, 9]), (12, 3, [2, 6, 12]), (50, 3, [6, 18, 50]), (16, 4, [1, 4, 16])],
)
def test_a_trial_is_judged_twice_before_its_last_epoch_unless_told_otherwise(
    epochs: int, reduction: int, rungs: list[int]
) -> None:
    assert milestones(Tune(reduction=reduction), epochs) == rungs


@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 10), st.sampled_from("    ahkl")), max_size=120),
)
def test_rungs_that_die_anywhere_decide_as_ray_s_that_live(
    reduction: int, first: int, steps: list[tuple[int, int, str]]
) -> None:
    """Each step is a trial's next epoch and its DSC in tenths, and what goes wrong.

    a: an attempt fails and its last epoch is trained again, to another DSC; h: signs of life; k: the driver is killed
    after it has written the report and heard the decision; l: before it has heard it.
    """
    tune, epochs = Tune(first_rung=first, reduction=reduction), 13
    undisturbed, rungs = ray_rungs(tune, epochs), Rungs(tune, epochs)
    events: list[dict[str, Any]] = []
    reached: dict[int, int] = {}
    out: set[int] = set()
    attempt = 0
    for number, tenths, mishap in steps:
        if number in out:
            continue
        if number not in reached:
            undisturbed.on_trial_add(None, ray_trial(number))
            rungs.on_trial_add(None, ray_trial(number, attempt))
            events.append({"event": "trial", "number": number, "values": {}, "origin": "random"})
            events.append({"event": "began", "trial": number, "attempt": 1, "node": ""})
        epoch = reached[number] = reached.get(number, 0) + 1
        result = {"epoch": epoch, "dsc": tenths / 10}
        decision = undisturbed.on_trial_result(None, ray_trial(number), result)
        report = {"event": "report", "trial": number, "trainings": {}, "trained": epoch, "seconds": 1, **result}
        if mishap == "h":
            waiting = {"epoch": 0, "dsc": math.nan} if epoch == 1 else {"epoch": epoch - 1, "dsc": 0.0}
            assert rungs.on_trial_result(None, ray_trial(number, attempt), waiting) == "CONTINUE"
        events.append(report)
        if mishap != "l":
            assert rungs.on_trial_result(None, ray_trial(number, attempt), result) == decision
        if mishap in "kl":
            attempt += 1
            rungs = Rungs(tune, epochs)
            lost = rungs.recall(StudyRecord(events))
            assert lost == ({number} if decision == "STOP" and epoch < epochs else set())
            for again in reached.keys() - out - lost:
                rungs.on_trial_add(None, ray_trial(again, attempt))
        if decision == "STOP":
            out.add(number)
            events.append({"event": "ended", "trial": number, "how": "stopped", "why": ""})
        elif mishap == "a":
            again = {"epoch": epoch, "dsc": 0.0}
            assert rungs.on_trial_result(None, ray_trial(number, attempt), again) == "CONTINUE"
    assert rungs.debug_string().splitlines()[1:] == undisturbed.debug_string().splitlines()[1:]


def test_a_trial_that_was_put_out_hears_it_again(study_of: StudyOf) -> None:
    study = study_of([[0.9], [0.8], [0.1]], [None, "failed", None])
    rungs = Rungs(Tune(), 9)
    assert rungs.recall(study) == {2}  # of three the best goes on: 0.1 is below the third quantile of 0.9 and 0.8
    life = {"epoch": 1, "dsc": 0.1}
    assert rungs.on_trial_result(None, ray_trial(2), life) == "STOP"
    rungs.on_trial_complete(None, ray_trial(2), life)
    rungs.on_trial_remove(None, ray_trial(2))
    assert rungs.on_trial_result(None, ray_trial(0), {"epoch": 1, "dsc": 0.9}) == "CONTINUE"


def test_the_last_epoch_is_no_judgement(study_of: StudyOf) -> None:
    study = study_of([[0.5, 0.6, 0.7]], [None])
    rungs = Rungs(Tune(), 3)
    assert rungs.recall(study) == set()
    assert rungs.on_trial_result(None, ray_trial(0), {"epoch": 3, "dsc": 0.7}) == "STOP"
