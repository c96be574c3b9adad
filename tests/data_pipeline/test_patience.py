import logging
import pickle
import time

import pytest

from data_pipeline.patience import FIRST_PATIENCE, PATIENCE, Patience, Silence


@pytest.fixture
def silence() -> Silence:
    """Of a store that has answered once."""
    silence = Silence("s3://bucket/x", PATIENCE)
    silence.ended()
    return silence


def test_a_store_that_never_answered_gets_less_patience() -> None:
    silence = Silence("s3://bucket/x", PATIENCE)
    assert silence.patience == FIRST_PATIENCE < PATIENCE
    silence.ended()
    assert silence.patience == PATIENCE
    assert pickle.loads(pickle.dumps(silence)).patience == PATIENCE
    assert Silence("s3://bucket/x", 3.0).patience == 3.0


def test_a_store_is_silent_since_the_first_try_that_failed(silence: Silence) -> None:
    assert silence.failed(1000.0, 1030.0) == 30
    assert silence.failed(1000.0, 1031.0) == 31
    assert silence.failed(1035.0, 1065.0) == 65
    silence.ended()
    assert silence.failed(1070.0, 1071.0) == 1


def test_a_silence_that_was_given_up_long_ago_is_forgotten(silence: Silence) -> None:
    assert silence.failed(1000.0, 1130.0) == 130
    assert silence.failed(1131.0, 1132.0) == 132
    assert silence.failed(1252.0, 1253.0) == 253
    assert silence.failed(1253.0 + PATIENCE + 6, 1253.0 + PATIENCE + 7) == 1


def test_a_silence_goes_on_over_a_pause_longer_than_the_patience() -> None:
    silence = Silence("s3://bucket/x", 4.0)
    assert silence.failed(1000.0, 1003.9) == pytest.approx(3.9)
    assert silence.failed(1008.8, 1008.9) == pytest.approx(8.9)


def test_a_long_silence_is_told_once(silence: Silence, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sonotrain"):
        for now in (1005.0, 1011.0, 1020.0):
            silence.failed(1000.0, now)
        assert caplog.messages == ["s3://bucket/x: no answer for 11 s; trying for up to 120 s"]
        silence.ended()
        silence.failed(2000.0, 2012.0)
        assert len(caplog.messages) == 2


def test_work_is_given_up_after_the_patience_and_not_before(silence: Silence) -> None:
    silence = Silence("s3://bucket/x", 0.3)
    work = Patience(silence)
    began = time.monotonic()
    assert work.exhausted() is None
    while (waited := work.exhausted()) is None:
        work.pause()
    assert 0.3 <= waited <= time.monotonic() - began + 0.01
    assert 2 <= work.tries <= 5
    work.heard()
    assert work.tries == 0
    assert work.exhausted() is None


def test_the_last_pause_ends_with_the_patience() -> None:
    silence = Silence("s3://bucket/x", 0.5)
    work = Patience(silence)
    work.tries = 10
    assert work.exhausted() is None
    began = time.monotonic()
    work.pause()
    assert 0.4 < time.monotonic() - began < 2.5, "it would be 2.5 s at least"
    assert Patience(silence).exhausted() is not None


def test_work_that_begins_while_the_store_is_silent_does_not_wait_all_over_again() -> None:
    silence = Silence("s3://bucket/x", 0.2)
    first = Patience(silence)
    while first.exhausted() is None:
        first.pause()
    assert Patience(silence).exhausted() is not None


def test_one_object_that_fails_is_given_up_though_others_come() -> None:
    silence = Silence("s3://bucket/x", 0.2)
    work, other = Patience(silence), Patience(silence)
    began = time.monotonic()
    while work.exhausted() is None:
        work.pause()
        other.heard()
    assert time.monotonic() - began < 20


def test_pauses_grow_and_differ() -> None:
    def pauses() -> list[float]:
        work = Patience(Silence("s3://bucket/x", 10.0))
        waited = []
        for _ in range(4):
            work.waited()
            work.pause()
            waited.append(work.waited())
        return waited

    one, other = pauses(), pauses()
    assert one != other
    for waited in (one, other):
        for number, seconds in enumerate(waited):
            assert 0.05 * 2**number <= seconds
