from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tuning.studies import searched, study_of, tuning_of
from tuning.figures import DPI, WIDTH, draw_curves, draw_importance, draw_parallel, draw_slices
from tuning.importance import Importance, Share
from tuning.journal import StudyRecord
from tuning.settings import Tuning

BEST, OTHER, STOPPED, INK, TELLING = (
    (213, 94, 0), (86, 180, 233), (181, 181, 181), (34, 34, 34), (0, 114, 178),
)  # fmt: skip
"""Red, green and blue of what is drawn."""

DRAW = {"curves": draw_curves, "slices": draw_slices, "parallel": draw_parallel}


def pixels(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture - np.array(colour)).max(axis=2) < 4).sum() > 30)


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return tuning_of("training.epochs=12")


@pytest.fixture(scope="module")
def study(tuning: Tuning) -> StudyRecord:
    return searched(tuning, 16, seed=2)


@pytest.mark.parametrize("name", DRAW)
def test_the_best_and_the_papers_trial_stand_out(tuning: Tuning, study: StudyRecord, name: str, tmp_path: Path):
    DRAW[name](tuning, study, tmp_path / "figure.png")
    picture = pixels(tmp_path / "figure.png")
    assert picture.shape[1] == round(WIDTH * DPI)
    assert has(picture[: -DPI // 2], BEST)
    if name != "parallel":
        assert has(picture[: -DPI // 2], OTHER)
        assert has(picture[: -DPI // 2], STOPPED)


@pytest.mark.parametrize("name", DRAW)
def test_a_study_can_be_drawn_from_its_beginning(tuning: Tuning, name: str, tmp_path: Path):
    one = [{"dsc": [{"fold-1": 0.7}], "how": None}]
    for record in (
        StudyRecord(),
        study_of(tuning, [{}]),
        study_of(tuning, one),
        study_of(tuning, [*one, {"how": "failed"}]),
    ):
        DRAW[name](tuning, record, tmp_path / "figure.png")
        assert has(pixels(tmp_path / "figure.png"), INK)


def test_importance_tells_keys_that_stand_out_from_those_that_do_not(tmp_path: Path):
    shares = {"objective.alpha.2": Share(0.6, 0.4, 0.8), "optimizer.generator_rate": Share(0.1, 0.0, 0.3)}
    for chance, found in ((0.2, True), (0.7, False)):
        draw_importance(Importance(20, shares, chance, ""), tmp_path / "figure.png")
        assert has(pixels(tmp_path / "figure.png"), TELLING) == found
    draw_importance(Importance(2, {}, 0.0, "2 trials are too few"), tmp_path / "figure.png")
    assert pixels(tmp_path / "figure.png").shape[0] < 2 * DPI
