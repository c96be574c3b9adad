import pytest

from trainer.watch import POINTS, DiscriminatorWatch


def looked(points: list[tuple[float, float]]) -> list[dict[int, str]]:
    """What is reported of one stage, point by point."""
    watch = DiscriminatorWatch()
    return [dict(watch.look([truths], [maps], step)) for step, (truths, maps) in enumerate(points)]


def test_one_that_tells_all_apart_is_reported_once_it_has_for_some_points(caplog: pytest.LogCaptureFixture):
    reports = looked([(1.0, 1.0)] * (POINTS + 3))
    assert [dict(report) for report in reports if report] == [{1: "saturated"}]
    assert reports[POINTS - 1]
    assert "stage 1 saturated" in caplog.text
    assert "objective.smoothing" in caplog.text


@pytest.mark.parametrize("point", [(1.0, 0.0), (0.0, 1.0)])
def test_one_that_says_the_same_of_everything_is_collapsed(point: tuple[float, float]):
    assert {1: "collapsed"} in looked([point] * POINTS)


def test_one_that_guesses_or_still_errs_is_not_reported(caplog: pytest.LogCaptureFixture):
    assert not any(looked([(0.5, 0.5)] * 20 + [(0.97, 1.0)] * 20))
    assert not caplog.text


def test_a_state_that_does_not_last_is_not_reported():
    assert not any(looked(([(1.0, 1.0)] * (POINTS - 1) + [(0.8, 0.9)]) * 5))


def test_it_is_reported_again_when_it_comes_back():
    again = [(1.0, 1.0)] * POINTS
    assert sum(map(bool, looked([*again, (0.5, 0.5), *again]))) == 2


def test_each_stage_is_watched_by_itself():
    watch = DiscriminatorWatch()
    for step in range(POINTS):
        reported = watch.look([1.0, 0.5, 1.0, 0.6], [1.0, 0.5, 0.0, 0.7], step)
    assert reported == {1: "saturated", 3: "collapsed"}
