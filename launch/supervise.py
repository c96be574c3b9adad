"""A job that is started again after a failure: some times, with growing pauses, and only while it gets anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline import Fault
from launch.terminal import say

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
"""Seconds before a job is started again: at first, and at most; each failure without progress doubles them."""

IN_VAIN = 3
"""Attempts in a row that fail without a new checkpoint, after which a job is not started again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt at a job ended."""

    status: int
    """0 done, 1 failed, 2 called wrongly, 75 stopped to go on."""
    why: str = ""
    """What failed, where, and at which step."""
    moved: bool = False
    """Whether any rank did a step, or a machine failed: what fails before that will fail again."""
    progressed: bool = False
    """Whether it wrote a checkpoint, so that the next attempt begins further on."""


def supervise(
    attempt: Callable[[int], Outcome], restarts: int, received: Sequence[int], first_pause: float = FIRST_PAUSE
) -> int:
    """Carry a job out, again after each failure, at most `restarts` times; gives its status, 0, 2 or 75.

    `attempt` is told how many there were before. A signal in `received` ends the waiting. Raises Fault with what failed
    last, and whatever an attempt raises.
    """
    failures = in_vain = 0
    pause = first_pause
    while True:
        outcome = attempt(failures)
        if outcome.status != 1:
            return outcome.status
        in_vain = 0 if outcome.progressed else in_vain + 1
        pause = first_pause if outcome.progressed else pause
        if received or failures >= restarts:
            raise Fault(outcome.why + (f"; started again {failures} times before" if failures else ""))
        if not outcome.moved and not failures:
            raise Fault(f"{outcome.why}; not started again, since it failed before its first step")
        if in_vain == IN_VAIN:
            raise Fault(f"{outcome.why}; not started again: {in_vain} attempts in a row wrote no checkpoint")
        failures += 1
        say(f"Failed: {outcome.why}")
        say(f"Starting again in {pause:g} s, from the last checkpoint ({failures} of at most {restarts} times)")
        wait(pause, received)
        if received:
            raise Fault(f"{outcome.why}; stopped by a signal before it was started again")
        pause = min(2 * pause, LONGEST_PAUSE)


def wait(seconds: float, received: Sequence[int]) -> None:
    """Wait so long, or until a signal comes."""
    deadline = time.monotonic() + seconds
    while not received and time.monotonic() < deadline:
        time.sleep(0.05)
