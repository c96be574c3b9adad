import threading
import time
from pathlib import Path

import pytest

from tests.waiting import wait_until
from trainer.pulse import PULSE, Pulse, Seen, pulse_of, read_pulse


def test_what_was_done_is_told_within_seconds_and_the_beat_goes_on_without_it(tmp_path: Path):
    path = tmp_path / "pulse"
    with pulse_of({PULSE: str(path)}) as pulse:
        pulse.moved()
        pulse.moved(step=17, steps=300)
        pulse.kept()
        wait_until(lambda: (seen := read_pulse(path)) is not None and seen.moves == 2)
        first = read_pulse(path)
        assert first is not None
        assert (first.step, first.steps, first.kept) == (17, 300, 1)
        wait_until(lambda: read_pulse(path) != first)
    later = read_pulse(path)
    assert later == Seen(later.beat if later else 0, 17, 300, 2, 1)
    assert later.beat > first.beat


def test_without_the_variable_nothing_is_told_and_no_thread_begun():
    before = threading.active_count()
    with pulse_of({}) as pulse:
        pulse.moved(step=3)
        assert threading.active_count() == before
        assert pulse.step == 3


def test_a_place_that_takes_nothing_disturbs_nothing_and_is_tried_again(tmp_path: Path):
    path = tmp_path / "later" / "pulse"
    with Pulse(path) as pulse, Pulse(Path("/dev/full")):
        pulse.moved(step=1)
        assert read_pulse(path) is None
        path.parent.mkdir()
        wait_until(path.exists)
    time.sleep(0.01)
    assert read_pulse(path) is not None


@pytest.mark.parametrize("text", ["", '{"beat": 3, "ste', "[]", '{"beat": 3}'])
def test_a_file_that_holds_no_pulse_is_none(tmp_path: Path, text: str):
    path = tmp_path / "pulse"
    path.write_text(text)
    assert read_pulse(path) is None
