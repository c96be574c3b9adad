"""Checkpoints: saved off the step's path, found and loaded at any world size and ZeRO stage from 0 to 2.

A checkpoint is a folder `step-00001234`, published by its manifest, which holds the sha256 of every other file
and is written last. Tensors are safetensors keyed by parameter name, the rest is JSON: nothing executes on
load, and torch and safetensors alone can read it.

    generator.safetensors       parameters and buffers, float32: with network.json, a model to use
    network.json                how to build the network, and how it is used
    generator.live.safetensors  the weights that training goes on from, where the model to use is their average
    discriminators.safetensors  the same for the other side, where there is one
    *.moments.safetensors       Adam's two moments, `exp_avg/NAME` and `exp_avg_sq/NAME`
    generator.zero3/            instead of the generator's moments where ZeRO stage 3 shares the generator out
    state.json                  where the run stands, and its configuration
    manifest.json
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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
    partial_of,
    prune,
    publish,
    step_of,
)
from trainer.checkpoint_shared import is_shared_out, load_shared, require_same_layout, save_shared
from trainer.checkpoint_state import HostCopy, adam_steps, average_buffers, restore, sides_of, tensors_of, whole
from trainer.config import Checkpoints as Settings
from trainer.config import Config
from trainer.engines import Engines
from trainer.mirror import Mirror
from trainer.networks.settings import network_settings
from trainer.processes import World
from trainer.stopping import Stopped

__all__ = ["Checkpoints", "Progress", "average_buffers", "damage", "network_description", "newest", "whole"]

log = logging.getLogger("sonotrain")

STATE = "state.json"
NETWORK = "network.json"

PATIENCE = 300.0
"""Seconds that a checkpoint has to be written, before the run goes on or ends without it."""

FAILED_PATIENCE = 5.0
"""The same where the run has failed, and others wait for this process's end."""

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
    """A run's checkpoints. Every rank has one and calls it at the same steps; rank 0's files are those that count.

    require_same is told the state of a checkpoint that comes from the mirror, and raises where it is another run's.
    """

    def __init__(
        self, folder: Path, settings: Settings, world: World, require_same: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._world = world
        self._require_same = require_same
        self._host = HostCopy(world.device)
        self._mirror = Mirror(settings.mirror, folder, settings.keep) if settings.mirror and world.leads else None
        self._writing: Thread | None = None
        self._broken: BaseException | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = PATIENCE if error is None or isinstance(error, Stopped) else FAILED_PATIENCE
        self._is_free(seconds)
        if self._mirror is not None:
            self._mirror.close(seconds)

    def save(
        self,
        engines: Engines,
        progress: Progress,
        config: Config,
        digest: str,
        learnt_from: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Copy what the engines have learnt, and return; a thread of rank 0 writes, and removes older checkpoints.

        digest is the dataset's; learnt_from tells for each dataset in it, by digest, the folds that are trained on.
        It waits where the checkpoint before is still being written. A disk that is full costs this checkpoint, with a
        warning, and neither the run nor the checkpoint before it. What ZeRO stage 3 shares out is written at once.
        """
        began = time.monotonic()
        if not self._world.tell(self._is_free()):
            return
        if self._world.leads and (waited := time.monotonic() - began) > _WORTH_A_WORD:
            log.warning("training waited %.1f s for the checkpoint before this one to be written", waited)
        for module in (engines.average, *(engine.module for _, engine, _, _ in sides_of(engines))):
            if module is not None:
                average_buffers(module, self._world)
        target = self._folder / name_of(progress.step)
        begun = is_shared_out(engines.generator)
        if begun and (failed := save_shared(engines.generator, target, self._world)):
            self._warn(target, failed)
            return
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
        description = network_description(config, progress.threshold) | {"learnt_from": learnt_from or {}}
        texts = {NETWORK: description, STATE: state}
        self._host.arrived()
        arguments = (target, begun, tensors, texts, progress.best_step)
        self._writing = Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._writing.start()

    def load(self, engines: Engines, settle: Callable[[], None]) -> Progress:
        """Bring the engines to the newest sound checkpoint's state, and give its progress; that of a beginning without.

        A damaged checkpoint is named and passed over. One that only the mirror has is fetched from it. settle takes
        one iteration on anything: the optimizers' state exists only after a step, and all that the iteration did is
        overwritten. Raises WrongCall for a checkpoint that cannot be moved to this run's ZeRO stage and world size.
        """
        checkpoint, state = self._world.tell(self._found() if self._world.leads else None) or (None, None)
        if checkpoint is None or state is None:
            return Progress()
        require_same_layout(engines.generator, self._world, state, checkpoint.name)
        settle()
        files = None
        if self._world.leads:
            files = {path.name: load_file(path) for path in checkpoint.glob("*.safetensors")}
        progress = _progress_of(state)
        restore(engines, files, state.get("adam_steps") or {side: progress.step for side, *_ in sides_of(engines)})
        if is_shared_out(engines.generator):
            load_shared(engines.generator, checkpoint)
        return progress

    def require(self, step: int) -> None:
        """Wait until all is written. Raises Fault, on every rank, where the checkpoint of this step is not there."""
        self._is_free()
        there = names(self._folder) if self._world.leads else []
        missing = self._world.tell(self._world.leads and name_of(step) not in there)
        if missing:
            last = f"goes on from {there[-1]}" if there else "begins again"
            raise Fault(f"{self._folder} could not take the checkpoint of step {step}; make room, and the run {last}")

    def _found(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest sound checkpoint and its state."""
        clear_away(self._folder)
        here = newest(self._folder)
        if self._mirror is not None:
            fetched = self._mirror.fetch(step_of(here.name) if here else -1, self._best_step)
            here = self._folder / fetched if fetched else here
        return (here, _state_of(here)) if here else None

    def _best_step(self, checkpoint: Path) -> int:
        state = _state_of(checkpoint)
        self._require_same(state)
        return _progress_of(state).best_step

    def _is_free(self, seconds: float = PATIENCE) -> bool:
        """Whether no checkpoint is being written any more, after waiting for one that is."""
        if self._writing is not None:
            self._writing.join(seconds)
            if self._writing.is_alive():
                log.warning("%s: a checkpoint is still being written, and not waited for any more", self._folder)
                return False
            self._writing = None
        if self._broken is not None:
            raise self._broken
        return True

    def _write(
        self,
        target: Path,
        begun: bool,
        tensors: Mapping[str, dict[str, Any]],
        texts: Mapping[str, Any],
        best_step: int,
    ) -> None:
        """What the thread does."""
        try:
            if not begun:
                begin(target)
            publish(target, tensors, texts)
            self._world.pulse.kept()
            prune(self._folder, self._settings.keep, best_step)
        except NOT_WRITTEN as failed:
            self._warn(target, str(failed))
        except BaseException as broken:
            self._broken = broken
        else:
            if self._mirror is not None:
                self._mirror.follow(target.name, best_step)

    def _warn(self, target: Path, failed: str) -> None:
        if self._world.leads:
            shutil.rmtree(partial_of(target), ignore_errors=True)
            there = names(self._folder)
            stays = f"{there[-1]} stays the newest" if there else "there is none before it"
            log.warning("no checkpoint %s in %s (%s); %s", target.name, self._folder, failed, stays)


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


def _state_of(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def _progress_of(state: Mapping[str, Any]) -> Progress:
    """A checkpoint of an older version may tell less."""
    known = {field.name for field in fields(Progress)}
    return Progress(**{name: value for name, value in state["progress"].items() if name in known})
