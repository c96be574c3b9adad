"""The WebDataset pipeline that carries a plan out: ranged reads, tar members, scans, batches, in the plan's order.

Reading and decoding go on in threads ahead of the training. However many there are, what comes out is the
same, in the same order, since each stage hands on in the order in which it was handed.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.faults import Fault
from data_pipeline.objectstore import open_store
from data_pipeline.pixels import resize_gray
from data_pipeline.scan import Scan
from data_pipeline.shards import Dataset, Sample, members_of, scan_from_members

T = TypeVar("T")
R = TypeVar("R")

BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """image uint8 [B, 1, H, W]; mask uint8 [B, 1, H, W] in {0, 1}; keys [B]."""

    image: Tensor
    mask: Tensor
    keys: tuple[str, ...]


def stream_batches(
    dataset: Dataset, places: NDArray[np.int64], size: tuple[int, int], readers: int = 4
) -> Iterator[Batch]:
    """A rank's batches at (height, width), one for each row of places [batches, B] (EpochPlan.for_rank).

    To begin in the middle of an epoch, leave out the rows that are done: nothing before them is read.
    """

    def fitted(scan: Scan) -> tuple[str, NDArray[np.uint8], NDArray[np.uint8]]:
        return scan.key, resize_gray(scan.image, size), resize_mask(scan.mask, size)

    def batched(scans: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]) -> Iterator[Batch]:
        scans = iter(scans)
        while batch := list(islice(scans, places.shape[1])):
            keys, images, masks = zip(*batch, strict=True)
            yield Batch(torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(masks)[:, None]), keys)

    samples = [dataset.index.samples[position] for position in places.ravel()]
    pipeline = wds.DataPipeline(*_scans(dataset, samples, readers, fitted), batched)
    return _ahead(pipeline, BATCHES_AHEAD)


def stream_scans(dataset: Dataset, positions: Sequence[int], readers: int = 4) -> Iterator[Scan]:
    """The scans at these positions of the index, at their own resolution, in this order."""
    samples = [dataset.index.samples[position] for position in positions]
    return iter(wds.DataPipeline(*_scans(dataset, samples, readers, lambda scan: scan)))


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask bool [H, W] at another (height, width): inside where at least half of what a pixel covers is inside."""
    if mask.shape == size:
        return mask.astype(np.uint8)
    height, width = size
    covered: NDArray[Any] = mask.astype(np.float32)
    if (height - mask.shape[0]) * (width - mask.shape[1]) < 0:
        # OpenCV weighs by area only where no side grows or none shrinks, so here one side goes first.
        covered = cv2.resize(covered, (width, mask.shape[0]), interpolation=cv2.INTER_AREA)
    covered = cv2.resize(covered, (width, height), interpolation=cv2.INTER_AREA)
    return (covered >= 0.5).astype(np.uint8)


def _scans(dataset: Dataset, samples: Sequence[Sample], readers: int, finish: Callable[[Scan], R]) -> list[Any]:
    """The stages from a list of samples to finished scans."""

    def planned() -> Iterator[Sample]:
        yield from samples

    def read(planned: Generator[Sample, None, None]) -> Iterator[tuple[Sample, str, bytes]]:
        def fetch(sample: Sample) -> tuple[Sample, str, bytes]:
            shard = dataset.index.shards[sample.shard].name
            return sample, shard, dataset.store.read(shard, sample.offset, sample.length)

        return _in_order(fetch, planned, readers)

    def decoded(pieces: Generator[tuple[Sample, str, bytes], None, None]) -> Iterator[R]:
        def decode(piece: tuple[Sample, str, bytes]) -> R:
            sample, shard, data = piece
            try:
                scan = scan_from_members(members_of(data, sample.key), sample)
            except Fault as damaged:
                raise Fault(f"{dataset.uri}/{shard}: {damaged}") from damaged
            return finish(scan)

        return _in_order(decode, pieces, readers)

    return [planned, read, decoded]


def _in_order(work: Callable[[T], R], items: Generator[T, None, None], threads: int) -> Iterator[R]:
    """map() by several threads: results come in the items' order, and few items are held at once.

    The items' generator is closed at the end, whatever that is: an error's traceback would keep its threads alive.
    """
    with closing(items), ThreadPoolExecutor(threads) as pool:
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Hand items on from a thread that keeps up to depth of them ready; its error is raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        source = iter(items)
        try:
            for item in source:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, None))
        except BaseException as error:  # whatever it is, the consumer has to see it
            put((None, error))
        finally:
            if hasattr(source, "close"):
                source.close()

    threading.Thread(target=fill, name="sonotrain-stream", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def _open_s3(url: str, mode: str = "rb", *_: Any, **__: Any) -> BinaryIO:
    """webdataset's opener for s3://bucket/key, so that any of its readers can read our shards from a store."""
    if not mode.startswith("r"):
        raise Fault(f"{url}: shards are written by `sonotrain data ingest`, not through webdataset")
    folder, name = url.rsplit("/", 1)
    return open_store(folder).open(name)


wds.gopen_schemes["s3"] = _open_s3
