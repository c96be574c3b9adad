"""What ZeRO stage 3 shares out, in a checkpoint of DeepSpeed's own: a folder beside the portable files.

DeepSpeed would pickle it and, on load, unpickle whatever the file says, which can execute anything (its
TorchCheckpointEngine calls torch.load with weights_only=False). Here it loads with weights_only=True, and two plain
classes of its own are all that is let through beside tensors and numbers; the files are checked by the manifest before.
Its scripts for converting them are left out. All processes must see the same folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_pipeline import Fault, WrongCall
from trainer.checkpoint_files import begin
from trainer.engines import SHARED_OUT
from trainer.processes import World

FOLDER = "generator.zero3"


def is_shared_out(engine: Any) -> bool:
    """Whether no process holds the engine's whole network."""
    return bool(engine.zero_optimization_stage() == SHARED_OUT)


def save_shared(engine: Any, target: Path, world: World) -> str:
    """Begin the checkpoint `target` with DeepSpeed's files, written when this returns. Collective.

    Gives, on every rank, what a disk said that did not take them, else nothing. Raises Fault where the processes do
    not write to the same folder.
    """
    partial, failed = target, ""
    if world.leads:
        try:
            partial = begin(target)
        except OSError as refused:
            failed = str(refused)
    partial, failed = world.tell((partial, failed))
    if failed:
        return failed
    files = _files_of(engine)
    engine.save_checkpoint(str(partial), tag=FOLDER, save_latest=False)
    failed, files.failed = next(filter(None, world.gather([files.failed])), ""), ""
    there = world.tell(sum(1 for _ in (partial / FOLDER).glob("*_optim_states.pt")) if world.leads else 0)
    if not failed and there != world.size:
        raise Fault(
            f"{target.parent}: {there} of {world.size} processes wrote to it; training.generator_zero=3 needs an "
            "output folder that all processes share"
        )
    return failed


def load_shared(engine: Any, checkpoint: Path) -> None:
    """Bring the engine to what DeepSpeed's files hold. Collective. Raises Fault where they cannot be read."""
    _files_of(engine)
    try:
        path, _ = engine.load_checkpoint(str(checkpoint), tag=FOLDER)
    except pickle.UnpicklingError as broken:
        raise Fault(f"{checkpoint / FOLDER} holds something else than tensors and numbers: not loaded") from broken
    except (OSError, RuntimeError, ValueError, AssertionError) as broken:
        raise Fault(f"{checkpoint / FOLDER} cannot be read: {str(broken).splitlines()[0]}") from broken
    if path is None:
        raise Fault(f"{checkpoint / FOLDER} is not to be seen by every process; they must share the output folder")


def require_same_layout(engine: Any, world: World, state: Mapping[str, Any], name: str) -> None:
    """Raise WrongCall for a checkpoint that was shared out at stage 3 and is to go on otherwise, or the other way."""
    saved, now = state["config"]["training.generator_zero"], engine.zero_optimization_stage()
    if SHARED_OUT not in (saved, now) or (saved, state["world_size"]) == (now, world.size):
        return
    raise WrongCall(
        f"{name} was saved with training.generator_zero={saved} by {state['world_size']} processes, and this run has "
        f"{now} and {world.size}: to and from stage 3 a run cannot be moved; go on as it was, or name another output"
    )


class _PlainFiles:
    """DeepSpeed's files: nothing executes on load, and a disk that is full leaves no rank waiting for the others."""

    def __init__(self, own: Any) -> None:
        self.failed = ""
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def save(self, state_dict: Any, path: str) -> None:
        try:
            torch.save(state_dict, path)
        except (OSError, RuntimeError) as full:
            self.failed = str(full).partition("\n")[0]

    def load(self, path: str, map_location: Any = None) -> Any:
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum

        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum]):
            return torch.load(path, map_location=map_location, weights_only=True)


def _files_of(engine: Any) -> _PlainFiles:
    """How the engine reads and writes its files, from now on."""
    if not isinstance(engine.checkpoint_engine, _PlainFiles):
        engine.checkpoint_engine = _PlainFiles(engine.checkpoint_engine)
        engine._copy_recovery_script = lambda _: None
    files: _PlainFiles = engine.checkpoint_engine
    return files
