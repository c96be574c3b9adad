"""The WebDataset pipeline that carries a plan out: scans read, decoded and brought to size ahead of the training.

Several threads work on the batches to come, each scan's pixels straight into its place of a batch. However many they
are, what comes out is the same, in the same order. A batch whose scans are all resident is gathered at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.faults import Fault
from data_pipeline.fitting import resize_mask
from data_pipeline.index import Index
from data_pipeline.objectstore import open_store
from data_pipeline.ordered import in_order
from data_pipeline.pixels import resize_gray
from data_pipeline.resident import Resident
from data_pipeline.scan import Scan
from data_pipeline.shards import Dataset

Positions = NDArray[np.int64]
Pixels = NDArray[np.uint8]

_log = logging.getLogger("sonotrain")

BATCHES_AHEAD = 4
"""Batches that are worked on while one is trained on."""

BATCHES_KEPT = BATCHES_AHEAD + 3
"""Batches whose memory is used again: also that which is trained on, the one before, and the one that is begun."""

PIECE = 8
"""Scans of a batch that a thread reads in one turn: with one at a time, taking turns costs a fifth of all time."""

SHARDS_AHEAD = 4
"""Shards fetched to the node's cache before the first of their scans is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """image uint8 [B, 1, H, W]; mask uint8 [B, 1, H, W] in {0, 1}; keys [B].

    The memory of a batch is used again when nothing refers to its tensors any more.
    """

    image: Tensor
    mask: Tensor
    keys: tuple[str, ...]


def stream_batches(
    dataset: Dataset,
    places: Positions,
    size: tuple[int, int],
    readers: int = 4,
    resident: Resident | None = None,
) -> Iterator[Batch]:
    """A rank's batches at (height, width), one for each row of places [batches, B] (EpochPlan.for_rank).

    To begin in the middle of an epoch, leave out the rows that are done: nothing before them is read. What resident
    holds is taken from there; what it does not, it is given. Raises Fault where a scan cannot be read.
    """
    samples = len(dataset.index.samples)
    memory = _Memory((places.shape[1], 1, *size))
    there = np.zeros(places.shape, np.bool_) if resident is None else resident.holds(places % samples)

    def planned() -> Iterator[Positions]:
        yield from places

    def gathered(rows: Iterable[Positions]) -> Iterator[Batch]:
        assert resident is not None
        for row in rows:
            images, masks = memory.take()
            resident.gather(row % samples, images, masks)
            yield _batch(images, masks, dataset, row)

    def loaded(rows: Iterable[Positions]) -> Iterator[Batch]:
        cached = _with_cache_for(dataset, places.shape[1])
        begun: deque[_Loading] = deque()
        with ThreadPoolExecutor(readers, "sonotrain-reader") as pool, _landing(cached, places) as landing:
            try:
                for number, row in enumerate(rows):
                    landing.reach(number)
                    begun.append(_Loading(cached, row, there[number], memory.take(), resident, pool))
                    if len(begun) > BATCHES_AHEAD:
                        yield begun.popleft().batch()
                while begun:
                    yield begun.popleft().batch()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return iter(wds.DataPipeline(planned, gathered if there.all() and places.size else loaded))


def stream_scans(dataset: Dataset, positions: Sequence[int], readers: int = 4) -> Iterator[Scan]:
    """The scans at these positions of the index, at their own resolution, in this order. Images may be read-only."""
    dataset = _with_cache_for(dataset, 1)

    def planned() -> Iterator[int]:
        with _landing(dataset, np.array(positions, dtype=np.int64)[:, None]) as landing:
            for number, position in enumerate(positions):
                landing.reach(number)
                yield position

    def decoded(planned: Iterable[int]) -> Iterator[Scan]:
        return in_order(dataset.scan, planned, readers)

    return iter(wds.DataPipeline(planned, decoded))


class _Loading:
    """A batch that is being read: what memory holds is taken now, the rest is in the hands of reader threads."""

    def __init__(
        self,
        dataset: Dataset,
        row: Positions,
        there: NDArray[np.bool_],
        pixels: tuple[Pixels, Pixels],
        resident: Resident | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._dataset, self._row, self._pixels, self._resident = dataset, row, pixels, resident
        self._positions = row % len(dataset.index.samples)
        absent = np.flatnonzero(~there)
        self._pending = [
            pool.submit(self._load, absent[begin : begin + PIECE]) for begin in range(0, absent.size, PIECE)
        ]
        if resident is not None:
            for place in np.flatnonzero(there).tolist():
                here = slice(place, place + 1)
                resident.gather(self._positions[here], pixels[0][here], pixels[1][here])

    def batch(self) -> Batch:
        """The batch, when all its scans have come. Raises the first one's error."""
        for loading in self._pending:
            loading.result()
        return _batch(*self._pixels, self._dataset, self._row)

    def _load(self, places: Positions) -> None:
        """Scans to their places of the batch."""
        for place in places.tolist():
            position = int(self._positions[place])
            scan = self._dataset.scan(position)
            image, mask = self._pixels[0][place, 0], self._pixels[1][place, 0]
            size = (image.shape[0], image.shape[1])
            image[:] = resize_gray(scan.image, size)
            mask[:] = resize_mask(scan.mask, size)
            if self._resident is not None:
                self._resident.put(position, image, mask)


def _batch(images: Pixels, masks: Pixels, dataset: Dataset, row: Positions) -> Batch:
    keys = tuple([dataset.index.key_of(number) for number in row.tolist()])
    return Batch(torch.from_numpy(images), torch.from_numpy(masks), keys)


class _Memory:
    """Memory for batches, used again when nobody refers to it: fresh memory costs more than filling it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._kept: list[tuple[Pixels, Pixels]] = []

    def take(self) -> tuple[Pixels, Pixels]:
        """Images and masks, uint8 [B, 1, H, W], of any content."""
        for images, masks in self._kept:
            if sys.getrefcount(images) == _IN_USE_BY_NOBODY == sys.getrefcount(masks):
                return images, masks
        images, masks = np.empty(self._shape, np.uint8), np.empty(self._shape, np.uint8)
        if len(self._kept) < BATCHES_KEPT:
            self._kept.append((images, masks))
        return images, masks


_IN_USE_BY_NOBODY = 3
"""References to an array of _Memory while it is asked for them: its pair's, the variable's and the question's."""


class _Landing(Protocol):
    """Shards on their way to this node's disk."""

    def reach(self, number: int) -> None:
        """Fetch what this row and the next shards need."""


class _Nothing:
    """Where there is no cache, nothing has to land."""

    def reach(self, number: int) -> None:
        """Do nothing."""


class _Ahead:
    """Fetches shards to the cache in the order in which rows of positions need them."""

    def __init__(self, dataset: Dataset, places: Positions, pool: ThreadPoolExecutor) -> None:
        self._dataset, self._pool = dataset, pool
        shards, first = np.unique(dataset.index.shard_of[places % len(dataset.index.samples)], return_index=True)
        order = np.argsort(first)
        self._shards = shards[order].tolist()
        self._needed_by = (first[order] // places.shape[1]).tolist()
        self._begun = 0

    def reach(self, number: int) -> None:
        """Begin with all shards that the rows up to this one need, and some more."""
        needed = int(np.searchsorted(self._needed_by, number, side="right")) + SHARDS_AHEAD
        for shard in self._shards[self._begun : needed]:
            self._pool.submit(self._land, shard)
        self._begun = max(self._begun, min(needed, len(self._shards)))

    def _land(self, shard: int) -> None:
        """Its error is left to the reader that needs the shard."""
        index, cache = self._dataset.index, self._dataset.cache
        assert cache is not None
        cache.land(self._dataset.stores[shard], index.shards[shard])


@contextmanager
def _landing(dataset: Dataset, places: Positions) -> Iterator[_Landing]:
    if dataset.cache is None or not places.size:
        yield _Nothing()
        return
    pool = ThreadPoolExecutor(2, "sonotrain-landing")
    try:
        yield _Ahead(dataset, places, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def read_at_a_time(index: Index, places: int) -> int:
    """Bytes of the shards that a node reads from while its ranks hold so many places of a batch together."""
    sizes = [shard.bytes for shard in index.shards]
    return min(2 * places * max(sizes), sum(sizes))


def _with_cache_for(dataset: Dataset, places: int) -> Dataset:
    """The dataset without its cache where that is too small for the shards that a node's ranks read at a time."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as every launcher of such jobs says
    wanted = read_at_a_time(dataset.index, ranks * places)
    if dataset.cache is None or dataset.cache.holds(wanted):
        return dataset
    _log.warning(
        "the node's cache is too small for the %d MB that are read at a time; shards are read from their store",
        wanted >> 20,
    )
    return replace(dataset, cache=None)


def _open_s3(url: str, mode: str = "rb", *_: Any, **__: Any) -> BinaryIO:
    """webdataset's opener for s3://bucket/key, so that any of its readers can read our shards from a store."""
    if not mode.startswith("r"):
        raise Fault(f"{url}: shards are written by `sonotrain data ingest`, not through webdataset")
    folder, name = url.rsplit("/", 1)
    return open_store(folder).open(name)


wds.gopen_schemes["s3"] = _open_s3
