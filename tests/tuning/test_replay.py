import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from data_pipeline import Fault
from tests.trainer.scored import score
from trainer.metrics import summarise
from trainer.score_table import write_csv
from tuning.journal import StudyRecord
from tuning.playing import Plan
from tuning.replay import interval_of_best, replay
from tuning.replay_figure import DPI, draw_replays
from tuning.settings import Tune

CURVES = ([0.50, 0.60, 0.70], [0.60, 0.70, 0.75], [0.55, 0.80, 0.90])
"""The third is the best in the end, and not among the best after the first epoch."""

THIRDS = Plan(Tune(first_rung=1, reduction=3), slots=1, epochs=3)


def study(trainings: Sequence[Mapping[str, Sequence[float]]]) -> StudyRecord:
    """A full study whose trials' trainings measured these DSC, epoch by epoch, in 10 s an epoch, side by side."""
    record = StudyRecord()
    for number, curves in enumerate(trainings):
        record.add({"event": "trial", "number": number, "values": {}, "origin": "random"})
        record.add({"event": "began", "trial": number, "attempt": 1, "node": "here"})
        for epoch, dsc in enumerate(zip(*curves.values(), strict=True), start=1):
            told = {"dsc": float(np.mean(dsc)), "trainings": dict(zip(curves, dsc, strict=True))}
            trained = epoch * len(curves)
            record.add(
                {
                    "event": "report",
                    "trial": number,
                    "epoch": epoch,
                    **told,
                    "trained": trained,
                    "seconds": 10.0 * trained,
                }
            )
        record.add({"event": "ended", "trial": number, "how": "finished", "why": ""})
    return record


def one_fold(*curves: Sequence[float]) -> StudyRecord:
    return study([{"fold-1": curve} for curve in curves])


def halved(curves: Sequence[Sequence[float]], order: Sequence[int], reduction: int) -> tuple[int, int]:
    """One trial after the other under Ray's scheduler as it comes: epochs trained, and the best that was finished."""
    epochs = len(curves[0])
    ray = AsyncHyperBandScheduler("epoch", "dsc", "max", max_t=epochs, reduction_factor=reduction)
    trained, finished = 0, []
    for number in order:
        trial = SimpleNamespace(trial_id=str(number))
        ray.on_trial_add(None, trial)
        for epoch, dsc in enumerate(curves[number], start=1):
            trained += 1
            if ray.on_trial_result(None, trial, {"epoch": epoch, "dsc": dsc}) == TrialScheduler.STOP:
                finished += [number] * (epoch == epochs)
                break
    return trained, max(finished, key=lambda number: curves[number][-1])


def test_the_studys_own_order_saves_epochs_and_misses_the_best():
    told = replay(one_fold(*CURVES), THIRDS, orders=5)
    # .50 is the first, .60 is not below it, .55 is below the upper third of both, .567.
    assert (told.full_best, told.full_dsc) == (2, 0.90)
    assert told.own.share == pytest.approx(7 / 9)
    assert (told.own.best, told.own.dsc, told.own.finished) == (1, 0.75, 2)
    assert told.own.regret == pytest.approx(0.15)
    assert told.own.hours == pytest.approx(70 / 3600)


def test_other_orders_are_decided_as_ray_decides_them():
    chance = np.random.default_rng(3)
    curves = np.sort(chance.uniform(0.3, 0.9, (5, 9)), axis=1).tolist()
    expected = {halved(curves, order, reduction=2) for order in permutations(range(5))}
    told = replay(one_fold(*curves), Plan(Tune(first_rung=1, reduction=2), slots=1, epochs=9), orders=1000)
    seen = {(round(outcome.share * 45), outcome.best) for outcome in told.orders}
    assert seen == expected
    assert len(seen) > 3
    assert (round(told.own.share * 45), told.own.best) == halved(curves, range(5), reduction=2)
    assert min(outcome.regret for outcome in told.orders) == 0


def test_what_is_told_of_all_orders_is_their_spread():
    told = replay(one_fold(*CURVES), THIRDS, orders=600, interval=(0.74, 0.95))
    share = [outcome.share for outcome in told.orders]
    assert (told.share.low, told.share.median) == tuple(np.percentile(share, (5, 50)))
    result = json.loads(json.dumps(told.as_json()))
    assert result["orders"] == 600
    # .90 passes the first rung unless .60 came before it: in half of the orders.
    assert result["same_best"] == pytest.approx(0.5, abs=0.07)
    assert result["within"] == 1.0
    assert replay(one_fold(*CURVES), THIRDS, orders=600, interval=(0.8, 0.95)).within == result["same_best"]
    assert replay(one_fold(*CURVES), THIRDS, orders=600).own == told.own


def test_early_rungs_see_the_trainings_that_they_would_take():
    # On both folds the first trial is the better one after epoch 1, on the first fold alone the second.
    recorded = study(
        [{"fold-1": [0.5, 0.6, 0.7], "fold-2": [0.7, 0.7, 0.7]}, {"fold-1": [0.6, 0.6, 0.6], "fold-2": [0.4, 0.6, 0.6]}]
    )
    both = Plan(Tune(folds=(1, 2), first_rung=1, reduction=3), slots=1, epochs=3, trainings=2)
    assert replay(recorded, both, orders=1).own.share == pytest.approx((6 + 2) / 12)
    first_alone = Plan(both.tune.model_copy(update={"trainings_by_rung": (1,)}), slots=1, epochs=3, trainings=2)
    assert replay(recorded, first_alone, orders=1).own.share == 1.0


def test_trials_that_did_not_come_to_the_end_are_left_out_and_named():
    told = replay(one_fold(*CURVES, [0.9, 0.9]), THIRDS, orders=2)
    assert (told.trials, told.left_out) == (3, (3,))
    with pytest.raises(Fault, match=r"1 of 2 trials were trained for 3 epochs; .*tune\.scheduler=none"):
        replay(one_fold([0.5, 0.5, 0.5], [0.4]), THIRDS)
    with pytest.raises(Fault, match="trial 0 tells nothing of 2 trainings after epoch 1"):
        replay(one_fold(*CURVES), Plan(Tune(folds=(1, 2)), slots=1, epochs=3, trainings=2))


def test_the_interval_is_that_of_the_best_trials_scans(tmp_path: Path):
    scores = {
        fold: [score(f"{fold}-{n}", dsc) for n, dsc in enumerate((0.7, 0.8, 0.95))] for fold in ("fold-1", "fold-2")
    }
    for fold, table in scores.items():
        write_csv(tmp_path / "trials" / "0001" / fold / "validation.csv", table)
    recorded = study([{"fold-1": [0.5], "fold-2": [0.6]}, {"fold-1": [0.8], "fold-2": [0.8]}])
    expected = summarise([*scores["fold-1"], *scores["fold-2"]]).dsc
    assert interval_of_best(tmp_path, recorded) == (expected.low, expected.high)
    with pytest.raises(Fault, match="no trial has a measure yet"):
        interval_of_best(tmp_path, StudyRecord())


def test_each_setting_has_its_panel_with_its_orders(tmp_path: Path):
    told = [replay(one_fold(*CURVES), THIRDS, orders=50, interval=(0.8, 0.95))] * 2
    draw_replays(told, tmp_path / "replay.png")
    image = cv2.cvtColor(cv2.imread(str(tmp_path / "replay.png")), cv2.COLOR_BGR2RGB).astype(int)
    assert image.shape[1] == round((0.8 + 2.7 * 2) * DPI)
    bluish = image[..., 2] - image[..., 0] > 60
    assert bluish[:, : image.shape[1] // 2].sum() > 30
    assert bluish[:, image.shape[1] // 2 :].sum() > 30
