"""SIGTERM and SIGUSR1: every rank ends after the same step, with a checkpoint to go on from."""

from __future__ import annotations

import signal
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline import Fault
from trainer.processes import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Fault):
    """A run that ended when it was asked to, with a checkpoint; started again, it goes on.

    Its exit status is EX_TEMPFAIL of sysexits.h, which schedulers and people can tell from a failure.
    """

    exit_status = 75


class StopRequest:
    """Whether a signal has asked any rank to stop. All ranks make theirs at the same time.

    Inside `with`, SIGUSR1 and the first SIGTERM are such a request; a second SIGTERM ends the process at once.
    timeout_minutes is how long an answer of the other ranks is waited for.
    """

    def __init__(self, world: World, timeout_minutes: float = 10.0) -> None:
        self.by = ""
        """The name of the signal by which all were asked, empty before."""
        self._received = 0
        self._step = -1
        self._answer: tuple[Any, torch.Tensor] | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = None
        if world.size > 1:  # a group on the host, whose answers can be read without waiting for a device
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None or isinstance(error, Stopped):  # else the others may be gone
            self._read()

    def asked(self, step: int) -> bool:
        """Whether to stop after this step: the same on every rank, each of which calls it once a step.

        What a rank has received by one step is told to the others in the background, and read at the next step, when
        it has long arrived. So nothing waits, and with several ranks a request is answered one step later.
        """
        if step != self._step:
            self._step = step
            if self._group is None:
                self._agree_on(self._received)
            else:
                self._read()
                self._ask()
        return bool(self.by)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)

    def _ask(self) -> None:
        told = torch.tensor([self._received])
        self._answer = (dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True), told)

    def _read(self) -> None:
        if self._answer is not None:
            work, told = self._answer
            self._answer = None
            work.wait()
            self._agree_on(int(told))

    def _agree_on(self, number: int) -> None:
        if number:
            self.by = signal.Signals(number).name
