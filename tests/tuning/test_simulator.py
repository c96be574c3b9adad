import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import Fault
from tuning.journal import StudyRecord
from tuning.playing import Course, Plan, play
from tuning.rungs import Rungs
from tuning.settings import Tune
from tuning.simulator import EQUAL, Measured, remaining, scheduled, simulate

FULL = Tune(trials=10, scheduler="none")


def events_of(number: int, dsc: Sequence[float], pace: float = 20.0, start: float = 8.0, how: str = "") -> list[Any]:
    """A trial of one training, alone in its study's slot."""
    events: list[dict[str, Any]] = [
        {"event": "trial", "number": number, "values": {}, "origin": "random"},
        {"event": "began", "trial": number, "attempt": 1, "node": "here"},
    ]
    for epoch, value in enumerate(dsc, start=1):
        told = {"dsc": value, "trainings": {"fold-1": value}, "trained": epoch, "seconds": start + pace * epoch}
        events.append({"event": "report", "trial": number, "epoch": epoch, **told})
    return [*events, {"event": "ended", "trial": number, "how": how, "why": ""}] if how else events


def measured(*curves: Sequence[float], pace: float = 20.0, start: float = 8.0) -> Measured:
    study = StudyRecord(
        event for number, dsc in enumerate(curves) for event in events_of(number, dsc, pace, start, "stopped")
    )
    return Measured.of(study.trials.values())


def course(dsc: Sequence[float], seconds: float = 1.0) -> Course:
    epochs = range(1, len(dsc) + 1)
    return Course(epochs, dsc, [seconds * epoch for epoch in epochs], epochs)


# Playing a search through


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1, 6))
def test_more_slots_are_never_slower_and_none_idles_while_a_trial_waits(lengths: list[int], slots: int):
    courses = {number: course([0.5], length) for number, length in enumerate(lengths)}
    fewer, more = play(courses, slots), play(courses, slots + 1)
    assert more.seconds <= fewer.seconds
    assert fewer.busy == more.busy == sum(lengths)
    # Graham's bounds of a list schedule (1969).
    least = max(sum(lengths) / slots, max(lengths))
    assert least <= fewer.seconds <= sum(lengths) / slots + max(lengths)


def test_trials_are_stopped_by_rays_own_rule():
    # At the rung after epoch 1: .5 is the first and goes on; .6 is not below the upper third of {.5}; .55 is below that
    # of {.5, .6}, which is .567. After epoch 3 all are done.
    courses = {7: course([0.5, 0.5, 0.5]), 3: course([0.6, 0.6, 0.6]), 5: course([0.55, 0.9, 0.9])}
    rungs = Rungs(Tune(first_rung=1, reduction=3), epochs=3)
    played = play(courses, 1, scheduled(rungs))
    assert played.reached == {7: 2, 3: 2, 5: 0}
    assert (played.trained, played.seconds, played.busy) == (7, 7.0, 7.0)


def test_a_scheduler_sees_reports_in_the_order_of_time():
    seen = []
    courses = {0: course([0.1, 0.2], 10), 1: course([0.3, 0.4], 4), 2: course([0.5, 0.6], 3)}
    play(courses, 2, lambda number, epoch, dsc: seen.append((number, epoch, dsc)) is None)
    assert seen == [(1, 1, 0.3), (1, 2, 0.4), (0, 1, 0.1), (2, 1, 0.5), (2, 2, 0.6), (0, 2, 0.2)]


# What a trial has to do


def test_further_trainings_are_taken_at_the_rungs_that_ask_for_them():
    tune = Tune(folds=(1, 2, 3), trainings_by_rung=(1, 2), first_rung=1, reduction=3)
    work = Plan(tune, slots=1, epochs=9, trainings=3).work
    assert [each.trainings for each in work] == [1, 2, 2, 3, 3, 3, 3, 3, 3]
    # To epoch 1 one training; then one more is started and reports when the first has done 3; then two are started.
    assert [each.starts for each in work] == [1, 2, 2, 4, 4, 4, 4, 4, 4]
    assert [each.trained for each in work] == [1, 3 + 2, 3 + 3, 18 + 4, 18 + 5, 18 + 6, 18 + 7, 18 + 8, 18 + 9]


def test_all_trainings_come_to_a_rung_before_it_judges_and_to_the_end_in_turn_without_one():
    plan = Plan(Tune(folds=(1, 2), first_rung=1, reduction=3), slots=1, epochs=4, trainings=2)
    assert [tuple(each) for each in plan.work] == [(2, 2, 2), (2, 3, 5), (2, 3, 6), (2, 4, 8)]
    full = Plan(Tune(folds=(1, 2), scheduler="none"), slots=1, epochs=4, trainings=2)
    assert [tuple(each) for each in full.work] == [(2, 2, 5), (2, 2, 6), (2, 2, 7), (2, 2, 8)]


def test_reports_come_with_validations_and_at_the_end():
    assert Plan(Tune(), slots=1, epochs=10, every=4).reported == (4, 8, 10)
    assert Plan(Tune(), slots=1, epochs=8, every=4).reported == (4, 8)


# What was measured


def test_seconds_of_an_epoch_and_of_a_start_follow_from_the_reports():
    told = measured([0.5, 0.6, 0.7], [0.4], pace=20.0, start=8.0)
    assert [pace.tolist() for pace in told.paces] == [[20.0, 20.0], [20.0]]
    assert told.start_seconds == 8.0


def test_a_trial_that_was_stopped_gains_what_one_that_went_further_gained():
    told = measured([0.5, 0.6, 0.9], [0.3])
    plan = Plan(FULL, slots=1, epochs=5)
    courses = [told.course(plan, np.random.default_rng(seed)) for seed in range(20)]
    gains = {tuple(round(dsc - each.dsc[0], 6) for dsc in each.dsc) for each in courses}
    assert gains == {(0.0, 0.1, 0.4, 0.4, 0.4)}
    assert len({each.dsc[0] for each in courses}) == 20
    assert measured([0.5, 0.6]).width == EQUAL


def test_nothing_measured_is_said_in_a_line():
    with pytest.raises(Fault, match="no trial has reported an epoch"):
        measured([], [])


# The forecast


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 9))
def test_a_full_search_takes_what_arithmetic_says(trials: int, slots: int, epochs: int):
    tune = Tune(trials=trials, scheduler="none")
    plan = Plan(tune, slots, epochs, trainings=2, cores=3, gpus=1)
    told = simulate(measured([0.5, 0.6], pace=20, start=8), plan, runs=3)
    of_a_trial = 2 * (8 + 20 * epochs)
    assert told.seconds.low == told.seconds.high == pytest.approx(math.ceil(trials / slots) * of_a_trial)
    assert told.core_hours.median == pytest.approx(3 * trials * of_a_trial / 3600)
    assert told.gpu_hours.median == pytest.approx(trials * of_a_trial / 3600)
    assert (told.trained.median, told.share.median, told.finished.median) == (trials * 2 * epochs, 1, trials)


def test_successive_halving_trains_a_part_and_the_same_for_the_same_seed():
    told = measured(*([quality, quality + 0.1, quality + 0.15] for quality in np.linspace(0.4, 0.6, 6)))
    plan = Plan(Tune(trials=27, reduction=3), slots=3, epochs=9)
    forecast = simulate(told, plan, runs=40, seed=1)
    assert forecast == simulate(told, plan, runs=40, seed=1)
    assert forecast != simulate(told, plan, runs=40, seed=2)
    # 27 trials cost 27 + 9 x 2 + 3 x 6 epochs if each rung lets exactly a third pass; asynchronous ones let more.
    assert 63 < forecast.trained.median < 0.5 * 27 * 9
    assert forecast.share.median == pytest.approx(forecast.trained.median / (27 * 9))
    assert 3 <= forecast.finished.median <= 9
    assert forecast.seconds.low < forecast.seconds.median < forecast.seconds.high


def test_trials_that_are_measured_alike_do_not_all_pass_a_rung():
    forecast = simulate(measured([0.5, 0.6, 0.7]), Plan(Tune(trials=27, reduction=3), 1, 9), runs=40)
    assert forecast.share.high < 0.6


def test_a_population_costs_what_a_full_search_does():
    told = measured([0.5, 0.6])
    plans = [Plan(Tune(trials=6, scheduler=scheduler), 2, 5) for scheduler in ("population", "none")]
    assert simulate(told, plans[0]) == simulate(told, plans[1])


# A search under way


def test_what_is_left_counts_trials_at_work_from_where_they_are():
    tune = Tune(trials=5, scheduler="none")
    plan = Plan(tune, slots=2, epochs=4)
    assert remaining(StudyRecord(), plan) is None
    ended = events_of(0, [0.5, 0.6, 0.7, 0.8], 10, 0, "finished")
    study = StudyRecord([*ended, *events_of(1, [0.5], 10, 0), *events_of(2, [0.5, 0.6], 10, 0)])
    # 30 s of one and 20 s of the other; of the two that follow, each 40 s, the second begins after 30 s.
    assert remaining(study, plan) == pytest.approx(70.0)
    for number in (1, 2):
        study.add({"event": "ended", "trial": number, "how": "stopped", "why": ""})
    assert remaining(study, plan) == pytest.approx(40.0)
    assert remaining(study, Plan(tune.model_copy(update={"trials": 3}), slots=2, epochs=4)) == 0


def test_what_is_left_remembers_what_rungs_have_seen():
    seen = [event for number in range(12) for event in events_of(number, [0.9 + number / 1000], how="stopped")]
    plan = Plan(Tune(trials=14, reduction=3), slots=1, epochs=30)
    fresh = Measured.of(StudyRecord(events_of(12, [0.1])).trials.values())
    alone = simulate(fresh, Plan(Tune(trials=2, reduction=3), 1, 30), runs=20).seconds.median
    left = remaining(StudyRecord([*seen, *events_of(12, [0.1])]), plan, runs=20)
    assert left is not None
    assert left < alone
