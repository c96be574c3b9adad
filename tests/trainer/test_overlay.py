import numpy as np
import pytest
from PIL import Image

from data_pipeline import Scan
from trainer.overlay import PREDICTION, TRUTH, contact_sheet, overlay


def picture(height, width, box=None):
    """Dark, with a bright rectangle."""
    image = np.full((height, width), 20, np.uint8)
    if box:
        top, left, bottom, right = box
        image[top:bottom, left:right] = 204
    return image


@pytest.mark.parametrize("background", [0, 255])
def test_an_outline_reads_on_bright_and_on_dark(background):
    image = np.full((250, 250), background, np.uint8)
    mask = picture(250, 250, (60, 60, 180, 200)) > 127
    drawn = overlay(image, mask).astype(int)
    for row, column in ((60, 130), (120, 60), (179, 130), (120, 199)):
        assert like(drawn[row, column], PREDICTION)
    assert drawn[58, 130].max() <= 16  # the halo
    assert drawn[62, 130].max() <= 16
    assert np.ptp(drawn[120, 130]) < 25  # inside, hardly coloured
    assert np.abs(drawn[120, 130] - background).max() < 25
    assert (drawn[20, 20] == background).all()  # outside, untouched


def like(pixel, colour):
    """A line of one pixel that is drawn smoothly has most of its colour and not all."""
    return np.abs(pixel / np.max(pixel) - np.array(colour) / np.max(colour)).max() < 0.05 and np.max(pixel) > 200


def test_a_scan_without_anything_to_outline_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)
    drawn = overlay(image, np.zeros((60, 50), np.bool_))
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, np.stack([image] * 3, axis=2))


def test_truth_has_a_colour_of_its_own():
    image = np.zeros((250, 250), np.uint8)
    mask, truth = (picture(250, 250, box) > 127 for box in ((20, 20, 100, 100), (140, 140, 220, 220)))
    drawn = overlay(image, mask, truth)
    assert like(drawn[20, 60], PREDICTION)
    assert like(drawn[140, 180], TRUTH)
    assert not drawn[180, 180].any()  # only what is predicted is tinted


def test_lines_are_wider_on_larger_scans():
    def line_pixels_across(side):
        mask = np.zeros((side, side), np.bool_)
        mask[side // 4 : side // 2, side // 4 : side // 2] = True
        column = overlay(np.zeros((side, side), np.uint8), mask)[: side * 3 // 8, side * 3 // 8]
        return int((column[:, 0] > 128).sum())

    assert line_pixels_across(250) == 1
    assert line_pixels_across(1500) >= 5


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_contact_sheet_shows_up_to_six_scans_with_both_outlines(tmp_path, count):
    pairs = []
    for number in range(count):
        image = picture(60 + 9 * number, 80, (20, 20, 40, 50))
        scan = Scan(f"scan-{number}", image, image > 127, "p", "g", "benign", None)
        pairs.append((scan, np.roll(image, 4, axis=1) > 127))
    contact_sheet(pairs, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for colour in (PREDICTION, TRUTH):
        assert (np.abs(pixels - colour).max(axis=2) < 12).sum() > 200 * count
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("count", [0, 7])
def test_a_contact_sheet_takes_one_to_six_scans(tmp_path, count):
    image = picture(20, 20)
    with pytest.raises(ValueError, match="one to six"):
        contact_sheet(
            [(Scan("s", image, image > 127, "p", "g", "normal", None), image > 127)] * count, tmp_path / "s.png"
        )
