import json
import os

import numpy as np
import pytest
from PIL import Image

from data_pipeline import Fault, WrongCall
from trainer import networks
from trainer.predict import predict_files
from trainer.serving import load_segmenter


class Bright:
    """Marks what is brighter than middle gray."""

    def probabilities(self, images):
        return [(image / 255).astype(np.float32) for image in images]

    def marked(self, probability):
        return probability >= 0.5


def picture(height, width, box=None):
    """Dark, with a bright rectangle."""
    image = np.full((height, width), 20, np.uint8)
    if box:
        top, left, bottom, right = box
        image[top:bottom, left:right] = 204
    return image


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "predictions"


def test_an_image_gets_a_mask_an_overlay_and_a_line_that_measures_it(tmp_path, out):
    file = tmp_path / "scan.png"
    Image.fromarray(picture(40, 60, (5, 10, 25, 50))).save(file)

    told = predict_files(Bright(), [file], out)

    assert lines_of(out) == told
    assert told == [
        {
            "file": str(file),
            "mask": "scan.mask.png",
            "overlay": "scan.overlay.png",
            "height": 40,
            "width": 60,
            "lesion": True,
            "area_px": 800,
            "area_fraction": pytest.approx(1 / 3),
            "box": [5, 10, 25, 50],
            "probability": pytest.approx(0.8),
        }
    ]
    with Image.open(out / "scan.mask.png") as mask, Image.open(out / "scan.overlay.png") as drawn:
        assert (mask.mode, mask.size) == ("L", (60, 40))
        assert (drawn.mode, drawn.size) == ("RGB", (60, 40))
        assert np.array_equal(np.asarray(mask), np.where(picture(40, 60, (5, 10, 25, 50)) > 127, 255, 0))


def test_an_image_without_a_lesion_has_a_black_mask_and_no_box(tmp_path, out):
    Image.fromarray(picture(20, 30)).save(tmp_path / "normal.png")
    (told,) = predict_files(Bright(), [tmp_path / "normal.png"], out)
    assert (told["lesion"], told["area_px"], told["area_fraction"]) == (False, 0, 0.0)
    assert (told["box"], told["probability"]) == (None, None)
    with Image.open(out / "normal.mask.png") as mask:
        assert mask.getextrema() == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (64, 48), (700, 90)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_real_network_outlines_images_of_any_size_and_mode(tmp_path, out, model_folder, size, mode):
    gray = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    image.save(tmp_path / "scan.png")
    segmenter = load_segmenter(model_folder, networks.build)
    (told,) = predict_files(segmenter, [tmp_path / "scan.png"], out)
    assert (told["height"], told["width"]) == size
    with Image.open(out / "scan.mask.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        assert (np.asarray(mask) == 255).sum() == told["area_px"]


def test_an_unreadable_image_is_named_and_the_others_go_on(tmp_path, out):
    Image.fromarray(picture(64, 64, (9, 9, 40, 40))).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_text("no image")
    Image.fromarray(picture(64, 64)).save(tmp_path / "d.png")

    told = predict_files(Bright(), [tmp_path / f"{name}.png" for name in "abcd"], out)

    assert lines_of(out) == told
    assert [line.get("lesion") for line in told] == [True, None, None, False]
    assert told[1]["file"] == str(tmp_path / "b.png")
    assert told[1]["error"].startswith("cannot be read: ")
    assert told[2] == {"file": str(tmp_path / "c.png"), "error": "is no image that can be read"}
    written = {entry.name for entry in out.iterdir()}
    assert written == {"a.mask.png", "a.overlay.png", "d.mask.png", "d.overlay.png", "predictions.jsonl"}


def test_a_folder_stands_for_its_image_files_and_not_for_what_lies_beside_them(tmp_path, out):
    scans = tmp_path / "scans"
    (scans / "deeper").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "._a.jpg", "a.mask.png", "a.overlay.png", "deeper/e.png"):
        Image.fromarray(picture(16, 16)).save(scans / name)
    (scans / "Thumbs.db").write_bytes(b"")
    told = predict_files(Bright(), [scans], out)
    assert [line["file"] for line in told] == [str(scans / "a.jpg"), str(scans / "b.PNG")]


def test_a_file_named_twice_is_outlined_once(tmp_path, out):
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    told = predict_files(Bright(), [tmp_path / "a.png", tmp_path, tmp_path / "." / "a.png"], out)
    assert len(told) == 1


def test_predictions_may_be_written_beside_the_images_and_again(tmp_path):
    Image.fromarray(picture(16, 16, (2, 2, 9, 9))).save(tmp_path / "a.png")
    first = predict_files(Bright(), [tmp_path], tmp_path)
    assert predict_files(Bright(), [tmp_path], tmp_path) == first
    assert lines_of(tmp_path) == first


def refused(call, match, out):
    with pytest.raises(WrongCall, match=match):
        call()
    assert not out.exists()


def test_a_missing_file_is_named_before_anything_is_written(tmp_path, out):
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", tmp_path / "gone.png"]
    refused(lambda: predict_files(Bright(), images, out), r"gone\.png is not there", out)


def test_a_pipe_is_not_waited_for(tmp_path, out):
    os.mkfifo(tmp_path / "pipe.png")
    refused(lambda: predict_files(Bright(), [tmp_path / "pipe.png"], out), r"pipe\.png is not there", out)


def test_a_folder_without_images_is_named(tmp_path, out):
    (tmp_path / "empty").mkdir()
    refused(lambda: predict_files(Bright(), [tmp_path / "empty"], out), "empty holds no image file", out)


def test_two_images_with_one_stem_are_both_named_and_neither_is_written(tmp_path, out):
    (tmp_path / "other").mkdir()
    for name in ("a.png", "other/a.jpg"):
        Image.fromarray(picture(16, 16)).save(tmp_path / name)
    images = [tmp_path / "a.png", tmp_path / "other" / "a.jpg"]
    refused(lambda: predict_files(Bright(), images, out), r"a\.png and .*other/a\.jpg would both be written", out)


def test_an_image_to_predict_on_is_not_overwritten_by_another_s_mask(tmp_path):
    for name in ("a.png", "a.mask.png"):
        Image.fromarray(picture(16, 16, (1, 1, 4, 4))).save(tmp_path / name)
    before = (tmp_path / "a.mask.png").read_bytes()
    with pytest.raises(WrongCall, match=r"a\.mask\.png is to be predicted on and would be overwritten"):
        predict_files(Bright(), [tmp_path / "a.png", tmp_path / "a.mask.png"], tmp_path)
    assert (tmp_path / "a.mask.png").read_bytes() == before


def test_a_file_in_the_place_of_the_output_folder_is_named(tmp_path):
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("")
    with pytest.raises(WrongCall, match="out cannot be written to"):
        predict_files(Bright(), [tmp_path / "a.png"], tmp_path / "out")


def test_a_picture_that_cannot_be_written_is_a_fault_and_leaves_no_part_of_it(tmp_path, out):
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    (out / "a.mask.png").mkdir(parents=True)
    with pytest.raises(Fault, match=r"a\.mask\.png cannot be written"):
        predict_files(Bright(), [tmp_path / "a.png"], out)
    assert {entry.name for entry in out.iterdir()} == {"a.mask.png", "predictions.jsonl"}


def test_each_line_is_there_as_soon_as_its_image_is_done(tmp_path, out):
    for name in "abc":
        Image.fromarray(picture(16, 16)).save(tmp_path / f"{name}.png")
    seen = []

    def watched(files):
        for file in files:
            yield file
            seen.append((file.stem, len(lines_of(out))))

    predict_files(Bright(), [tmp_path], out, watched)
    assert seen == [("a", 1), ("b", 2), ("c", 3)]
