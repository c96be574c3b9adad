"""Where trials run: a Ray of this machine alone, or the cluster that RAY_ADDRESS names; and what has room on it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import torch
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_pipeline import Fault, WrongCall, open_store
from trainer.config import Config
from tuning.ray_session import ADDRESS, LOOPBACK, member_of, private_ray
from tuning.settings import Tune

if TYPE_CHECKING:
    from tuning.keeper import Versions

LOOK_TIMEOUT = 180.0
"""Seconds that nodes have to start a process, to read a dataset's index and to answer."""

_LEAVE_TIMEOUT = 10.0

_log = logging.getLogger("sonotrain")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster: Ray's id, its hostname and address, the cores and GPUs that Ray may give away on it."""

    id: str
    name: str
    address: str
    cpus: int
    gpus: int


class Cluster:
    """The machines that trials may have."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        """Those that were there when it was joined."""
        self._keepers: dict[str, ray.actor.ActorHandle] = {}

    def shape(self, tune: Tune) -> PlacementGroupFactory:
        """What a trial takes: for each of its machines all cores and GPUs of its processes there.

        Raises WrongCall where there are not enough machines that could ever hold it.
        """
        asked = {"CPU": tune.processes * tune.cpus}
        if self._gpus_of_a_process(tune, asked["CPU"]):
            asked["GPU"] = tune.processes
        shape = PlacementGroupFactory(
            [dict(asked)] * tune.nodes, strategy="STRICT_SPREAD" if tune.nodes > 1 else "STRICT_PACK"
        )
        if self.room(shape) < 1:
            raise WrongCall(self._too_small(tune, asked))
        return shape

    def room(self, shape: PlacementGroupFactory) -> int:
        """How many trials of that shape find room at the same time."""
        asked, machines = shape.bundles[0], len(shape.bundles)
        held = [_times(node, asked) for node in self.nodes]
        # So many trials fit, each on as many different machines, if the machines hold that many parts of theirs, of
        # which none can hold two of the same trial.
        trials = sum(held) // machines
        while sum(min(most, trials) for most in held) < trials * machines:
            trials -= 1
        return trials

    def check_nodes(
        self, config: Config, digest: str, shared: str, versions: Versions, timeout: float = LOOK_TIMEOUT
    ) -> None:
        """Raise Fault, in one line, for the first node on which a trial could not be carried out.

        There has to be the same sonotrain (by `versions`), the dataset of that digest, and `shared`: the folder, or
        prefix of a store, to which trials write.
        """
        store = open_store(shared)
        store.make()
        token, secret = f"seen-{secrets.token_hex(8)}", secrets.token_bytes(16)
        store.publish(token, secret)
        try:
            expected = versions()
            asked = {
                node: self._keeper(node).look.remote(versions, expected, config, digest, shared, token, secret)
                for node in self.nodes
                if node.cpus
            }
            for node, wrong in _answers(asked, timeout).items():
                if wrong:
                    raise Fault(f"node {node.name}: {wrong}")
        finally:
            with suppress(Fault):
                store.delete(token)

    def keep_scans(self, config: Config, timeout: float = LOOK_TIMEOUT) -> None:
        """Have each node keep the decoded scans of a configuration until the end, for one trial after the other.

        A node that cannot costs a warning: its trials decode for themselves.
        """
        asked = {node: self._keeper(node).keep.remote(config) for node in self.nodes if node.cpus}
        try:
            _answers(asked, timeout)
        except Fault as failed:
            _log.warning("%s; its trials decode scans for themselves", failed)

    def close(self) -> None:
        """Have nodes let go of what they keep."""
        if not ray.is_initialized():  # what is asked of a Ray that has ended would start another one
            return
        left = [keeper.leave.remote() for keeper in self._keepers.values()]
        if left:
            ray.wait(left, num_returns=len(left), timeout=_LEAVE_TIMEOUT)
        for keeper in self._keepers.values():
            ray.kill(keeper)
        self._keepers.clear()

    def _keeper(self, node: Node) -> ray.actor.ActorHandle:
        from tuning.keeper import Keeper

        if node.id not in self._keepers:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            self._keepers[node.id] = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=there).remote()
        return self._keepers[node.id]

    def _gpus_of_a_process(self, tune: Tune, cpus: int) -> int:
        if tune.gpus is not None:
            return tune.gpus
        candidates = [node for node in self.nodes if node.cpus >= cpus]
        return int(bool(candidates) and all(node.gpus for node in candidates))

    def _too_small(self, tune: Tune, asked: Mapping[str, int]) -> str:
        many = f"{tune.nodes} machines of it have " if tune.nodes > 1 else ""
        where = "each machine of a trial" if many else "a trial"
        needs = f"tune.processes={tune.processes}, tune.cpus={tune.cpus}: {where} takes {_told(asked)}"
        most = max((node for node in self.nodes), key=lambda node: (node.gpus >= asked.get("GPU", 0), node.cpus))
        enough = sum(1 for node in self.nodes if _times(node, asked))
        if tune.nodes > 1 and enough:
            return f"tune.nodes={tune.nodes}, {needs}, which {enough} of {len(self.nodes)} machines have; ask for fewer"
        has = _told({"CPU": most.cpus, "GPU": most.gpus})
        return f"{needs}, and the largest machine, {most.name}, has {has}; ask for less"


def check_cores(tune: Tune, cores: int) -> None:
    """Raise WrongCall where this machine is all there is, and has not enough for a trial: known before a Ray starts."""
    if os.environ.get(ADDRESS, "") in ("", "local"):
        Cluster([Node("", socket.gethostname(), LOOPBACK, cores, torch.cuda.device_count())]).shape(tune)


@contextmanager
def joined_cluster(cores: int) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names, or so many cores of this machine under a Ray that ends with the block.

    Raises Fault where the cluster does not let us in: nothing answers, or its Ray or Python is another.
    """
    address = os.environ.get(ADDRESS, "")
    with member_of(address) if address not in ("", "local") else private_ray(cores):
        cluster = Cluster(_nodes())
        try:
            yield cluster
        finally:
            cluster.close()


def _nodes() -> list[Node]:
    return [
        Node(
            each["NodeID"],
            each["NodeManagerHostname"],
            each["NodeManagerAddress"],
            int(each["Resources"].get("CPU", 0)),
            int(each["Resources"].get("GPU", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def _times(node: Node, asked: Mapping[str, float]) -> int:
    """How often a node holds that."""
    has = {"CPU": node.cpus, "GPU": node.gpus}
    return min(int(has[what] // amount) for what, amount in asked.items())


def _told(amounts: Mapping[str, int]) -> str:
    units = {"CPU": "core", "GPU": "GPU"}
    said = [f"{amount} {units[what]}{'s' * (amount != 1)}" for what, amount in amounts.items()]
    return " and ".join(said)


def _answers(asked: Mapping[Node, ray.ObjectRef], timeout: float) -> dict[Node, str]:
    """What each node answers. Raises Fault naming one that does not."""
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout)
    answers = {}
    for node, reference in asked.items():
        if reference not in ready:
            raise Fault(f"node {node.name}: does not answer within {timeout:.0f} s; is it overloaded?")
        try:
            answers[node] = ray.get(reference)
        except Exception as failed:  # the process there, or Ray for it
            last = str(failed).strip().splitlines()[-1]
            missing = "ModuleNotFoundError" in str(failed) or "failed to import" in str(failed)
            what = "has no sonotrain for Ray's Python; install it there" if missing else "cannot be looked at"
            raise Fault(f"node {node.name}: {what} ({last})") from failed
    return answers
