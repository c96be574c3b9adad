"""What a person sees of a running training: one line, kept up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from trainer.config import Training
from trainer.metrics import Summary

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0
"""Where there is no terminal, each state is a line of its own."""


class StatusLine:
    """Epoch, step, losses, validation DSC, speed, share of time spent waiting for data, time left. Rank 0's shows.

    flops are the floating-point operations of a scan's iteration; speed and shares are of the time in training,
    without validations and what else is done aside.
    """

    def __init__(self, shown: bool, training: Training, steps: int, done_steps: int, flops: float) -> None:
        self._shown = shown
        self._epochs = training.epochs
        self._steps = steps
        self._global_batch = training.batch
        self._first_step = done_steps
        self._started = time.monotonic()
        self._waited = 0.0
        self._aside = 0.0
        self._flops = flops
        self._dsc: float | None = None
        self._last_shown = 0.0
        self._interval = 1.0 if sys.stdout.isatty() else SECONDS_BETWEEN_LINES
        if shown and done_steps:
            print(f"goes on after step {done_steps} of {steps}", flush=True)

    def waited_for(self, items: Iterable[T]) -> Iterator[T]:
        """Hand items on, and count the time that they were waited for."""
        source = iter(items)
        while True:
            before = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - before
            yield item

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._aside += time.monotonic() - before

    def step(self, epoch: int, step: int, latest: Mapping[str, float]) -> None:
        """Show a finished step, unless the line is fresh still. epoch counts from 0, step from 1."""
        now = time.monotonic()
        if not self._shown or now - self._last_shown < self._interval:
            return
        self._last_shown = now
        elapsed = max(now - self._started, 1e-9)
        training = max(elapsed - self._aside, 1e-9)
        done = step - self._first_step
        speed = done * self._global_batch / training
        parts = [f"epoch {epoch + 1}/{self._epochs}", f"step {step}/{self._steps}"]
        if latest:
            parts.append(_losses(latest))
        if self._dsc is not None:
            parts.append(f"DSC {self._dsc:.3f}")
        parts.append(f"{speed:.1f} scans/s")
        parts.append(f"data {100 * self._waited / training:.0f} %")
        parts.append(f"{speed * self._flops / 1e12:.3g} TFLOP/s")
        parts.append(f"{timedelta(seconds=round(elapsed / done * (self._steps - step)))} left")
        self._show("  ".join(parts))

    def validated(self, epoch: int, summary: Summary) -> None:
        """Note a validation; epoch counts from 1."""
        self._dsc = summary.dsc.mean
        if self._shown and self._dsc is not None:
            self._clear()
            print(
                f"epoch {epoch}/{self._epochs} validated: DSC {self._dsc:.4f}  precision {summary.precision.mean:.4f}  "
                f"recall {summary.recall.mean:.4f}  Jaccard {summary.jaccard.mean:.4f}  RMSE {summary.rmse.mean:.4f}  "
                f"({summary.cases} scans, {summary.missed} missed)",
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal with a clean line."""
        if self._shown:
            self._clear()

    def _show(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{text}", end="", flush=True)
        else:
            print(text, flush=True)

    def _clear(self) -> None:
        if sys.stdout.isatty():
            print("\r\x1b[2K", end="", flush=True)


def _losses(latest: Mapping[str, float]) -> str:
    """Each loss, the mean over stages, and how much each discriminator says is right."""
    of = {name: _over_stages(latest, f"{name}_loss") for name in ("dice", "adversarial", "discriminator")}
    text = "loss " + " ".join(f"{name} {sum(each) / len(each):.3f}" for name, each in of.items() if each)
    right = "/".join(f"{100 * each:.0f}" for each in _over_stages(latest, "discriminator_accuracy"))
    return f"{text} right {right} %" if right else text


def _over_stages(latest: Mapping[str, float], measure: str) -> list[float]:
    """A measure's values, finest stage first."""
    return [value for name, value in latest.items() if name.startswith(f"{measure}/")]
