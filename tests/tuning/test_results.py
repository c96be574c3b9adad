import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.studies import study_of, tuning_of
from trainer.config import load_config
from tuning.final import FinalComparison
from tuning.journal import StudyRecord
from tuning.results import results_of, winner, write_results
from tuning.results_text import answer

ALPHA, RATE = "objective.alpha.2", "optimizer.generator_rate"
NORM, WIDTHS = "discriminators.norm", "discriminators.widths"
BEST = {ALPHA: 0, RATE: 0.002, NORM: "group", WIDTHS: [4, 8, 16, 32]}


def both(*means: float) -> list[dict[str, float]]:
    """By epoch: two trainings, a point above and below."""
    return [{"fold-1": mean + 0.01, "fold-2": mean - 0.01} for mean in means]


def study(**paper: Any) -> StudyRecord:
    """Of six trials, the third of which is the best."""
    return study_of(
        tuning_of(),
        [
            {"dsc": both(0.5, 0.7, 0.80)} | paper,
            {"values": {ALPHA: 0.3}, "dsc": both(0.4), "how": "stopped", "why": "epoch 1, below 0.5"},
            {"values": BEST, "dsc": [*both(0.6, 0.72), {"fold-1": 0.84, "fold-2": 0.78}], "failures": ["killed"]},
            {
                "values": {RATE: 0.01},
                "failures": ["loss is not finite"] * 2,
                "how": "failed",
                "why": "loss is not finite",
            },
            {"values": {ALPHA: 0.4}, "dsc": both(0.6, 0.72, 0.81)},
            {"values": {ALPHA: 0.5}, "dsc": both(0.6), "how": None},
        ],
    )


def final(low: float, high: float) -> FinalComparison:
    middle = (low + high) / 2
    return FinalComparison((5,), (0,), 0.8 + middle, 0.8, middle, low, high, 0.04, 30, 20, 2, {"fold-5": (0.8, 0.8)})


def test_of_two_equal_trials_the_first_is_the_best():
    best = winner(study())
    assert best is not None
    assert best.number == 2


def test_a_trial_that_was_stopped_or_is_at_work_is_never_the_best():
    record = study_of(tuning_of(), [{"dsc": both(0.9), "how": "stopped"}, {"dsc": both(0.95), "how": None}])
    assert winner(record) is None
    assert answer(results_of(Path("out"), tuning_of(), record)).startswith("No trial has finished yet")


def test_rows_tell_each_trial_beside_the_papers():
    results = results_of(Path("out"), tuning_of(), study())
    assert [row.trial for row in results.rows] == [2, 4, 0, 5, 1]
    best, stopped = results.rows[0], results.rows[4]
    assert best.dsc == pytest.approx(0.81)
    assert best.sd == pytest.approx(0.06 / math.sqrt(2))
    assert best.difference == pytest.approx(0.01)
    assert best.better == 1  # 0.84 against 0.81, 0.78 against 0.79
    assert stopped.difference == pytest.approx(0.4 - 0.5)  # to the paper's after the same epoch
    assert results.rows[2].difference is None
    assert (results.trained, results.full) == (6 + 2 + 6 + 6 + 2, 6 * 2 * 3)
    assert results.states == {"finished": 3, "stopped": 1, "failed": 1, "running": 1}
    assert results.failures == {2: ("killed",), 3: ("loss is not finite",) * 2}


def test_the_paper_is_shown_also_where_ten_others_are_better_and_where_it_failed():
    others = [{"values": {ALPHA: 0.1 * number}, "dsc": both(0.5, 0.6, 0.7)} for number in range(1, 13)]
    for paper in ({"dsc": both(0.5, 0.5, 0.5)}, {"how": "failed", "failures": ["out of memory"]}):
        rows = results_of(Path("out"), tuning_of(), study_of(tuning_of(), [paper, *others])).rows
        assert [row.trial for row in rows] == [*range(1, 11), 0]


def test_best_yaml_is_the_whole_configuration_for_a_cross_validation(tmp_path: Path):
    tuning = tuning_of("checkpoints.mirror=s3://bucket/runs/")
    tuning = replace(tuning, config=tuning.config.replace(folds=(1, 2), data__unseen=(3,)))
    write_results(tmp_path, tuning, study())
    expected = tuning.config.replace(
        objective__alpha=[1.0, 0.0, 0.1, 0.1],
        optimizer__generator_rate=0.002,
        discriminators__norm="group",
        discriminators__widths=[4, 8, 16, 32],
        output=str(tmp_path / "best-crossval"),
        folds=(),
        data__unseen=(),
        checkpoints__mirror="s3://bucket/runs/best-crossval",
    )
    assert load_config(str(tmp_path / "best.yaml")) == expected
    assert (tmp_path / "best.yaml").read_text().startswith("# Trial 2 of a search: mean validation DSC 81.00 %")


def test_trials_csv_has_a_row_a_trial_with_every_training_and_key(tmp_path: Path):
    write_results(tmp_path, tuning_of(), study())
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == list("012345")
    assert [row["state"] for row in rows] == ["finished", "stopped", "finished", "failed", "finished", "running"]
    best, failed = rows[2], rows[3]
    assert [float(best[name]) for name in ("dsc", "dsc/fold-1", "dsc/fold-2")] == pytest.approx([0.81, 0.84, 0.78])
    assert (best["trained"], best["seconds"], best["attempts"]) == ("6", "180.0", "2")
    assert {key: best[key] for key in BEST} == {ALPHA: "0", RATE: "0.002", NORM: "group", WIDTHS: "[4, 8, 16, 32]"}
    assert (failed["dsc"], failed["sd"], failed["why"]) == ("", "", "loss is not finite")
    assert rows[1]["why"] == "epoch 1, below 0.5"


def test_the_table_marks_the_paper_and_is_quiet_about_its_values(tmp_path: Path):
    results = write_results(tmp_path, tuning_of(), study(), final(0.002, 0.018))
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert "| 2, the best | 81.00 ± 4.24 | +1.00 | 3 | 0 | 0.002 | group | 4, 8, 16, 32 |" in lines
    assert "| 4 | 81.00 ± 1.41 | +1.00 | 3 | 0.4 | · | · | · |" in lines
    assert "| 0, the paper | 80.00 ± 1.41 | - | 3 | 0.1 | 0.001 | batch | 8, 16, 32, 64 |" in lines
    assert answer(results) in lines
    assert lines[-1] == "6 trials, 22 epochs (61 % of a full search's 36), 11 min of training."


def test_result_json_holds_the_numbers(tmp_path: Path):
    results = write_results(tmp_path, tuning_of(), study(), final(0.002, 0.018))
    told = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(results.as_json()))
    assert (told["best"], told["paper"], told["final"]["low"]) == (2, 0, 0.002)
    assert told["rows"][0]["values"] == BEST


@pytest.mark.parametrize(
    ("compared", "paper", "begins", "has"),
    [
        (final(0.002, 0.018), {}, "Trial 2 is better than the paper's weights", "[+0.20, +1.80]"),
        (
            final(-0.01, 0.02),
            {},
            "No difference between the paper's weights and trial 2",
            "which chance alone may give",
        ),
        (final(-0.03, -0.01), {}, "The paper's weights win: trial 2", "-2.00 points"),
        (None, {}, "Trial 2 is the best of 6 trials, with 81.00 % DSC", "higher in 1 of 2 trainings"),
        (replace(final(0.002, 0.018), winner=4), {}, "Trial 2 is the best", "no unseen fold has been compared on yet"),
        (None, {"dsc": both(0.5, 0.7, 0.9)}, "The paper's weights win: no other of 6 trials", "90.00 %"),
        (None, {"how": "failed", "dsc": []}, "Trial 2 is the best", "no such figure of the paper's weights"),
    ],
)
def test_the_answer_says_which_won_and_how_sure_that_is(
    compared: FinalComparison | None, paper: dict[str, Any], begins: str, has: str
):
    said = answer(results_of(Path("out"), tuning_of(), study(**paper), compared))
    assert said.startswith(begins)
    assert has in said


def test_a_study_that_has_just_begun_can_be_told(tmp_path: Path):
    for record in (StudyRecord(), study_of(tuning_of(), [{"how": None}])):
        results = write_results(tmp_path, tuning_of(), record)
        assert (results.best, results.trained) == (None, 0)
        assert not (tmp_path / "best.yaml").exists()
