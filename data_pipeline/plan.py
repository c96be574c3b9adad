"""EpochPlan: which sample is read when, and by whom. Pure arithmetic; nothing is read to know it.

An epoch has one global order, whatever the number of ranks. It is made so that each rank reads its share of
the bytes and hardly more:

1. Shards are shuffled, and samples within each shard: the *reading order*, in which a shard's samples lie
   together.
2. The reading order is cut into as many consecutive stretches as a global batch has places. Place p of batch
   b is the b-th sample of stretch p. So a batch has scans from all over the dataset, while each place walks
   through few shards, one after the other.
3. A rank holds a contiguous part of the places, so it reads one contiguous part of the reading order: its
   share of the bytes, and at most two shards that it has in common with a neighbour.

The last batch is filled up with the first batch's samples at the same places, which their rank reads anyhow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.faults import WrongCall
from data_pipeline.index import Index

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """order: [batches, global batch], positions in the index's samples. samples of them count, the rest fill up."""

    order: Positions
    samples: int

    @property
    def batches(self) -> int:
        """Global batches of the epoch: the same for every rank."""
        return int(self.order.shape[0])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """[batches, global batch], False at the places that only fill up the last batch."""
        return np.arange(self.order.size).reshape(self.order.shape) < self.samples

    def for_rank(self, world: int, rank: int) -> Positions:
        """[batches, global batch / world], what this rank reads. Raises WrongCall when world does not divide it."""
        return self.order[:, rank_places(self.order.shape[1], world, rank)]

    def shuffling(self, index: Index) -> Shuffling:
        """How far scans come apart in the epoch that lie side by side in a shard."""
        place = np.full(len(index.samples), -1)
        first = self.counted & (self.order < len(index.samples))
        place[self.order[first]] = np.flatnonzero(first)
        side_by_side = (index.shard_of[1:] == index.shard_of[:-1]) & (place[1:] >= 0) & (place[:-1] >= 0)
        if not side_by_side.any():
            return Shuffling(0.0, 0.0, 0.0)
        before, after = place[:-1][side_by_side], place[1:][side_by_side]
        apart = float(np.abs(after - before).mean())
        batch = self.order.shape[1]
        return Shuffling(apart, apart / self.samples, float((before // batch == after // batch).mean()))


@dataclass(frozen=True, slots=True)
class Shuffling:
    """Of scans side by side in a shard: how far apart in the epoch on average, in scans and as a fraction of it.

    A perfect shuffle has a third of it. in_one_batch is the fraction of them that shares a batch.
    """

    apart: float
    of_epoch: float
    in_one_batch: float


def plan_epoch(
    index: Index, folds: Collection[int] | None, seed: int, epoch: int, global_batch: int, shuffle: bool = True
) -> EpochPlan:
    """The epoch's plan: a function of the arguments and the index's digest alone. folds None means all.

    Where the index has weights, a sample comes as often as they say, its n-th repetition as n times the number of
    samples plus its position: of half a time, in every second epoch.
    """
    chosen = np.arange(len(index.samples)) if folds is None else np.flatnonzero(np.isin(index.fold_of, list(folds)))
    if not chosen.size:
        raise WrongCall(f"no scan of {index.name} is in folds {', '.join(map(str, folds or ()))}")
    if index.weights:
        chosen = _repeated(chosen, np.array(index.weights)[chosen], len(index.samples), f"{index.digest} {seed}", epoch)
    if shuffle:
        chosen = _reading_order(chosen, index, f"{index.digest} {seed} {epoch}")
    return EpochPlan(_places(chosen, global_batch), int(chosen.size))


def rank_places(global_batch: int, world: int, rank: int) -> slice:
    """The contiguous places of a global batch that a rank holds."""
    if not 0 <= rank < world:
        raise WrongCall(f"rank {rank} is not one of 0 to {world - 1}")
    if global_batch % world:
        raise WrongCall(f"a global batch of {global_batch} cannot be shared by {world} processes; choose a multiple")
    share = global_batch // world
    return slice(rank * share, (rank + 1) * share)


def _repeated(chosen: Positions, weights: NDArray[np.float64], samples: int, purpose: str, epoch: int) -> Positions:
    """Each position as often as its weight says; of what is left of a weight, a part of its samples in turn.

    The samples of one weight stand in a random order of their own, of which each epoch takes the next stretch.
    """
    repeated = []
    for weight in np.unique(weights):
        alike = chosen[weights == weight]
        times = int(weight)
        part = max(round((weight - times) * alike.size), int(times == 0))
        repeated += [alike + time * samples for time in range(times)]
        in_turn = alike[np.argsort(scrambled(alike, _base(purpose)), kind="stable")]
        repeated.append(np.take(in_turn, np.arange(epoch * part, (epoch + 1) * part), mode="wrap") + times * samples)
    return np.sort(np.concatenate(repeated))


def _reading_order(chosen: Positions, index: Index, purpose: str) -> Positions:
    """Shards in random order, and in each its samples in random order."""
    base = _base(purpose)
    repetition, position = np.divmod(chosen, len(index.samples))
    shards = index.shard_of[position] + repetition * len(index.shards)
    order = np.lexsort((scrambled(chosen, base), shards, scrambled(shards, ~base)))
    return chosen[order]


def _base(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")


def _places(reading_order: Positions, global_batch: int) -> Positions:
    """Cut the reading order into a stretch for each place; the first stretches have the odd samples."""
    batches = -(-reading_order.size // global_batch)
    in_last_batch = reading_order.size - (batches - 1) * global_batch
    place = np.arange(global_batch)
    start = place * (batches - 1) + np.minimum(place, in_last_batch)
    order = start + np.arange(batches)[:, None]
    # An epoch smaller than one batch has no first batch to fill up from: it repeats itself.
    filling = order[0] if batches > 1 else place % reading_order.size
    order[-1, in_last_batch:] = filling[in_last_batch:]
    filled: Positions = reading_order[order]
    return filled


def scrambled(numbers: Positions, base: int) -> NDArray[np.uint64]:
    """A random-looking 64 bit word for each number: the splitmix64 finaliser (Steele et al., 2014).

    Written out rather than taken from a library's generator, whose stream may change with its version.
    """
    with np.errstate(over="ignore"):
        words = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        words += np.uint64(base & 0xFFFFFFFFFFFFFFFF)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
