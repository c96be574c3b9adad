"""Run by each of two ranks: rank 1 is late, again and again; rank 0 tells as JSON how long it waited for it, and how.

At last rank 1 does not come at all. Both have a group of DeepSpeed's beside the first one and that of StopRequest.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from deepspeed.utils.groups import _clone_world_group

from trainer.processes import World, end_process, joined
from trainer.stopping import StopRequest
from trainer.waiting import Apart, apart_in_one_line

BRIEF, LONG = 0.5, 60.0


@contextmanager
def told(told: dict[str, list[object]], name: str, world: World) -> Iterator[None]:
    """Note how long this took and with which fault it ended."""
    began, said = time.monotonic(), ""
    try:
        with apart_in_one_line(world.rank, world.pulse):
            yield
    except Apart as apart:
        said = str(apart)
    told[name] = [round(time.monotonic() - began, 1), said]


def main() -> None:
    came: dict[str, list[object]] = {}
    with joined(LONG / 60) as world:
        stop = StopRequest(world)
        clone = _clone_world_group()
        number = torch.ones(1)
        spare = [dist.new_group(timeout=timedelta(seconds=LONG)) for _ in range(2)]
        for group in (clone, *spare):
            dist.all_reduce(number, group=group)
        world.pulse.moved(step=17)
        world.waits.at_most(BRIEF / 60)
        with told(came, "long", world), world.waits.within(LONG / 60):
            time.sleep(2 * BRIEF * world.rank)
            world.gather([world.rank])
        # A group whose wait was in vain is of no more use: each of these has one of its own.
        waits: dict[str, Callable[[], object]] = {
            "clone": lambda: dist.all_reduce(number, group=clone),
            "host": lambda: [stop.asked(step) for step in (1, 2)],
            "spare": lambda: dist.broadcast(number, src=1, group=spare[0]),
            "first": lambda: world.gather([world.rank]),
        }
        if world.rank == 0:
            for name, wait in waits.items():
                with told(came, name, world):
                    wait()
        else:
            with told(came, "gone", world), world.waits.within(LONG / 60):
                dist.all_reduce(number, group=spare[1])  # until rank 0 has ended
        print(json.dumps(came), flush=True)
        end_process(0)


if __name__ == "__main__":
    main()
