"""Checkpoints: saved, found and loaded, at any world size and ZeRO stage.

A checkpoint is a folder `step-00001234`, published by its manifest, which holds the sha256 of every other file
and is written last. Tensors are safetensors keyed by parameter name, the rest is JSON: nothing executes on
load, and torch and safetensors alone can read it.

    generator.safetensors       parameters and buffers, float32: with network.json, a model to use
    network.json                how to build the network, and the size and threshold it is used at
    discriminators.safetensors  the same for the other side
    *.moments.safetensors       Adam's two moments, `exp_avg/NAME` and `exp_avg_sq/NAME`
    state.json                  where the run stands, and its configuration
    manifest.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline import Fault
from trainer.config import Config
from trainer.engines import Engines
from trainer.processes import World

log = logging.getLogger("sonotrain")

MANIFEST = "manifest.json"
STATE = "state.json"
NETWORK = "network.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: step counts iterations from the start, batch those of the epoch at hand (from 0)."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_dsc: float = -1.0
    best_epoch: int = 0
    best_step: int = 0


def save(folder: Path, engines: Engines, progress: Progress, config: Config, digest: str, world: World) -> None:
    """Publish a checkpoint below folder and remove older ones, but for the best. Every rank calls it.

    A disk that is full loses this checkpoint with a warning, and neither the run nor the checkpoint before it.
    """
    average_buffers(engines.generator.module, world)
    average_buffers(engines.discriminators.module, world)
    tensors = {
        **_tensors("generator", engines.generator),
        **_tensors("discriminators", engines.discriminators),
    }
    if world.leads:
        target = folder / f"step-{progress.step:08d}"
        state = {"progress": asdict(progress), "config": config.flat(), "digest": digest}
        try:
            _publish(target, tensors, {NETWORK: network_description(config), STATE: state})
        except OSError as failed:
            log.warning("no checkpoint at step %d: %s; the one before it stays", progress.step, failed)
        else:
            _prune(folder, config.checkpoints.keep, progress.best_step)
    dist.barrier()


def newest(folder: Path, tell: Callable[[str], None] = log.warning) -> Path | None:
    """The newest sound checkpoint below folder, or None; a damaged one is named and passed over."""
    for candidate in reversed(_all(folder)):
        wrong = damage(candidate)
        if not wrong:
            return candidate
        tell(f"checkpoint {candidate} is damaged ({wrong}); going back to the one before it")
    return None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files by its manifest; empty when it is sound."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, sha256 in manifest["sha256"].items():
            if _sha256(checkpoint / Path(name).name) != sha256:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as broken:
        return f"{type(broken).__name__}: {broken}"
    return ""


def load(checkpoint: Path | None, engines: Engines, world: World, settle: Callable[[], None]) -> Progress:
    """Bring both engines to a checkpoint's state. Every rank calls it; rank 0's files are the ones that count.

    settle takes one iteration on anything: the optimizers' state exists only after a step, and all that the
    iteration did is overwritten. Where rank 0 has no checkpoint nothing is touched, and the run is at its beginning.
    """
    state = world.tell(_read_json(checkpoint / STATE) if checkpoint and world.leads else None)
    if state is None:
        return Progress()
    settle()
    progress = Progress(**state["progress"])
    for side, engine in (("generator", engines.generator), ("discriminators", engines.discriminators)):
        values = moments = None
        if world.leads:
            assert checkpoint is not None
            values = load_file(checkpoint / f"{side}.safetensors")
            moments = load_file(checkpoint / f"{side}.moments.safetensors")
        _restore(engine, values, moments, progress.step)
    return progress


def network_description(config: Config) -> dict[str, Any]:
    """How to build the network that a configuration trains, and how it is used: what network.json holds."""
    return {
        "network": config.network.name,
        "settings": {"in_channels": 1, "widths": list(config.network.widths)},
        "size": list(config.data.size),
        "threshold": 0.5,
    }


def average_buffers(module: nn.Module, world: World) -> None:
    """Give every rank the mean of all ranks' buffers: each has batch statistics of its own share of the scans."""
    if world.size == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world.size


def _tensors(side: str, engine: Any) -> dict[str, dict[str, Tensor]]:
    """What the two files of a side hold: collective where ZeRO shares the values out."""
    module: nn.Module = engine.module
    values = {name: whole(engine, parameter, None) for name, parameter in module.named_parameters()}
    values |= {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers()}
    moments = {
        f"{moment}/{name}": whole(engine, parameter, moment)
        for name, parameter in module.named_parameters()
        for moment in MOMENTS
    }
    return {f"{side}.safetensors": values, f"{side}.moments.safetensors": moments}


def whole(engine: Any, parameter: nn.Parameter, moment: str | None) -> Tensor:
    """A parameter's float32 value, or one of its moments, from wherever its ZeRO stage keeps it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        value = parameter.data if moment is None else engine.optimizer.state[parameter][moment]
    elif moment is None:
        value = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, moment)
    return value.detach().float().cpu().clone().contiguous()


def _restore(engine: Any, values: dict[str, Tensor] | None, moments: dict[str, Tensor] | None, step: int) -> None:
    """Set everything an engine learns from rank 0's tensors; the other ranks hand in None."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    def told(source: dict[str, Tensor] | None, name: str, like: Tensor) -> Tensor:
        value = torch.empty_like(like, memory_format=torch.contiguous_format)
        if source is not None:
            if name not in source or source[name].shape != like.shape:
                raise Fault(f"the checkpoint has no {name} of shape {tuple(like.shape)}; it is another network's")
            value.copy_(source[name])
        dist.broadcast(value, src=0)
        return value

    whole = engine.zero_optimization_stage() == 0
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            value = told(values, name, parameter)
            # The module's own copy too: the next forward would still use the one from before.
            parameter.data.copy_(value)
            if not whole:
                safe_set_full_fp32_param(parameter, value)
            for moment in MOMENTS:
                state = told(moments, f"{moment}/{name}", parameter)
                if whole:
                    engine.optimizer.state[parameter][moment].copy_(state)
                else:
                    safe_set_full_optimizer_state(parameter, state, moment)
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(told(values, name, buffer))
        for state in engine.optimizer.state.values():
            state["step"].fill_(step)


def _publish(target: Path, tensors: Mapping[str, dict[str, Tensor]], texts: Mapping[str, Any]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, content in tensors.items():
            save_file(content, partial / name)
        for name, text in texts.items():
            (partial / name).write_text(json.dumps(text, indent=1), encoding="utf-8")
        sha256 = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"format": 1, "sha256": sha256}, indent=1), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)  # only a damaged one can stand where a run comes again
        partial.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _prune(folder: Path, keep: int, best_step: int) -> None:
    for old in _all(folder)[:-keep]:
        if old.name != f"step-{best_step:08d}":
            shutil.rmtree(old, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    """Every checkpoint's folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
