import weakref

import numpy as np
import pytest

from data_pipeline import Scan, WrongCall
from trainer import networks
from trainer.evaluate import CentredEllipse, evaluate
from trainer.serving import load_segmenter


class Bright:
    """Marks what is brighter than middle gray, which in these scans is the lesion."""

    def __init__(self, threshold=0.5):
        self.threshold = threshold
        self.batches = []

    def probabilities(self, images):
        self.batches.append(len(images))
        return [(image / 255).astype(np.float32) for image in images]

    def marked(self, probability):
        return probability >= self.threshold


def ellipse(shape, height, width, centre=(0.5, 0.5)):
    rows, columns = ((np.arange(side) + 0.5) / side for side in shape)
    down, across = (rows[:, None] - centre[0]) / height, (columns[None, :] - centre[1]) / width
    return down**2 + across**2 <= 0.25


def scan(key, shape=(40, 50), spacing=None, truth=None):
    mask = ellipse(shape, 0.4, 0.5) if truth is None else truth
    return Scan(key, np.where(mask, 200, 30).astype(np.uint8), mask, f"patient-{key}", key, "benign", spacing)


def test_every_scan_gets_its_score_in_order_and_at_its_own_size():
    scans = [scan("a"), scan("b", (30, 90)), scan("c", spacing=(0.1, 0.1)), scan("d", truth=np.zeros((9, 9), np.bool_))]
    bright = Bright()
    scores = evaluate(bright, scans, batch=3)
    assert [(score.key, score.patient) for score in scores] == [(s.key, s.patient) for s in scans]
    assert [score.dsc for score in scores] == [1.0, 1.0, 1.0, None]
    assert [score.hd95_mm for score in scores] == [None, None, 0.0, None]
    assert bright.batches[:2] == [3, 1]


def test_surface_distances_can_be_left_out():
    assert [score.hd95_px for score in evaluate(Bright(), [scan("a")], surface=False)] == [None]


def test_what_the_predictor_marks_is_judged():
    assert [score.dsc for score in evaluate(Bright(threshold=0.9), [scan("a")])] == [0.0]


def test_no_scans_give_no_scores():
    assert evaluate(Bright(), []) == []


def test_no_more_scans_than_a_batch_are_held():
    made = []
    held = []

    def scans():
        for number in range(20):
            one = scan(str(number))
            made.append(weakref.ref(one.image))
            held.append(sum(image() is not None for image in made))
            yield one

    assert len(evaluate(Bright(), scans(), batch=4)) == 20
    assert max(held) <= 5  # the batch, and the one that the generator has in its hands


def test_an_untrained_network_is_judged_like_any_other(model_folder):
    segmenter = load_segmenter(model_folder, networks.build)
    scores = evaluate(segmenter, [scan("a"), scan("b", (70, 30))])
    assert all(0 <= score.dsc < 0.9 for score in scores)


@pytest.mark.parametrize(("height", "width"), [(0.3, 0.3), (0.5, 0.25), (0.2, 0.7)])
def test_the_ellipse_fitted_to_equal_ellipses_is_that_ellipse(height, width):
    truths = [ellipse((400, 300), height, width, centre) for centre in ((0.5, 0.5), (0.4, 0.55))]
    fitted = CentredEllipse.fitted_to(truths)
    assert fitted.height == pytest.approx(height, abs=0.01)
    assert fitted.width == pytest.approx(width, abs=0.01)
    marked = CentredEllipse(height, width).probabilities([np.zeros((400, 300), np.uint8)])[0]
    assert np.array_equal(marked >= 0.5, truths[0])


def test_the_ellipse_has_the_mean_area_of_lesions_and_normals_do_not_count():
    truths = [ellipse((200, 200), 0.2, 0.4), ellipse((300, 100), 0.6, 0.3), np.zeros((50, 50), np.bool_)]
    marked = CentredEllipse.fitted_to(truths).probabilities([np.zeros((500, 400), np.uint8)])[0]
    assert marked.mean() == pytest.approx((truths[0].mean() + truths[1].mean()) / 2, rel=0.01)


def test_the_ellipse_is_the_same_part_of_a_scan_of_any_size():
    shapes = [(64, 64), (480, 200), (31, 97)]
    maps = CentredEllipse(0.5, 0.25).probabilities([np.full(shape, 7, np.uint8) for shape in shapes])
    for shape, marked in zip(shapes, maps, strict=True):
        assert marked.shape == shape
        assert marked.dtype == np.float32
        assert marked.mean() == pytest.approx(np.pi / 4 * 0.5 * 0.25, rel=0.06)
        assert np.array_equal(marked, marked[::-1, ::-1])


def test_an_ellipse_needs_a_lesion_to_fit_to():
    with pytest.raises(WrongCall, match="lesion"):
        CentredEllipse.fitted_to([np.zeros((9, 9), np.bool_)])
