"""What engines learn, as named tensors: read from wherever a ZeRO stage keeps them, and set there again.

Adam's moments are `exp_avg/NAME` and `exp_avg_sq/NAME`; every name is that of a parameter or a buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline import Fault
from trainer.checkpoint_shared import is_shared_out
from trainer.engines import Engines
from trainer.processes import World

GENERATOR = "generator.safetensors"
LIVE = "generator.live.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by file and name."""


def sides_of(engines: Engines) -> Iterator[tuple[str, Any, str, str]]:
    """Each engine with the name of its side and those of the files for its weights and its moments."""
    weights = GENERATOR if engines.average is None else LIVE
    yield "generator", engines.generator, weights, "generator.moments.safetensors"
    if engines.discriminators is not None:
        side = "discriminators"
        yield side, engines.discriminators, f"{side}.safetensors", f"{side}.moments.safetensors"


def tensors_of(engines: Engines) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor of a checkpoint with its file and its name. Collective.

    Of a generator that stage 3 shares out, that is the network to use, and no moments.
    """
    for _, engine, weights, moments in sides_of(engines):
        if is_shared_out(engine):
            for name, value in values_of(engines.network_to_use()):
                yield weights, name, value
            continue
        for name, parameter in engine.module.named_parameters():
            yield weights, name, whole(engine, parameter, None)
            for moment in MOMENTS:
                yield moments, f"{moment}/{name}", whole(engine, parameter, moment)
        for name, buffer in engine.module.named_buffers():
            yield weights, name, buffer
    if engines.average is not None:
        for name, value in values_of(engines.average):
            yield GENERATOR, name, value


def values_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers."""
    for name, parameter in module.named_parameters():
        yield name, parameter.detach()
    yield from module.named_buffers()


def whole(engine: Any, parameter: nn.Parameter, moment: str | None) -> Tensor:
    """A parameter's float32 value, or one of its moments, from wherever its ZeRO stage (0 to 2) keeps it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        value = parameter.data if moment is None else engine.optimizer.state[parameter][moment]
    elif moment is None:
        value = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, moment)
    return value.detach().float()


def adam_steps(engines: Engines) -> dict[str, int]:
    """How often each side's Adam has stepped, by which it corrects its moments; a skipped step is none."""
    return {
        side: max((int(state["step"]) for state in engine.optimizer.state.values()), default=0)
        for side, engine, _, _ in sides_of(engines)
    }


def restore(engines: Engines, files: Files | None, steps: Mapping[str, int]) -> None:
    """Set everything that engines learn from rank 0's files; the other ranks hand in None. Collective.

    The optimizers must have taken a step before. A generator that stage 3 shares out is left alone. Raises Fault for
    the files of another network.
    """
    with torch.no_grad():
        for side, engine, weights, moments in sides_of(engines):
            if is_shared_out(engine):
                continue
            _restore(engine, files, weights, moments)
            for state in engine.optimizer.state.values():
                state["step"].fill_(steps[side])
        if engines.average is not None:
            for name, value in values_of(engines.average):
                value.copy_(_told(files, GENERATOR, name, value))


def average_buffers(module: nn.Module, world: World) -> None:
    """Give every rank the mean of all ranks' buffers: each has batch statistics of its own share of the scans."""
    if world.size == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world.size


class HostCopy:
    """Tensors copied to the host, always into the same memory: a fresh page costs more than what is copied to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[str, str], Tensor] = {}

    def of(self, file: str, name: str, value: Tensor) -> Tensor:
        """The copy of a tensor, which may still be on its way until `arrived`."""
        kept = self._kept.get((file, name))
        if kept is None:
            pinned = self._device.type == "cuda"
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
            self._kept[file, name] = kept
        return kept.copy_(value.detach(), non_blocking=True)

    def arrived(self) -> None:
        """Wait until every copy is complete."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _restore(engine: Any, files: Files | None, weights: str, moments: str) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    shared_out = engine.zero_optimization_stage() > 0
    for name, parameter in engine.module.named_parameters():
        value = _told(files, weights, name, parameter)
        # The module's own copy too: the next forward would still use the one from before.
        parameter.data.copy_(value)
        if shared_out:
            safe_set_full_fp32_param(parameter, value)
        for moment in MOMENTS:
            state = _told(files, moments, f"{moment}/{name}", parameter)
            if shared_out:
                safe_set_full_optimizer_state(parameter, state, moment)
            else:
                engine.optimizer.state[parameter][moment].copy_(state)
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(_told(files, weights, name, buffer))


def _told(files: Files | None, file: str, name: str, like: Tensor) -> Tensor:
    """Rank 0's tensor of this name, on every rank."""
    value = torch.empty_like(like, memory_format=torch.contiguous_format)
    if files is not None:
        kept = files.get(file, {}).get(name)
        if kept is None or kept.shape != like.shape:
            raise Fault(f"the checkpoint's {file} has no {name} of shape {tuple(like.shape)}; it is another network's")
        value.copy_(kept)
    dist.broadcast(value, src=0)
    return value
