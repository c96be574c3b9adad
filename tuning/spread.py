"""A training on all machines of a trial: on each one its share of the ranks, started where Ray keeps room for it.

The trial itself is on the first machine. On each other one an actor of its own starts that machine's share, which dies
with it, as it does with the trial.
"""

from __future__ import annotations

import socket
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuning.training import GRACE, STOPPED, Order, Place, Running, Start

ANSWER_TIMEOUT = 30.0
"""Seconds that a machine has, beside what it is asked to do, before it counts as lost."""


def begun(start: Start, order: Order, processes: int, cpus: int) -> Running | Spread:
    """A training started on the machines of the trial that this process carries out, or on this one.

    Raises OSError where the folder of the training cannot be written to.
    """
    group = ray.util.get_current_placement_group() if ray.is_initialized() else None
    if group is None or group.bundle_count == 1:
        return Running(start, order, processes, cpus)
    return Spread(group, start, order, processes, cpus)


class Spread:
    """A training under way on as many machines as the group has bundles, of which the first is this one."""

    def __init__(self, group: PlacementGroup, start: Start, order: Order, processes: int, cpus: int) -> None:
        address = ray.util.get_node_ip_address()
        with socket.create_server((address, 0)) as listener:
            port = listener.getsockname()[1]
        self._own = Running(start, order, processes, cpus, Place(0, group.bundle_count, address, port))
        self._others = [
            _Other(group, place, start, order, processes, cpus)
            for place in (Place(node, group.bundle_count, address, port) for node in range(1, group.bundle_count))
        ]
        self._ended: int | None = None
        self._why = ""

    def status(self) -> int | None:
        """Its exit status, None while it runs: the first one that is not 0. Where one machine fails, all are ended."""
        if self._ended is not None:
            return self._ended
        shares: tuple[_Other | Running, ...] = (*self._others, self._own)
        found = {share: share.status() for share in shares}
        failed = next((share for share, status in found.items() if status not in (None, 0, STOPPED)), None)
        if failed is not None:
            self._why = failed.why()
            self._end(found[failed] or 1)
        elif None not in found.values():
            self._end(next((status for status in found.values() if status), 0))
        return self._ended

    def stop(self, grace: float = GRACE) -> None:
        """Have it write a checkpoint and end on all machines; after grace seconds it is killed."""
        asked = [other.ask_to_stop(grace) for other in self._others]
        self._own.stop(grace)
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_TIMEOUT)
        self._end(STOPPED)

    def why(self) -> str:
        """In one line, what it ended of: on the machine where it failed first."""
        return self._why or self._own.why()

    def _end(self, status: int) -> None:
        """Let go of the other machines, on which all of it ends, and of this one."""
        for other in self._others:
            other.end()
        if self._own.status() is None:
            self._own.stop(0)
        self._ended = status


class _Other:
    """The share of another machine, seen from the first one."""

    def __init__(
        self, group: PlacementGroup, place: Place, start: Start, order: Order, processes: int, cpus: int
    ) -> None:
        bundle = group.bundle_specs[place.node]
        there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place.node)
        actor: Any = ray.remote(Running).options(
            num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=there
        )
        self._actor = actor.remote(start, order, processes, cpus, place)
        self._machine = _machine(group, place.node)
        self._answer = self._actor.status.remote()
        self._lost = ""

    def status(self) -> int | None:
        """What it told last; 1 where it cannot be asked any more."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return None
        try:
            status: int | None = ray.get(self._answer)
        except RayError as failed:
            self._lost = f"the training's part on {self._machine} is lost: {_last_line(failed)}"
            return 1
        if status is None:
            self._answer = self._actor.status.remote()
        return status

    def ask_to_stop(self, grace: float) -> ray.ObjectRef:
        """Have it write a checkpoint and end; what is given is there when it has."""
        return self._actor.stop.remote(grace)

    def why(self) -> str:
        """What it ended of."""
        if self._lost:
            return self._lost
        try:
            told: str = ray.get(self._actor.why.remote(), timeout=ANSWER_TIMEOUT)
        except RayError as failed:
            return f"the training's part on {self._machine} is lost: {_last_line(failed)}"
        return f"on {self._machine}: {told}"

    def end(self) -> None:
        """Kill its actor, and with it whatever it started."""
        ray.kill(self._actor)


def _machine(group: PlacementGroup, bundle: int) -> str:
    """The hostname of the machine that holds a bundle."""
    node = placement_group_table(group)["bundles_to_node_id"][bundle]
    names = {each["NodeID"]: each["NodeManagerHostname"] for each in ray.nodes()}
    return str(names.get(node, node))


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
