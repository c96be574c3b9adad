"""The loaders that are compared: ours and others, each as its own documentation has it used, all with one decoder.

Every one of them yields batches of the same pixels: image and mask uint8 [B, 1, H, W], with the scans' keys.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipeline import (
    NodeCache,
    Sample,
    open_dataset,
    open_store,
    plan_epoch,
    resident_scans,
    resize_mask,
    stream_batches,
)
from data_pipeline.pixels import resize_gray
from data_pipeline.resident import SHARED_MEMORY
from data_pipeline.shards import scan_from_members

SHUFFLE_BUFFER = 1000
"""Scans that webdataset shuffles among, as its documentation has it."""

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Delivered = tuple[tuple[str, ...], Tensor, Tensor]
"""Keys [B], image uint8 [B, 1, H, W] and mask uint8 [B, 1, H, W] in {0, 1}."""

Epochs = Callable[[int], Iterator[Delivered]]
"""The batches of an epoch, by its number."""

Pixels = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one process reads: from where, with how many threads (ours) or worker processes (the others).

    folder holds the set in the loader's format; uri is that folder or its copy in S3. scratch is empty and its own.
    """

    loader: str
    codec: str
    folder: Path
    uri: str
    scratch: Path
    size: tuple[int, int]
    batch: int
    readers: int
    workers: int = 0
    resident: bool = False

    @property
    def remote(self) -> bool:
        """Whether it is read from S3."""
        return self.uri.startswith("s3://")


class Decoder:
    """A scan's files to pixels at the size of training, by the functions that our own stream uses."""

    def __init__(self, samples: Mapping[str, Sample], codec: str, size: tuple[int, int]) -> None:
        self._samples = samples
        self._image = f"image.{'npy' if codec == 'npy' else 'png'}"
        self._size = size

    def __call__(self, key: str, image: bytes, mask: bytes) -> Pixels:
        """Key, image uint8 [H, W] and mask uint8 [H, W]. Raises Fault where they are not what the index says."""
        scan = scan_from_members({self._image: image, "mask.png": mask}, self._samples[key])
        return key, resize_gray(scan.image, self._size), resize_mask(scan.mask, self._size)

    def of_record(self, record: Mapping[str, Any]) -> Pixels:
        """The same of a record with `key`, `image` and `mask`."""
        return self(record["key"], record["image"], record["mask"])

    def of_tar(self, members: Mapping[str, Any]) -> Pixels:
        """The same of a sample as webdataset gives it."""
        return self(members["__key__"], members[self._image], members["mask.png"])


def stacked(scans: Iterable[Pixels]) -> Delivered:
    """Scans as one batch."""
    keys, images, masks = zip(*scans, strict=True)
    return keys, torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(masks)[:, None])


class Loader(Protocol):
    """One way to read a set. distribution is the package that it comes from, as an index of packages names it."""

    distribution: str

    def ready(self) -> None:
        """Import what it needs, so that no clock sees it."""

    def open(self, reading: Reading, decode: Decoder) -> AbstractContextManager[Epochs]:
        """Read as long as the context lasts."""


class Sonotrain:
    """Our stream: from S3 through a node cache that is empty at first; resident scans stay decoded in memory."""

    distribution = "sonotrain"

    def ready(self) -> None:
        """Nothing that is not imported here."""

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:  # noqa: ARG002 - it decodes by itself
        """The plan's epochs; what only fills up the last batch is left out."""
        dataset = open_dataset(reading.uri)
        if reading.remote:
            node = NodeCache(reading.scratch / "cache", sum(shard.bytes for shard in dataset.index.shards))
            dataset = replace(dataset, cache=node)
        budget = 2 * math.prod(reading.size) * len(dataset.index.samples) if reading.resident else 0
        with (
            TemporaryDirectory(dir=SHARED_MEMORY, prefix="sonotrain-bench-") as empty,
            resident_scans(dataset.index, reading.size, budget, Path(empty)) as resident,
        ):

            def epoch(number: int) -> Iterator[Delivered]:
                plan = plan_epoch(dataset.index, None, 0, number, reading.batch)
                places = plan.for_rank(1, 0)
                batches = stream_batches(dataset, places, reading.size, reading.readers, resident)
                for batch, counted in zip(batches, plan.counted.sum(axis=1).tolist(), strict=True):
                    yield batch.keys[:counted], batch.image[:counted], batch.mask[:counted]

            yield epoch


class WebDataset:
    """Plain webdataset: tar shards in random order, a shuffle buffer, then decoding."""

    distribution = "webdataset"

    def ready(self) -> None:
        """Import it."""
        import webdataset  # noqa: F401

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """A WebLoader over a WebDataset."""
        import webdataset as wds

        wds.gopen_schemes["s3"] = _open_object
        if reading.remote:
            _client(os.getpid())  # as others too have theirs when they have opened a set
        shards = [f"{reading.uri}/{path.name}" for path in sorted(reading.folder.glob("*.tar"))]
        # A worker without a shard is no error where shards are few.
        dataset = wds.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
        yield _data_loader(dataset.shuffle(SHUFFLE_BUFFER).map(decode.of_tar), stacked, reading, wds.WebLoader)


class LitData:
    """LitData's StreamingDataset and StreamingDataLoader."""

    distribution = "litdata"

    def ready(self) -> None:
        """Import it, and keep it from asking the index of packages for a newer version."""
        os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
        import litdata  # noqa: F401

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """A StreamingDataLoader over a StreamingDataset."""
        from litdata import StreamingDataLoader, StreamingDataset

        if reading.remote and _endpoint().startswith("http://"):
            from litdata.streaming import downloader

            # It has no option for a server without TLS, which its downloader refuses.
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
        chunks = str(reading.scratch) if reading.remote else None
        dataset = StreamingDataset(reading.uri, cache_dir=chunks, shuffle=True, transform=decode.of_record)
        yield _data_loader(dataset, stacked, reading, StreamingDataLoader)


class MosaicML:
    """MosaicML Streaming's StreamingDataset in torch's DataLoader."""

    distribution = "mosaicml-streaming"

    def ready(self) -> None:
        """Import its core alone.

        The package's own first lines import torchvision and transformers, for datasets that are not needed here, and
        torchvision's wheels do not match every build of torch: so the two packages begin empty, with their modules.
        """
        for name in ("streaming", "streaming.base"):
            if name not in sys.modules:
                found = importlib.util.find_spec(name)
                if found is None:
                    raise ModuleNotFoundError(name)
                sys.modules[name] = importlib.util.module_from_spec(found)
        import streaming.base.dataset  # noqa: F401

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """A DataLoader over a StreamingDataset."""
        from streaming.base.dataset import StreamingDataset

        if reading.remote:
            if endpoint := _endpoint():
                os.environ["S3_ENDPOINT_URL"] = endpoint  # it knows no other name
            place = {"remote": reading.uri, "local": str(reading.scratch / "mds")}
        else:
            place = {"local": str(reading.folder)}
        dataset = StreamingDataset(**place, shuffle=True, batch_size=reading.batch)

        def decoded(records: list[dict[str, Any]]) -> Delivered:
            return stacked(map(decode.of_record, records))

        yield _data_loader(dataset, decoded, reading, DataLoader)


class Files:
    """A torch Dataset over one image file and one mask file a scan."""

    distribution = "torch"

    def ready(self) -> None:
        """Nothing that is not imported here."""

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """A DataLoader that shuffles."""
        yield _data_loader(_Files(reading, decode), stacked, reading, DataLoader, shuffle=True)


class _Files(Dataset[Pixels]):
    def __init__(self, reading: Reading, decode: Decoder) -> None:
        self._keys = sorted(path.stem for path in reading.folder.glob("*.image"))
        self._folder = None if reading.remote else reading.folder
        self._store = open_store(reading.uri)
        self._decode = decode

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> Pixels:
        key = self._keys[number]
        return self._decode(key, self._read(f"{key}.image"), self._read(f"{key}.mask"))

    def _read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes() if self._folder else self._store.read(name)


def _open_object(url: str, *options: object, **more: object) -> Any:  # noqa: ARG001 - it is only opened to read
    """An S3 object as webdataset's users open one: the body of a GET."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return _client(os.getpid()).get_object(Bucket=bucket, Key=key)["Body"]


@cache
def _client(process: int) -> S3Client:  # noqa: ARG001 - each process has its own
    import boto3

    return boto3.session.Session().client("s3")


def _endpoint() -> str:
    """The S3 server's URL, or nothing for AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _data_loader(dataset: Any, collate: Callable[..., Delivered], reading: Reading, kind: Any, **more: Any) -> Epochs:
    """Epochs of a DataLoader, whose workers stay from one to the next."""
    persistent = reading.workers > 0
    loader = kind(
        dataset,
        batch_size=reading.batch,
        num_workers=reading.workers,
        collate_fn=collate,
        persistent_workers=persistent,
        **more,
    )

    def epoch(_: int) -> Iterator[Delivered]:
        return iter(loader)

    return epoch


LOADERS: Mapping[str, Loader] = {
    "sonotrain": Sonotrain(),
    "webdataset": WebDataset(),
    "litdata": LitData(),
    "mosaicml": MosaicML(),
    "files": Files(),
}
