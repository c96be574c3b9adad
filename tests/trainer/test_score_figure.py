from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.trainer.scored import score
from trainer.score_figure import DPI, draw_scores

COLOURS = {"one": (0, 114, 178), "two": (230, 159, 0)}
"""Of the first and the second column's points: red, green, blue."""


@pytest.fixture
def figure(tmp_path: Path) -> np.ndarray:
    """A figure of two networks with results and one without: uint8 [H, W, 3]."""
    random = np.random.default_rng(0)
    scores = {
        name: [score(f"{name}-{number}", dsc, 40 * (1 - dsc)) for number, dsc in enumerate(random.uniform(0, 1, 200))]
        for name in COLOURS
    }
    draw_scores(scores | {"none": []}, "one", "Three networks", tmp_path / "scores.png")
    return cv2.cvtColor(cv2.imread(str(tmp_path / "scores.png")), cv2.COLOR_BGR2RGB)


def test_the_figure_has_six_panels_wide_enough_for_their_columns(figure: np.ndarray, tmp_path: Path):
    assert figure.shape == (round(8.2 * DPI), round(3 * 3.4 * DPI), 3)
    draw_scores({f"network {number}": [score("a", 0.5)] for number in range(8)}, "", "Eight", tmp_path / "eight.png")
    assert cv2.imread(str(tmp_path / "eight.png")).shape[1] == round(3 * (1 + 8 * 0.42) * DPI)


def test_each_network_has_its_points_in_every_panel(figure: np.ndarray):
    height, width = figure.shape[0] // 2, figure.shape[1] // 3
    for row in range(2):
        for column in range(3):
            panel = figure[row * height : (row + 1) * height, column * width : (column + 1) * width].astype(int)
            for name, colour in COLOURS.items():
                # Points are laid on white with an opacity of 0.35, and over each other.
                tint = 255 + 0.35 * (np.array(colour) - 255)
                found = np.abs(panel - tint).max(axis=2) < 8
                assert found.sum() > 100, (row, column, name)


def test_a_study_of_which_nothing_is_finished_can_be_drawn(tmp_path: Path):
    draw_scores({"one": [], "two": []}, "one", "Nothing yet", tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000
