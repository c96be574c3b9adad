"""Shards: scans packed into plain tars that any WebDataset reader opens, and the index that knows each byte.

A dataset is a folder or an S3 prefix with shards and `index.json`. The index is written last and only once,
so a dataset without one does not exist, and of two writers one wins. A shard's name holds a piece of its
sha256, so a second writer can never replace the bytes that the first one's index speaks of. A shard holds
scans of one fold, so a training reads nothing of the fold that it holds out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipeline.codecs import CODECS, decode, encode_image, encode_mask
from data_pipeline.faults import Fault, WrongCall
from data_pipeline.folds import straddling
from data_pipeline.index import INDEX, Index, Sample, Shard, index_text, parse_index
from data_pipeline.nodecache import NodeCache
from data_pipeline.objectstore import Store, open_store
from data_pipeline.ordered import in_order
from data_pipeline.scan import Scan

MEGABYTE = 1 << 20
BLOCK = 512
"""Bytes that a tar is made of."""


@dataclass(frozen=True)
class Dataset:
    """An index, and the store that each of its shards lies in; with a cache, shards are read from this node's disk.

    parts are the datasets that it was joined from, if it was.
    """

    uri: str
    index: Index
    stores: tuple[Store, ...]
    cache: NodeCache | None = None
    parts: tuple[Dataset, ...] = ()

    def folds(self) -> dict[int, int]:
        """Number of scans of each fold."""
        return dict(sorted(Counter(sample.fold for sample in self.index.samples).items()))

    def positions(self, folds: Collection[int] | None = None) -> list[int]:
        """Positions in the index of the scans of these folds, or of all. Raises WrongCall for one that is absent."""
        if folds is None:
            return list(range(len(self.index.samples)))
        present = self.folds()
        for fold in folds:
            if fold not in present:
                raise WrongCall(f"{self.uri} has no fold {fold}; its folds are {', '.join(map(str, present))}")
        return [position for position, sample in enumerate(self.index.samples) if sample.fold in folds]

    def scan(self, position: int) -> Scan:
        """Read and decode one scan; its image may be read-only. Raises Fault, naming shard and key, for damage."""
        sample = self.index.samples[position]
        store, shard = self.stores[sample.shard], self.index.shards[sample.shard]
        try:
            data = self._read(store, shard, sample)
            return scan_from_members(members_of(data, sample.key), sample)
        except DamagedSample as damaged:
            raise Fault(f"{store.uri}/{shard.name}: {damaged}") from damaged

    def counters(self) -> dict[str, float]:
        """What this process has asked of the stores and the cache so far, and what went wrong: sums by name."""
        sums: Counter[str] = Counter()
        for store in {store.uri: store for store in self.stores}.values():
            sums.update(store.counters.snapshot())
        if self.cache is not None:
            sums.update({f"cache_{name}": count for name, count in self.cache.snapshot().items()})
        return dict(sums)

    def _read(self, store: Store, shard: Shard, sample: Sample) -> bytes:
        """A sample's slice of its shard, as it was written."""
        if self.cache is not None:
            data = self.cache.read(store, shard, sample.offset, sample.length)
            if zlib.crc32(data) == sample.crc32:
                return data
            self.cache.discard(shard)
            data = self.cache.read(store, shard, sample.offset, sample.length)
        else:
            data = store.read(shard.name, sample.offset, sample.length)
        if zlib.crc32(data) != sample.crc32:
            raise DamagedSample(f"{sample.key}: its bytes are not those that were written; {TELLS_MORE}")
        return data


class DamagedSample(Fault):
    """A sample whose bytes are not what the index says."""


TELLS_MORE = "`sonotrain data verify` tells more"


def open_dataset(uri: str) -> Dataset:
    """The dataset there. Raises WrongCall where none lies, Fault where its index is damaged."""
    store = open_store(uri)
    if not store.exists(INDEX):
        raise WrongCall(f"{store.uri} holds no dataset (no {INDEX}); `sonotrain data ingest` writes one")
    index = parse_index(store.read(INDEX), store.uri)
    return Dataset(store.uri, index, (store,) * len(index.shards))


def write_dataset(
    uri: str,
    name: str,
    scans: Iterable[Scan],
    folds: Mapping[str, int],
    refused: Mapping[str, str],
    codec: str = "png",
    shard_mb: int = 32,
) -> Index:
    """Pack scans, in their order, into shards of about shard_mb and publish their index.

    folds gives each key's fold; where it changes, a new shard begins. refused is read when all scans are written,
    so it may fill up meanwhile. Raises WrongCall where a dataset lies already, no scan came, or a key came twice or
    cannot name files in a tar.
    """
    if codec not in CODECS:
        raise WrongCall(f"there is no codec {codec}; choose one of {', '.join(CODECS)}")
    store = open_store(uri)
    require_free(store)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="sonotrain-") as scratch, _Packer(store, Path(scratch)) as packer:
        checked = _with_usable_keys(scans, store.uri)
        encoded = in_order(lambda scan: (scan, _members(scan, folds[scan.key], codec)), checked, os.cpu_count() or 1)
        for scan, members in encoded:
            fold = folds[scan.key]
            if packer.packed >= shard_mb * MEGABYTE or (packer.packed and samples[-1].fold != fold):
                packer.finish_shard()
            samples.append(packer.add(scan, members, fold))
        shards = packer.finish()
    if not samples:
        raise WrongCall(f"no usable scan came, so nothing is published at {store.uri}")
    index = Index(name, codec, tuple(shards), tuple(samples), dict(refused))
    store.publish(INDEX, index_text(index))
    return index


def require_free(store: Store) -> None:
    """Make sure that a dataset can be written there. Raises WrongCall where one lies already."""
    store.make()
    if store.exists(INDEX):
        raise WrongCall(f"{store.uri} holds a dataset already; name another place or remove that one first")


def verify_dataset(uri: str, seen: Callable[[Shard], None] = lambda _: None) -> list[str]:
    """Read everything again and say what is wrong, in a line each; an empty list means that it is sound."""
    dataset = open_dataset(uri)
    samples = dataset.index.samples
    wrong = straddling(samples, {sample.key: sample.fold for sample in samples})
    for number, shard in enumerate(dataset.index.shards):
        try:
            data = dataset.stores[number].read(shard.name)
        except Fault as unreadable:
            wrong.append(str(unreadable))
            continue
        if len(data) != shard.bytes:
            wrong.append(f"{shard.name}: {len(data)} bytes, the index says {shard.bytes}")
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            wrong.append(f"{shard.name}: its bytes are not those that were written (sha256 differs)")
        for sample in dataset.index.samples:
            if sample.shard == number:
                try:
                    piece = data[sample.offset : sample.offset + sample.length]
                    scan_from_members(_members_by_webdataset(piece, sample.key), sample)
                except Fault as damaged:
                    wrong.append(f"{shard.name}: {damaged}")
        seen(shard)
    return wrong


def members_of(data: bytes, key: str) -> dict[str, bytes]:
    """The files of one sample's slice of a tar, by their name after the key. What precedes a slash is not the tar's.

    Raises DamagedSample when they are no such files, or another sample's.
    """
    stem = key.rpartition("/")[2].encode() + b"."
    members: dict[str, bytes] = {}
    place = 0
    while place + BLOCK <= len(data):
        name, _, _ = data[place : place + 100].partition(b"\0")
        size = data[place + 124 : place + 135]
        if data[place + 156] != ord("0") or not name.startswith(stem) or not re.fullmatch(rb"[0-7]+", size):
            return _members_by_webdataset(data, key)  # a name too long for its header, or damage, which that names
        begin = place + BLOCK
        length = int(size, 8)
        members[name[len(stem) :].decode()] = data[begin : begin + length]
        place = begin + -(-length // BLOCK) * BLOCK
    return members


def scan_from_members(members: Mapping[str, bytes], sample: Sample) -> Scan:
    """Decode a sample's files. Raises DamagedSample when they are not what the index says."""
    image = _pixels(members, "image", sample)
    mask = _pixels(members, "mask", sample) > 0
    return Scan(sample.key, image, mask, sample.patient, sample.group, sample.label, sample.spacing)


class _Packer:
    """Writes one shard after the other to scratch files and from there to the store, so that none is held in memory.

    A shard goes to the store while the next one is packed.
    """

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        self._file: BinaryIO | None = None
        self._sent: list[Future[Shard]] = []
        self._sender = ThreadPoolExecutor(1)

    def __enter__(self) -> _Packer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()

    @property
    def packed(self) -> int:
        """Bytes of the shard that is being packed; 0 for none."""
        return self._file.tell() if self._file else 0

    def add(self, scan: Scan, members: Mapping[str, bytes], fold: int) -> Sample:
        """Append a scan's files to the shard."""
        if self._file is None:
            self._file = (self._scratch / f"{len(self._sent)}.tar").open("wb")
        start = self.packed
        data = b"".join(_tar_member(f"{scan.key}.{suffix}", content) for suffix, content in members.items())
        self._file.write(data)
        height, width = scan.image.shape
        return Sample(
            scan.key, scan.patient, scan.group, fold, scan.label, height, width, scan.spacing,
            len(self._sent), start, len(data), zlib.crc32(data),
        )  # fmt: skip

    def finish_shard(self) -> None:
        """End the shard and have it sent; the one before it has to have arrived, so that scratch stays small."""
        assert self._file is not None
        end = self.packed + 2 * BLOCK
        self._file.write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self._file.close()
        if self._sent:
            self._sent[-1].result()
        self._sent.append(self._sender.submit(self._send, Path(self._file.name), len(self._sent)))
        self._file = None

    def finish(self) -> list[Shard]:
        """All shards, when all have arrived."""
        if self._file is not None:
            self.finish_shard()
        return [sent.result() for sent in self._sent]

    def _send(self, path: Path, number: int) -> Shard:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(f"shard-{number:05d}-{sha256[:12]}.tar", path.stat().st_size, sha256)
        self._store.put(shard.name, path)
        path.unlink()
        return shard


def _tar_member(name: str, content: bytes) -> bytes:
    """A file as it lies in a tar. Time, owner and mode are always the same: equal scans give equal bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    header = entry.tobuf(tarfile.GNU_FORMAT, tarfile.ENCODING)
    return header + content + bytes(-len(content) % BLOCK)


def _with_usable_keys(scans: Iterable[Scan], uri: str) -> Iterator[Scan]:
    keys: set[str] = set()
    for scan in scans:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", scan.key):
            raise WrongCall(f"{scan.key!r} is no key, which is made of letters, digits, dash and underscore")
        if scan.key in keys:
            raise WrongCall(f"the key {scan.key} came twice; nothing is published at {uri}")
        keys.add(scan.key)
        yield scan


def _members(scan: Scan, fold: int, codec: str) -> dict[str, bytes]:
    about = {
        "key": scan.key,
        "patient": scan.patient,
        "group": scan.group,
        "fold": fold,
        "label": scan.label,
        "spacing_mm": scan.spacing,
    }
    return {
        f"image.{codec}": encode_image(scan.image, codec),
        "mask.png": encode_mask(scan.mask),
        "json": json.dumps(about).encode(),
    }


def _members_by_webdataset(data: bytes, key: str) -> dict[str, bytes]:
    """members_of by webdataset's own reader, ten times as slow."""
    try:
        found = list(group_by_keys(tar_file_expander([{"url": key, "stream": io.BytesIO(data)}])))
    except (tarfile.TarError, ValueError, EOFError) as broken:
        raise DamagedSample(f"{key}: its bytes are no tar members; {TELLS_MORE}") from broken
    owners = [members["__key__"] for members in found]
    if owners != [key.rpartition("/")[2]]:
        raise DamagedSample(f"{key}: the index places it where {', '.join(owners) or 'nothing'} lies; ingest again")
    members: dict[str, bytes] = found[0]
    return members


def _pixels(members: Mapping[str, bytes], part: str, sample: Sample) -> NDArray[np.uint8]:
    """The part's pixels, [height, width] as the index says."""
    pixels = decode(members, part)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (sample.height, sample.width):
        raise DamagedSample(f"{sample.key}: its {part} is damaged or missing; {TELLS_MORE}")
    return pixels  # type: ignore[no-any-return]
