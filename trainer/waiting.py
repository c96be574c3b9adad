"""How long a process waits for the others of its job, and what it says when they are lost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from data_pipeline import Fault
from trainer.pulse import Pulse

LONGER_ON_DEVICES = 1.0
"""Minutes that NCCL is given besides: it ends a process without a word, which a wait on the host is to come before."""


AFTER_THE_FIRST = 2.0
"""Seconds in which who looks for the process that failed first can see it, before those that it leaves end too."""


class Apart(Fault):
    """A process that has lost the others of its job: their work cannot go on, and neither can its own."""


class Waiting:
    """How long this process waits for the others in vain. Each process has its own, and changes it by itself."""

    def __init__(self, minutes: float) -> None:
        """minutes is what every group of processes was made with."""
        self.minutes = minutes

    def at_most(self, minutes: float) -> None:
        """Wait so long in whatever is begun from now on, in every group of processes that there is."""
        if minutes != self.minutes:
            self._set(minutes)

    @contextmanager
    def within(self, minutes: float) -> Iterator[None]:
        """Wait so long inside, and afterwards as long as before."""
        before = self.minutes
        self._set(minutes)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, minutes: float) -> None:
        self.minutes = minutes
        # PyTorch has no other list of all groups, of which DeepSpeed makes some, with time-outs of its own.
        for group in distributed_c10d._world.pg_map:
            longer = LONGER_ON_DEVICES if dist.get_backend(group) == "nccl" else 0.0
            group.set_timeout(timedelta(minutes=minutes + longer))


@contextmanager
def apart_in_one_line(rank: int, pulse: Pulse) -> Iterator[None]:
    """Raise Apart for an error of any collective inside, saying after which step the others were lost."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, dist.DistError) or "gloo" in text.lower()):
            raise
        when = f"after step {pulse.step}" if pulse.step else "before the first step"
        waited = re.search(r"(?:timed out|timeout)\D{0,40}(\d+) ?(?:ms|milliseconds)", text, re.IGNORECASE)
        if waited is None:
            time.sleep(AFTER_THE_FIRST)
            raise Apart(f"rank {rank} lost the connection to another rank {when}; that one's log tells why") from error
        raise Apart(
            f"rank {rank} waited {int(waited[1]) / 1000:g} s in vain for the others {when}; their logs tell why, and "
            "training.stall_minutes or training.timeout_minutes gives slow ones longer"
        ) from error
