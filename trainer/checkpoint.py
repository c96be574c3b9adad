"""Checkpoints: saved off the step's path, found and loaded at any world size and ZeRO stage from 0 to 2.

A checkpoint is a folder `step-00001234`, published by its manifest, which holds the sha256 of every other file
and is written last. Tensors are safetensors keyed by parameter name, the rest is JSON: nothing executes on
load, and torch and safetensors alone can read it.

    generator.safetensors       parameters and buffers, float32: with network.json, a model to use
    network.json                how to build the network, and how it is used
    generator.live.safetensors  the weights that training goes on from, where the model to use is their average
    discriminators.safetensors  the same for the other side, where there is one
    *.moments.safetensors       Adam's two moments, `exp_avg/NAME` and `exp_avg_sq/NAME`
    state.json                  where the run stands, and its configuration
    manifest.json
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from safetensors.torch import load_file

from data_pipeline import Fault
from trainer.checkpoint_files import (
    NOT_WRITTEN,
    begin,
    clear_away,
    damage,
    name_of,
    names,
    newest,
    prune,
    publish,
)
from trainer.checkpoint_state import HostCopy, adam_steps, average_buffers, restore, sides_of, tensors_of, whole
from trainer.config import Checkpoints as Settings
from trainer.config import Config
from trainer.engines import Engines
from trainer.networks.settings import network_settings
from trainer.processes import World

__all__ = ["Checkpoints", "Progress", "average_buffers", "damage", "network_description", "newest", "whole"]

log = logging.getLogger("sonotrain")

STATE = "state.json"
NETWORK = "network.json"

CLOSING = 300.0
"""Seconds that the end of a run waits for its last checkpoint to be written."""

_WORTH_A_WORD = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands: step counts iterations from the start, batch those of the epoch at hand (from 0).

    without_better counts the validations since the best, skipped the steps that were not taken because a loss or
    gradient was not finite; threshold is the probability from which a pixel is lesion; seconds is how long the run
    has taken, over all its starts. Fields are JSON values.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_dsc: float = -1.0
    best_epoch: int = 0
    best_step: int = 0
    threshold: float = 0.5
    without_better: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Checkpoints:
    """A run's checkpoints. Every rank has one and calls it at the same steps; rank 0's files are those that count."""

    def __init__(self, folder: Path, settings: Settings, world: World) -> None:
        self._folder = folder
        self._settings = settings
        self._world = world
        self._host = HostCopy(world.device)
        self._writing: Thread | None = None
        self._broken: BaseException | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(CLOSING)

    def save(self, engines: Engines, progress: Progress, config: Config, digest: str) -> None:
        """Copy what the engines have learnt, and return; a thread of rank 0 writes, and removes older checkpoints.

        It waits where the checkpoint before is still being written. A disk that is full costs this checkpoint, with a
        warning, and neither the run nor the checkpoint before it.
        """
        self._wait()
        for module in (engines.average, *(engine.module for _, engine, _, _ in sides_of(engines))):
            if module is not None:
                average_buffers(module, self._world)
        tensors: dict[str, dict[str, Any]] = {}
        for file, name, value in tensors_of(engines):
            if self._world.leads:
                tensors.setdefault(file, {})[name] = self._host.of(file, name, value)
        if not self._world.leads:
            return
        state = {
            "progress": asdict(progress),
            "config": config.flat(),
            "digest": digest,
            "world_size": self._world.size,
            "adam_steps": adam_steps(engines),
        }
        texts = {NETWORK: network_description(config, progress.threshold), STATE: state}
        self._host.arrived()
        self._writing = Thread(target=self._write, args=(progress, tensors, texts), name="checkpoint", daemon=True)
        self._writing.start()

    def load(self, engines: Engines, settle: Callable[[], None]) -> Progress:
        """Bring the engines to the newest sound checkpoint's state, and give its progress; that of a beginning without.

        A damaged checkpoint is named and passed over. settle takes one iteration on anything: the optimizers' state
        exists only after a step, and all that the iteration did is overwritten.
        """
        checkpoint = state = None
        if self._world.leads:
            clear_away(self._folder)
            checkpoint = newest(self._folder)
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8")) if checkpoint else None
        state = self._world.tell(state)
        if state is None:
            return Progress()
        settle()
        return _bring_to(engines, checkpoint, state)

    def require(self, step: int) -> None:
        """Wait until all is written. Raises Fault, on every rank, where the checkpoint of this step is not there."""
        self._wait(CLOSING)
        there = names(self._folder) if self._world.leads else []
        missing = self._world.tell(self._world.leads and name_of(step) not in there)
        if missing:
            last = f"goes on from {there[-1]}" if there else "begins again"
            raise Fault(f"{self._folder} could not take the checkpoint of step {step}; make room, and the run {last}")

    def _wait(self, seconds: float | None = None) -> None:
        """Wait for the thread that writes, if any."""
        if self._writing is None:
            return
        began = time.monotonic()
        self._writing.join(seconds)
        if self._writing.is_alive():
            log.warning("%s: a checkpoint is not written after %.0f s; not waiting for it", self._folder, CLOSING)
        elif (waited := time.monotonic() - began) > _WORTH_A_WORD and seconds is None:
            log.warning("training waited %.1f s for the checkpoint before this one to be written", waited)
        self._writing = None
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def _write(self, progress: Progress, tensors: Mapping[str, dict[str, Any]], texts: Mapping[str, Any]) -> None:
        """What the thread does."""
        target = self._folder / name_of(progress.step)
        try:
            begin(target)
            publish(target, tensors, texts)
            prune(self._folder, self._settings.keep, progress.best_step)
        except NOT_WRITTEN as failed:
            there = names(self._folder)
            stays = f"{there[-1]} stays the newest" if there else "there is none yet"
            log.warning("no checkpoint at step %d (%s); %s", progress.step, failed, stays)
        except BaseException as broken:
            self._broken = broken


def network_description(config: Config, threshold: float = 0.5) -> dict[str, Any]:
    """How to build the network that a configuration trains, and how it is used: what network.json holds."""
    return {
        "network": config.network.name,
        "settings": network_settings(config.network, config.objective.stages),
        "size": list(config.data.size),
        "threshold": threshold,
        "flips": config.validation.flips,
        "largest_component": config.validation.largest_component,
    }


def _bring_to(engines: Engines, checkpoint: Path | None, state: Mapping[str, Any]) -> Progress:
    """Set engines to what rank 0's checkpoint holds; a checkpoint of an older version may tell less of the progress."""
    known = {field.name for field in fields(Progress)}
    progress = Progress(**{name: value for name, value in state["progress"].items() if name in known})
    files = None
    if checkpoint is not None:
        files = {path.name: load_file(path) for path in checkpoint.glob("*.safetensors")}
    restore(engines, files, state.get("adam_steps") or {side: progress.step for side, *_ in sides_of(engines)})
    return progress
