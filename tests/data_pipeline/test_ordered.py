import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.ordered import in_order


class Source:
    """Numbers from 0, as an iterator that knows how far it was read and whether it was closed."""

    def __init__(self, count=10**9, fails_at=None):
        self.given, self.closed = 0, False
        self._count, self._fails_at = count, fails_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self._fails_at:
            raise OSError(5, "Input/output error")
        if self.given == self._count:
            raise StopIteration
        self.given += 1
        return self.given - 1

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_results_come_in_the_order_of_the_items_however_long_each_takes(count, threads, seed):
    pauses = [random.Random(seed + number).random() / 2000 for number in range(count)]

    def work(number):
        time.sleep(pauses[number])
        return number, threading.current_thread() is threading.main_thread()

    assert list(in_order(work, range(count), threads)) == [(number, False) for number in range(count)]


def test_as_many_threads_as_asked_for_work_at_once():
    meeting = threading.Barrier(3, timeout=20)
    assert list(in_order(lambda number: (meeting.wait(), number)[1], range(9), 3)) == list(range(9))


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_about_twice_as_many_items_as_threads_are_taken_ahead(threads):
    source = Source()
    results = in_order(lambda number: number, source, threads)
    for taken in range(1, 30):
        assert next(results) == taken - 1
        assert source.given <= taken + 2 * threads
    time.sleep(0.05)
    assert source.given <= 29 + 2 * threads
    results.close()
    assert source.closed


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_comes_in_its_turn_and_ends_threads_and_source_while_it_is_still_held(threads):
    def work(number):
        if number >= 7:
            raise ValueError(f"item {number}")
        return number

    before = set(threading.enumerate())
    source = Source()
    results = in_order(work, source, threads)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="item 7") as held:
        next(results)
    assert source.closed
    assert set(threading.enumerate()) == before, held
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_source_reaches_the_caller_and_ends_the_threads():
    source = Source(fails_at=5)
    with pytest.raises(OSError, match="Input/output error"):
        list(in_order(lambda number: number, source, 2))
    assert source.closed


def test_what_was_not_begun_is_not_done_after_the_end():
    done = []

    def work(number):
        time.sleep(0.02)
        done.append(number)

    results = in_order(work, range(1000), 2)
    next(results)
    results.close()
    ended = len(done)
    time.sleep(0.1)
    assert len(done) == ended <= 4


def test_a_generator_is_closed_too_and_an_empty_source_is_no_result():
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    results = in_order(lambda number: number, source(), 2)
    next(results)
    results.close()
    assert closed == [True]
    assert list(in_order(lambda number: number, [], 2)) == []
