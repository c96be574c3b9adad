"""Run alone, with a dataset and a folder: what real trainings and real engines hold, printed as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.config import Config, load_config
from trainer.engines import start_engines
from trainer.feasible import dataset_of
from trainer.loop import settle, train_fold
from trainer.processes import World, end_process, joined
from trainer.step import MicroBatch, train_iteration

SIDES = (64, 192)
"""Of the scans of two trainings, the second of which needs much more than libraries do."""

PRECISIONS = ("fp32", "bf16")


def training_config(dataset: str, side: int) -> Config:
    return load_config(
        "quick",
        [
            f"data.uri={dataset}",
            f"data.size={side}x{side}",
            "data.resident_gb=0",
            "discriminators.strides=[2, 2, 1, 1, 1]" if side > 64 else "discriminators.strides=[1, 1, 1, 1, 1]",
            "training.epochs=1",
            "training.precision=fp32",
        ],
    )


def engine_config(zero: int = 0, precision: str = "fp32") -> Config:
    stages = [f"training.generator_zero={zero}", f"training.discriminator_zero={zero}"]
    scans = ["data.size=112x112", "training.batch=4", "validation.batch=1"]
    return load_config("quick", [*stages, *scans, f"training.precision={precision}"])


def main() -> None:
    dataset, folder = sys.argv[1], Path(sys.argv[2])
    peaks = {}
    with joined(1) as world:
        for side in SIDES:
            config = training_config(dataset, side).replace(output=str(folder / str(side)))
            train_fold(config, dataset_of(config), world, resident=None)
            peaks[side] = _peak()
        held = [_held_by_engines(engine_config(zero), world) for zero in (0, 1, 2)]
        allocated = {precision: _allocated(engine_config(precision=precision), world) for precision in PRECISIONS}
    print(json.dumps({"peaks": peaks, "held": held, "allocated": allocated}))


def _peak() -> int:
    """The most memory that this process has held, bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def _held_by_engines(config: Config, world: World) -> dict[str, int]:
    """Values of all engines: weights and copies of them, the gradients that Adam is given, and its moments."""
    engines = start_engines(config, world.size, world.device)
    held = {"weights": 0, "gradients": 0, "moments": 0}
    buckets = []
    for side in engines.sides:
        optimizer = side.engine.optimizer
        adam = optimizer if config.training.generator_zero == 0 else optimizer.optimizer

        def note(adam: Any, *_: object) -> None:
            values = [parameter for group in adam.param_groups for parameter in group["params"]]
            held["gradients"] += sum(parameter.grad.numel() for parameter in values)

        adam.register_step_pre_hook(note)
        buckets.append(getattr(optimizer, "reduce_bucket_size", 0))
    settle(engines, config, world)
    for side in engines.sides:
        optimizer = side.engine.optimizer
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        blocks = [*side.engine.module.parameters(), *own]
        held["weights"] += sum(block.numel() for block in {id(block): block for block in blocks}.values())
        states = optimizer.state.values()
        held["moments"] += sum(state[name].numel() for state in states for name in ("exp_avg", "exp_avg_sq"))
    engines.destroy()
    return held | {"bucket": max(buckets)}


def _allocated(config: Config, world: World) -> int:
    """Bytes that an iteration has from torch's allocator at its most, as the profiler sees it."""
    engines = start_engines(config, world.size, world.device)
    image = torch.rand(config.training.batch, 1, *config.data.size).contiguous(memory_format=torch.channels_last)
    piece = MicroBatch(image, (image > 0.5).float())
    train_iteration(engines, [piece], config.objective)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_iteration(engines, [piece], config.objective)
    events = profiled.profiler.kineto_results.events()
    now = most = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    engines.destroy()
    return most


if __name__ == "__main__":
    main()
    end_process(0)
