"""The curves of a run: losses every few steps and validations, in the run's own folder and in MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline import Fault
from trainer.metrics import Summary
from trainer.processes import World
from trainer.step import StepLosses
from trainer.tracking import Run

log = logging.getLogger("sonotrain")

EVERY_STEPS = 10
"""Steps whose mean is one point. Only then are the values reduced over ranks and read from the device."""

TROUBLE = ("retries", "timeouts", "throttled", "cache_damaged")
"""Counters of reading that a person should hear of."""


class Curves:
    """Collects what steps measured. Every rank has one; rank 0's writes."""

    def __init__(self, path: Path, run: Run, world: World, done_steps: int) -> None:
        self.latest: Mapping[str, float] = {}
        self._path = path
        self._run = run
        self._world = world
        self._sum: Tensor | None = None
        self._count = 0
        self._trouble: dict[str, int] = {}
        if world.leads:
            _forget_after(path, done_steps)

    def add(self, losses: StepLosses) -> None:
        """Count a micro-batch in; nothing waits for the device."""
        stacked = losses.stacked()
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._count += 1

    def step(self, step: int) -> None:
        """Write a point when it is time for one. Raises Fault, on every rank alike, when it is not finite."""
        if step % EVERY_STEPS or self._sum is None:
            return
        mean = self._sum / self._count
        self._sum, self._count = None, 0
        if self._world.size > 1:
            dist.all_reduce(mean)
            mean /= self._world.size
        if not torch.isfinite(mean).all():
            raise Fault(
                f"a loss is no longer finite at step {step}; start again from an earlier checkpoint with lower "
                "optimizer.generator_rate and optimizer.discriminator_rate, or training.precision=fp32"
            )
        self.latest = {
            f"{name}/stage_{stage}": value
            for name, row in zip(("dice_loss", "adversarial_loss", "discriminator_loss", "discriminator_accuracy"),
                                 mean.tolist(), strict=True)
            for stage, value in enumerate(row, start=1)
        }  # fmt: skip
        self._write(self.latest, step)

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
