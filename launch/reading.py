"""What the nodes of a job will read and keep, told from the plan of an epoch and the dataset's index alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline import Dataset, plan_epoch, rank_places
from data_pipeline.resident import slot_count, slots_of
from data_pipeline.stream import read_at_a_time
from trainer.config import Config
from trainer.feasible import GIGABYTE, learnt_folds

Cache = Literal["none", "too small", "part", "all"]
"""Of shards on a node's disk: there are none kept there; its bound is below what is read at a time, so none are kept
either; or it holds a part of the dataset's, or all."""


@dataclass(frozen=True, slots=True)
class NodeReading:
    """A node's part of a training: which of its ranks read how many scans, from how many shards, and what stays.

    Of the first epoch: later ones read other scans, as far as these are not kept. bytes and held_out_bytes come from
    the store: whole shards, once for all ranks, where the node's disk keeps them; else scan by scan.
    """

    node: int
    ranks: tuple[int, ...]
    scans: int
    """Different scans that it trains on in the epoch."""
    shards: int
    """Shards that these lie in."""
    bytes: int
    held_out_scans: int
    """Scans that it judges in a validation, which reads them at their own resolution."""
    held_out_bytes: int
    resident_scans: int
    """How many of the epoch's scans stay decoded in its shared memory."""
    resident_bytes: int


def node_readings(config: Config, dataset: Dataset, nodes: int, processes: int) -> tuple[NodeReading, ...]:
    """What each node reads and keeps in the first epoch. The batch must be divided by nodes x processes."""
    index, batch = dataset.index, config.training.batch
    order = plan_epoch(index, learnt_folds(config, dataset), config.seed, 0, batch).order % len(index.samples)
    held_out = np.array(dataset.positions([config.data.fold]))
    whole_shards = cache_of(config, dataset, nodes) in ("part", "all")
    kept = kept_scans(config, dataset)

    def size(positions: NDArray[np.int64]) -> int:
        if whole_shards:
            return sum(index.shards[shard].bytes for shard in np.unique(index.shard_of[positions]))
        return sum(index.samples[position].length for position in positions.tolist())

    readings = []
    for node in range(nodes):
        ranks = range(node * processes, (node + 1) * processes)
        entries = order[:, rank_places(batch, nodes, node)].ravel()
        scans = np.unique(entries)
        judged = np.concatenate([held_out[rank :: nodes * processes] for rank in ranks])
        resident = int(kept[scans].sum())
        readings.append(
            NodeReading(
                node=node,
                ranks=tuple(ranks),
                scans=len(scans),
                shards=len(np.unique(index.shard_of[scans])),
                bytes=size(entries),
                held_out_scans=len(judged),
                held_out_bytes=size(judged),
                resident_scans=resident,
                resident_bytes=resident * scan_bytes(config),
            )
        )
    return tuple(readings)


def cache_of(config: Config, dataset: Dataset, nodes: int) -> Cache:
    """What of the dataset's shards the disk of each node can keep."""
    if dataset.cache is None:
        return "none"
    if not dataset.cache.holds(read_at_a_time(dataset.index, config.training.batch // nodes)):
        return "too small"
    return "all" if dataset.cache.holds(sum(shard.bytes for shard in dataset.index.shards)) else "part"


def kept_scans(config: Config, dataset: Dataset) -> NDArray[np.bool_]:
    """Which scans have a place in a node's shared memory, bool [samples]."""
    samples = len(dataset.index.samples)
    slots = slot_count(samples, config.data.size, int(config.data.resident_gb * GIGABYTE))
    kept: NDArray[np.bool_] = slots_of(samples, slots) >= 0
    return kept


def scan_bytes(config: Config) -> int:
    """Bytes of a decoded scan there, an image and a mask."""
    height, width = config.data.size
    return 2 * height * width
