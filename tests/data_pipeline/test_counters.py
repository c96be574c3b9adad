import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.counters import COUNTED, Counters, PerProcess


def test_threads_add_and_nothing_is_lost() -> None:
    counters = Counters()

    def add(_: int) -> None:
        for _ in range(2000):
            counters.add(requests=1, bytes_read=10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert counters.snapshot() == {**dict.fromkeys(COUNTED, 0), "requests": 16_000, "bytes_read": 160_000}


def test_a_snapshot_stays_what_it_was_and_an_unknown_name_is_an_error() -> None:
    counters = Counters()
    before = counters.snapshot()
    counters.add(retries=1)
    assert before["retries"] == 0
    with pytest.raises(KeyError):
        counters.add(mistakes=1)


def test_each_process_makes_its_own_though_another_thread_held_the_lock() -> None:
    made = PerProcess(Counters)
    made.here().add(requests=5)
    assert made.here() is made.here()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with made.here()._lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        made.here().add(requests=1)
        os._exit(int(made.here().snapshot()["requests"]))
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(status) == 1
    assert made.here().snapshot()["requests"] == 5
