import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.checkpoints import checkpoints
from tests.faults.conftest import Start
from tests.ranks import Job
from tests.waiting import wait_until

STALL = 4.0
CHANGES = ("training.epochs=4", f"training.stall_minutes={STALL / 60}", "checkpoints.every_steps=2")

pytestmark = [pytest.mark.slow]


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def has_ended(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def error_of(job: Job, rank: int) -> str:
    """Its error: the last line that it wrote."""
    return job.errors()[rank].splitlines()[-1]


@pytest.mark.parametrize("zero", [0, 2])
def test_a_rank_that_is_frozen_ends_the_other_with_a_line_after_the_stall_time(start: Start, zero: int):
    # The first pass is the one that fills the optimizers, so the sixth is that of step 6 or, without it, of step 5.
    job = start("run", *CHANGES, f"training.generator_zero={zero}", world=2, rank=1, signals={6: [signal.SIGSTOP]})
    wait_until(lambda: is_stopped(job.pids[1]))
    began = time.monotonic()
    wait_until(lambda: has_ended(job.pids[0]), STALL + 15)
    assert time.monotonic() - began > STALL - 1
    job.kill()
    assert list(job.wait()) == [1, -signal.SIGKILL]
    said = error_of(job, 0)
    assert f"rank 0 waited {STALL:g} s in vain for the others after step 5; " in said, job.errors()
    assert "Traceback" not in job.errors()[0]


def test_a_rank_that_is_killed_ends_the_other_soon_after_with_a_line(start: Start, tmp_path: Path):
    job = start("run", *CHANGES, world=2, rank=0, signals={6: [signal.SIGKILL]})
    wait_until(lambda: has_ended(job.pids[0]))
    time.sleep(0.5)
    assert not has_ended(job.pids[1]), "who looks for the first that failed would see both at once"
    assert list(job.wait(30)) == [-signal.SIGKILL, 1]
    assert "rank 1 lost the connection to another rank after step 5; " in error_of(job, 1), job.errors()
    assert "step-00000004" in checkpoints(tmp_path / "run")


def test_a_rank_that_works_alone_at_the_end_is_waited_for_longer(start: Start, tmp_path: Path):
    job = start("run", *CHANGES[1:], "training.epochs=1", world=2)
    # With the last checkpoint published, what is left to do is rank 0's alone.
    wait_until(lambda: job.ended() or "step-00000005" in checkpoints(tmp_path / "run"))
    assert not job.ended(), job.errors()
    os.kill(job.pids[0], signal.SIGSTOP)
    time.sleep(2 * STALL)
    assert not has_ended(job.pids[1]), job.errors()
    os.kill(job.pids[0], signal.SIGCONT)
    assert list(job.wait()) == [0, 0], job.errors()
