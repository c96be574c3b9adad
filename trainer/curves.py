"""The curves of a run: losses every few steps and validations, in the run's own folder and in MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline import Fault
from trainer.metrics import Summary
from trainer.processes import World
from trainer.step import StepLosses
from trainer.tracking import Run
from trainer.watch import DiscriminatorWatch

log = logging.getLogger("sonotrain")

EVERY_STEPS = 10
"""Steps whose mean is one point. Only then are the values reduced over ranks and read from the device."""

TROUBLE = ("retries", "timeouts", "throttled", "cache_damaged")
"""Counters of reading that a person should hear of."""


class Diverged(Fault):
    """A training whose losses or gradients are not finite any more; every rank raises it after the same step."""


class Curves:
    """Collects what steps measured. Every rank has one; rank 0's writes.

    done_steps is where the run stands, skipped how many of these were skipped, and most_skips how many in a row may
    be before the run ends.
    """

    def __init__(self, path: Path, run: Run, world: World, done_steps: int, skipped: int, most_skips: int) -> None:
        self.latest: Mapping[str, float] = {}
        self.skipped = skipped
        self._path = path
        self._run = run
        self._world = world
        self._most_skips = most_skips
        self._names: Sequence[str] = ()
        self._sum: Tensor | None = None
        self._counts = torch.zeros(3, device=world.device)  # of the steps of a point: good, skipped, most in a row
        self._in_a_row = torch.zeros((), device=world.device)
        self._watch = DiscriminatorWatch()
        self._trouble: dict[str, int] = {}
        if world.leads:
            _forget_after(path, done_steps)

    def add(self, losses: Sequence[StepLosses], refused: Tensor) -> None:
        """Count an iteration in, by its micro-batches' losses; nothing waits for the device.

        refused is 1 where the iteration was skipped, whose losses are then left out.
        """
        self._names = tuple(losses[0].rows())
        mean = torch.stack([torch.stack(tuple(piece.rows().values())) for piece in losses]).mean(dim=0)
        mean = torch.where(refused > 0, 0.0, mean)
        self._sum = mean if self._sum is None else self._sum + mean
        self._in_a_row = (self._in_a_row + 1) * refused
        self._counts = torch.stack(
            (self._counts[0] + 1 - refused, self._counts[1] + refused, self._counts[2].maximum(self._in_a_row))
        )

    def step(self, step: int) -> None:
        """Write a point when it is time for one. Raises Diverged when too many steps were skipped."""
        if step % EVERY_STEPS or self._sum is None:
            return
        total = self._sum
        if self._world.size > 1:
            dist.all_reduce(total)
            total /= self._world.size
        good, skipped, in_a_row = (int(count) for count in self._counts.tolist())
        rows = (total / max(good, 1)).tolist()
        self._sum, self._counts = None, torch.zeros_like(self._counts)
        if skipped:
            self._tell_skipped(skipped, in_a_row, step)
        if good:
            self.latest = {
                f"{name}/stage_{stage}": value
                for name, row in zip(self._names, rows, strict=True)
                for stage, value in enumerate(row, start=1)
            }
            self._write(self.latest, step)
            self._look(dict(zip(self._names, rows, strict=True)), step)

    def _tell_skipped(self, skipped: int, in_a_row: int, step: int) -> None:
        self.skipped += skipped
        self._write({"skipped_steps": self.skipped}, step)
        if self._world.leads:
            log.warning(
                "%d of the last %d steps had a loss or gradient that is not finite and were skipped on all ranks; "
                "%d so far", skipped, EVERY_STEPS, self.skipped,
            )  # fmt: skip
        if in_a_row >= self._most_skips:
            raise Diverged(
                f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last at or before step "
                f"{step}; start again with lower optimizer.generator_rate and optimizer.discriminator_rate, "
                "optimizer.clip=1 or training.precision=fp32 (training.skips says how many may be)"
            )

    def _look(self, rows: Mapping[str, Sequence[float]], step: int) -> None:
        """Say when a discriminator has nothing more to tell."""
        if "right_on_truths" not in rows or not self._world.leads:
            return
        for stage, state in self._watch.look(rows["right_on_truths"], rows["right_on_maps"], step).items():
            self._write({f"discriminator_{state}/stage_{stage}": 1.0}, step)

    def validated(self, summary: Summary, step: int) -> None:
        """Write a validation's means."""
        means = {name: getattr(summary, name).mean for name in ("dsc", "precision", "recall", "jaccard", "rmse")}
        self._write({f"validation/{name}": mean for name, mean in means.items() if mean is not None}, step)

    def data(self, counters: Mapping[str, float], step: int) -> None:
        """Write what reading has come to since this process began; tell on the terminal what went wrong with it."""
        self._write({f"data/{name}": value for name, value in counters.items()}, step)
        if trouble := {
            name: int(counters[name]) for name in TROUBLE if counters.get(name, 0) > self._trouble.get(name, 0)
        }:
            self._trouble.update(trouble)
            log.warning("reading: %s so far", ", ".join(f"{count} {name}" for name, count in trouble.items()))

    def _write(self, values: Mapping[str, float], step: int) -> None:
        if not self._world.leads:
            return
        self._run.metrics(values, step)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        except OSError as failed:
            log.warning("%s: %s; the run goes on without this point", self._path, failed.strerror)


def _forget_after(path: Path, step: int) -> None:
    """Drop the points of steps that will be taken again, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
