"""One process of the doctor's training: two iterations on phantoms, by the parts that every training is made of.

    python -P -m launch.doctor.rank CONFIG RESULT

CONFIG is a configuration as JSON; rank 0 writes RESULT, JSON too.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from data_pipeline import Fault, plan_epoch, stream_batches
from launch.terminal import complain
from trainer.config import Config
from trainer.engines import start_engines
from trainer.feasible import check, dataset_of, learnt_folds
from trainer.loop import iterate, micro_batches
from trainer.prefetch import on_device
from trainer.processes import World, end_process, joined

STEPS = 2
"""The first of which is slower, for it makes what the next ones use again."""

EXCHANGED = 16 << 20
"""Bytes of an exchange between all processes that is timed."""

_EXCHANGES = 5


def main() -> None:
    """Train, write the result, and end as a rank of a job does."""
    config = Config.model_validate_json(Path(sys.argv[1]).read_bytes())
    status = 0
    try:
        with joined(config.training.timeout_minutes) as world:
            result = _train(config, world)
            if world.leads:
                Path(sys.argv[2]).write_text(json.dumps(result))
    except Fault as fault:
        complain(str(fault))
        status = fault.exit_status
    except Exception as failed:
        complain(f"{type(failed).__name__}: {failed}")
        status = 1
    end_process(status)


def _train(config: Config, world: World) -> Mapping[str, Any]:
    dataset = dataset_of(config)
    check(config, dataset, world.size)
    engines = start_engines(config, world.size, world.device)
    plan = plan_epoch(dataset.index, learnt_folds(config, dataset), config.seed, 0, config.training.batch)
    places = plan.for_rank(world.size, world.rank)[:STEPS]
    read = stream_batches(dataset, places, config.data.size, config.data.readers, None)
    seconds = []
    for step, (image, mask, keys) in enumerate(on_device(read, world.device)):
        began = time.monotonic()
        iterate(engines, micro_batches(image, mask, keys, config, 0), config, step)
        _settle(world)
        seconds.append(time.monotonic() - began)
    result = {
        "steps": len(seconds),
        "images_per_second": config.training.batch / seconds[-1],
        "exchange_seconds": _exchange_seconds(world),
        "memory": _peak(world),
        "open_files": psutil.Process().num_fds(),
    }
    engines.destroy()
    return result


def _exchange_seconds(world: World) -> float | None:
    """For which all processes wait while they add up EXCHANGED bytes; None for one alone."""
    if world.size == 1:
        return None
    values = torch.zeros(EXCHANGED // 4, device=world.device)
    times = []
    for _ in range(_EXCHANGES):
        _settle(world)
        began = time.monotonic()
        dist.all_reduce(values)
        _settle(world)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def _settle(world: World) -> None:
    """Wait until this device, and every process, has come here."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


def _peak(world: World) -> int:
    """Bytes, at most, of this process so far: on its GPU, or of the machine's memory where it has none."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
